"""Read lists of images from text files; the columns of paths and of classes are found by their names, never guessed."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from opendino.core import log
from opendino.core.errors import UserError
from opendino.data.source_files import is_image, printable, unescape

# Normalized by `_normalize`. A column named in the first set is preferred to one named in the second.
_IMAGE_NAMES = (
    frozenset({"path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename", "img"}),
    frozenset({"imageid", "imgid", "id", "name", "key"}),
)
_CLASS_NAMES = frozenset(
    {"label", "labels", "class", "classname", "category", "target", "dx", "diagnosis", "y", "choice"}
)
# How Label Studio names an image: a file below its folder of local files, or an upload with a random prefix.
_LABEL_STUDIO = re.compile(r"^/data/(?:local-files/\?d=|upload/\d+/[0-9a-f]{8}-)")
_NO_CLASS_NAMES = frozenset(
    {
        "",
        "index",
        "unnamed0",
        "split",
        "subset",
        "fold",
        "width",
        "height",
        "size",
        "channels",
        "md5",
        "sha256",
        "url",
        "distance",
        "lof",
    }
)
_SAMPLED_ROWS = 100  # rows in which a column is searched for paths of images
_ONE_HOT = frozenset({"", "0", "0.0", "1", "1.0"})


class _Columns(NamedTuple):
    """Index of the column of image paths, and of the column of classes; None if there are no classes."""

    image: int
    label: int | None


def read_list(path: str, is_known: Callable[[str], bool] = lambda _: False, classes: bool = True) -> dict[str, str]:
    """Read a list of images.

    `.txt` and `.lst` files have columns separated by tabs; blank lines and lines that begin with `#` are skipped. A
    `.csv` is separated by commas, or by semicolons or tabs if its first line has no comma. A first line without an
    image is a header. A path listed twice counts once. Escapes from `source_files.cell` and `.line` are undone. The CSV
    that Label Studio exports is read too: its names of images become relative paths.

    Args:
        path: The list.
        is_known: Whether a name without an image suffix is the name of an existing image.
        classes: Whether to look for a column of classes; if False, it may be ambiguous.

    Returns:
        Path of an image → name of its class or "", in the order of the list.

    Raises:
        UserError: The list cannot be read, or it is not clear which column is which.
    """
    is_csv = path.lower().endswith(".csv")
    rows = _rows(path, is_csv, is_known)
    if not rows:
        return {}

    def names_image(cell: str) -> bool:
        return is_image(cell) or is_known(cell)

    header = rows[0] if not any(map(names_image, rows[0])) else None
    if header and not is_csv and not any(_normalize(cell) in names for cell in header for names in _IMAGE_NAMES):
        header = None  # no column name: the first line is a path whose file is missing
    if header:
        del rows[0]
    try:
        columns = _by_header(header, rows, names_image, classes) if header else _by_position(rows, names_image, classes)
    except ValueError as error:
        raise UserError(
            f"{printable(path)}: {error}",
            "Write two columns with the header path,label, or keep only the column of paths",
        ) from None
    if header and len(header) > 1:
        log.say(f"{printable(path)}: {_describe(header, columns)}")
    return _to_dict(path, rows, columns)


def read_columns(path: str, is_known: Callable[[str], bool] = lambda _: False) -> dict[str, dict[str, str]]:
    """Read all columns of a list with a header, e.g. the device and the date of each image.

    Args:
        path: A `.csv`, or a text file with columns separated by tabs.
        is_known: As for `read_list`.

    Returns:
        Path of an image → name of a column → value, without the column of paths; the first row of an image counts.

    Raises:
        UserError: The list cannot be read, has no header, or it is not clear which column names the images.
    """

    def names_image(cell: str) -> bool:
        return is_image(cell) or is_known(cell)

    rows = _rows(path, path.lower().endswith(".csv"), is_known)
    if len(rows) < 2 or any(map(names_image, rows[0])):
        raise UserError(f"{printable(path)} has no header with rows below it", "Name its columns: path,device,date")
    header = rows.pop(0)
    try:
        image = _by_header(header, rows, names_image, classes=False).image
    except ValueError as error:
        raise UserError(f"{printable(path)}: {error}", "Name the column of images path") from None
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        values = {name: cell for i, (name, cell) in enumerate(zip(header, row, strict=True)) if i != image}
        found.setdefault(row[image], values)
    return found


def is_class(column: str) -> bool:
    """Whether the name of a column says that it holds classes."""
    return _normalize(column) in _CLASS_NAMES


def is_metadata(column: str) -> bool:
    """Whether a column may say how an image was taken: its name is not one of a path, a class, a split or a size."""
    return _normalize(column) not in _CLASS_NAMES | _NO_CLASS_NAMES | _IMAGE_NAMES[0] | _IMAGE_NAMES[1]


def _rows(path: str, is_csv: bool, is_known: Callable[[str], bool]) -> list[list[str]]:
    """The cells of all lines that are not blank or comments; short rows are filled up with ""."""
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


def _normalize(name: str) -> str:
    """The name of a column in lower case, letters and digits only: `Image ID`, `image_id` and `imageId` are equal."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _by_header(
    header: Sequence[str], rows: list[list[str]], names_image: Callable[[str], bool], classes: bool
) -> _Columns:
    """Find the columns by their names in the header, and by whether they hold paths of images.

    Raises:
        ValueError: More than one column is possible.
    """
    normalized = [_normalize(name) for name in header]
    sampled = rows[:_SAMPLED_ROWS]
    # Candidates for the paths: columns that hold images; of several, or of none, those with a usual name.
    images = [i for i in range(len(header)) if any(names_image(row[i]) for row in sampled)]
    for names in _IMAGE_NAMES:
        if len(images) != 1:
            images = [i for i in images or range(len(header)) if normalized[i] in names] or images
    if not images and len(header) <= 2:
        images = [0]
    if len(images) != 1:
        raise ValueError(f"{_list_columns(header, images)} may name the images")
    rest = [i for i in range(len(header)) if i != images[0]]
    if not classes:
        return _Columns(images[0], None)
    # Candidates for the classes: columns with a usual name, else the one column that is not known to be something else.
    named = [i for i in rest if normalized[i] in _CLASS_NAMES]
    left = named or [i for i in rest if normalized[i] not in _NO_CLASS_NAMES]
    if len(left) > 1 and not named and all(row[i] in _ONE_HOT for row in rows for i in left):
        raise ValueError(f"{_list_columns(header, left)} may each be a class; one-hot columns are not read as classes")
    if len(left) > 1:
        raise ValueError(f"{_list_columns(header, left)} may name the classes")
    return _Columns(images[0], left[0] if left else None)


