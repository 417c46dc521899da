"""Which of a source's labels a run may see: all, a share of each class, or those that a CSV names."""

from __future__ import annotations

from typing import final

import numpy as np

from opendino.core import duration, log
from opendino.core.contracts import Source
from opendino.core.errors import UsageError, UserError
from opendino.data.list_columns import read_list
from opendino.data.source_files import class_order, is_file, printable


@final
class Relabeled(Source):
    """A source with other labels; its images and keys stay.

    Args:
        source: The images.
        classes: Names of the classes.
        labels: int64 `[len(source)]`, -1 where unknown.
    """

    def __init__(self, source: Source, classes: tuple[str, ...], labels: np.ndarray) -> None:
        assert labels.shape == (len(source),) and labels.max(initial=-1) < len(classes)
        self._source, self.classes, self._labels = source, classes, labels
        self.blocks = source.blocks

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        """The source's."""
        return self._source.key(index)

    def label(self, index: int) -> int:
        """The new one."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes | np.ndarray:
        """The source's."""
        return self._source.read(index)

    def checksum(self, index: int) -> int:
        """The source's."""
        return self._source.checksum(index)

    def prefetch(self, indices: np.ndarray) -> None:
        """The source's."""
        self._source.prefetch(indices)


def known(source: Source) -> np.ndarray:
    """Every label of a source, int64 `[len(source)]`."""
    return np.array([source.label(index) for index in range(len(source))], np.int64)


def relabel(source: Source, labels: str, seed: int) -> Source:
    """A source with the labels that a user grants.

    Args:
        source: The images.
        labels: "all"; a share such as "10%", drawn from each class, one image at least; or a CSV of path and class.
            Images without a label count as unlabeled.
        seed: Of the draw.

    Raises:
        UsageError: None of these forms.
        UserError: The CSV cannot be read or fits no image, or the source names no classes to draw from.
    """
    if labels == "all":
        return source
    if is_file(labels):
        return _from_list(source, labels)
    try:
        number, unit = duration.parse(labels)
    except UsageError:
        number, unit = 0.0, ""
    if unit != "%" or not 0 < number <= 100:
        raise UsageError(f"labels is '{labels}'", "Use all, a share such as 10%, or a CSV file of path,class")
    if not source.classes:
        raise UserError(
            f"The images name no classes of which labels={labels} could be kept", "Give a CSV of path,class"
        )
    every = known(source)
    kept = np.full_like(every, -1)
    chance = np.random.Generator(np.random.Philox(key=[seed, 0]))
    for label in range(len(source.classes)):
        members = np.flatnonzero(every == label)
        chosen = chance.permutation(members)[: max(1, round(number / 100 * len(members)))]
        kept[chosen] = label
    return Relabeled(source, source.classes, kept)


def _from_list(source: Source, path: str) -> Relabeled:
    """Labels by key, with or without the folders that DATA lies in; else by the name of a file that one image has."""
    keys = {source.key(index): index for index in range(len(source))}
    files: dict[str, list[int]] = {}
    for key, index in keys.items():
        name = key.rpartition("/")[2]
        for each in {name, name.rpartition(".")[0] or name}:
            files.setdefault(each, []).append(index)

    def find(image: str) -> int | None:
        index = _by_key(keys, image)
        same_file = files.get(image.replace("\\", "/").rpartition("/")[2], [])
        return same_file[0] if index is None and len(same_file) == 1 else index

    listed = read_list(path, lambda image: find(image) is not None)
    named = {image: name for image, name in listed.items() if name}
    if not named:
        raise UserError(f"{path} names no classes", "Write lines of path,class")
    found = {index: name for image, name in named.items() if (index := find(image)) is not None}
    strangers = [image for image in named if find(image) is None]
    lead = f"{len(strangers):,} of the {len(named):,} paths in {path} are none of the images, e.g. "
    if not found:
        raise UserError(f"{lead}{printable(strangers[0])}", f"Write them as the run does, e.g. {source.key(0)}")
    if strangers:
        log.warn(f"{lead}{printable(strangers[0])}; they are passed over")
    classes = tuple(sorted(set(found.values()), key=class_order))
    number = {name: label for label, name in enumerate(classes)}
    labels = np.full(len(source), -1, np.int64)
    for index, name in found.items():
        labels[index] = number[name]
    return Relabeled(source, classes, labels)


def _by_key(keys: dict[str, int], path: str) -> int | None:
    """The image of a path as written; of an absolute one such as `/data/photos/cats/1.png` also `cats/1.png`."""
    shown = printable(path)
    while path.startswith("/") and shown not in keys and "/" in shown.partition("/")[2]:
        shown = shown.partition("/")[2]
    return keys.get(shown)
