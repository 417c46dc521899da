"""What is known of a large set without opening it: columns in one file, mapped into memory and shared by processes.

The file is a line of magic, the length of a JSON header, the header, and the columns one after the other. A column
takes memory once a machine, however many ranks and workers read it, and no Python object per image exists. A file that
is cut short or damaged counts as none.
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
    """Many names as one stretch of bytes: a quarter of the memory of a list of `str`, and forked workers share it.

    Args:
        text: uint8 `[bytes]`, the names one after the other in UTF-8.
        ends: int64 `[names]`, where each one ends.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The same names, packed."""
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
            raise IndexError(f"name {index} of {len(self)}")
        index %= len(self)
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")


def folder() -> Path:
    """Where indexes and shards from afar are kept: `$XDG_CACHE_HOME/opendino`, else `~/.cache/opendino`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "opendino"


def place(kind: str, name: str) -> Path:
    """The index file of a set, by what it is called: "folder", and its absolute path, for example."""
    digest = hashlib.sha256(f"{kind}\n{name}".encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return folder() / f"{kind}-{digest}.index"


def save(path: Path, columns: Mapping[str, np.ndarray], note: object) -> None:
    """Write columns, each one-dimensional, and a note in JSON; a reader sees all of it or the old file."""
    table, offset, check = {}, 0, 0
    padded = []
    for name, column in columns.items():
        data = np.ascontiguousarray(column).tobytes()
        table[name] = [column.dtype.str, offset, len(column)]
        padded += [data, bytes(-len(data) % _ALIGN)]
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
    """The columns, mapped read-only, and the note; None where there is no such file or it is damaged."""
    try:
        content = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError):  # absent, or empty
        return None
    return parse(content)


def recall(path: Path, rules: str) -> tuple[Columns, Any] | None:
    """As `load`, of an index saved with `rules` in its note; another is of no use any more, which is said.

    Args:
        path: As from `place`.
        rules: What decided what is in the index, apart from the images: a version, for example.
    """
    found = load(path)
    if found is None:
        return None
    if not isinstance(found[1], dict) or found[1].get("rules") != rules:
        log.say(f"the index {path} was made by another version of opendino; it is discarded and made again")
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return found


def parse(content: np.ndarray) -> tuple[Columns, Any] | None:
    """As `load`, of the bytes of such a file."""
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
    except Exception:  # a header that is damaged, or a stranger's, leads anywhere
        return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time holds the lock beside a file: the others wait, and find the file made."""
    with contextlib.ExitStack() as closing:
        with contextlib.suppress(OSError):  # nowhere to keep it: every process for itself
            path.parent.mkdir(parents=True, exist_ok=True)
            file = closing.enter_context(open(path.with_name(f".{path.name}.lock"), "ab"))
            if sys.platform != "win32":
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
        yield
