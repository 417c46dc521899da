"""Random access to the images in WebDataset .tar shards, through an index of their offsets that is created once.

A sample is a group of consecutive members whose names are equal up to the first dot of the file name: `00017.jpg`,
`00017.cls`, `00017.json`. Its image is the first member with an image suffix; `.cls` holds its class, as a number or a
name; other members (captions, embeddings) are ignored.

By this rule `scan.0001.png` and `scan.0002.png` are one sample with one image. If images would be lost this way and the
text after the first dot is a number, names end at the last dot instead, with a warning.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from opendino.core import log
from opendino.core.errors import BadImage, UserError
from opendino.data import mmap_table as index
from opendino.data import tar_headers
from opendino.data.decode import ARRAY_SUFFIXES, SUFFIXES
from opendino.data.download import Unreachable
from opendino.data.mmap_table import Names
from opendino.data.source_files import check_size, class_order, is_hidden, printable, suffix

_FIRST_DOT = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)")
_LAST_DOT = re.compile(r"((?:.*/|)[^./][^/]*)\.([^./]*)")
_SPARSE = -1  # stands for the size of a sparse file
_MAX_CLASS_BYTES = 256
_HANDLES = 64  # open shards; twice `sampler.WINDOW`
_IMAGES = SUFFIXES - ARRAY_SUFFIXES
_RULES = "1 " + " ".join(sorted(_IMAGES))
"""Identifies how `scan` finds images; an index saved with other rules is created again. Change the number if you change
`scan`."""
_THREADS = 8
_ATTEMPTS = 2 * _THREADS

T = TypeVar("T")

NameRule = Literal["auto", "first-dot", "last-dot"]
"""Where the name of a sample ends: at the first or last dot of a file name; "auto" decides for each shard."""


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


@dataclass(frozen=True)
class ShardIndex:
    """The samples in one shard.

    Attributes:
        names: Names of the samples, unique.
        offsets, sizes: int64 `[samples]`, offset and size of each image in the file, in bytes.
        labels: int32 `[samples]`, index into `classes`; -1 if unknown.
        classes: Names of the classes in the shard's `.cls` members.
        num_bytes: Size of the whole file.
        damage: Why the shard is incomplete; "" if it is intact.
        remarks: Warning → number of members it is about; not saved in an index file.
    """

    names: Names
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    num_bytes: int
    damage: str = ""
    remarks: Counter[str] = field(default_factory=Counter)

    def columns(self) -> index.Columns:
        """The columns for `mmap_table.save`; `write_index` gives the note."""
        return {
            "text": self.names.text, "ends": self.names.ends, "offsets": self.offsets, "sizes": self.sizes,
            "labels": self.labels,
        }  # fmt: skip


def scan(path: Path, rule: NameRule = "auto") -> ShardIndex:
    """Build the index of a shard from its tar headers.

    Args:
        path: The shard.
        rule: Where the name of a sample ends.

    Raises:
        OSError: The file cannot be read.
    """
    handle = _Handle(path)
    num_bytes = os.fstat(handle.number).st_size
    members: list[tar_headers.Member] = []
    damage = ""
    try:
        members.extend(tar_headers.members(handle.number, num_bytes))  # keeps the members before the damage
    except ValueError as error:
        damage = str(error)
    members = [member for member in members if not any(map(is_hidden, member.name.removeprefix("./").split("/")))]
    pattern = _LAST_DOT if rule == "last-dot" or (rule == "auto" and _numbered(members)) else _FIRST_DOT
    found: dict[str, tuple[int, int]] = {}  # sample → offset and size of its image
    words: dict[str, str] = {}  # sample → content of its .cls
    remarks: Counter[str] = Counter()
    name, unique, best, num_images = "", "", 0, 0
    for member in members:
        parts = pattern.fullmatch(member.name)
        if not parts:
            continue
        # `00017.jpg` is preferred to `00017.mask.png` as the image of sample 00017; 0 is not an image.
        priority = 2 if f".{parts[2].lower()}" in _IMAGES else 1 if suffix(member.name) in _IMAGES else 0
        if member.kind == "link":
            remarks[_LINK] += bool(priority)
            continue
        num_images += bool(priority)
        if parts[1] != name:  # a name that occurs again later is another sample
            name, best = parts[1], 0
            unique = name if name not in found else f"{name}#{len(found)}"
        if priority > best:
            best, found[unique] = priority, (member.offset, member.size if member.kind == "file" else _SPARSE)
        elif parts[2].lower() == "cls" and member.size <= _MAX_CLASS_BYTES and member.kind == "file":
            text = os.pread(handle.number, member.size, member.offset).decode("utf-8", "replace").strip()
            words[unique] = text.lstrip("0") or "0" if text.isdecimal() else text
    remarks[_SECOND] = num_images - len(found)
    remarks[_UNREADABLE] = sum(size == _SPARSE for _, size in found.values())
    if pattern is _LAST_DOT and rule == "auto":
        remarks[_DOTTED] = len(found)
    classes = tuple(sorted({words[key] for key in words.keys() & found.keys() if words[key]}, key=class_order))
    number = {word: label for label, word in enumerate(classes)}
    spans = np.array(list(found.values()), np.int64).reshape(-1, 2)
    labels = np.fromiter((number.get(words.get(key, ""), -1) for key in found), np.int32, len(found))
    names = Names.of(map(printable, found))
    return ShardIndex(names, spans[:, 0], spans[:, 1], labels, classes, num_bytes, damage, remarks)


_DOTTED = (
    "have dots in their names, as in scan.0001.png, and are read as separate samples. If names end at the first dot, "
    "as in WebDataset, use wds:SHARDS?names=first-dot"
)
_SECOND = (
    "are ignored, because names end at their first dot and a sample has one image. If they are separate samples, use "
    "wds:SHARDS?names=last-dot"
)
_LINK = "are links without content and are left out"
_UNREADABLE = f"cannot be read: {tar_headers.SPARSE}"


def _numbered(members: Sequence[tar_headers.Member]) -> bool:
    """Whether WebDataset's rule would lose images, and most images have only numbers after the first dot."""
    images = [
        parts for member in members if suffix(member.name) in _IMAGES and (parts := _FIRST_DOT.fullmatch(member.name))
    ]
    inner = [parts[2].rpartition(".")[0] for parts in images]
    numbers = sum(re.fullmatch(r"[0-9][0-9._-]*", each) is not None for each in inner)
    return len({parts[1] for parts in images}) < len(images) < 2 * numbers


