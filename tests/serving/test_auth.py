"""Tokens, names of clients, signed addresses, hosts and origins."""

import hmac

import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.serving.auth import Tokens, check_token, host_name, is_same_site


def test_token_is_found():
    tokens = Tokens(["first", "second"])
    assert [
        tokens.index(f"{scheme} {token}".encode()) for scheme, token in [("Bearer", "first"), ("bearer", "second")]
    ] == [0, 1]
    for wrong in (None, b"", b"Bearer", b"Bearer ", b"Bearer third", b"Basic first", b"first", b"Bearer first second"):
        assert tokens.index(wrong) is None
    assert not Tokens().are_needed and Tokens().index(b"Bearer ") is None


def test_tokens_are_compared_in_constant_time(monkeypatch):
    """Digests of one length, all of them, whatever was given."""
    compared = []

    def compare(first, second):
        compared.append((len(first), len(second)))
        return first == second

    tokens = Tokens(["first", "a much longer token than the first"])
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in (b"Bearer first", b"Bearer x", b"Bearer " + b"x" * 1000, None):
        tokens.index(given)
    assert compared == [(32, 32)] * 8


@pytest.mark.parametrize("token", ["", " ", "a b", "a\nb", "é", "a\x7fb"])
def test_wrong_token_is_refused(token):
    with pytest.raises(ConfigError, match="--token"):
        check_token(token, "--token")


def test_client_is_its_token_or_its_address():
    shared, own = Tokens(["one"]), Tokens(["one", "two"])
    assert shared.client(0, "192.0.2.1") == "192.0.2.1"
    assert own.client(0, "192.0.2.1") == own.client(0, "192.0.2.2") != own.client(1, "192.0.2.1")
    assert "one" not in own.client(0, "")
    # all addresses of one customer of a provider
    assert (
        shared.client(None, "2001:db8::1")
        == shared.client(None, "2001:db8::ffff:1")
        != shared.client(None, "2001:db8:1::1")
    )
    assert shared.client(None, "") == "local"


def test_signature_expires():
    tokens, path = Tokens(["one"]), "/v1/images/a-0.png"
    query = dict(part.split("=") for part in tokens.sign(path, now=3600.5).partition("?")[2].split("&"))
    for now, is_valid in [(0, True), (3600, True), (7199, True), (10799, True), (10800, False), (10**9, False)]:
        assert tokens.is_signed(path, query["expires"], query["signature"], now) == is_valid
    assert not tokens.is_signed("/v1/images/a-1.png", query["expires"], query["signature"], 3600)
    assert not Tokens(["one"]).is_signed(path, query["expires"], query["signature"], 3600)
    assert not tokens.is_signed(path, "9" * 40, query["signature"], 3600)
    assert Tokens().sign(path) == path


def test_host_names():
    names = ["localhost:8000", "LocalHost", "[::1]:80", "a.example.", "[", "a:b:c", "", "user@evil.example"]
    assert [host_name(name) for name in names] == [
        "localhost",
        "localhost",
        "::1",
        "a.example",
        "",
        "a",
        "",
        "evil.example",
    ]


def test_sites():
    assert is_same_site("http://a.example:8000", "A.example:8000", [])
    assert is_same_site("https://b.example", "a.example", ["https://b.example"])
    assert is_same_site("https://b.example", "a.example", ["*"])
    for origin in ("https://c.example", "null", "", "[", "http://a.example:80", "https://b.example.evil.example"):
        assert not is_same_site(origin, "a.example:8000", ["https://b.example"])
    assert not is_same_site("null", "", [])
