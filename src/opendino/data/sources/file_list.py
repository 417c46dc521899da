"""A text file that lists images: one path per line; in `.txt` and `.lst`, a tab and the name of a class may follow.

Paths are absolute or relative to the folder of the list. Blank lines and lines that begin with `#` are skipped; a path
that is listed twice counts once. A `.csv` has one or two columns, or a header that names the column of the images
(path, file, filename, image, image_id, …) and that of the classes (label, class, category, target, …). The suffix of an
image may be missing: `a` stands for `a.jpg`, `a.png`, ….
"""

from __future__ import annotations

from pathlib import Path
from typing import final

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.decode import SUFFIXES
from opendino.data.list_columns import read_list
from opendino.data.source_files import class_order, is_file, is_image, printable, read_regular

_SUFFIXES = (".txt", ".lst", ".csv")


@final
class FileListSource(Source):
    """The images in a list, in its order. The classes are the names in the column of classes, if there is one.

    Args:
        path: The list.

    Raises:
        UserError: The list cannot be read, is empty, or none of its paths exists.
    """

    def __init__(self, path: str) -> None:
        self._folder = Path(path).absolute().parent
        listed = read_list(path, lambda name: self._file(name) is not None)
        if not listed:
            raise UserError(f"List {path} names no images", "Write one path per line")
        names: dict[str, str] = {}
        for name, label in listed.items():
            names.setdefault(name if is_image(name) else self._file(name) or name, label)
        self._paths = list(names)
        if not any(map(self._file, self._paths)):
            first = printable(str(self._folder / self._paths[0]))
            raise UserError(
                f"None of the {len(self._paths)} paths in {path} exists, the first is {first}",
                "Write absolute paths, or paths relative to the folder of the list",
            )
        self.classes = tuple(sorted({name for name in names.values() if name}, key=class_order))
        number = {name: label for label, name in enumerate(self.classes)}
        self._labels = [number.get(name, -1) for name in names.values()]

    def __len__(self) -> int:
        return len(self._paths)

    def _file(self, name: str) -> str | None:
        """The name, with an image suffix added if necessary, of an existing file; None if there is none."""
        endings = [""] if is_image(name) else ["", *sorted(SUFFIXES)]
        return next((name + each for each in endings if is_file(str(self._folder / (name + each)))), None)

    def key(self, index: int) -> str:
        """The path as written in the list."""
        return printable(self._paths[index])

    def label(self, index: int) -> int:
        """The class in the list; -1 where it is empty."""
        return self._labels[index]

    def read(self, index: int) -> bytes:
        """The bytes of the file.

        Raises:
            BadImage: Missing, unreadable, or not a regular file.
        """
        return read_regular(self._folder / self._paths[index])


def matches(data: str) -> bool:
    """Whether DATA is an existing .txt, .lst or .csv."""
    return data.lower().endswith(_SUFFIXES) and is_file(data)


def build(data: str) -> FileListSource:
    """The source for a list of paths.

    Raises:
        UserError: The list cannot be read, is empty, or none of its paths exists.
    """
    return FileListSource(data)
