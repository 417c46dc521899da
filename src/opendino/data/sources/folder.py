"""A folder of images, nested or flat, of any depth: `~/photos`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import final

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.files import (
    class_level,
    is_folder,
    is_hidden,
    is_image,
    no_images,
    printable,
    read_regular,
    suffix,
)


@final
class FolderSource(Source):
    """The images below a folder, sorted by path.

    Hidden files and folders are left out. Links to folders are followed, each real folder once, so that loops end.
    Folders that may not be opened are left out.

    Classes are the names of the first-level folders, where the images lie in two or more of them and none beside
    them; below `train`, `val`, `test` and the like (nothing else at the first level) those of the second level. What
    lies in a folder called `unlabelled` has none.

    Args:
        root: The folder.

    Raises:
        UserError: There is no such folder, or no image in it.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._paths, others = _walk(root)
        if not self._paths:
            raise no_images(f"folder {printable(root)}", others)
        self._level, self.classes = class_level(self._paths)
        self._label = {name: label for label, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        """The path from the root, separated by "/"."""
        return printable(self._paths[index])

    def label(self, index: int) -> int:
        """From the path alone."""
        return self._label.get(self._paths[index].split("/", 2)[self._level], -1) if self._label else -1

    def read(self, index: int) -> bytes:
        """The file's bytes.

        Raises:
            BadImage: Vanished, unreadable, or not a regular file.
        """
        return read_regular(Path(self.root, self._paths[index]))


def _walk(root: str) -> tuple[list[str], Counter[str]]:
    """The sorted relative paths of all images, and how many other files there are of each suffix."""
    paths: list[str] = []
    others: Counter[str] = Counter()
    met: set[tuple[int, int]] = set()
    folders, links = [""], []
    while folders or links:
        prefix = folders.pop() if folders else links.pop(0)  # links last: a folder is known by its real name first
        try:
            folder = Path(root, prefix)
            status = folder.stat()
            if (status.st_dev, status.st_ino) in met:
                continue
            met.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if prefix:
                continue
            raise UserError(
                f"Cannot open folder {printable(root)}: {error.strerror}", "Give a folder that you can read"
            ) from error
        for entry in entries:
            path = prefix + entry.name
            if is_hidden(entry.name):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(f"{path}/")
            elif is_image(entry.name):
                paths.append(path)
            else:
                others[suffix(entry.name)] += 1
    return sorted(paths), others


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()  # the directory listing knows; only links cost a look at the disk
    except OSError:
        return False


def matches(data: str) -> bool:
    """Whether DATA is a folder that exists."""
    return is_folder(data)


def build(data: str) -> FolderSource:
    """The source for a folder.

    Raises:
        UserError: There is no such folder, or no image in it.
    """
    return FolderSource(data)
