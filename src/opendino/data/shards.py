"""Random access to the images in WebDataset .tar shards, through an index of their offsets that is created once."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from opendino.core import log
from opendino.core.errors import BadImage, UserError
from opendino.core.progress import track
from opendino.data import mmap_table as index
from opendino.data import tar_headers
from opendino.data.download import Unreachable
from opendino.data.mmap_table import Names
from opendino.data.shard_index import RULES, SPARSE, NameRule, ShardIndex, merge, read_index, scan, split
from opendino.data.source_files import check_size, printable

_HANDLES = 64  # open shards; twice `sampler.WINDOW`
_THREADS = 8
_ATTEMPTS = 2 * _THREADS

T = TypeVar("T")


class ShardStore(Protocol):
    """Where shards come from (local files, a server, a bucket, a streamed dataset); each has a name."""

    def stamp(self, shard: str) -> list[int]:
        """Numbers that change when the shard changes, such as size and time; empty if nothing is known.

        Raises:
            OSError: The shard does not exist.
        """
        ...

    def index(self, shard: str) -> bytes | None:
        """Content of the index file beside the shard; None if there is none."""
        ...

    def path(self, shard: str) -> Path:
        """A local file with the shard; downloads it if necessary.

        Raises:
            Unreachable: The shard cannot be downloaded.
        """
        ...

    def prefetch(self, shards: Sequence[str]) -> None:
        """Start to download these shards in the background."""


class Shards:
    """The samples of many shards, in the order of the shards, with random access.

    Args:
        names: Names of the shards, each once.
        store: Where the shards come from.
        classes: Class names for shards that give classes as numbers; if empty, the numbers are the names.
        rule: Where the name of a sample ends.

    Attributes:
        classes: Names of the classes.
        shard_sizes: int64 `[shards]`, number of samples in each shard that has any.

    Raises:
        UserError: No shard can be read, or none has an image.
    """

    def __init__(
        self, names: Sequence[str], store: ShardStore, classes: tuple[str, ...] = (), rule: NameRule = "auto"
    ) -> None:
        self._store, self._index = store, index.index_path("shards", "\n".join([rule, *names]))
        self._rule: NameRule = rule
        columns, note = self._load_index(names) or self._build_index(names)
        self._names = Names(columns["text"], columns["ends"])
        self._offsets, self._sizes, self._labels = columns["offsets"], columns["sizes"], columns["labels"]
        table: list[tuple[str, list[int], int, int]] = note["shards"]  # name, stamp, number of samples, bytes
        self._shards = [shard for shard, *_ in table]
        self._stamps = [stamp for _, stamp, *_ in table]
        self._bytes = [num_bytes for *_, num_bytes in table]
        self.shard_sizes = np.array([num for *_, num, _ in table], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        found: list[str] = note["classes"]
        named = bool(classes) and all(name.isdecimal() and int(name) < len(classes) for name in found)
        self.classes = tuple(classes[int(name)] for name in found) if named else tuple(found)
        self._common_prefix_length = _common_prefix_length(self._shards)
        self._handles: dict[int, _Handle] = {}

    def __len__(self) -> int:
        return len(self._names)

    def key(self, sample: int) -> str:
        """Name of the shard and the sample: `00012.tar/000120034`."""
        return f"{printable(self._shards[self._shard(sample)][self._common_prefix_length :])}/{self._names[sample]}"

    def label(self, sample: int) -> int:
        """Index into `classes`, -1 if unknown; read from the index."""
        return int(self._labels[sample])

    def read(self, sample: int) -> bytes:
        """The bytes of an image file.

        Raises:
            BadImage: The shard cannot be downloaded, has changed, or is damaged at this image.
        """
        size = int(self._sizes[sample])
        if size == SPARSE:
            raise BadImage(tar_headers.SPARSE)
        check_size(size)
        handle = self._open(self._shard(sample))
        try:
            data = os.pread(handle.number, size, int(self._offsets[sample]))
        except OSError as error:
            raise BadImage(error.strerror or type(error).__name__) from error
        if len(data) < size:
            raise BadImage("the shard ends within this image")
        return data

    def checksum(self, sample: int) -> int:
        """Size of the image file in bytes, from the index: a checksum of the content could need a download."""
        return int(self._sizes[sample])

    def prefetch(self, samples: np.ndarray) -> None:
        """Start to download the shards of these images."""
        shards = np.unique(np.searchsorted(self._starts, samples, "right") - 1)
        self._store.prefetch([self._shards[shard] for shard in shards if shard not in self._handles])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}

    def _shard(self, sample: int) -> int:
        return int(np.searchsorted(self._starts, sample, "right")) - 1

    def _open(self, shard: int) -> _Handle:
        """An open shard; `os.pread` uses no file position, so forked processes and threads can share it."""
        if handle := self._handles.get(shard):
            return handle
        name = self._shards[shard]
        try:
            handle = self._use(name, _Handle)
            # A shard that changed after the index was built would give bytes at wrong offsets.
            changed = _changed(self._store.stamp(name), self._stamps[shard])
            changed |= os.fstat(handle.number).st_size != self._bytes[shard]
        except Unreachable as error:
            raise BadImage(str(error)) from error
        except OSError as error:
            raise BadImage(error.strerror or type(error).__name__) from error
        if changed:
            self._index.unlink(missing_ok=True)  # the next start creates it again
            raise BadImage("the shard has changed since the run started to read it")
        self._handles[shard] = handle
        with contextlib.suppress(RuntimeError, StopIteration):  # another thread is changing the dictionary
            while len(self._handles) > _HANDLES:
                self._handles.pop(next(iter(self._handles)), None)
        return handle

    def _load_index(self, names: Sequence[str]) -> tuple[index.Columns, Any] | None:
        """The saved index, if no shard has changed; else None."""
        known = index.load_if_valid(self._index, RULES)
        if known is None:
            return None
        then = {shard: stamp for shard, stamp, *_ in known[1]["shards"]}
        unchanged = (shard in then and not _changed(then[shard], self._stamp_or_none(shard)) for shard in names)
        return known if all(unchanged) else None

    def _build_index(self, names: Sequence[str]) -> tuple[index.Columns, Any]:
        """Build and save the index; shards that have not changed are copied from the old one."""
        with index.locked(self._index):
            if known := self._load_index(names):  # another process has built it while this one waited for the lock
                return known
            saved = index.load_if_valid(self._index, RULES)
            old = split(*saved) if saved else {}
            with ThreadPoolExecutor(_THREADS) as pool:
                indexed = pool.map(lambda shard: self._index_shard(shard, old.get(shard)), names)
                entries = list(track(indexed, "shards indexed", len(names)))
            bad = [(shard, entry) for shard, entry in zip(names, entries, strict=True) if isinstance(entry, str)]
            good = [
                (shard, *entry)
                for shard, entry in zip(names, entries, strict=True)
                if not isinstance(entry, str) and len(entry[1].names)
            ]
            if not good:
                reason = f"{printable(bad[0][0])}: {bad[0][1]}" if bad else "they hold no images"
                raise UserError(f"None of {len(names)} shards can be used, {reason}", "Give uncompressed .tar shards")
            if bad:
                log.warn(
                    f"{len(bad)} of {len(names)} shards cannot be read and are left out, "
                    f"e.g. {printable(bad[0][0])}: {bad[0][1]}"
                )
            # One warning per kind of problem, summed over all shards.
            for remark, count in sum((contents.remarks for *_, contents in good), Counter()).items():
                log.warn(f"{count:,} images in {len(good)} shards {remark}")
            columns, note = merge(good)
            with contextlib.suppress(OSError):  # no writable cache folder: keep the index in memory
                index.save(self._index, columns, note | {"rules": RULES})
                return index.load(self._index) or (columns, note)  # memory-mapped, so that processes share it
            return columns, note

    def _index_shard(self, shard: str, old: tuple[list[int], ShardIndex] | None) -> tuple[list[int], ShardIndex] | str:
        """Stamp and contents of a shard, or the reason why it cannot be read."""
        stamp = self._stamp_or_none(shard)
        if stamp is None:
            return "No such file or directory"
        if old and not _changed(old[0], stamp):
            return old
        beside = self._store.index(shard)
        parsed = index.parse(np.frombuffer(beside, np.uint8)) if beside else None
        contents = read_index(*parsed) if parsed else None
        if contents and (len(stamp) < 2 or contents.num_bytes == stamp[0]):
            return stamp, contents
        try:
            contents = self._use(shard, lambda path: scan(path, self._rule))
        except (Unreachable, OSError) as error:
            return getattr(error, "strerror", None) or str(error)
        if contents.damage and not len(contents.names):
            return contents.damage
        if contents.damage:
            log.warn(f"{printable(shard)} is damaged after {len(contents.names):,} images: {contents.damage}")
        return stamp or self._stamp_or_none(shard) or [], contents  # a downloaded shard has a stamp only now

    def _use(self, shard: str, use: Callable[[Path], T]) -> T:
        """Call `use` with the local file of a shard; again if another process deletes the file before it is opened."""
        for attempt in range(_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                return use(self._store.path(shard))
            time.sleep(random.uniform(0, 0.01 * attempt))  # threads that fill a small cache in step delete each other's
        return use(self._store.path(shard))

    def _stamp_or_none(self, shard: str) -> list[int] | None:
        try:
            return self._store.stamp(shard)
        except OSError:
            return None


def _changed(then: list[int], now: list[int] | None) -> bool:
    """Whether a shard has changed between two stamps; an empty stamp is unknown, None means that it is missing."""
    return now is None or bool(then and now and then != now)


def _common_prefix_length(shards: Sequence[str]) -> int:
    """Number of characters in the path of the folder that all shards are in."""
    folders = [shard.split("/")[:-1] for shard in (min(shards), max(shards))]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*folders, strict=False))
    return sum(len(folder) + 1 for folder, _ in same)


class _Handle:
    """An open file descriptor that is closed when the object is garbage-collected."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
