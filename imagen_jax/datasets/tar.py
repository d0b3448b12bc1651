"""The members of a tar archive and where they lie: its headers alone are read, every number in them is bounded.

Nothing is unpacked. Formats: those of POSIX.1-2017, "pax Interchange Format" and "ustar Interchange Format", and GNU's,
with long names and sparse files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
# A name may be some kilobytes long, and what else a pax header has to say of a file too.
MAX_EXTENSION = 1 << 20
MAX_EXTENSIONS = 8  # such headers about one member
PADDING = 1 << 20  # how much of what follows the end of an archive is looked at

ReadAt = Callable[[int, int], bytes]  # (byte, count) → so many bytes from there, fewer where there are no more

FILE, FOLDER = "a file", "a folder"
KINDS = {
    b"0": FILE,
    b"\0": FILE,
    b"7": FILE,  # contiguous, to systems that know the difference
    b"1": "a link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"5": FOLDER,
    b"6": "a pipe",
    b"S": "a sparse file",
}
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
PAX, PAX_GLOBAL, LONG_NAME, LONG_LINK, SPARSE = b"x", b"g", b"L", b"K", b"S"


class TarError(Exception):
    """What is wrong with an archive, and where."""


class Member(NamedTuple):
    """A member of an archive: its headers lie at [start, data), its bytes at [data, data + size)."""

    name: str  # as it stands in the archive; bytes that are not UTF-8 as \\xNN
    kind: str  # FILE, or what else it is
    start: int
    data: int
    size: int

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.data + _padded(self.size)


def members(read: ReadAt, size: int) -> Iterator[Member]:
    """The members of an archive of ``size`` bytes, in order. Raises TarError where it is broken or cut short."""
    at = 0
    while member := member_at(read, at):
        if member.end > size:
            raise TarError(f"is cut short: {member.name!r} goes on to byte {member.end:,}, the file ends at {size:,}")
        yield member
        at = member.end
    if read(at, PADDING).strip(b"\0"):
        raise TarError(f"goes on after the end mark at byte {at:,}: give archives one by one, not joined")


def member_at(read: ReadAt, start: int) -> Member | None:
    """The member whose headers begin at a byte, None at the end mark. Raises TarError if there is neither."""
    at, name, size, sparse = start, "", None, False
    for _ in range(MAX_EXTENSIONS + 1):
        block = _whole(read, at, BLOCK)
        if at == start and not any(block):
            return None
        kind, own_name, own_size = _header(block, at)
        at += BLOCK
        if kind not in (PAX, PAX_GLOBAL, LONG_NAME, LONG_LINK):
            break
        if own_size > MAX_EXTENSION:
            raise TarError(f"has an extended header of {own_size:,} bytes before byte {at:,}")
        extension = _whole(read, at, own_size)
        at += _padded(own_size)
        if kind == LONG_NAME:
            name = _text(extension)
        elif kind == PAX:
            records = _pax_records(extension, at)
            name = records.get("path", name)
            size = _pax_size(records, at)
            sparse = any(keyword.startswith("GNU.sparse.") for keyword in records)
    else:
        raise TarError(f"has more than {MAX_EXTENSIONS} extended headers in a row, from byte {start:,}")
    if kind == SPARSE:
        at = _after_sparse_maps(read, at, block)
    known = "a sparse file" if sparse else KINDS.get(kind, "of no known kind")
    if kind in WITHOUT_DATA:
        size = 0
    return Member(name or own_name, known, start, at, own_size if size is None else size)


def _header(block: bytes, at: int) -> tuple[bytes, str, int]:
    """(kind, name, size) of a header block. Raises TarError unless its checksum is right."""
    # the checksum is of the block with spaces in the checksum's own place
    if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise TarError(f"has no tar header at byte {at:,}: it is broken there, or no tar archive")
    size = _number(block[124:136])
    if size is None:
        raise TarError(f"has a member without a size, at byte {at:,}")
    name, prefix = _text(block[:100]), _text(block[345:500])
    if block[257:263] == b"ustar\0" and prefix:
        name = f"{prefix}/{name}"
    return block[156:157], name, size


def _number(field: bytes) -> int | None:
    """A number of a header: octal digits, or for large ones binary after a byte 0x80. None if it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip() or b"0"
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else None


def _pax_records(extension: bytes, at: int) -> dict[str, str]:
    """Keyword → value. Each record is "LENGTH KEYWORD=VALUE\\n", and LENGTH counts all of it."""
    records, start = {}, 0
    while start < len(extension):
        length, _, _ = extension[start : start + 20].partition(b" ")
        end = start + int(length) if length.isdigit() else start
        keyword, equals, value = extension[start + len(length) + 1 : end].partition(b"=")
        if not equals or end > len(extension) or not value.endswith(b"\n"):
            raise TarError(f"has a broken pax header before byte {at:,}")
        records[_text(keyword)] = _text(value[:-1])
        start = end
    return records


def _pax_size(records: dict[str, str], at: int) -> int | None:
    """The size that pax records give a member, if they do: one that has no room in the member's own header."""
    size = records.get("size")
    if size is None:
        return None
    if not (size.isascii() and size.isdigit() and len(size) < 20):
        raise TarError(f"has a pax header with the size {size[:40]!r} before byte {at:,}")
    return int(size)


def _after_sparse_maps(read: ReadAt, at: int, block: bytes) -> int:
    """Where the data of GNU's sparse files begin: after more blocks, each of which says if there is another."""
    more = block[482]
    while more:
        more = _whole(read, at, BLOCK)[504]
        at += BLOCK
    return at


def _whole(read: ReadAt, at: int, count: int) -> bytes:
    """So many bytes from there. Raises TarError if there are fewer."""
    found = read(at, count)
    if len(found) < count:
        raise TarError(f"is cut short: it ends at byte {at + len(found):,}, without an end mark")
    return found


def _text(field: bytes) -> str:
    """The text of a field up to its NUL; what is no UTF-8 stands there as \\xNN, so that names stay different."""
    return field.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
