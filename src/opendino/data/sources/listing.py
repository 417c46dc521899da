"""A text file that lists images: one path a line, in `.txt` and `.lst` optionally a tab and the name of a class.

Paths are absolute or relative to the list's own folder. Blank lines and lines that begin with `#` are skipped, a path
that is listed twice counts once. A `.csv` holds the same as one or two columns, with or without a header.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import final

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.files import exists, is_file, printable, read_regular

_SUFFIXES = (".txt", ".lst", ".csv")
_HEADERS = ("path", "file", "filename", "file_name", "image")


@final
class ListingSource(Source):
    """The images that a file lists, in its order. Classes are the names in its second column, where it has one.

    Args:
        path: The list.

    Raises:
        UserError: It cannot be read, lists nothing, or none of its paths exists.
    """

    def __init__(self, path: str) -> None:
        self._folder = Path(path).absolute().parent
        names = _parse(path)
        if not names:
            raise UserError(f"List {path} names no images", "Write one path a line")
        self._paths = list(names)
        if not any(exists(str(self._folder / image)) for image in self._paths):
            first = printable(str(self._folder / self._paths[0]))
            raise UserError(
                f"None of the {len(self._paths)} paths in {path} exists, the first is {first}",
                "Write absolute paths, or paths relative to the list's own folder",
            )
        self.classes = tuple(sorted({name for name in names.values() if name}, key=_natural))
        number = {name: label for label, name in enumerate(self.classes)}
        self._labels = [number.get(name, -1) for name in names.values()]

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        """The path as listed."""
        return printable(self._paths[index])

    def label(self, index: int) -> int:
        """From the second column, -1 where that is empty."""
        return self._labels[index]

    def read(self, index: int) -> bytes:
        """The file's bytes.

        Raises:
            BadImage: Missing, unreadable, or not a regular file.
        """
        return read_regular(self._folder / self._paths[index])


def _parse(path: str) -> dict[str, str]:
    """Path → name of the class or "", in the order of the list."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if path.lower().endswith(".csv"):
                rows = [row for row in csv.reader(file) if row]
                if rows and rows[0][0].strip().lower() in _HEADERS:
                    del rows[0]
            else:
                rows = [line.split("\t") for line in file.read().split("\n")]
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read list {path}: {reason}", "Give a text file with one path a line") from error
    names: dict[str, str] = {}
    for image, *name in ([cell.strip() for cell in row] for row in rows):
        if image and not image.startswith("#"):
            names.setdefault(image, printable(name[0]) if name else "")
    return names


def _natural(name: str) -> tuple[int, str]:
    """Numbers by value, before words."""
    return (len(name.lstrip("0")), name.lstrip("0")) if name.isdecimal() else (1 << 30, name)


def matches(data: str) -> bool:
    """Whether DATA is an existing .txt, .lst or .csv."""
    return data.lower().endswith(_SUFFIXES) and is_file(data)


def build(data: str) -> ListingSource:
    """The source for a list of paths.

    Raises:
        UserError: It cannot be read, lists nothing, or none of its paths exists.
    """
    return ListingSource(data)
