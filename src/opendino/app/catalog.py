"""The images, runs, models and tables that the page may open: those named on the command line, and nothing else."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from opendino.core.errors import UserError
from opendino.data.metadata import nearby_csv
from opendino.data.source_files import is_hidden, is_image
from opendino.data.sources import archive
from opendino.models import classifier, segmentation_head
from opendino.models.load import DESCRIPTION

_TABLES = (".parquet", ".lance")
_OF_HEADS = (classifier.DESCRIPTION, segmentation_head.DESCRIPTION)
_LOOKED_AT = 2000
"""Number of names within a folder among which an image is looked for."""


class ServerImage(NamedTuple):
    """An image of the server that may be opened.

    Attributes:
        data: Its folder or archive, as a path.
        key: Its key there.
        stack: What the pages of a file are.
        channel_files: Pattern of file names where each channel has a file of its own; empty without.
    """

    data: str
    key: str
    stack: str = "ask"
    channel_files: str = ""


class Catalog:
    """Images, runs, models and tables by name.

    Args:
        names: Folders and archives of images; run folders, model folders, tables (.parquet, .lance), timm:NAME, or
            folders of these, which are listed again on every call, so that new runs appear. The images of a table are
            shown only if their folder or archive is among the names.

    Raises:
        UserError: A name is none of these, or does not exist.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._timm = [name for name in names if name.startswith("timm:")]
        self._paths = [Path(name).expanduser() for name in names if not name.startswith("timm:")]
        for path in self._paths:
            if not path.exists():
                raise UserError(f"'{path}' does not exist", "Give runs, models, tables, or a folder of these")
            if not path.is_dir() and path.suffix not in _TABLES and not archive.matches(str(path)):
                raise UserError(
                    f"'{path}' is not a run, model, table or archive of images",
                    "Tables end in .parquet or .lance, archives in .tar or .zip",
                )
        self._data = [path for path in self._paths if _is_data(path)]

    def runs(self) -> dict[str, Path]:
        """Name → run folder, newest first."""
        found = [path for path in self._all() if is_run(path)]
        found.sort(key=lambda path: (path / "metrics.jsonl").stat().st_mtime, reverse=True)
        return {str(path): path for path in found}

    def models(self) -> dict[str, str]:
        """Name → the argument of `models.load.load`; copies of a model with a classifier or a head come last."""
        folders = [path for path in self._all() if (path / DESCRIPTION).is_file()]
        folders.sort(key=lambda path: any((path / name).is_file() for name in _OF_HEADS))
        return {name: name for name in [*(str(path) for path in folders), *self._timm]}

    def tables(self) -> dict[str, str]:
        """Name → the argument of `embeddings.open_table.open_table`."""
        return {str(path): str(path) for path in self._all() if path.suffix in _TABLES}

    def data(self) -> dict[str, str]:
        """Name → folder or archive of images to train on."""
        return {str(path): str(path) for path in self._data}

    def images(self, data: str) -> str | None:
        """The resolved path of a table's images if it lies inside one of the names, else None.

        Args:
            data: The image path that the table states; the table may come from someone else.
        """
        path = Path(data).expanduser()
        # a list of paths is not allowed: it could name any file
        return str(path.resolve()) if self._within(path) and (path.is_dir() or archive.matches(str(path))) else None

    def metadata(self, data: str) -> str | None:
        """The CSV in or next to a folder of images, if it lies inside one of the names."""
        return next((path for path in nearby_csv(data) if self._within(Path(path))), None)

    def _within(self, path: Path) -> bool:
        path = path.resolve()
        return any(path.is_relative_to(named.resolve()) for named in self._paths if named.suffix not in _TABLES)

    def _all(self) -> Iterator[Path]:
        for path in self._paths:
            yield path
            if path in self._data:  # its folders are images, perhaps millions
                continue
            if path.is_dir() and path.suffix not in _TABLES and not is_run(path) and not (path / DESCRIPTION).is_file():
                root = path.resolve()
                with os.scandir(path) as entries:
                    inside = [each.name for each in entries if each.is_dir() or each.name.endswith(_TABLES)]
                children = (path / name for name in sorted(inside) if not is_hidden(name))
                yield from (child for child in children if child.resolve().is_relative_to(root))


def is_run(path: Path) -> bool:
    """Whether a folder is a run that has started."""
    return (path / "config.yaml").is_file() and (path / "metrics.jsonl").is_file()


def _is_data(path: Path) -> bool:
    """Whether a name stands for images: an archive, or a folder with an image that is not in a run or a model."""
    if not path.is_dir():
        return path.suffix not in _TABLES
    if path.suffix in _TABLES:
        return False
    with os.scandir(path) as entries:
        inside = [Path(each.path) for each in itertools.islice(entries, _LOOKED_AT) if each.is_dir()]
    if any(is_run(child) or (child / DESCRIPTION).is_file() for child in inside):
        return False  # a folder of runs, although a picture was saved there
    seen = 0
    for folder, folders, files in os.walk(path):
        here = Path(folder)
        if is_run(here) or (here / DESCRIPTION).is_file():
            folders.clear()
            continue
        if any(is_image(name) for name in files):
            return True
        folders[:] = [name for name in folders if not is_hidden(name) and not name.endswith(_TABLES)]
        seen += len(folders) + len(files)
        if seen > _LOOKED_AT:
            break
    return False
