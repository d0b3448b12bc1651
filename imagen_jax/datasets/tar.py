"""Positions of the members of a tar archive, from its headers alone. Every number in a header is bounded.

Nothing is unpacked. Formats: POSIX.1-2017, "pax Interchange Format" and "ustar Interchange Format", and GNU tar with
long names and sparse files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
_MAX_EXTENSION = 1 << 20  # bytes of an extended header: names and other pax records may take some kilobytes
_MAX_EXTENSIONS = 8  # extended headers of one member
_MAX_TRAILER = 1 << 20  # bytes after the end mark that are checked to be zero

ReadRange = Callable[[int, int], bytes]  # (start, count) -> up to count bytes, fewer at the end of the file

FILE, DIRECTORY = "a file", "a folder"
_KINDS = {
    b"0": FILE,
    b"\0": FILE,
    b"7": FILE,  # contiguous, on systems that know the difference
    b"1": "a link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"5": DIRECTORY,
    b"6": "a pipe",
    b"S": "a sparse file",
}
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK, _SPARSE = b"x", b"g", b"L", b"K", b"S"


class TarError(Exception):
    """An invalid archive; the message continues a sentence that begins with its name."""


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: name in the archive; bytes that are not UTF-8 are escaped as `\\xNN`.
        kind: FILE, DIRECTORY or a description of another kind.
        start: first byte of its headers.
        data: first byte of its data.
        size: number of bytes of its data.
    """

    name: str
    kind: str
    start: int
    data: int
    size: int

    @property
    def end(self) -> int:
        """First byte of the next member."""
        return self.data + _round_up(self.size)


def iter_members(read: ReadRange, size: int) -> Iterator[Member]:
    """Yields the members of an archive in order.

    Args:
        read: reads a range of the archive.
        size: number of bytes of the archive.

    Raises:
        TarError: the archive is damaged or truncated.
    """
    start = 0
    while member := parse_member(read, start):
        if member.end > size:
            raise TarError(f"is cut short: {member.name!r} extends to byte {member.end:,}, the file ends at {size:,}")
        yield member
        start = member.end
    if read(start, _MAX_TRAILER).strip(b"\0"):
        raise TarError(f"continues after the end mark at byte {start:,}: give archives one by one, not concatenated")


def parse_member(read: ReadRange, start: int) -> Member | None:
    """Returns the member whose headers begin at byte `start`, or None at the end mark.

    Args:
        read: reads a range of the archive.
        start: position of the headers.

    Raises:
        TarError: there is neither a valid header nor the end mark.
    """
    position, name, size, sparse = start, "", None, False
    for _ in range(_MAX_EXTENSIONS + 1):
        block = _read_exactly(read, position, BLOCK)
        if position == start and not any(block):
            return None
        kind, header_name, header_size = _parse_header(block, position)
        position += BLOCK
        if kind not in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            break
        if header_size > _MAX_EXTENSION:
            raise TarError(f"has an extended header of {header_size:,} bytes before byte {position:,}")
        extension = _read_exactly(read, position, header_size)
        position += _round_up(header_size)
        if kind == _LONG_NAME:
            name = _decode(extension)
        elif kind == _PAX:
            records = _parse_pax_records(extension, position)
            name = records.get("path", name)
            size = _parse_pax_size(records, position)
            sparse = any(keyword.startswith("GNU.sparse.") for keyword in records)
    else:
        raise TarError(f"has more than {_MAX_EXTENSIONS} extended headers in a row, from byte {start:,}")
    if kind == _SPARSE:
        position = _skip_sparse_maps(read, position, block)
    description = "a sparse file" if sparse else _KINDS.get(kind, "of an unknown kind")
    if kind in _WITHOUT_DATA:
        size = 0
    return Member(name or header_name, description, start, position, header_size if size is None else size)


def _parse_header(block: bytes, position: int) -> tuple[bytes, str, int]:
    """Returns (kind, name, size) of a header block."""
    # the checksum is computed with the checksum field itself set to spaces
    if _parse_number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise TarError(f"has no tar header at byte {position:,}: it is damaged there, or not a tar archive")
    size = _parse_number(block[124:136])
    if size is None:
        raise TarError(f"has a member without a size, at byte {position:,}")
    name, prefix = _decode(block[:100]), _decode(block[345:500])
    if block[257:263] == b"ustar\0" and prefix:
        name = f"{prefix}/{name}"
    return block[156:157], name, size


def _parse_number(field: bytes) -> int | None:
    """Returns a number of a header: octal digits, or for large numbers binary after a byte 0x80; None if invalid."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip() or b"0"
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else None


def _parse_pax_records(extension: bytes, position: int) -> dict[str, str]:
    """Returns keyword -> value. Each record is "LENGTH KEYWORD=VALUE\\n", and LENGTH counts all of it."""
    records, start = {}, 0
    while start < len(extension):
        length, _, _ = extension[start : start + 20].partition(b" ")
        end = start + int(length) if length.isdigit() else start
        keyword, equals, value = extension[start + len(length) + 1 : end].partition(b"=")
        if not equals or end > len(extension) or not value.endswith(b"\n"):
            raise TarError(f"has a damaged pax header before byte {position:,}")
        records[_decode(keyword)] = _decode(value[:-1])
        start = end
    return records


def _parse_pax_size(records: dict[str, str], position: int) -> int | None:
    """Returns the member size in pax records, used if it does not fit into the member's own header; else None."""
    size = records.get("size")
    if size is None:
        return None
    if not (size.isascii() and size.isdigit() and len(size) < 20):
        raise TarError(f"has a pax header with the size {size[:40]!r} before byte {position:,}")
    return int(size)


def _skip_sparse_maps(read: ReadRange, position: int, block: bytes) -> int:
    """Returns where the data of a GNU sparse file begin: after map blocks, each of which tells if another follows."""
    more = block[482]
    while more:
        more = _read_exactly(read, position, BLOCK)[504]
        position += BLOCK
    return position


def _read_exactly(read: ReadRange, start: int, count: int) -> bytes:
    """Reads `count` bytes. Raises TarError if there are fewer."""
    data = read(start, count)
    if len(data) < count:
        raise TarError(f"is cut short: it ends at byte {start + len(data):,}, without an end mark")
    return data


def _decode(field: bytes) -> str:
    """Decodes a field up to its NUL. Invalid UTF-8 is escaped as \\xNN, so that different names stay different."""
    return field.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _round_up(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
