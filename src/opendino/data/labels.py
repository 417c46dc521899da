"""Choose which labels a run may use: none, those of DATA, a share of each class, or those in a CSV file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, final

import numpy as np

from opendino.core import duration, log
from opendino.core.contracts import Source
from opendino.core.errors import UsageError, UserError
from opendino.data.list_columns import read_list
from opendino.data.source_files import class_order, is_file, printable

MASKS = "masks"
"""The value of the setting `labels` where masks are the labels, see `datasets.labeled_pixels`."""
WORDS = ("auto", "folders", "none", MASKS)
"""Values of the setting `labels` that are never a file, even where a file or folder has that name."""


_Said = TypeVar("_Said")


@final
class Relabeled(Source):
    """A source with other labels and the same images and keys.

    Args:
        source: The images.
        classes: Names of the classes.
        labels: int64 `[len(source)]`, index into `classes`; -1 where unknown.
    """

    def __init__(self, source: Source, classes: tuple[str, ...], labels: np.ndarray) -> None:
        assert labels.shape == (len(source),) and labels.max(initial=-1) < len(classes)
        self._source, self.classes, self._labels = source, classes, labels
        self.shard_sizes, self.pixel_format = source.shard_sizes, source.pixel_format

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        """The image's key in the source."""
        return self._source.key(index)

    def label(self, index: int) -> int:
        """The new label."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes | np.ndarray:
        """Read the image from the source."""
        return self._source.read(index)

    def checksum(self, index: int) -> int:
        """The image's checksum in the source."""
        return self._source.checksum(index)

    def prefetch(self, indices: np.ndarray) -> None:
        """Let the source prefetch these images."""
        self._source.prefetch(indices)


def all_labels(source: Source) -> np.ndarray:
    """All labels of a source, int64 `[len(source)]`; -1 where unknown."""
    return np.array([source.label(index) for index in range(len(source))], np.int64)


def relabel(source: Source, labels: str, seed: int) -> Source:
    """Restrict or replace the labels of a source, according to the `labels` setting.

    Args:
        source: The images.
        labels: "auto", "folders" or "masks", those of the source; "none"; a share such as "10%", sampled from each
            class, at least one image; or a CSV file with path and class. All other images become unlabeled.
        seed: Seed for sampling the share.

    Raises:
        UsageError: `labels` has none of these forms.
        UserError: The CSV cannot be read or matches no image, or the source has no classes and "folders" or a share is
            given.
    """
    if labels in ("auto", MASKS) or (labels == "folders" and source.classes):
        return source
    if labels == "none":
        return Relabeled(source, (), np.full(len(source), -1, np.int64))
    if labels not in WORDS and is_file(labels):
        return _from_list(source, labels)
    try:
        number, unit = duration.parse(labels)
    except UsageError:
        number, unit = 0.0, ""
    if labels != "folders" and (unit != "%" or not 0 < number <= 100):
        raise UsageError(f"labels is '{labels}'", "Use none, folders, a share such as 10%, or a CSV file of path,class")
    if not source.classes:
        raise UserError(
            f"The images have no classes, so --labels {labels} has none to use",
            "Put the images of each class in a folder of its own, or give a CSV of path,class",
        )
    every = all_labels(source)
    kept = np.full_like(every, -1)
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    for label in range(len(source.classes)):
        members = np.flatnonzero(every == label)
        chosen = rng.permutation(members)[: max(1, round(number / 100 * len(members)))]
        kept[chosen] = label
    return Relabeled(source, source.classes, kept)


def labels_for_val(labels: str, train: Source, val: Source) -> str:
    """The setting `labels` for the images to test on: a list that names some of them by keys of theirs, else "auto".

    A key that an image to train on has too does not count: nothing says which of the two the list means.
    """
    if labels in WORDS or not is_file(labels):
        return "auto"
    own = {val.key(index) for index in range(len(val))} - {train.key(index) for index in range(len(train))}
    listed = read_list(labels, lambda image: printable(image) in own)
    return labels if any(printable(image) in own for image in listed) else "auto"


