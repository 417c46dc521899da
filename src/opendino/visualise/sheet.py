"""A contact sheet: rows of small pictures, each with a line below it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from opendino.core import files
from opendino.core.errors import UsageError

_SIDE_PX, _GAP_PX, _TEXT_PX = 160, 8, 12


@dataclass(frozen=True)
class Tile:
    """A picture of the sheet.

    Attributes:
        image: RGB of any size; None where it cannot be shown.
        lines: Two lines below it; long ones lose their beginning.
    """

    image: Image.Image | None
    lines: tuple[str, str]


def check(path: str) -> None:
    """Refuse what a sheet cannot be written to, before any work is done.

    Raises:
        UsageError: The ending is not .png, or there is no such folder.
    """
    if not path.lower().endswith(".png"):
        raise UsageError(f"'{path}' is no picture", "End its name in .png")
    if not Path(path).expanduser().absolute().parent.is_dir():
        raise UsageError(f"There is no folder to write {path} into", "Make it, or choose another name")


def draw(rows: Sequence[Sequence[Tile]], path: Path) -> None:
    """Draw rows of tiles into a `.png`, the first tile of each in a frame: what was asked for."""
    font = ImageFont.load_default(_TEXT_PX)
    width, height = _SIDE_PX + _GAP_PX, _SIDE_PX + 2 * (_TEXT_PX + 3) + _GAP_PX
    size = max(map(len, rows)) * width + _GAP_PX, len(rows) * height + _GAP_PX
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            left, top = _GAP_PX + x * width, _GAP_PX + y * height
            if tile.image is None:
                pen.rectangle((left, top, left + _SIDE_PX, top + _SIDE_PX), "#dddddd")
                pen.text((left + _SIDE_PX / 2, top + _SIDE_PX / 2), "cannot be opened", "#666666", font, anchor="mm")
            else:
                small = ImageOps.contain(tile.image, (_SIDE_PX, _SIDE_PX))
                sheet.paste(small, (left + (_SIDE_PX - small.width) // 2, top + (_SIDE_PX - small.height) // 2))
            if x == 0:
                pen.rectangle((left - 3, top - 3, left + _SIDE_PX + 2, top + _SIDE_PX + 2), outline="#d55e00", width=2)
            for number, line in enumerate(tile.lines):
                text = _fitting(line, font)
                pen.text((left, top + _SIDE_PX + 3 + number * (_TEXT_PX + 3)), text, "black", font)
    picture = io.BytesIO()
    sheet.save(picture, "PNG")
    files.write(path, picture.getvalue())


def _fitting(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    line = line.encode("utf-8", "replace").decode().replace("\n", " ")
    if font.getlength(line) <= _SIDE_PX:
        return line
    while line and font.getlength(f"…{line}") > _SIDE_PX:
        line = line[1:]
    return f"…{line}"
