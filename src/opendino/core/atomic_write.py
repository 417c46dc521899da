"""Writing files so that a reader sees the old or the new one, never half of either."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write(path: Path, content: bytes | str) -> None:
    """Replace a file in one move."""
    with replace_file(path) as partial:
        partial.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary name beside a file, to be written; then it is forced to disk and renamed, or removed on failure."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:  # on a full disk every byte counts
        partial.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
