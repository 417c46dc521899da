"""WebDataset shards, local, on a web server or in a bucket: `wds:shards/{000..127}.tar`, `wds:https://…`, `wds:s3://…`.

Braces are ranges or choices (`{000..127}`, `{a,b}`), and `::` joins several patterns. The format is that of img2dataset
and `opendino pack`: a sample is named up to the first dot and has one image, its class is in `.cls`. If the classes are
numbers, a file `classes.txt` beside the shards gives their names, one per line. If names contain dots,
`?names=first-dot` or `?names=last-dot` at the end says where the name of a sample ends.

Shards on a server or in a bucket are downloaded whole, when they are needed, into a cache folder of limited size
(OPENDINO_CACHE_GB, 50); a shard of a web server that is larger than the folder may be is refused. A failed download is
tried again with growing pauses; after that, the images of the shard count as unreadable for ten minutes. Buckets need
the extra `remote`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import final

import numpy as np

from opendino.core.contracts import Source
from opendino.core.errors import UsageError
from opendino.data import remote_files
from opendino.data.download import Unreachable, download, download_optional, is_remote
from opendino.data.download_cache import cached_file, forget_changed, limit_bytes, stamp
from opendino.data.shard_index import NameRule
from opendino.data.shards import Shards
from opendino.data.source_files import MAX_BYTES, detect_layout, exists, is_folder, is_hidden, printable, suffix

_BRACES = re.compile(r"\{([^{}]*)\}")
_RULE = re.compile(r"[?&]names=([^&]*)$")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_MAX_SHARDS = 10**6


@final
class WdsSource(Source):
    """The images in WebDataset shards, in the order of the shards.

    Args:
        shards: Paths and addresses of .tar files.
        rule: Where the name of a sample ends: "first-dot", "last-dot", or "auto" to decide by the names.

    Raises:
        UserError: No shard can be read, or none has an image.
    """

    def __init__(self, shards: Sequence[str], rule: NameRule = "auto") -> None:
        forget_changed([shard for shard in shards if is_remote(shard)])
        self._shards = Shards(shards, _FileStore(), _class_names(shards[0]), rule)
        self.classes, self.shard_sizes = self._shards.classes, self._shards.shard_sizes

    def __len__(self) -> int:
        return len(self._shards)

    def key(self, index: int) -> str:
        """Name of the shard and the sample: `00012.tar/000120034`."""
        return self._shards.key(index)

    def label(self, index: int) -> int:
        """The class in the sample's `.cls`; -1 if there is none."""
        return self._shards.label(index)

    def read(self, index: int) -> bytes:
        """The bytes of the image file.

        Raises:
            BadImage: The shard cannot be downloaded, has changed, or is damaged at this image.
        """
        return self._shards.read(index)

    def checksum(self, index: int) -> int:
        """See `Shards.checksum`."""
        return self._shards.checksum(index)

    def prefetch(self, indices: np.ndarray) -> None:
        """Download the shards of these images in the background."""
        self._shards.prefetch(indices)


class _FileStore:
    """A `ShardStore` of files: local, on a web server or in a bucket."""

    def __init__(self) -> None:
        self._downloading: set[str] = set()

    def stamp(self, shard: str) -> list[int]:
        """Size and modification time; for a shard on a server, the checksum of its ETag or date when downloaded."""
        if is_remote(shard):
            return stamp(shard)
        if remote_files.is_bucket(shard):
            return []
        status = os.stat(shard)  # noqa: PTH116 - faster than pathlib, for ten thousand shards
        return [status.st_size, status.st_mtime_ns]

    def index(self, shard: str) -> bytes | None:
        """Content of `NAME.tar.index`, which `opendino pack` writes; a local one older than its shard is ignored."""
        if _is_remote_shard(shard):
            return _download_small(shard, lambda address: f"{address}.index")
        beside = Path(f"{shard}.index")
        try:
            return beside.read_bytes() if beside.stat().st_mtime_ns >= self.stamp(shard)[1] else None
        except OSError:
            return None

    def path(self, shard: str) -> Path:
        """The local file; a remote shard is downloaded first."""
        if not _is_remote_shard(shard):
            return Path(shard)
        if is_remote(shard):
            return cached_file(shard, partial(download, shard, max_bytes=limit_bytes()))
        return cached_file(shard, partial(remote_files.fetch, shard))

    def prefetch(self, shards: Sequence[str]) -> None:
        """Download remote shards in a background thread, one after the other."""
        wanted = [shard for shard in shards if _is_remote_shard(shard) and shard not in self._downloading]
        if wanted:
            self._downloading.update(wanted)
            threading.Thread(target=self._download_all, args=[wanted], daemon=True).start()

    def _download_all(self, shards: list[str]) -> None:
        for shard in shards:
            try:
                self.path(shard)
            except Unreachable:  # logged already, and raised again when an image of the shard is read
                pass
            finally:
                self._downloading.discard(shard)


