"""WebDataset shards, local or on a web server: `wds:shards/{000..127}.tar`, a folder of .tar, `wds:https://…`.

Braces stand for ranges and choices (`{000..127}`, `{a,b}`), `::` joins several patterns. Shards as img2dataset and
`opendino pack` write them: samples by name up to the first dot, one image each, the class in `.cls`. Where the classes
are numbers, a `classes.txt` beside the shards, a line each, gives their names.

Shards on a server are fetched whole into a bounded folder (OPENDINO_CACHE_GB, 50) as they are needed. A fetch that
fails is tried again with growing pauses; then the images of that shard count as unreadable for ten minutes.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import final

import numpy as np

from opendino.core.contracts import Source
from opendino.core.errors import UsageError
from opendino.data.download import Unreachable, download, forget_changed, is_remote, keep, small, stamp
from opendino.data.files import exists, holds, is_folder, is_hidden, printable
from opendino.data.shards import Shards

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_SHARDS = 10**6


@final
class WdsSource(Source):
    """The images of shards, in the order of the shards.

    Args:
        shards: Paths and addresses.

    Raises:
        UserError: None of them can be read, or none has an image.
    """

    def __init__(self, shards: Sequence[str]) -> None:
        forget_changed([shard for shard in shards if is_remote(shard)])
        self._shards = Shards(shards, _Files(), _class_names(shards[0]))
        self.classes, self.blocks = self._shards.classes, self._shards.blocks

    def __len__(self) -> int:
        return len(self._shards)

    def key(self, index: int) -> str:
        """The shard and the sample: `00012.tar/000120034`."""
        return self._shards.key(index)

    def label(self, index: int) -> int:
        """From the sample's `.cls`."""
        return self._shards.label(index)

    def read(self, index: int) -> bytes:
        """The image's bytes.

        Raises:
            BadImage: The shard cannot be had, has changed, or is damaged here.
        """
        return self._shards.read(index)

    def checksum(self, index: int) -> int:
        """See `Shards.checksum`."""
        return self._shards.checksum(index)

    def soon(self, indices: np.ndarray) -> None:
        """Fetch the shards of these images in the background."""
        self._shards.soon(indices)


class _Files:
    """Shards that are files, here or on a server."""

    def __init__(self) -> None:
        self._fetching: set[str] = set()

    def stamp(self, shard: str) -> list[int]:
        """Size and time; of a shard on a server what it was called there when it was fetched."""
        if is_remote(shard):
            return stamp(shard)
        status = os.stat(shard)  # noqa: PTH116 - of ten thousand shards
        return [status.st_size, status.st_mtime_ns]

    def index(self, shard: str) -> bytes | None:
        """`NAME.tar.index`, which `opendino pack` writes; a local one only if it is not older than the shard."""
        if is_remote(shard):
            address, mark, query = shard.partition("?")
            return small(f"{address}.index{mark}{query}")
        beside = Path(f"{shard}.index")
        try:
            return beside.read_bytes() if beside.stat().st_mtime_ns >= self.stamp(shard)[1] else None
        except OSError:
            return None

    def path(self, shard: str) -> Path:
        """The file itself, fetched where it is afar."""
        return keep(shard, partial(download, shard)) if is_remote(shard) else Path(shard)

    def soon(self, shards: Sequence[str]) -> None:
        """Fetch one after the other."""
        wanted = [shard for shard in shards if is_remote(shard) and shard not in self._fetching]
        if wanted:
            self._fetching.update(wanted)
            threading.Thread(target=self._fetch, args=[wanted], daemon=True).start()

    def _fetch(self, shards: list[str]) -> None:
        for shard in shards:
            try:
                self.path(shard)
            except Unreachable:  # said already; who reads it hears it again
                pass
            finally:
                self._fetching.discard(shard)


def expand(pattern: str) -> Iterator[str]:
    """What a pattern with braces stands for: `{08..10}` → 08 09 10, `{a,b}` → a b; the rightmost varies fastest."""
    found = _BRACES.search(pattern)
    if not found:
        yield pattern
        return
    before, inside, after = pattern[: found.start()], found[1], pattern[found.end() :]
    for choice in _choices(inside):
        yield from expand(f"{before}{choice}{after}")


def _choices(inside: str) -> Iterator[str]:
    bounds = _RANGE.fullmatch(inside)
    if not bounds:
        yield from inside.split(",")
        return
    width = max(len(bound) for bound in bounds.groups()) if any(b.startswith("0") for b in bounds.groups()) else 0
    first, last = int(bounds[1]), int(bounds[2])
    for number in range(first, last + 1) if first <= last else range(first, last - 1, -1):
        yield f"{number:0{width}d}"


def _class_names(shard: str) -> tuple[str, ...]:
    address, mark, query = shard.partition("?") if is_remote(shard) else (shard, "", "")
    beside = f"{address.rpartition('/')[0]}/classes.txt" if "/" in address else "classes.txt"
    try:
        content = small(f"{beside}{mark}{query}") if is_remote(shard) else Path(beside).read_bytes()
    except OSError:
        return ()
    names = tuple(printable(line) for line in (content or b"").decode("utf-8", "surrogateescape").split("\n") if line)
    return names if len(names) == len(set(names)) else ()


def matches(data: str) -> bool:
    """Whether DATA is a folder of .tar, or a pattern or address of some."""
    if holds(data) == "shards":
        return True
    pattern = data.partition("?")[0].lower()
    return pattern.endswith(".tar") and not exists(data) and (is_remote(data) or bool(_BRACES.search(pattern)))


def build(data: str) -> WdsSource:
    """The source for patterns of shards.

    Raises:
        UsageError: A pattern that starts a program, an address that is not on the web, or no shard.
        UserError: None of the shards can be read, or none has an image.
    """
    shards: dict[str, None] = {}
    for pattern in data.split("::"):
        if pattern.lower().startswith("pipe:"):
            raise UsageError(
                f"{printable(pattern)} would start a program", "Give paths or https addresses of .tar files"
            )
        if "://" in pattern and not is_remote(pattern):
            raise UsageError(
                f"{printable(pattern)} is not on the web", "Give its https address, or mount it and give the path"
            )
        if is_folder(pattern):
            paths = (path for path in Path(pattern).iterdir() if path.suffix.lower() == ".tar")
            shards |= dict.fromkeys(str(path) for path in sorted(paths) if not is_hidden(path.name))
        elif pattern:
            shards |= dict.fromkeys(
                [pattern] if exists(pattern) else itertools.islice(expand(pattern), _MAX_SHARDS + 1)
            )
    if not shards:
        raise UsageError(
            f"'{printable(data)}' names no shards", "Give a folder of .tar files, or shards/{000..127}.tar"
        )
    if len(shards) > _MAX_SHARDS:
        raise UsageError(f"{printable(data)} names more than {_MAX_SHARDS:,} shards", "Check its braces")
    return WdsSource(list(shards))
