"""Images that a user names one by one, or as DATA."""

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
    """Image files in the order they were named."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = [Path(path).expanduser() for path in paths]

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        """The path as named."""
        return printable(str(self._paths[index]))

    def label(self, index: int) -> int:
        """Nobody knows."""
        return -1

    def read(self, index: int) -> bytes:
        """The file's bytes; raises `BadImage`."""
        return read_regular(self._paths[index])


def open_image_list(names: Sequence[str]) -> Source:
    """One or several image files, or one DATA as for training.

    Raises:
        UsageError: Neither, or nothing.
        UserError: There is no such file, or nothing that can be used.
    """
    others = [name for name in names if not (is_image(name) and is_file(str(Path(name).expanduser())))]
    if names and not others:
        return ImageList(names)
    if len(names) > 1 and not is_image(others[0]):
        raise UsageError(f"'{others[0]}' is not an image among {len(names)}", "Name images one by one, or one folder")
    return open_source(others[0] if others else "")
