"""A folder of images and videos, flat or nested to any depth: `~/photos`, `~/camera?every=2s`."""

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

from opendino.core import log
from opendino.core.contracts import Source
from opendino.core.errors import UsageError, UserError
from opendino.data import mmap_table as index
from opendino.data.decode import SUFFIXES
from opendino.data.mmap_table import Names
from opendino.data.source_files import (
    VIDEO_SUFFIXES,
    FolderClasses,
    detect_layout,
    is_hidden,
    is_image,
    log_unsupported,
    no_images,
    printable,
    read_regular,
    suffix,
)
from opendino.data.video_file import VideoFrames, described, is_video, split_every

_THREADS = 8
_LARGE = 100_000  # folders with this many images or more have their list saved
_SETTLED_NS = 2 * 10**9  # folders changed within this time before the scan may change again with the same time stamp


@final
class FolderSource(Source):
    """The images below a folder, sorted by path.

    Hidden files and folders, and folders without read permission, are left out. Links to folders are followed, each
    real folder once, so that cycles end.

    The names of the first-level folders are the classes, if all images are in two or more such folders; if all
    first-level folders are splits (`train`, `val`, `test`, …), the names of the second-level folders. Images in a
    folder called `unlabeled` have no class.

    A video gives the first frame of each interval of time; the frame at 12.5 s has the key "FILE#00012.500". Videos
    that cannot be read (one that is still being recorded) are left out, with a warning.

    Args:
        root: The folder.
        every: Interval of the frames of videos, see `data.video_file.VideoFrames`.

    Raises:
        UserError: The folder does not exist, or holds no image.
    """

    folder_classes = True

    def __init__(self, root: str, every: str = "1s") -> None:
        self.root = root
        self._paths, self._classes, positions = _list_images(root)
        self.classes = self._classes.names
        self._videos = _open_videos(root, self._paths, positions, every)
        self._ends: np.ndarray | None = None  # of the images of each file; one each without videos
        if len(positions):
            counts = np.ones(len(self._paths), np.int64)
            counts[positions] = [len(self._videos.get(int(position), ())) for position in positions]
            self._ends = counts.cumsum()
            if not self._ends[-1]:
                raise UserError(
                    f"No video in folder {printable(root)} can be read", "Check the files, e.g. with ffprobe"
                )

    def __len__(self) -> int:
        return len(self._paths) if self._ends is None else int(self._ends[-1])

    def _file(self, index: int) -> tuple[int, int]:
        """Position of the file of an image, and the number of the frame in it."""
        if self._ends is None:
            return index, 0
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        file = int(np.searchsorted(self._ends, index, "right"))
        return file, index - int(self._ends[file - 1] if file else 0)

    def key(self, index: int) -> str:
        """The path relative to the root, separated by "/"; of a frame also its time in seconds."""
        file, frame = self._file(index)
        video = self._videos.get(file)
        return printable(self._paths[file]) + (f"#{video.name(frame)}" if video else "")

    def label(self, index: int) -> int:
        """The class, from the folders in the path; -1 if there is none."""
        return self._classes.label(self._paths[self._file(index)[0]])

    def read(self, index: int) -> bytes | np.ndarray:
        """The bytes of the file; of a frame uint8 `[H W 3]`.

        Raises:
            BadImage: Missing, unreadable, or not a regular file.
        """
        file, frame = self._file(index)
        video = self._videos.get(file)
        return video.read(frame) if video else read_regular(Path(self.root, self._paths[file]))


def _open_videos(root: str, paths: Names, positions: np.ndarray, every: str) -> dict[int, VideoFrames]:
    """The videos that can be read, by their position in `paths`."""
    found: dict[int, VideoFrames] = {}
    bad: list[UserError] = []
    for position in map(int, positions):
        try:
            found[position] = VideoFrames(os.path.join(root, paths[position]), every)  # noqa: PTH118
        except UsageError:
            raise
        except UserError as error:
            bad.append(error)
    if found:
        num = sum(map(len, found.values()))
        log.say_once(f"{num:,} frames of {_counted(len(found))} in folder {printable(root)} ({described(every)})")
    if bad:
        log.warn(f"{_counted(len(bad))} left out, e.g. {bad[0]}")
    return found


def _counted(num: int) -> str:
    return f"{num:,} video{'s' * (num > 1)}"


