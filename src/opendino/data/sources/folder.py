"""A folder of images, nested or flat, of any depth: `~/photos`."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import final

import numpy as np

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data import mmap_table as index
from opendino.data.decode import SUFFIXES
from opendino.data.mmap_table import Names
from opendino.data.source_files import (
    class_level,
    detect_layout,
    is_hidden,
    is_image,
    no_images,
    printable,
    read_regular,
    say_left_out,
    suffix,
)

_THREADS = 8
_LARGE = 100_000  # images from which on the list of them is remembered
_SETTLED_NS = 2 * 10**9


@final
class FolderSource(Source):
    """The images below a folder, sorted by path.

    Hidden files and folders are left out. Links to folders are followed, each real folder once, so that loops end.
    Folders that may not be opened are left out.

    Classes are the names of the first-level folders, where the images lie in two or more of them and none beside
    them; below `train`, `val`, `test` and the like (nothing else at the first level) those of the second level. What
    lies in a folder called `unlabeled` has none.

    Args:
        root: The folder.

    Raises:
        UserError: There is no such folder, or no image in it.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._paths, self._level, classes = _listed(root)
        self.classes = tuple(map(printable, classes))
        self._label = {name: label for label, name in enumerate(classes)}

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


def _listed(root: str) -> tuple[Names, int, tuple[str, ...]]:
    """The sorted relative paths of all images; the level of the folders that name classes, and these.

    A large set is remembered. What is remembered holds as long as every folder in it has the inode and the times of
    when it was scanned: adding, removing or renaming a file changes those of its folder. What lies in the files does
    not matter here. A folder that changed within two seconds before the scan may have changed again within one tick of
    its clock, so that it is not relied on.
    """
    path = index.place("folder", os.path.abspath(root))  # noqa: PTH100 - resolve() would follow links
    if remembered := _remembered(root, path):
        return remembered
    began = time.time_ns()
    paths, others, folders = _walk(root)
    if not paths:
        raise no_images(f"folder {printable(root)}", others)
    say_left_out(f"folder {printable(root)}", others)
    names, (level, classes) = Names.of(paths), class_level(paths)
    times = np.array(list(folders.values()), np.int64).reshape(-1, 3)
    if len(names) >= _LARGE and times.all() and times[:, 1:].max() < began - _SETTLED_NS:
        scanned = Names.of(folders)
        columns = {"names": names.text, "ends": names.ends, "folders": scanned.text, "folder_ends": scanned.ends}
        with contextlib.suppress(OSError):  # nowhere to keep it
            index.save(
                path, columns | {"times": times.reshape(-1)}, {"level": level, "classes": classes, "rules": _rules()}
            )
    return names, level, classes


def _remembered(root: str, path: Path) -> tuple[Names, int, tuple[str, ...]] | None:
    found = index.recall(path, _rules())
    if found is None:
        return None
    columns, said = found
    folders, times = Names(columns["folders"], columns["folder_ends"]), columns["times"].reshape(-1, 3)
    try:
        for folder, then in zip(folders, times, strict=True):
            if _times(os.stat(os.path.join(root, folder))) != tuple(then):  # noqa: PTH116, PTH118 - often called
                return None
    except OSError:
        return None
    return Names(columns["names"], columns["ends"]), said["level"], tuple(said["classes"])


def _rules() -> str:
    """What counts as an image, and as a class, is another matter in another version."""
    return f"opendino {version('opendino')}: {' '.join(sorted(SUFFIXES))}"


def _times(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino & (2**63 - 1), status.st_mtime_ns, status.st_ctime_ns


def _walk(root: str) -> tuple[list[str], Counter[str], dict[str, tuple[int, int, int]]]:
    """The sorted relative paths of all images, other files by suffix, and inode and times of every folder."""
    paths: list[str] = []
    others: Counter[str] = Counter()
    met: set[tuple[int, int]] = set()
    scanned: dict[str, tuple[int, int, int]] = {}
    folders, links = [""], []
    with ThreadPoolExecutor(_THREADS) as pool:  # disks on the network answer late, but many at a time
        while folders or links:
            if not folders:  # links last: a folder is known by its real name first
                folders = [links.pop(0)]
            looked_at, folders = folders, []
            found = list(pool.map(partial(_scan, root), looked_at))
            for folder, here in zip(looked_at, found, strict=True):
                if here is None:
                    scanned[folder] = (0, 0, 0)  # nothing tells when it may be opened: such a set is not remembered
                    continue
                if (here.device, here.times[0]) in met:
                    continue
                met.add((here.device, here.times[0]))
                scanned[here.prefix] = here.times
                paths += here.images
                folders += here.folders
                links += here.links
                others += here.others
    return sorted(paths), others, scanned


@dataclass(frozen=True)
class _Folder:
    """What lies in one folder; every path from the root."""

    prefix: str
    device: int
    times: tuple[int, int, int]
    images: list[str]
    folders: list[str]
    links: list[str]
    others: Counter[str]


def _scan(root: str, prefix: str) -> _Folder | None:
    """List a folder; None where it may not be opened."""
    folder = os.path.join(root, prefix.rstrip("/"))  # noqa: PTH118 - pathlib takes as long as the disk
    images: list[str] = []
    folders: list[str] = []
    links: list[str] = []
    others: Counter[str] = Counter()
    try:
        status = os.stat(folder)  # noqa: PTH116
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if is_hidden(name):
                    continue
                if _is_folder(entry):
                    (links if entry.is_symlink() else folders).append(f"{prefix}{name}/")
                elif is_image(name):
                    images.append(prefix + name)
                else:
                    others[suffix(name)] += 1
    except OSError as error:
        if prefix:
            return None
        raise UserError(
            f"Cannot open folder {printable(root)}: {error.strerror}", "Give a folder that you can read"
        ) from error
    return _Folder(prefix, status.st_dev, _times(status), images, folders, sorted(links), others)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()  # the directory listing knows; only links cost a look at the disk
    except OSError:
        return False


def matches(data: str) -> bool:
    """Whether DATA is a folder that holds neither shards nor tables."""
    return detect_layout(data) == "images"


def build(data: str) -> FolderSource:
    """The source for a folder.

    Raises:
        UserError: There is no such folder, or no image in it.
    """
    return FolderSource(data)
