"""Images in many .tar shards by WebDataset's rule, any of them at once: an index of where each lies, made only once.

A sample is a run of neighboring members whose names are equal up to the first dot of the last part: `00017.jpg`,
`00017.cls`, `00017.json`. Its image is the first member that ends like one; `.cls` holds its class, as a number or in
words; whatever else there is (captions, embeddings) is passed over.

By that rule `scan.0001.png` and `scan.0002.png` are one sample with one image. Where images would be lost that way and
what follows the first dot are numbers, names end at the last dot instead, and a line says so.
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
from opendino.data.decode import SUFFIXES
from opendino.data.download import Unreachable
from opendino.data.mmap_table import Names
from opendino.data.source_files import check_size, class_order, is_hidden, is_image, printable

_FIRST_DOT = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)")
_LAST_DOT = re.compile(r"((?:.*/|)[^./][^/]*)\.([^./]*)")
_SPARSE = -1  # in place of a size
_MAX_CLASS_BYTES = 256
_HANDLES = 64  # open shards; twice the window in which an epoch reads
_RULES = "1 " + " ".join(sorted(SUFFIXES))
"""What decides which members are images; a saved index of other rules is made again. Change the number with `scan`."""
_THREADS = 8
_TRIES = 2 * _THREADS

T = TypeVar("T")

NameRule = Literal["auto", "first-dot", "last-dot"]
"""Where the name of a sample ends."""


class ShardStore(Protocol):
    """How shards are got at, each by its name."""

    def stamp(self, shard: str) -> list[int]:
        """Numbers that change when the shard does, size and time of a file; empty where nothing is known of it.

        Raises:
            OSError: It is not there.
        """
        ...

    def index(self, shard: str) -> bytes | None:
        """The index that lies beside the shard, if one does."""
        ...

    def path(self, shard: str) -> Path:
        """A local file with the shard.

        Raises:
            Unreachable: It cannot be had.
        """
        ...

    def prefetch(self, shards: Sequence[str]) -> None:
        """Begin to get hold of these."""


@dataclass(frozen=True)
class ShardIndex:
    """What lies in one shard.

    Attributes:
        names: Of the samples, unique.
        offsets, sizes: int64 `[samples]`, where in the file their images lie.
        labels: int32 `[samples]`, into `classes`; -1 for none.
        classes: What the shard's `.cls` say.
        num_bytes: Of the whole file.
        damage: Why the shard ends too soon, "" if it does not.
        remarks: What else there is to say of how many members; not kept in an index.
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
        """For `index.save`; the rest goes into its note."""
        return {
            "text": self.names.text, "ends": self.names.ends, "offsets": self.offsets, "sizes": self.sizes,
            "labels": self.labels,
        }  # fmt: skip


def scan(path: Path, rule: NameRule = "auto") -> ShardIndex:
    """Read the headers of a shard.

    Raises:
        OSError: It cannot be read.
    """
    handle = _Handle(path)
    num_bytes = os.fstat(handle.number).st_size
    members: list[tar_headers.Member] = []
    damage = ""
    try:
        members.extend(tar_headers.members(handle.number, num_bytes))  # what came before the damage stays
    except ValueError as error:
        damage = str(error)
    members = [member for member in members if not any(map(is_hidden, member.name.removeprefix("./").split("/")))]
    pattern = _LAST_DOT if rule == "last-dot" or (rule == "auto" and _numbered(members)) else _FIRST_DOT
    found: dict[str, tuple[int, int]] = {}
    words: dict[str, str] = {}
    remarks: Counter[str] = Counter()
    name, unique, best, num_images = "", "", 0, 0
    for member in members:
        parts = pattern.fullmatch(member.name)
        if not parts:
            continue
        rank = 2 if f".{parts[2].lower()}" in SUFFIXES else 1 if is_image(member.name) else 0
        if member.kind == "link":
            remarks[_LINK] += bool(rank)
            continue
        num_images += bool(rank)
        if parts[1] != name:  # a name that comes again later is another sample
            name, best = parts[1], 0
            unique = name if name not in found else f"{name}#{len(found)}"
        if rank > best:
            best, found[unique] = rank, (member.offset, member.size if member.kind == "file" else _SPARSE)
        elif parts[2].lower() == "cls" and member.size <= _MAX_CLASS_BYTES and member.kind == "file":
            text = os.pread(handle.number, member.size, member.offset).decode("utf-8", "replace").strip()
            words[unique] = text.lstrip("0") or "0" if text.isdecimal() else text
    remarks[_SECOND] = num_images - len(found)
    remarks[_SPARSELY] = sum(size == _SPARSE for _, size in found.values())
    if pattern is _LAST_DOT and rule == "auto":
        remarks[_DOTTED] = len(found)
    classes = tuple(sorted({words[key] for key in words.keys() & found.keys() if words[key]}, key=class_order))
    number = {word: label for label, word in enumerate(classes)}
    spans = np.array(list(found.values()), np.int64).reshape(-1, 2)
    labels = np.fromiter((number.get(words.get(key, ""), -1) for key in found), np.int32, len(found))
    names = Names.of(map(printable, found))
    return ShardIndex(names, spans[:, 0], spans[:, 1], labels, classes, num_bytes, damage, remarks)


