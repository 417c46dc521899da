"""Lists of images in text files: which column names the image and which its class, found by name and never guessed."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from typing import NamedTuple

from opendino.core import log
from opendino.core.errors import UserError
from opendino.data.source_files import is_image, printable, unescape

# As `_plain` writes them. Of two columns that may name the images the one with an earlier kind of name does.
_IMAGE_NAMES = (
    frozenset({"path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename", "img"}),
    frozenset({"imageid", "imgid", "id", "name", "key"}),
)
_CLASS_NAMES = frozenset({"label", "labels", "class", "classname", "category", "target", "dx", "diagnosis", "y"})
_NO_CLASS_NAMES = frozenset(
    {"", "index", "unnamed0", "split", "subset", "fold", "width", "height", "size", "channels", "md5", "sha256", "url"}
)
_LOOKED_AT = 100  # rows
_ONE_HOT = frozenset({"", "0", "0.0", "1", "1.0"})


class _Columns(NamedTuple):
    """The column of the images, and that of the classes where there is one."""

    image: int
    label: int | None


def read_list(path: str, is_known: Callable[[str], bool] = lambda _: False, classes: bool = True) -> dict[str, str]:
    """Path of an image → name of its class or "", in the order of a list.

    `.txt` and `.lst` have columns separated by tabs; blank lines and lines that begin with `#` are skipped. A `.csv` is
    separated by commas, or by semicolons or tabs where its first line has no comma. A first line that names no image is
    a header. A path listed twice counts once. Escapes by `files.cell` and `files.line` are undone.

    Args:
        path: The list.
        is_known: Whether a name is that of an image that exists.
        classes: Whether the classes are wanted; if not, they may be ambiguous.

    Raises:
        UserError: The list cannot be read, or does not say which column is which.
    """
    is_csv = path.lower().endswith(".csv")
    rows = _rows(path, is_csv, is_known)
    if not rows:
        return {}

    def names_image(cell: str) -> bool:
        return is_image(cell) or is_known(cell)

    header = rows[0] if not any(map(names_image, rows[0])) else None
    if header and not is_csv and not any(_plain(cell) in names for cell in header for names in _IMAGE_NAMES):
        header = None  # in a list of paths without a header the first one may be missing
    if header:
        del rows[0]
    try:
        columns = _by_header(header, rows, names_image, classes) if header else _by_place(rows, names_image, classes)
    except ValueError as error:
        raise UserError(
            f"{printable(path)}: {error}",
            "Write two columns with the header path,label, or keep only that of the paths",
        ) from None
    if header and len(header) > 1:
        log.say(f"{printable(path)}: {_said(header, columns)}")
    return _named(path, rows, columns)


def _rows(path: str, is_csv: bool, is_known: Callable[[str], bool]) -> list[list[str]]:
    """The cells of all lines that say something, each row as long as the longest."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if is_csv:
                first = file.readline(2**16)
                file.seek(0)
                others = "" if "," in first or is_known(first.strip()) else ";\t"
                lines = list(csv.reader(file, delimiter=next((mark for mark in others if mark in first), ",")))
            else:
                lines = [line.split("\t") for line in file.read().split("\n")]
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read list {path}: {reason}", "Give a text file with one path a line") from error
    lines = [[cell.strip() for cell in line] for line in lines]
    lines = [line for line in lines if any(line) and not line[0].startswith("#")]
    width = max((len(line) for line in lines), default=0)
    return [[unescape(cell) for cell in line] + [""] * (width - len(line)) for line in lines]


def _plain(name: str) -> str:
    """A column's name without what people write differently: `Image ID`, `image_id` and `imageId` are one."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _by_header(
    header: Sequence[str], rows: list[list[str]], names_image: Callable[[str], bool], classes: bool
) -> _Columns:
    """Columns by what they are called, and by whether images are in them.

    Raises:
        ValueError: More than one may be meant.
    """
    plain = [_plain(name) for name in header]
    looked_at = rows[:_LOOKED_AT]
    places = [place for place in range(len(header)) if any(names_image(row[place]) for row in looked_at)]
    for names in _IMAGE_NAMES:
        if len(places) != 1:
            places = [place for place in places or range(len(header)) if plain[place] in names] or places
    if not places and len(header) <= 2:
        places = [0]
    if len(places) != 1:
        raise ValueError(f"{_which(header, places)} may name the images")
    rest = [place for place in range(len(header)) if place != places[0]]
    if not classes:
        return _Columns(places[0], None)
    named = [place for place in rest if plain[place] in _CLASS_NAMES]
    left = named or [place for place in rest if plain[place] not in _NO_CLASS_NAMES]
    if len(left) > 1 and not named and all(row[place] in _ONE_HOT for row in rows for place in left):
        raise ValueError(f"{_which(header, left)} may each be a class; one-hot columns are not read as classes")
    if len(left) > 1:
        raise ValueError(f"{_which(header, left)} may name the classes")
    return _Columns(places[0], left[0] if left else None)


def _by_place(rows: list[list[str]], names_image: Callable[[str], bool], classes: bool) -> _Columns:
    """Columns of a list without a header: one with images and at most one other.

    Raises:
        ValueError: There are more.
    """
    image = next((place for place, cell in enumerate(rows[0]) if names_image(cell)), 0)
    rest = [place for place in range(len(rows[0])) if place != image]
    if classes and len(rest) > 1:
        raise ValueError(f"its {len(rows[0])} columns have no header that says which names the classes")
    return _Columns(image, rest[0] if classes and rest else None)


def _which(header: Sequence[str], places: Sequence[int]) -> str:
    names = [f"'{printable(name)}'" for name in ([header[place] for place in places] or header)]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"any of the columns {', '.join(names[:8])}{more}"


def _said(header: Sequence[str], columns: _Columns) -> str:
    """Which columns were taken."""
    unused = [name for place, name in enumerate(header) if place not in columns]
    classes = "no classes" if columns.label is None else f"classes in '{printable(header[columns.label])}'"
    ignored = f"; not used: {printable(', '.join(unused[:8]))}{', …' if len(unused) > 8 else ''}" if unused else ""
    return f"images in column '{printable(header[columns.image])}', {classes}{ignored}"


def _named(path: str, rows: list[list[str]], columns: _Columns) -> dict[str, str]:
    """The list itself."""
    found: dict[str, str] = {}
    disputed: dict[str, None] = {}
    for row in rows:
        image = row[columns.image]
        name = "" if columns.label is None else row[columns.label]
        if image and found.setdefault(image, printable(name)) != printable(name):
            disputed[image] = None
    if disputed:
        log.warn(
            f"{len(disputed):,} images have more than one class in {printable(path)}, e.g. "
            f"{printable(next(iter(disputed)))}; the first counts"
        )
    return found
