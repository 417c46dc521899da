"""What lies where in a .tar, from its headers alone: four times as fast as tarfile, and no size in them is believed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

SPARSE = "stored as a sparse file, which is not supported: pack it again without tar's --sparse (-S)"
"""The reason given for an image that a .tar stores without its zeros."""

_BLOCK = 512
_MAX_HEADER_BYTES = 2**20
_NO_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes


class Member(NamedTuple):
    """A file or link in a .tar; of a sparse file or a link there are no bytes to read at an offset."""

    name: str
    offset: int
    size: int
    kind: Literal["file", "sparse", "link"]


def members(handle: int, num_bytes: int) -> Iterator[Member]:
    """The files and links in a .tar, in its order.

    Args:
        handle: Descriptor of the open file.
        num_bytes: Size of the file.

    Raises:
        ValueError: The archive is damaged or cut short here; what came before is good.
    """
    place, long_name, told = 0, "", {}
    while header := os.pread(handle, _BLOCK, place):
        if header == bytes(_BLOCK):
            return
        if len(header) < _BLOCK or (header[257:262] != b"ustar" and not _adds_up(header)):
            raise ValueError(f"no .tar header at byte {place}; compressed, damaged or cut short")
        kind = header[156:157]
        size = 0 if kind in _NO_CONTENT else int(told.get("size") or _number(header[124:136]))
        place = _after_sparse_map(handle, header, place) + _BLOCK
        if size < 0 or place + size > num_bytes:
            raise ValueError(f"cut short: a member of {size} bytes at byte {place} of {num_bytes}")
        after = place + -(-size // _BLOCK) * _BLOCK
        if kind in (b"L", b"x"):  # GNU's long name, or POSIX's properties, of the member that follows
            if size > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {size} bytes at byte {place}, more than {_MAX_HEADER_BYTES}")
            content, place = os.pread(handle, size, place), after
            if kind == b"L":
                long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                told = _properties(content)
            continue
        name = told.get("GNU.sparse.name") or told.get("path") or long_name or _name(header)
        if kind == b"S" or any(key.startswith("GNU.sparse") for key in told):
            yield Member(name, place, size, "sparse")
        elif kind in (b"0", b"\0", b"7"):
            yield Member(name, place, size, "file")
        elif kind in (b"1", b"2"):
            yield Member(name, place, 0, "link")
        place, long_name, told = after, "", {}
    if place > num_bytes:
        raise ValueError(f"cut short at byte {num_bytes}")


def _after_sparse_map(handle: int, header: bytes, place: int) -> int:
    """The last block of a header: the map of a sparse file in GNU's old layout may fill further ones."""
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
    if field[0] & 0x80:  # GNU: 8 GiB and more
        return int.from_bytes(field[1:], "big")
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _adds_up(header: bytes) -> bool:
    try:
        return sum(header) - sum(header[148:156]) + 8 * 32 == _number(header[148:156])
    except ValueError:
        return False


def _properties(record: bytes) -> dict[str, str]:
    r"""Of `LENGTH key=value\n` over and over."""
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