def _list_images(root: str) -> tuple[Names, FolderClasses, np.ndarray]:
    """List the images and videos below a folder.

    The list of a large folder is saved. It is valid as long as every folder has the same inode and times as at the
    scan, because adding, removing or renaming a file changes the times of its folder. The list is not saved if a folder
    changed less than two seconds before the scan: another change could leave the same time stamp.

    Returns:
        The sorted relative paths, their classes, and the positions of the videos, int64.
    """
    path = index.index_path("folder", os.path.abspath(root))  # noqa: PTH100 - resolve() would follow links
    if remembered := _load_list(root, path):
        return remembered
    start = time.time_ns()
    paths, others, folders = _walk(root)
    if not paths:
        raise no_images(f"folder {printable(root)}", others)
    log_unsupported(f"folder {printable(root)}", others)
    names, classes = Names.of(paths), FolderClasses.of(paths)
    videos = np.array([position for position, path in enumerate(paths) if is_video(path)], np.int64)
    times = np.array(list(folders.values()), np.int64).reshape(-1, 3)
    if len(names) >= _LARGE and times.all() and times[:, 1:].max() < start - _SETTLED_NS:
        scanned = Names.of(folders)
        columns = {"names": names.text, "ends": names.ends, "folders": scanned.text, "folder_ends": scanned.ends}
        with contextlib.suppress(OSError):  # no writable cache folder
            note = {"level": classes.level, "classes": classes.folders, "rules": _rules()}
            index.save(path, columns | {"times": times.reshape(-1), "videos": videos}, note)
    return names, classes, videos


def _load_list(root: str, path: Path) -> tuple[Names, FolderClasses, np.ndarray] | None:
    """The saved list, if there is one and no folder has changed; else None."""
    found = index.load_if_valid(path, _rules())
    if found is None:
        return None
    columns, note = found
    folders, times = Names(columns["folders"], columns["folder_ends"]), columns["times"].reshape(-1, 3)
    try:
        for folder, then in zip(folders, times, strict=True):
            if _inode_and_times(os.stat(os.path.join(root, folder))) != tuple(then):  # noqa: PTH116, PTH118 - often called
                return None
    except OSError:
        return None
    classes = FolderClasses(note["level"], tuple(note["classes"]))
    return Names(columns["names"], columns["ends"]), classes, columns["videos"]


def _rules() -> str:
    """Identifies how images and classes are found; a list saved with other rules is not used."""
    return f"opendino {version('opendino')}: {' '.join(sorted(SUFFIXES | VIDEO_SUFFIXES))}"


def _inode_and_times(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino & (2**63 - 1), status.st_mtime_ns, status.st_ctime_ns


def _walk(root: str) -> tuple[list[str], Counter[str], dict[str, tuple[int, int, int]]]:
    """Scan a folder: sorted relative paths of images, other files by suffix, inode and times of every folder."""
    paths: list[str] = []
    others: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()  # (device, inode)
    scanned: dict[str, tuple[int, int, int]] = {}
    folders, links = [""], []
    with ThreadPoolExecutor(_THREADS) as pool:  # network disks have a high latency but answer in parallel
        while folders or links:
            if not folders:  # links last, so that a folder reached in two ways is listed under its real name
                links.sort()  # of two links to one folder the first by name counts, in any order they were found
                folders = [links.pop(0)]
            level, folders = folders, []
            found = list(pool.map(partial(_scan, root), level))
            for folder, here in zip(level, found, strict=True):
                if here is None:
                    scanned[folder] = (0, 0, 0)  # its times do not show when it becomes readable: save no list
                    continue
                if (here.device, here.times[0]) in visited:
                    continue
                visited.add((here.device, here.times[0]))
                scanned[here.prefix] = here.times
                paths += here.images
                folders += here.folders
                links += here.links
                others += here.others
    return sorted(paths), others, scanned


@dataclass(frozen=True)
class _Folder:
    """Content of one folder; all paths are relative to the root."""

    prefix: str
    device: int
    times: tuple[int, int, int]
    images: list[str]
    folders: list[str]
    links: list[str]
    others: Counter[str]


def _scan(root: str, prefix: str) -> _Folder | None:
    """List one folder; None if it may not be opened."""
    folder = os.path.join(root, prefix.rstrip("/"))  # noqa: PTH118 - pathlib would take as long as the disk
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
                elif is_image(name) or is_video(name):
                    images.append(prefix + name)
                else:
                    others[suffix(name)] += 1
    except OSError as error:
        if prefix:
            return None
        raise UserError(
            f"Cannot open folder {printable(root)}: {error.strerror}", "Give a folder that you can read"
        ) from error
    return _Folder(prefix, status.st_dev, _inode_and_times(status), images, folders, sorted(links), others)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()  # known from the directory listing; only links need a system call
    except OSError:
        return False


def matches(data: str) -> bool:
    """Whether DATA is a folder that is not one of shards or tables."""
    return detect_layout(split_every(data)[0]) == "images"


def build(data: str) -> FolderSource:
    """The source for a folder.

    Raises:
        UserError: The folder does not exist, or holds no image.
    """
    return FolderSource(*split_every(data))
