"""The index of a WebDataset shard: where its images are, and their names and classes, from its .tar headers.

A sample is a group of consecutive members whose names are equal up to the first dot of the file name: `00017.jpg`,
`00017.cls`, `00017.json`. Its image is the first member with an image suffix; `.cls` holds its class, as a number or a
name; other members (captions, embeddings) are ignored.

By this rule `scan.0001.png` and `scan.0002.png` are one sample with one image. If images would be lost this way and the
text after the first dot is a number, names end at the last dot instead, with a warning.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from opendino.data import tar_headers
from opendino.data.decode import ARRAY_SUFFIXES, SUFFIXES
from opendino.data.mmap_table import Columns, Names
from opendino.data.source_files import class_order, is_hidden, printable, suffix

_IMAGES = SUFFIXES - ARRAY_SUFFIXES
RULES = "1 " + " ".join(sorted(_IMAGES))
"""Identifies how `scan` finds images; an index saved with other rules is created again. Change the number if you change
`scan`."""
SPARSE = -1
"""Stands for the size of a sparse file, which cannot be read."""
_FIRST_DOT = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)")
_LAST_DOT = re.compile(r"((?:.*/|)[^./][^/]*)\.([^./]*)")
_MAX_CLASS_BYTES = 256

NameRule = Literal["auto", "first-dot", "last-dot"]
"""Where the name of a sample ends: at the first or last dot of a file name; "auto" decides for each shard."""


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

    def columns(self) -> Columns:
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
    with open(path, "rb") as file:
        return _scan(file.fileno(), rule)


def _scan(file: int, rule: NameRule) -> ShardIndex:
    num_bytes = os.fstat(file).st_size
    members: list[tar_headers.Member] = []
    damage = ""
    try:
        members.extend(tar_headers.members(file, num_bytes))  # keeps the members before the damage
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
            best, found[unique] = priority, (member.offset, member.size if member.kind == "file" else SPARSE)
        elif parts[2].lower() == "cls" and member.size <= _MAX_CLASS_BYTES and member.kind == "file":
            text = os.pread(file, member.size, member.offset).decode("utf-8", "replace").strip()
            words[unique] = text.lstrip("0") or "0" if text.isdecimal() else text
    remarks[_SECOND] = num_images - len(found)
    remarks[_UNREADABLE] = sum(size == SPARSE for _, size in found.values())
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


def read_index(columns: Columns, note: Any) -> ShardIndex | None:
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
            and (not num or (offsets.min() >= 0 and sizes.min() >= SPARSE))
            and bool((offsets <= num_bytes - sizes).all())  # not offsets + sizes, which may overflow 64 bits
            and (not num or (labels.min() >= -1 and labels.max() < len(classes)))
            and bool((np.diff(names.ends, prepend=0) > 0).all())
            and (not num or int(names.ends[-1]) == len(names.text))
            and names.text.dtype == np.uint8
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return ShardIndex(names, offsets, sizes, labels, classes, num_bytes) if is_valid else None


def merge(good: list[tuple[str, list[int], ShardIndex]]) -> tuple[Columns, Any]:
    """Merge several shards into one table, in their order.

    Args:
        good: Name, stamp and contents of each shard that has images.

    Returns:
        Columns and note for `mmap_table.save`.
    """
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
    return columns, {"shards": table, "classes": classes}


def split(columns: Columns, note: Any) -> dict[str, tuple[list[int], ShardIndex]]:
    """The inverse of `merge`: name of a shard → its stamp and contents."""
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
