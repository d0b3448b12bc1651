"""Parsing of tar headers, compared with the standard library, and on damaged and hostile archives."""

import io
import subprocess
import tarfile

import numpy as np
import pytest

from imagen_jax.datasets import tar
from imagen_jax.datasets.tar import BLOCK, DIRECTORY, FILE, TarError, iter_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "a long folder/" * 20


def read_all(data):
    return list(iter_members(lambda at, count: data[at : at + count], len(data)))


def archive(entries, form=tarfile.PAX_FORMAT):
    """Returns a tar file of members (TarInfo, bytes)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as writer:
        for info, data in entries:
            writer.addfile(info, io.BytesIO(data))
    return file.getvalue()


def info(name, size=0, kind=tarfile.REGTYPE, **fields):
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def files(*pairs, **options):
    return archive([(info(name, len(data)), data) for name, data in pairs], **options)


def with_checksum(block):
    """Returns a header block with a correct checksum."""
    blank = block[:148] + b" " * 8 + block[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("seed", range(5))
def test_members_match_tarfile(form, seed):
    rng = np.random.default_rng(seed)
    names = ["a.jpg", "folder/b.txt", f"{'d' * 60}/{'e' * 90}"]
    if form != tarfile.USTAR_FORMAT:
        names += [f"{LONG}c.json", "ünïcödé 写真.png"]
    entries = [(name, rng.bytes(int(rng.integers(0, 3 * BLOCK)))) for name in rng.permutation(names)]
    data = files(*entries, form=form)
    parsed = read_all(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as reader:
        assert [(m.name, m.data, m.size) for m in parsed] == [(m.name, m.offset_data, m.size) for m in reader]
    assert [(m.name, data[m.data : m.data + m.size]) for m in parsed] == entries
    assert {m.kind for m in parsed} == {FILE}
    # each member can be parsed from its own position alone
    assert [m.start for m in parsed] == [0, *(m.end for m in parsed[:-1])]
    for member in parsed:
        alone = data[member.start : member.end]
        again = tar.parse_member(lambda at, count, alone=alone: alone[at : at + count], 0)
        assert (again.name, alone[again.data : again.data + again.size]) == (
            member.name,
            data[member.data : member.data + member.size],
        )


def test_non_files_are_skipped():
    kinds = {
        tarfile.SYMTYPE: "a link",
        tarfile.LNKTYPE: "a link",
        tarfile.CHRTYPE: "a device",
        tarfile.BLKTYPE: "a device",
        tarfile.FIFOTYPE: "a pipe",
        tarfile.DIRTYPE: DIRECTORY,
    }
    entries = []
    for kind in kinds:
        entries += [(info("odd", kind=kind, linkname="/etc/passwd"), b""), (info("file", 3), b"abc")]
    parsed = read_all(archive(entries))
    assert [m.kind for m in parsed[::2]] == list(kinds.values())
    assert [(m.name, m.kind, m.size) for m in parsed[1::2]] == [("file", FILE, 3)] * len(kinds)


def test_link_size_is_ignored():
    """A link has no data, whatever its header says; otherwise it would hide the members that follow."""
    data = archive([(info("link", kind=tarfile.SYMTYPE, linkname="x"), b""), (info("file", 3), b"abc")])
    lying = with_checksum(data[:124] + b"%011o\0" % BLOCK + data[136:BLOCK]) + data[BLOCK:]
    assert [m.name for m in read_all(lying)] == ["link", "file"]


def test_sparse_files_are_skipped(tmp_path):
    """As written by GNU tar in both formats."""
    (tmp_path / "sparse.png").touch()
    with open(tmp_path / "sparse.png", "r+b") as file:
        for index in range(12):  # more islands than a header has room for
            file.seek(index << 20)
            file.write(b"island")
    (tmp_path / "file.txt").write_text("abc")
    for form in ("gnu", "pax"):
        command = ["tar", "--sparse", f"--format={form}", "-cf", f"{form}.tar", "sparse.png", "file.txt"]
        subprocess.run(command, cwd=tmp_path, check=True)
        first, second = read_all((tmp_path / f"{form}.tar").read_bytes())
        assert first.kind == "a sparse file"
        assert (second.name, second.kind, second.size) == ("file.txt", FILE, 3)


def test_invalid_utf8_names_stay_distinct():
    data = archive([(info("a\udcff"), b""), (info("a\udcfe"), b"")], form=tarfile.GNU_FORMAT)
    assert [m.name for m in read_all(data)] == ["a\\xff", "a\\xfe"]


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_truncated_archive_raises(form):
    data = files(("a.png", b"x" * 700), ("b.txt", b"y" * 10), form=form)
    end = read_all(data)[-1].end
    for length in range(0, end + BLOCK, 64):
        with pytest.raises(TarError, match="is cut short|goes on to byte"):
            read_all(data[:length])
    assert len(read_all(data[: end + BLOCK])) == 2


def test_damaged_header_raises():
    """Or it has no effect, as after the end of a number; no other error is raised."""
    data = bytearray(files(("n" * 120, b"x" * 700), ("b.txt", b"y")))
    message = read_all(bytes(data))
    rng = np.random.default_rng(0)
    for index in range(2 * BLOCK, 3 * BLOCK):  # the header proper, after the extended one
        changed = data.copy()
        changed[index] ^= int(rng.integers(1, 256))
        try:
            assert read_all(bytes(changed)) == message
            assert index in range(2 * BLOCK + 148, 2 * BLOCK + 156)
        except TarError:
            continue
    for _ in range(2000):
        noise = data.copy()
        for index in rng.integers(0, len(noise), 4):
            noise[index] = rng.integers(256)
        try:
            parsed = read_all(bytes(noise))
        except TarError:
            continue
        assert len(parsed) <= len(message)


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_raise(seed):
    with pytest.raises(TarError, match="has no tar header at byte 0"):
        read_all(np.random.default_rng(seed).bytes(4096))


def test_huge_extended_header_raises():
    asked = []
    huge = with_checksum(info("x", 1 << 40, tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT))

    def read(at, count):
        asked.append(count)
        return huge[at : at + count]

    with pytest.raises(TarError, match=r"has an extended header of 1,099,511,627,776 bytes"):
        list(iter_members(read, 1 << 50))
    assert max(asked) <= BLOCK


def test_too_many_extended_headers_raise():
    one = info("x", 0, tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(TarError, match="more than 8 extended headers in a row, from byte 0"):
        read_all(one * 1000)


def pax(records, name="plain.png"):
    return info("x", len(records), tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT) + (
        records + bytes(-len(records) % BLOCK) + info(name).tobuf(tarfile.USTAR_FORMAT) + bytes(2 * BLOCK)
    )


def test_pax_path_and_size():
    (parsed,) = read_all(pax(b"15 path=ab.png\n"))
    assert parsed.name == "ab.png"
    with pytest.raises(TarError, match="'plain.png' extends to byte 9,728"):
        read_all(pax(b"13 size=7777\n"))


@pytest.mark.parametrize(
    "records",
    [b"path=a\n", b"0 path=a\n", b"99 path=a\n", b"9 path=a ", b"8 patha\n", b"-9 path=a\n", b"9", b"\xff" * 9],
    ids=str,
)
def test_damaged_pax_headers_raise(records):
    with pytest.raises(TarError, match="pax header before byte 1,024"):
        read_all(pax(records))


@pytest.mark.parametrize("size", [b"-1", b"1e9", b"9" * 40, "٣".encode()], ids=str)
def test_invalid_sizes_raise(size):
    record = b" size=" + size + b"\n"
    record = b"%d%s" % (len(record) + 2, record)
    with pytest.raises(TarError, match="has a pax header with the size"):
        read_all(pax(record))


def test_concatenated_archives_raise():
    """Readers stop at the first end mark and would miss the rest."""
    one = files(("a.png", b"x"))
    with pytest.raises(TarError, match="after the end mark at byte 1,024"):
        read_all(one + one)


def test_binary_size_field():
    header = with_checksum(info("big", 3 << 33).tobuf(tarfile.GNU_FORMAT))
    parsed = tar.parse_member(lambda at, count: header[at : at + count], 0)
    assert parsed.size == 3 << 33
