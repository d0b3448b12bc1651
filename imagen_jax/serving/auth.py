"""Who may use the server, and who a client is: tokens, addresses, hosts and origins, signatures of image URLs."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Collection, Sequence
from urllib.parse import quote, urlsplit

from imagen_jax.errors import ConfigError

SHORT_TOKEN = 16  # characters; a shorter one can be guessed
_URL_SECONDS = 3600  # a signed URL works for this long at least, and twice as long at most
_IPV6_PREFIX = 64  # bits; one customer of a provider has all addresses below it


def check_token(token: str, source: str) -> str:
    """Returns a token without surrounding space.

    Raises:
        ConfigError: it is empty, or has characters that no header can have.
    """
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{source} is empty or has characters other than printable ASCII without spaces: make one, for example, by "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def is_loopback(host: str) -> bool:
    """Returns whether a host to bind to is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Tokens:
    """The tokens that a server accepts; none lets everybody in.

    Args:
        tokens: of the clients.
    """

    def __init__(self, tokens: Sequence[str] = ()) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._url_key = secrets.token_bytes(32)

    @property
    def are_needed(self) -> bool:
        """Whether requests need a token."""
        return bool(self._digests)

    @property
    def are_several(self) -> bool:
        """Whether each client has a token of its own; its jobs are then seen by it alone."""
        return len(self._digests) > 1

    def index(self, authorization: bytes | None) -> int | None:
        """Returns the index of the token in an Authorization header, or None; in the same time for any wrong one."""
        scheme, _, token = (authorization or b"").partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return matches.index(True) if scheme.lower() == b"bearer" and any(matches) else None

    def client(self, index: int | None, address: str) -> str:
        """Returns the name of a client, by which the queue is shared: its own token, or else its address."""
        if index is not None and self.are_several:
            return f"token-{self._digests[index].hex()[:12]}"
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return "local"
        if parsed.version == 6:
            return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False).network_address)
        return str(parsed)

    def sign(self, path: str, now: float | None = None) -> str:
        """Returns the path of a URL that needs no token for one to two hours; the same path within an hour."""
        if not self.are_needed:
            return path
        hour = int((time.time() if now is None else now) // _URL_SECONDS)
        expires = (hour + 2) * _URL_SECONDS
        return f"{path}?expires={expires}&signature={self._signature(path, expires)}"

    def is_signed(self, path: str, expires: str, signature: str, now: float | None = None) -> bool:
        """Returns whether the query of a URL is one of `sign`, and not expired."""
        if not (expires.isascii() and expires.isdecimal() and len(expires) < 16):
            return False
        expected = self._signature(path, int(expires)).encode()
        is_right = hmac.compare_digest(expected, signature.encode("utf-8", "replace"))
        return is_right and int(expires) > (time.time() if now is None else now)

    def _signature(self, path: str, expires: int) -> str:
        message = f"{quote(path)}\n{expires}".encode()
        return hmac.new(self._url_key, message, hashlib.sha256).hexdigest()


def host_name(host: str) -> str:
    """Returns the name in a Host header or an authority, without the port, in lower case."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_same_site(origin: str, host: str, allowed: Collection[str]) -> bool:
    """Returns whether a request with an Origin header comes from this server's page, or from an allowed origin."""
    if origin in allowed or "*" in allowed:
        return True
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:
        return False