def _is_remote_shard(shard: str) -> bool:
    """Whether a shard is an address on a web server or in a bucket, and not a path."""
    return is_remote(shard) or remote_files.is_bucket(shard)


def _download_small(shard: str, beside: Callable[[str], str]) -> bytes | None:
    """Content of a small file beside a remote shard; None if it is missing or cannot be downloaded."""
    if is_remote(shard):
        address, mark, query = shard.partition("?")
        return download_optional(f"{beside(address)}{mark}{query}", MAX_BYTES)
    with contextlib.suppress(Unreachable):
        return remote_files.read(beside(shard))
    return None


def expand(pattern: str) -> Iterator[str]:
    """Expand the braces of a pattern: `{08..10}` → 08 09 10, `{a,b}` → a b; the rightmost varies fastest."""
    found = _BRACES.search(pattern)
    if not found:
        yield pattern
        return
    before, inside, after = pattern[: found.start()], found[1], pattern[found.end() :]
    for choice in _expand_braces(inside):
        yield from expand(f"{before}{choice}{after}")


def _expand_braces(inside: str) -> Iterator[str]:
    bounds = _RANGE.fullmatch(inside)
    if not bounds:
        yield from inside.split(",")
        return
    width = max(len(bound) for bound in bounds.groups()) if any(b.startswith("0") for b in bounds.groups()) else 0
    first, last = int(bounds[1]), int(bounds[2])
    for number in range(first, last + 1) if first <= last else range(first, last - 1, -1):
        yield f"{number:0{width}d}"


def _class_names(shard: str) -> tuple[str, ...]:
    """The names in `classes.txt` beside a shard; empty if it is missing or repeats a name."""

    def beside(address: str) -> str:
        return f"{address.rpartition('/')[0]}/classes.txt" if "/" in address else "classes.txt"

    try:
        content = _download_small(shard, beside) if _is_remote_shard(shard) else Path(beside(shard)).read_bytes()
    except OSError:
        return ()
    names = tuple(printable(line) for line in (content or b"").decode("utf-8", "surrogateescape").split("\n") if line)
    return names if len(names) == len(set(names)) else ()


def matches(data: str) -> bool:
    """Whether DATA is a folder of .tar files, or a pattern or address of .tar files."""
    if detect_layout(_RULE.sub("", data)) == "shards":
        return True
    pattern = data.partition("?")[0].lower()
    return pattern.endswith(".tar") and not exists(data) and (_is_remote_shard(data) or bool(_BRACES.search(pattern)))


def build(data: str) -> WdsSource:
    """The source for one or more patterns of shards.

    Raises:
        UsageError: A pattern would start a program (`pipe:`), has an unsupported protocol, or matches no shard.
        UserError: No shard can be read, or none has an image.
    """
    shards: dict[str, None] = {}
    given = _RULE.search(data)
    rule = given[1] if given else "auto"
    if rule not in ("auto", "first-dot", "last-dot"):
        raise UsageError(f"names is '{printable(rule)}'", "Use names=first-dot or names=last-dot")
    for pattern in _RULE.sub("", data).split("::"):
        if pattern.lower().startswith("pipe:"):
            raise UsageError(
                f"{printable(pattern)} would start a program", "Give paths or https addresses of .tar files"
            )
        if "://" in pattern and not _is_remote_shard(pattern):
            raise UsageError(
                f"{printable(pattern)} is neither a web address nor a bucket",
                "Give an https, s3, gs or az address, or mount it and give the path",
            )
        if is_folder(pattern):
            paths = (path for path in Path(pattern).iterdir() if path.suffix.lower() == ".tar")
            shards |= dict.fromkeys(str(path) for path in sorted(paths) if not is_hidden(path.name))
        elif remote_files.is_bucket(pattern) and not pattern.lower().endswith(".tar"):
            paths = (path for path in remote_files.list_files(pattern) if suffix(path) == ".tar" and "/" not in path)
            shards |= dict.fromkeys(f"{pattern.rstrip('/')}/{path}" for path in paths if not is_hidden(path))
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
    return WdsSource(list(shards), rule)
