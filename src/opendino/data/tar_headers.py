"""Locate the members of a .tar from its headers: four times as fast as `tarfile`, and every size is checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

SPARSE = "stored as a sparse file, which is not supported: pack it again without tar's --sparse (-S)"
"""The reason why an image that a .tar stores as a sparse file is unreadable."""

_BLOCK = 512
_MAX_HEADER_BYTES = 2**20
_NO_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes


class Member(NamedTuple):
    """A file or link in a .tar: its name, and the offset and size of its bytes, valid for kind "file" only."""

    name: str
    offset: int
    size: int
    kind: Literal["file", "sparse", "link"]


def members(handle: int, num_bytes: int) -> Iterator[Member]:
    """Iterate over the files and links in a .tar, in order.

    Args:
        handle: File descriptor.
        num_bytes: Size of the file.

    Raises:
        ValueError: The archive is damaged or cut short at this point; the members before are intact.
    """
    # `long_name` and `pax` come from extension headers and belong to the member that follows them.
    place, long_name, pax = 0, "", {}
    while header := os.pread(handle, _BLOCK, place):
        if header == bytes(_BLOCK):  # a block of zeros ends the archive
            return
        if len(header) < _BLOCK or (header[257:262] != b"ustar" and not _checksum_matches(header)):
            raise ValueError(f"no .tar header at byte {place}; compressed, damaged or cut short")
        kind = header[156:157]
        size = 0 if kind in _NO_CONTENT else int(pax.get("size") or _number(header[124:136]))
        place = _after_sparse_map(handle, header, place) + _BLOCK
        if size < 0 or place + size > num_bytes:
            raise ValueError(f"cut short: a member of {size} bytes at byte {place} of {num_bytes}")
        after = place + -(-size // _BLOCK) * _BLOCK
        if kind in (b"L", b"x"):  # extension header: GNU long name, or POSIX pax records, of the member that follows
            if size > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {size} bytes at byte {place}, more than {_MAX_HEADER_BYTES}")
            content, place = os.pread(handle, size, place), after
            if kind == b"L":
                long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                pax = _pax_records(content)
            continue
        name = pax.get("GNU.sparse.name") or pax.get("path") or long_name or _name(header)
        if kind == b"S" or any(key.startswith("GNU.sparse") for key in pax):
            yield Member(name, place, size, "sparse")
        elif kind in (b"0", b"\0", b"7"):
            yield Member(name, place, size, "file")
        elif kind in (b"1", b"2"):
            yield Member(name, place, 0, "link")
        place, long_name, pax = after, "", {}
    if place > num_bytes:
        raise ValueError(f"cut short at byte {num_bytes}")


def _after_sparse_map(handle: int, header: bytes, place: int) -> int:
    """Offset of the last block of a header: in GNU's old format, the map of a sparse file may take further blocks."""
    more = header[156:157] == b"S" and header[482:483] == b"\1"
    while more:
        place += _BLOCK
        more = os.pread(handle, _BLOCK, place)[504:505] == b"\1"
    return place


def _name(header: bytes) -> str:
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    joined = prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name
    return joined.decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's base-256 format, for 8 GiB and more; otherwise the number is octal
        return int.from_bytes(field[1:], "big")
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _checksum_matches(header: bytes) -> bool:
    try:
        # The checksum counts its own eight bytes as spaces (32).
        return sum(header) - sum(header[148:156]) + 8 * 32 == _number(header[148:156])
    except ValueError:
        return False


def _pax_records(record: bytes) -> dict[str, str]:
    r"""Parse pax records, `LENGTH key=value\n` repeated."""
    found, place = {}, 0
    while place < len(record):
        space = record.find(b" ", place, place + 20)
        length = record[place:space] if space > 0 else b""
        if not length.isdigit() or not int(length):
            break
        stop = place + int(length)
        key, _, value = record[space + 1 : stop - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        place = stop
    return found
