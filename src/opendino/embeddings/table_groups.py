"""Names of groups for the images of a table: by folder, by cluster of their vectors, or by a column of a CSV file."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from opendino.core.errors import UserError
from opendino.data.metadata import read_metadata
from opendino.data.source_files import FolderClasses
from opendino.features.projection import clusters

FOLDER, CLUSTER = "folder", "cluster"
_MOST = 50
"""A column with more values is not offered: it does not group the images."""


def group_names(keys: Sequence[str], vectors: Tensor, by: str, csv: str | None = None) -> list[str]:
    """The group of each image.

    Args:
        keys: Keys of the images.
        vectors: Their vectors, float `[M D]`, L2-normalized.
        by: "folder", "cluster", or the name of a column of the CSV.
        csv: File with a column of paths.

    Returns:
        M names; "" where the CSV has none.

    Raises:
        UserError: The CSV cannot be read, has no such column, or names none of the images.
    """
    if by == FOLDER:
        return folder_names(keys)
    if by == CLUSTER:
        return [f"cluster {number + 1}" for number in clusters(vectors).tolist()]
    columns = read_metadata(csv, keys) if csv else {}
    if by not in columns:
        hint = f"Use one of {', '.join([FOLDER, CLUSTER, *columns])}{', or name a CSV with --labels' * (csv is None)}"
        raise UserError(f"There is no column '{by:.40}' to color by", hint)
    return columns[by]


def folder_names(keys: Sequence[str]) -> list[str]:
    """The folder of each image that a source takes for its class, see `source_files.FolderClasses`; "" without one."""
    folders = FolderClasses.of(keys)
    return [folders.names[label] if (label := folders.label(key)) >= 0 else "" for key in keys]


def columns_to_color_by(keys: Sequence[str], csv: str) -> list[str]:
    """The columns of a CSV that group the images: 2 to 50 values. Empty if it names none of the images."""
    try:
        columns = read_metadata(csv, keys)
    except UserError:
        return []
    return [name for name, values in columns.items() if 2 <= len({value for value in values if value}) <= _MOST]
