"""What the sources made of files have in common: reading one safely, safe keys, classes from folders and lists."""

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
"""No image file is larger; reading one would only fill the memory."""

_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})
_NO_CLASS = frozenset({"unlabeled", "unsup"})
_ESCAPE, _ESCAPE_BYTES = re.compile(r"\\x[0-9a-f]{2}"), re.compile(rb"\\x([0-9a-f]{2})")
_ENDS, _CONTROLS = re.compile(r"^(?:[=+\-@#\ufeff]|\s+)|\s+$"), re.compile(r"[\x00-\x1f\x7f]")


def suffix(name: str) -> str:
    """The ending with its dot, in lower case: `.jpg`, or "" without a dot."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > name.rfind("/") else ""


def is_image(name: str) -> bool:
    """Whether the name ends like an image's, in upper or lower case."""
    return suffix(name) in SUFFIXES


# pathlib's counterparts raise for names that are too long or not allowed to be looked at, which DATA may well be.


def exists(path: str) -> bool:
    """Whether there is anything at a path, links followed."""
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: str) -> bool:
    """Whether there is a folder at a path, links followed."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: str) -> bool:
    """Whether there is a regular file at a path, links followed."""
    return os.path.isfile(path)  # noqa: PTH113


def detect_layout(path: str) -> Literal["images", "shards", "tables", ""]:
    """What a folder holds: .tar shards, or Parquet or Arrow tables, or else images; "" if it is none.

    Where an image or a folder lies beside shards or tables, it holds images.
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
                if is_image(entry.name) or entry.is_dir():
                    return "images"
    return "shards" if ".tar" in endings else "tables" if endings & {".parquet", ".arrow"} else "images"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that its owner does not look at: `.git`, `._photo.jpg`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def printable(path: str) -> str:
    r"""The path as text that UTF-8 can hold: bytes of a name that are not UTF-8 are written `\xff`.

    No two paths have the same: of a name that holds these four characters itself the first is written `\x5c`.
    """
    text = os.fsencode(path).decode("utf-8", "surrogateescape")
    text = _ESCAPE.sub(lambda found: rf"\x5c{found[0][1:]}", text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def cell(text: str) -> str:
    r"""Text, such as a path by `printable`, as a cell of a CSV file that `read_list` and spreadsheets take for just it.

    A space at an end is written `\x20`, and so is what makes a comment (`#`) or, in a spreadsheet, a formula (`=`, `+`,
    `-`, `@`) at the beginning.
    """
    return _ENDS.sub(_escaped, text)


def line(text: str) -> str:
    """As `cell`, for a list with one path a line: tabs, ends of lines and the like are written as escapes too."""
    return _CONTROLS.sub(_escaped, cell(text))


def _escaped(found: re.Match[str]) -> str:
    return "".join(rf"\x{byte:02x}" for byte in found[0].encode())


def unescape(text: str) -> str:
    """The path that `printable`, `cell` or `line` wrote so; text that none of them can have written stays as it is."""
    if "\\x" not in text:
        return text
    path = os.fsdecode(_ESCAPE_BYTES.sub(lambda found: bytes.fromhex(found[1].decode()), os.fsencode(text)))
    shown = printable(path)
    return path if text in (shown, cell(shown), line(shown)) else text


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file; pipes and devices, which could block for ever, are never opened.

    Raises:
        BadImage: Vanished, unreadable, too large, or not a regular file.
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
    """Refuse what cannot be an image.

    Raises:
        BadImage: More than `MAX_BYTES`.
    """
    if num_bytes > MAX_BYTES:
        raise BadImage(f"{num_bytes / 2**20:.0f} MB, more than {MAX_BYTES // 2**20}")


def class_level(paths: Iterable[str]) -> tuple[int, tuple[str, ...]]:
    """Which folder of a path names its class, by the one rule for folders and archives.

    The first-level folder does, where images lie in two or more of them and none beside them. Where the first level is
    only `train`, `val`, `test` and the like, which are no classes, the same holds of the second level. A folder
    called `unlabeled` (or `unlabeled`, `unsup`) holds images of unknown class.

    Args:
        paths: Relative, separated by "/".

    Returns:
        The level (0 or 1) and the sorted names of the classes; no names where the images have no classes.
    """
    level, paths = 0, list(paths)
    if {_folder(path, 0).lower() for path in paths}.issubset(_SPLITS):
        level = 1
    classes = {_folder(path, level) for path in paths}
    if "" in classes or len(classes) < 2:
        return level, ()
    return level, tuple(sorted(name for name in classes if name.lower() not in _NO_CLASS))


def _folder(path: str, level: int) -> str:
    parts = path.split("/", level + 1)
    return parts[level] if len(parts) > level + 1 else ""


def no_images(place: str, others: Counter[str]) -> UserError:
    """The error for a place without images: what was there instead, and what counts.

    Args:
        place: "folder ..." or "archive ...".
        others: Suffix → number of files that were seen.
    """
    if not others:
        return UserError(f"No files in {place}", "Give a folder or an archive with images in it, at any depth")
    seen = ", ".join(f"{count} {ending or 'without suffix'}" for ending, count in others.most_common(5))
    files = "1 file" if others.total() == 1 else f"{others.total()} files"
    hint = f"Images end in {' '.join(sorted(SUFFIXES))}"
    for ending, _ in others.most_common():
        if found := unsupported.way_on(ending):
            hint = f"{ending} is {found[0]}: {found[1]}. {hint}"
            break
    return UserError(f"No images in {place}: {files} seen ({seen})", hint)


def say_left_out(place: str, others: Counter[str]) -> None:
    """A line about files beside the images that hold images too, of kinds that are not supported.

    Args:
        place: "folder ..." or "archive ...".
        others: Suffix → number of files that were seen.
    """
    known = {ending: found for ending in others if (found := unsupported.way_on(ending))}
    for ending, (kind, way) in known.items():
        if kind != unsupported.ARCHIVE:
            log.say(f"{others[ending]:,} {ending} files in {place} are left out ({kind}): {way}")


def class_order(name: str) -> tuple[int, str]:
    """What names of classes are sorted by: numbers by value, before words."""
    return (len(name.lstrip("0")), name.lstrip("0")) if name.isdecimal() else (1 << 30, name)
