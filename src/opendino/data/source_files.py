"""Shared by the sources that read files: safe reading, printable keys, classes from folders, messages."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from opendino.core import log
from opendino.core.errors import BadImage, UserError
from opendino.data import unsupported
from opendino.data.decode import SUFFIXES

MAX_BYTES = 512 * 2**20
"""Larger image files are refused, because reading one could fill the memory."""

SPLITS = frozenset({"train", "val", "valid", "validation", "test"})
"""Names of folders that hold a part of a set, in lower case."""
_NO_CLASS = frozenset({"unlabeled", "unsup"})
_ESCAPE, _ESCAPE_BYTES = re.compile(r"\\x[0-9a-f]{2}"), re.compile(rb"\\x([0-9a-f]{2})")
_ENDS, _CONTROLS = re.compile(r"^(?:[=+\-@#\ufeff]|\s+)|\s+$"), re.compile(r"[\x00-\x1f\x7f]")


def suffix(name: str) -> str:
    """The suffix of a file name with its dot, in lower case: `.jpg`, `.nii.gz`; "" if there is none."""
    if name.lower().endswith(".nii.gz"):
        return ".nii.gz"
    dot = name.rfind(".")
    return name[dot:].lower() if dot > name.rfind("/") else ""


VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
"""Suffixes of videos, in lower case."""


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image, in upper or lower case."""
    return suffix(name) in SUFFIXES


# os.path, not pathlib: pathlib raises if a name is too long or a folder is not readable, and DATA may be any text.


