"""What a CSV says about how images were taken: device, session, plate, date."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from opendino.core import log
from opendino.core.contracts import Source
from opendino.core.errors import UsageError, UserError
from opendino.data.labels import Relabeled, image_finder, matched
from opendino.data.list_columns import is_class, is_metadata, read_columns
from opendino.data.source_files import FolderClasses, class_order, is_file, printable

MAX_GROUPS = 50
"""Columns with more values are not taken for groups unless they are named."""

_FILES = ("labels.csv", "metadata.csv")


def read_metadata(path: str, keys: Sequence[str]) -> dict[str, list[str]]:
    """Read the columns of a CSV for images.

    Args:
        path: The CSV.
        keys: Keys of the images in their source.

    Returns:
        Name of a column → value for each image, "" where the CSV has none.

    Raises:
        UserError: The CSV cannot be read or names none of the images.
    """
    find = image_finder(keys)
    listed = read_columns(path, lambda image: find(image) is not None)
    found, _ = matched(keys, find, listed, path)
    if not found:
        raise UserError(
            f"None of the {len(listed):,} paths in {printable(path)} is an image of the set, e.g. "
            f"{printable(next(iter(listed)))}",
            f"Write paths as in the dataset, e.g. {keys[0]}",
        )
    if len(found) < len(keys):
        log.say(f"{len(keys) - len(found):,} of {len(keys):,} images are not in {printable(path)}")
    names = next(iter(listed.values()))
    return {name: [found.get(index, {}).get(name, "") for index in range(len(keys))] for name in names}


def group_columns(columns: dict[str, list[str]]) -> list[str]:
    """Columns that may be groups of images: 2 to 50 values, on average of five images or more."""
    found = []
    for name, values in columns.items():
        known = [value for value in values if value]
        num = len(set(known))
        if is_metadata(name) and 2 <= num <= min(MAX_GROUPS, len(known) / 5):
            found.append(name)
    return found


def class_column(columns: dict[str, list[str]]) -> str | None:
    """The first column that holds classes, by its name; None if there is none with two classes."""
    return next((name for name, values in columns.items() if is_class(name) and len({*values} - {""}) > 1), None)


def folder_column(source: Source) -> dict[str, list[str]]:
    """The sub-folder of each image as the only column, where there is no CSV; "" for images beside the sub-folders.

    Raises:
        UsageError: There are fewer than two.
    """
    if source.classes:
        names = [*source.classes, ""]  # the label -1 is unknown
        folders = [names[source.label(index)] for index in range(len(source))]
    else:  # a source has no classes if one image is beside the sub-folders
        keys = [source.key(index) for index in range(len(source))]
        classes = FolderClasses.of(key for key in keys if "/" in key)
        names = [*classes.names, ""]
        folders = [names[classes.label(key)] if "/" in key else "" for key in keys]
    if len(names) < 3:
        raise UsageError(
            "--labels is missing, and the images are not in two sub-folders or more",
            "Name a CSV with a header: path,device,date",
        )
    return {"folder": folders}


def with_classes(source: Source, names: Sequence[str]) -> Relabeled:
    """A source whose classes are those of a column: the name of each image's class, "" where unknown."""
    classes = tuple(sorted({*names} - {""}, key=class_order))
    number = {name: label for label, name in enumerate(classes)}
    return Relabeled(source, classes, np.array([number.get(name, -1) for name in names], np.int64))


def nearby_csv(data: str) -> list[str]:
    """The CSV files in or next to a folder of images that are taken for its metadata."""
    folder = Path(data)
    return [str(path) for place in (folder, folder.parent) for name in _FILES if is_file(str(path := place / name))]


def known_metadata(data: str, labels: str) -> tuple[str, list[str]] | None:
    """The CSV of a set of images, as far as it is known, and its columns that may be groups.

    Args:
        data: DATA of a run.
        labels: Its setting `labels`.

    Returns:
        The first of `labels`, DATA, and labels.csv or metadata.csv in or next to the folder DATA that has such columns.
    """
    for path in (labels, data, *nearby_csv(data)):
        if path.lower().endswith(".csv") and is_file(path):
            try:
                rows = list(read_columns(path).values())
            except UserError:
                continue
            if names := group_columns({name: [row[name] for row in rows] for name in rows[0]}):
                return path, names
    return None


def confounders_hint(model: str, data: str, labels: str) -> str:
    """One line with the command that checks a model for batch effects; empty if no CSV is known."""
    known = known_metadata(data, labels)
    if known is None:
        return ""
    path, names = known
    return (
        f"{_joined(names)} in {printable(path)}: check that features do not depend on it: "
        f"opendino eval confounders {model} --labels {printable(path)}"
    )


def _joined(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