_DOTTED = (
    "have dots in their names, as in scan.0001.png: each is taken as an image of its own. By WebDataset's rule names "
    "end at the first dot: wds:SHARDS?names=first-dot"
)
_SECOND = (
    "are passed over, since names end at their first dot and a sample has one image. If each is an image of its own: "
    "wds:SHARDS?names=last-dot"
)
_LINK = "are links without bytes of their own and are left out"
_SPARSELY = f"cannot be read: {tar_headers.SPARSE}"


def _numbered(members: Sequence[tar_headers.Member]) -> bool:
    """Whether WebDataset's rule would lose images most of which have nothing but numbers behind their first dot."""
    images = [parts for member in members if is_image(member.name) and (parts := _FIRST_DOT.fullmatch(member.name))]
    inner = [parts[2].rpartition(".")[0] for parts in images]
    numbers = sum(re.fullmatch(r"[0-9][0-9._-]*", each) is not None for each in inner)
    return len({parts[1] for parts in images}) < len(images) < 2 * numbers


def write_index(contents: ShardIndex) -> dict[str, Any]:
    """What an index beside a shard says besides its columns."""
    return {"bytes": contents.num_bytes, "classes": list(contents.classes)}


def read_index(columns: index.Columns, said: Any) -> ShardIndex | None:
    """The reverse of `columns` and `note`; None where they contradict each other, as those of a stranger may."""
    try:
        names = Names(columns["text"], columns["ends"])
        offsets, sizes, labels = columns["offsets"], columns["sizes"], columns["labels"]
        classes, num_bytes = tuple(str(name) for name in said["classes"]), int(said["bytes"])
        num = len(names)
        sound = (
            len(offsets) == len(sizes) == len(labels) == num
            and all(column.dtype.kind == "i" for column in (offsets, sizes, labels, names.ends))
            and (not num or (offsets.min() >= 0 and sizes.min() >= _SPARSE))
            and bool((offsets <= num_bytes - sizes).all())  # not their sum, which may be too much for 64 bits
            and (not num or (labels.min() >= -1 and labels.max() < len(classes)))
            and bool((np.diff(names.ends, prepend=0) > 0).all())
            and (not num or int(names.ends[-1]) == len(names.text))
            and names.text.dtype == np.uint8
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return ShardIndex(names, offsets, sizes, labels, classes, num_bytes) if sound else None


class Shards:
    """The samples of many shards, in the order of the shards.

    Args:
        names: The shards, each once.
        reach: How to get at them.
        classes: Names for classes that the shards give as numbers; where empty, the numbers.
        rule: Where the name of a sample ends.

    Attributes:
        classes: Names of the classes.
        blocks: int64 `[shards]`, samples in each that has any.

    Raises:
        UserError: No shard can be read, or none has an image.
    """

    def __init__(
        self, names: Sequence[str], reach: ShardStore, classes: tuple[str, ...] = (), rule: NameRule = "auto"
    ) -> None:
        self._reach, self._index = reach, index.place("shards", "\n".join([rule, *names]))
        self._rule: NameRule = rule
        columns, said = self._known(names) or self._made(names)
        self._names = Names(columns["text"], columns["ends"])
        self._offsets, self._sizes, self._labels = columns["offsets"], columns["sizes"], columns["labels"]
        table: list[tuple[str, list[int], int, int]] = said["shards"]  # name, stamp, samples, bytes
        self._shards = [shard for shard, *_ in table]
        self._stamps = [stamp for _, stamp, *_ in table]
        self._bytes = [num_bytes for *_, num_bytes in table]
        self.blocks = np.array([num for *_, num, _ in table], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.blocks)])
        found: list[str] = said["classes"]
        named = bool(classes) and all(name.isdecimal() and int(name) < len(classes) for name in found)
        self.classes = tuple(classes[int(name)] for name in found) if named else tuple(found)
        self._shared = _shared(self._shards)
        self._handles: dict[int, _Handle] = {}

    def __len__(self) -> int:
        return len(self._names)

    def key(self, place: int) -> str:
        """The shard and the sample: `00012.tar/000120034`."""
        return f"{printable(self._shards[self._shard(place)][self._shared :])}/{self._names[place]}"

    def label(self, place: int) -> int:
        """From the index."""
        return int(self._labels[place])

    def read(self, place: int) -> bytes:
        """The image's bytes.

        Raises:
            BadImage: The shard cannot be had, has changed, or is damaged here.
        """
        size = int(self._sizes[place])
        if size == _SPARSE:
            raise BadImage(tar_headers.SPARSE)
        check_size(size)
        handle = self._opened(self._shard(place))
        try:
            data = os.pread(handle.number, size, int(self._offsets[place]))
        except OSError as error:
            raise BadImage(error.strerror or type(error).__name__) from error
        if len(data) < size:
            raise BadImage("the shard ends within this image")
        return data

    def checksum(self, place: int) -> int:
        """The size of the image's file, from the index: for more a shard might have to be fetched."""
        return int(self._sizes[place])

    def prefetch(self, places: np.ndarray) -> None:
        """A hint that these images will be asked for."""
        shards = np.unique(np.searchsorted(self._starts, places, "right") - 1)
        self._reach.prefetch([self._shards[shard] for shard in shards if shard not in self._handles])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}

    def _shard(self, place: int) -> int:
        return int(np.searchsorted(self._starts, place, "right")) - 1

    def _opened(self, shard: int) -> _Handle:
        """A handle that reads at given offsets, so that forked processes and threads can share it."""
        if handle := self._handles.get(shard):
            return handle
        name = self._shards[shard]
        try:
            handle = self._while_there(name, _Handle)
            changed = _differ(self._reach.stamp(name), self._stamps[shard])
            changed |= os.fstat(handle.number).st_size != self._bytes[shard]
        except Unreachable as error:
            raise BadImage(str(error)) from error
        except OSError as error:
            raise BadImage(error.strerror or type(error).__name__) from error
        if changed:
            self._index.unlink(missing_ok=True)  # the next start makes it anew
            raise BadImage("the shard has changed since the run began to read it")
        self._handles[shard] = handle
        with contextlib.suppress(RuntimeError, StopIteration):  # another thread is at it
            while len(self._handles) > _HANDLES:
                self._handles.pop(next(iter(self._handles)), None)
        return handle

    def _known(self, names: Sequence[str]) -> tuple[index.Columns, Any] | None:
        """The index as it was saved, if every shard is what it was."""
        known = index.recall(self._index, _RULES)
        if known is None:
            return None
        then = {shard: stamp for shard, stamp, *_ in known[1]["shards"]}
        unchanged = (shard in then and not _differ(then[shard], self._stamp(shard)) for shard in names)
        return known if all(unchanged) else None

    def _made(self, names: Sequence[str]) -> tuple[index.Columns, Any]:
        """A new index, that of unchanged shards taken over from the old one."""
        with index.locked(self._index):
            if known := self._known(names):  # another process has been at it
                return known
            old, entries, spoke = self._parts(), [], time.monotonic()
            with ThreadPoolExecutor(_THREADS) as pool:
                for number, entry in enumerate(pool.map(lambda shard: self._entry(shard, old.get(shard)), names)):
                    entries.append(entry)
                    if time.monotonic() - spoke > 30:
                        spoke = time.monotonic()
                        log.say(f"index of {number + 1:,} of {len(names):,} shards made")
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
            for remark, count in sum((contents.remarks for *_, contents in good), Counter()).items():
                log.warn(f"{count:,} images in {len(good)} shards {remark}")
            columns, said = _joined(good)
            with contextlib.suppress(OSError):  # nowhere to keep it
                index.save(self._index, columns, said)
                return index.load(self._index) or (columns, said)  # mapped, so that processes share it
            return columns, said

    def _entry(self, shard: str, old: tuple[list[int], ShardIndex] | None) -> tuple[list[int], ShardIndex] | str:
        """A shard's stamp and contents, or why it cannot be read."""
        stamp = self._stamp(shard)
        if stamp is None:
            return "No such file or directory"
        if old and not _differ(old[0], stamp):
            return old
        beside = self._reach.index(shard)
        parsed = index.parse(np.frombuffer(beside, np.uint8)) if beside else None
        contents = read_index(*parsed) if parsed else None
        if contents and (len(stamp) < 2 or contents.num_bytes == stamp[0]):
            return stamp, contents
        try:
            contents = self._while_there(shard, lambda path: scan(path, self._rule))
        except (Unreachable, OSError) as error:
            return getattr(error, "strerror", None) or str(error)
        if contents.damage and not len(contents.names):
            return contents.damage
        if contents.damage:
            log.warn(f"{printable(shard)} is damaged after {len(contents.names):,} images: {contents.damage}")
        return stamp or self._stamp(shard) or [], contents  # of a fetched shard there is one only now

    def _while_there(self, shard: str, use: Callable[[Path], T]) -> T:
        """What `use` makes of a shard. Of a fetched one somebody who needs room may dispose before it is opened."""
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):
                return use(self._reach.path(shard))
        return use(self._reach.path(shard))

    def _parts(self) -> dict[str, tuple[list[int], ShardIndex]]:
        """The old index, shard by shard."""
        known = index.load(self._index)
        if known is None or known[1].get("rules") != _RULES:
            return {}
        columns, said = known
        parts, stop, bytes_stop = {}, 0, 0
        for shard, stamp, num, num_bytes in said["shards"]:
            here = slice(stop, stop + num)
            stop += num
            ends = columns["ends"][here]
            text = columns["text"][bytes_stop : int(ends[-1])]
            names = Names(text, ends - bytes_stop)
            bytes_stop = int(ends[-1])
            offsets, sizes, labels = (columns[name][here] for name in ("offsets", "sizes", "labels"))
            parts[shard] = stamp, ShardIndex(names, offsets, sizes, labels, tuple(said["classes"]), num_bytes)
        return parts

    def _stamp(self, shard: str) -> list[int] | None:
        try:
            return self._reach.stamp(shard)
        except OSError:
            return None


def _differ(then: list[int], now: list[int] | None) -> bool:
    """Whether a shard has changed between two stamps; an empty one says nothing, None that it is gone."""
    return now is None or bool(then and now and then != now)


def _shared(shards: Sequence[str]) -> int:
    """How many characters of every name are the folder that all shards lie in."""
    folders = [shard.split("/")[:-1] for shard in (min(shards), max(shards))]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*folders, strict=False))
    return sum(len(folder) + 1 for folder, _ in same)


def _joined(good: list[tuple[str, list[int], ShardIndex]]) -> tuple[index.Columns, Any]:
    """Several shards' contents as one."""
    every = [contents for *_, contents in good]
    used = [np.unique(contents.labels[contents.labels >= 0]) for contents in every]
    words = {contents.classes[label] for contents, labels in zip(every, used, strict=True) for label in labels}
    classes = sorted(words, key=class_order)
    number = {word: label for label, word in enumerate(classes)}
    labels, ends, bytes_before = [], [], 0
    for contents in every:
        renumbered = np.array([*(number.get(word, -1) for word in contents.classes), -1], np.int32)
        labels.append(renumbered[contents.labels])  # -1, unknown, is the last of them
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
    """An open file, closed when nobody uses it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