def _by_position(rows: list[list[str]], names_image: Callable[[str], bool], classes: bool) -> _Columns:
    """Find the columns of a list without a header: the one with images, and at most one other.

    Raises:
        ValueError: There are more columns.
    """
    image = next((i for i, cell in enumerate(rows[0]) if names_image(cell)), 0)
    rest = [i for i in range(len(rows[0])) if i != image]
    if classes and len(rest) > 1:
        raise ValueError(f"its {len(rows[0])} columns have no header that says which names the classes")
    return _Columns(image, rest[0] if classes and rest else None)


def _list_columns(header: Sequence[str], indices: Sequence[int]) -> str:
    names = [f"'{printable(name)}'" for name in ([header[i] for i in indices] or header)]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"any of the columns {', '.join(names[:8])}{more}"


def _describe(header: Sequence[str], columns: _Columns) -> str:
    """Which columns are used, for a message."""
    unused = [name for i, name in enumerate(header) if i not in columns]
    classes = "no classes" if columns.label is None else f"classes in '{printable(header[columns.label])}'"
    ignored = f"; not used: {printable(', '.join(unused[:8]))}{', …' if len(unused) > 8 else ''}" if unused else ""
    return f"images in column '{printable(header[columns.image])}', {classes}{ignored}"


def _to_dict(path: str, rows: list[list[str]], columns: _Columns) -> dict[str, str]:
    """Path → class of all rows; warns about images with more than one class."""
    found: dict[str, str] = {}
    ambiguous: dict[str, None] = {}
    for row in rows:
        image, is_url = _LABEL_STUDIO.subn("", row[columns.image])
        image = unquote(image) if is_url else image
        name = "" if columns.label is None else row[columns.label]
        if image and found.setdefault(image, printable(name)) != printable(name):
            ambiguous[image] = None
    if ambiguous:
        log.warn(
            f"{len(ambiguous):,} images have more than one class in {printable(path)}, e.g. "
            f"{printable(next(iter(ambiguous)))}; the first one is used"
        )
    return found