def exists(path: str) -> bool:
    """Whether a path exists; links are followed."""
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: str) -> bool:
    """Whether a path is a folder; links are followed."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: str) -> bool:
    """Whether a path is a regular file; links are followed."""
    return os.path.isfile(path)  # noqa: PTH113


def detect_layout(path: str) -> Literal["images", "shards", "tables", ""]:
    """Which kind of dataset is in a folder: images, .tar shards, or Parquet or Arrow tables; "" if it is not a folder.

    A folder with shards or tables that also contains an image, a video or a folder counts as a folder of images.
    """
    if not is_folder(path):
        return ""
    if is_file(os.path.join(path, "dataset_dict.json")):  # noqa: PTH118
        return "tables"
    endings: set[str] = set()
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            if not is_hidden(entry.name):
                endings.add(suffix(entry.name))
                if is_image(entry.name) or suffix(entry.name) in VIDEO_SUFFIXES or entry.is_dir():
                    return "images"
    return "shards" if ".tar" in endings else "tables" if endings & {".parquet", ".arrow"} else "images"


def is_hidden(name: str) -> bool:
    """Whether the name of a file or folder is a hidden one: `.git`, `._photo.jpg`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def printable(path: str) -> str:
    r"""Convert a path to valid UTF-8 text: bytes that are not UTF-8 are written as escapes such as `\xff`.

    Different paths give different text: in a name that contains such an escape itself, its backslash becomes `\x5c`.
    """
    text = os.fsencode(path).decode("utf-8", "surrogateescape")
    text = _ESCAPE.sub(lambda found: rf"\x5c{found[0][1:]}", text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def cell(text: str) -> str:
    r"""Escape text, such as a path from `printable`, for a cell of a CSV file.

    Leading and trailing spaces are written `\x20`. A first character that would start a comment in `read_list` (`#`) or
    a formula in a spreadsheet (`=`, `+`, `-`, `@`) is escaped in the same way. `unescape` is the inverse.
    """
    return _ENDS.sub(_escaped, text)


def line(text: str) -> str:
    """Like `cell`, for a list with one path per line: tabs, line ends and other control characters are escaped too."""
    return _CONTROLS.sub(_escaped, cell(text))


def _escaped(found: re.Match[str]) -> str:
    return "".join(rf"\x{byte:02x}" for byte in found[0].encode())


def unescape(text: str) -> str:
    """The path that `printable`, `cell` or `line` has escaped; text that none of them can produce is unchanged."""
    if "\\x" not in text:
        return text
    path = os.fsdecode(_ESCAPE_BYTES.sub(lambda found: bytes.fromhex(found[1].decode()), os.fsencode(text)))
    shown = printable(path)
    return path if text in (shown, cell(shown), line(shown)) else text


def read_regular(path: Path) -> bytes:
    """Read a regular file; pipes and devices are never opened, because reading them could block forever.

    Raises:
        BadImage: Missing, unreadable, too large, or not a regular file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")
        check_size(status.st_size)
        return path.read_bytes()
    except OSError as error:
        raise BadImage(error.strerror or type(error).__name__) from error
    except ValueError as error:  # a name that no file can have
        raise BadImage(str(error)) from error


def check_size(num_bytes: int) -> None:
    """Check the size of an image file.

    Raises:
        BadImage: The file is larger than `MAX_BYTES`.
    """
    if num_bytes > MAX_BYTES:
        raise BadImage(f"{num_bytes / 2**20:.0f} MB, more than {MAX_BYTES // 2**20}")


class FolderClasses:
    """Classes of images from the folders in their paths; the same rule for folders, archives and buckets.

    The names of the first-level folders are the classes, if all images are in two or more such folders. If all first-
    level folders are splits (`train`, `val`, `test`, …), the second level is used in the same way. Images in a folder
    called `unlabeled` or `unsup` have no class.

    Args:
        level: 0 or 1, the level of the folders that name the classes.
        folders: Sorted names of these folders; empty if the images have no classes.

    Attributes:
        names: Names of the classes as valid UTF-8 text.
    """

    def __init__(self, level: int, folders: tuple[str, ...]) -> None:
        self.level, self.folders = level, folders
        self.names = tuple(map(printable, folders))
        self._labels = {name: label for label, name in enumerate(folders)}

    @classmethod
    def of(cls, paths: Iterable[str]) -> FolderClasses:
        """Find the classes of images from their relative paths, separated by "/"."""
        level, paths = 0, list(paths)
        if {_folder(path, 0).lower() for path in paths}.issubset(SPLITS):
            level = 1
        found = {_folder(path, level) for path in paths}
        if "" in found or len(found) < 2:
            return cls(level, ())
        return cls(level, tuple(sorted(name for name in found if name.lower() not in _NO_CLASS)))

    def label(self, path: str) -> int:
        """Index of an image's class by its path; -1 if it has none."""
        return self._labels.get(path.split("/", 2)[self.level], -1) if self._labels else -1


def _folder(path: str, level: int) -> str:
    parts = path.split("/", level + 1)
    return parts[level] if len(parts) > level + 1 else ""


def no_images(place: str, others: Counter[str]) -> UserError:
    """The error for a folder or archive without images: which files it has, and which suffixes are images.

    Args:
        place: "folder ..." or "archive ...".
        others: Suffix → number of files with it.
    """
    if not others:
        return UserError(f"No files in {place}", "Give a folder or an archive with images in it, at any depth")
    seen = ", ".join(f"{count} {ending or 'without suffix'}" for ending, count in others.most_common(5))
    files = "1 file" if others.total() == 1 else f"{others.total()} files"
    hint = f"Images end in {' '.join(sorted(SUFFIXES))}"
    for ending, _ in others.most_common():
        if found := unsupported.advice_for_suffix(ending):
            hint = f"{ending} is {found[0]}: {found[1]}. {hint}"
            break
    return UserError(f"No images in {place}: {files} seen ({seen})", hint)


def log_unsupported(place: str, others: Counter[str]) -> None:
    """Log a message about image files of unsupported kinds, which are left out.

    Args:
        place: "folder ..." or "archive ...".
        others: Suffix → number of files with it.
    """
    known = {ending: found for ending in others if (found := unsupported.advice_for_suffix(ending))}
    for ending, (kind, way) in known.items():
        if kind != unsupported.ARCHIVE:
            files = f"1 {ending} file" if others[ending] == 1 else f"{others[ending]:,} {ending} files"
            log.say_once(f"{files} in {place} left out ({kind}): {way}")


def class_order(name: str) -> tuple[int, str]:
    """Sort key for class names: numbers by value, before words."""
    return (len(name.lstrip("0")), name.lstrip("0")) if name.isdecimal() else (1 << 30, name)