def write_index(contents: ShardIndex) -> dict[str, Any]:
    """The note of an index file: everything except its columns."""
    return {"bytes": contents.num_bytes, "classes": list(contents.classes)}


def read_index(columns: index.Columns, note: Any) -> ShardIndex | None:
    """The contents of a shard from the columns and note of an index file; None if they are inconsistent.

    An index file may come from a server, so everything is checked before it is used as an offset.
    """
    try:
        names = Names(columns["text"], columns["ends"])
        offsets, sizes, labels = columns["offsets"], columns["sizes"], columns["labels"]
        classes, num_bytes = tuple(str(name) for name in note["classes"]), int(note["bytes"])
        num = len(names)
        is_valid = (
            len(offsets) == len(sizes) == len(labels) == num
            and all(column.dtype.kind == "i" for column in (offsets, sizes, labels, names.ends))
            and (not num or (offsets.min() >= 0 and sizes.min() >= _SPARSE))
            and bool((offsets <= num_bytes - sizes).all())  # not offsets + sizes, which may overflow 64 bits
            and (not num or (labels.min() >= -1 and labels.max() < len(classes)))
            and bool((np.diff(names.ends, prepend=0) > 0).all())
            and (not num or int(names.ends[-1]) == len(names.text))
            and names.text.dtype == np.uint8
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return ShardIndex(names, offsets, sizes, labels, classes, num_bytes) if is_valid else None


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
        if size == _SPARSE:
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
        known = index.load_if_valid(self._index, _RULES)
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
            old, entries, last_message = self._old_indexes(), [], time.monotonic()
            with ThreadPoolExecutor(_THREADS) as pool:
                for number, entry in enumerate(pool.map(lambda shard: self._index_shard(shard, old.get(shard)), names)):
                    entries.append(entry)
                    if time.monotonic() - last_message > 30:
                        last_message = time.monotonic()
                        log.say(f"Indexed {number + 1:,} of {len(names):,} shards")
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
            columns, note = _merge(good)
            with contextlib.suppress(OSError):  # no writable cache folder: keep the index in memory
                index.save(self._index, columns, note)
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
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                return use(self._store.path(shard))
        return use(self._store.path(shard))

    def _old_indexes(self) -> dict[str, tuple[list[int], ShardIndex]]:
        """The saved index, split by shard: name → stamp and contents; empty if there is none."""
        known = index.load(self._index)
        if known is None or known[1].get("rules") != _RULES:
            return {}
        columns, note = known
        indexes, stop, bytes_stop = {}, 0, 0
        for shard, stamp, num, num_bytes in note["shards"]:
            here = slice(stop, stop + num)
            stop += num
            ends = columns["ends"][here]
            text = columns["text"][bytes_stop : int(ends[-1])]
            names = Names(text, ends - bytes_stop)
            bytes_stop = int(ends[-1])
            offsets, sizes, labels = (columns[name][here] for name in ("offsets", "sizes", "labels"))
            indexes[shard] = stamp, ShardIndex(names, offsets, sizes, labels, tuple(note["classes"]), num_bytes)
        return indexes

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


def _merge(good: list[tuple[str, list[int], ShardIndex]]) -> tuple[index.Columns, Any]:
    """Merge the contents of several shards into one table: its columns and note."""
    every = [contents for *_, contents in good]
    used = [np.unique(contents.labels[contents.labels >= 0]) for contents in every]
    words = {contents.classes[label] for contents, labels in zip(every, used, strict=True) for label in labels}
    classes = sorted(words, key=class_order)
    number = {word: label for label, word in enumerate(classes)}
    labels, ends, bytes_before = [], [], 0
    for contents in every:
        # Labels count the classes of one shard: renumber them. Label -1, unknown, picks the last element, -1.
        renumbered = np.array([*(number.get(word, -1) for word in contents.classes), -1], np.int32)
        labels.append(renumbered[contents.labels])
        ends.append(contents.names.ends + bytes_before)
        bytes_before += len(contents.names.text)
    columns = {
        "text": np.concatenate([contents.names.text for contents in every]),
        "ends": np.concatenate(ends),
        "offsets": np.concatenate([contents.offsets for contents in every]),
        "sizes": np.concatenate([contents.sizes for contents in every]).clip(max=2**31 - 1).astype(np.int32),
        "labels": np.concatenate(labels),
    }
    table = [[shard, stamp, len(contents.names), contents.num_bytes] for shard, stamp, contents in good]
    return columns, {"shards": table, "classes": classes, "rules": _RULES}


class _Handle:
    """An open file descriptor that is closed when the object is garbage-collected."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
