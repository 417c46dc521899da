"""Tables of columns in one memory-mapped file: the index of a large dataset, shared by all processes of a machine.

The file holds a magic line, the length of a JSON header, the header, and the columns one after the other. A column is
in memory once per machine for any number of ranks and workers, and there is no Python object per image. A truncated or
damaged file is treated as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final, overload

import numpy as np

from opendino.core import log

_MAGIC = b"opendino index 1\n"
_ALIGN = 16

Columns = dict[str, np.ndarray]


@final
class Names(Sequence[str]):
    """A sequence of strings in one array of bytes: a quarter of the memory of a list, and shared by forked workers.

    Args:
        text: uint8 `[bytes]`, the strings one after the other, in UTF-8.
        ends: int64 `[names]`, the end of each string in `text`.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Pack an iterable of strings."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} names")
        index %= len(self)
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")


def cache_folder() -> Path:
    """Folder for indexes and downloaded shards: `$XDG_CACHE_HOME/opendino`, by default `~/.cache/opendino`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "opendino"


def index_path(kind: str, name: str) -> Path:
    """Path of the index file for a dataset, by its kind and name: for example "folder" and its absolute path."""
    digest = hashlib.sha256(f"{kind}\n{name}".encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return cache_folder() / f"{kind}-{digest}.index"


def save(path: Path, columns: Mapping[str, np.ndarray], note: object) -> None:
    """Write a table atomically: a reader sees the old file or the whole new one.

    Args:
        path: The file.
        columns: Name → one-dimensional array.
        note: Any JSON value, stored in the header.
    """
    table, offset, check = {}, 0, 0
    padded = []
    for name, column in columns.items():
        data = np.ascontiguousarray(column).tobytes()
        table[name] = [column.dtype.str, offset, len(column)]
        padded += [data, bytes(-len(data) % _ALIGN)]  # columns start at multiples of 16, so arrays can view them
        offset += len(data) + -len(data) % _ALIGN
    for piece in padded:
        check = zlib.crc32(piece, check)
    header = json.dumps({"note": note, "columns": table, "bytes": offset, "crc32": check}).encode()
    header += b" " * (-(len(_MAGIC) + 8 + len(header)) % _ALIGN)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(_MAGIC + len(header).to_bytes(8, "little") + header)
            for piece in padded:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> tuple[Columns, Any] | None:
    """The columns, mapped read-only, and the note; None if the file is missing or damaged."""
    try:
        content = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError):  # absent, or empty
        return None
    return parse(content)


def load_if_valid(path: Path, rules: str) -> tuple[Columns, Any] | None:
    """Load an index whose note has the same `rules`; one with other rules is deleted, with a log message.

    Args:
        path: The file, from `index_path`.
        rules: Identifies how the index was made, for example the version of the package and the image suffixes.

    Returns:
        The columns and the note; None if there is no usable index.
    """
    found = load(path)
    if found is None:
        return None
    if not isinstance(found[1], dict) or found[1].get("rules") != rules:
        log.say(f"The index {path} was made by another version of opendino; it is discarded and created again")
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return found


def parse(content: np.ndarray) -> tuple[Columns, Any] | None:
    """Like `load`, from the content of the file, uint8 `[bytes]`."""
    head = len(_MAGIC) + 8
    if content[: len(_MAGIC)].tobytes() != _MAGIC:
        return None
    length = int.from_bytes(content[len(_MAGIC) : head].tobytes(), "little")
    try:
        header = json.loads(content[head : head + length].tobytes())
        body = content[head + length :]
        if len(body) != header["bytes"] or zlib.crc32(body.data) != header["crc32"]:
            return None
        columns = {
            name: np.frombuffer(body, np.dtype(kind), count, offset) if count else np.zeros(0, np.dtype(kind))
            for name, (kind, offset, count) in header["columns"].items()
        }
        return columns, header["note"]
    except Exception:  # a damaged or foreign header can raise any error
        return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file beside `path`: one process creates the file, the others wait and then find it.

    Without a writable folder there is no lock.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no writable folder: every process works for itself
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path.with_name(f".{path.name}.lock"), "ab"))
            if sys.platform != "win32":
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
        yield
