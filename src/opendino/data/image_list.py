"""Images given as a list of file names, or as DATA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

from opendino.core.contracts import Source
from opendino.core.errors import UsageError
from opendino.data.open_source import open_source
from opendino.data.source_files import is_file, is_image, printable, read_regular


@final
class ImageList(Source):
    """Image files in the given order, without labels."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = [Path(path).expanduser() for path in paths]

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        """The path as given."""
        return printable(str(self._paths[index]))

    def label(self, index: int) -> int:
        """Always -1, unknown."""
        return -1

    def read(self, index: int) -> bytes:
        """The bytes of the file; raises `BadImage` if it cannot be read."""
        return read_regular(self._paths[index])


def open_image_list(names: Sequence[str]) -> Source:
    """Open one or more image files, or one DATA as for training.

    Raises:
        UsageError: Nothing is given, or DATA among image files.
        UserError: The file does not exist or cannot be used.
    """
    others = [name for name in names if not (is_image(name) and is_file(str(Path(name).expanduser())))]
    if names and not others:
        return ImageList(names)
    if len(names) > 1 and not is_image(others[0]):
        raise UsageError(f"'{others[0]}' is not an image among {len(names)}", "Name images one by one, or one folder")
    return open_source(others[0] if others else "")