def image_finder(keys: Sequence[str]) -> Callable[[str], int | None]:
    """A function that finds the image that a list names: path → index, None if there is none.

    A path is matched to the keys. If it is none of them, it is the only image with that file name, with or without its
    suffix, whose folders do not contradict: `/home/me/photos/cat/5.jpg`, `cat/5` and `5.jpg` may name `cat/5.jpg`,
    `dog/5.jpg` does not.
    """
    by_key = {key: index for index, key in enumerate(keys)}
    files: dict[str, list[str]] = {}
    for key in keys:
        name = key.rpartition("/")[2]
        for each in {name, name.rpartition(".")[0] or name}:
            files.setdefault(each, []).append(key)

    def find(image: str) -> int | None:
        index = _by_key(by_key, image)
        folders, _, name = image.replace("\\", "/").rpartition("/")
        same_file = [key for key in files.get(name, []) if _agree(folders, key.rpartition("/")[0])]
        return by_key[same_file[0]] if index is None and len(same_file) == 1 else index

    return find


def _agree(one: str, other: str) -> bool:
    """Whether one path of folders is the end of the other."""
    ends = zip(one.split("/")[::-1], other.split("/")[::-1], strict=False)
    return not (one and other) or all(a == b for a, b in ends)


def matched(
    keys: Sequence[str], find: Callable[[str], int | None], listed: dict[str, _Said], path: str
) -> tuple[dict[int, _Said], list[str]]:
    """Position in `keys` → what a list says about that image; and the paths that name no image.

    Where several paths lead to an image, the one that is its key counts.

    Args:
        keys: Keys of the images.
        find: From `image_finder(keys)`, with which the list was read.
        listed: Path of an image → what the list says.
        path: The list, for errors.

    Raises:
        UserError: Two paths lead to one image and say different things about it.
    """
    known = set(keys)
    found, paths, unmatched = dict[int, _Said](), dict[int, str](), list[str]()
    for image in sorted(listed, key=lambda image: printable(image) not in known):
        index = find(image)
        if index is None or (index in found and printable(paths[index]) == keys[index] != printable(image)):
            unmatched.append(image)
        elif index in found and found[index] != listed[image]:
            raise UserError(
                f"{printable(path)} says different things about {keys[index]}, as {printable(paths[index])} and as "
                f"{printable(image)}",
                f"Write paths as in the dataset, e.g. {keys[index]}",
            )
        else:
            found[index], paths[index] = listed[image], image
    return found, unmatched


def listed_labels(keys: Sequence[str], path: str) -> dict[int, str]:
    """The labels of `match_labels`; lines that match no image are counted in a warning."""
    found, unmatched = match_labels(keys, path)
    if unmatched:
        log.warn(f"{unmatched}; they are ignored")
    return found


def match_labels(keys: Sequence[str], path: str) -> tuple[dict[int, str], str]:
    """Position of an image in `keys` → its class in a list (see `image_finder` and `read_list`), and what is left over.

    Returns:
        The labels, and a sentence on lines that match no image, "" if there are none.

    Raises:
        UserError: The list cannot be read, names no classes, or none of the images.
    """
    find = image_finder(keys)
    listed = read_list(path, lambda image: find(image) is not None)
    named = {image: name for image, name in listed.items() if name}
    if not named:
        raise UserError(f"{path} names no classes", "Write lines of path,class")
    found, unmatched = matched(keys, find, named, path)
    message = f"{len(unmatched):,} of the {len(named):,} paths in {path} match no image, e.g. "
    if not found:
        raise UserError(f"{message}{printable(unmatched[0])}", f"Write paths as in the dataset, e.g. {keys[0]}")
    return found, f"{message}{printable(unmatched[0])}" if unmatched else ""


def _from_list(source: Source, path: str) -> Relabeled:
    """Labels from a list."""
    found = listed_labels([source.key(index) for index in range(len(source))], path)
    classes = tuple(sorted(set(found.values()), key=class_order))
    number = {name: label for label, name in enumerate(classes)}
    labels = np.full(len(source), -1, np.int64)
    for index, name in found.items():
        labels[index] = number[name]
    return Relabeled(source, classes, labels)


def _by_key(keys: dict[str, int], path: str) -> int | None:
    """Index of the image with this key; leading folders of an absolute path are removed until a key matches."""
    shown = printable(path)
    while path.startswith("/") and shown not in keys and "/" in shown.partition("/")[2]:
        shown = shown.partition("/")[2]
    return keys.get(shown)
