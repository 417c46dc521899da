"""Pictures beside and below each other with text above each; as pixels, SVG or a page. Needs Pillow alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from opendino.core import atomic_write
from opendino.core.errors import UsageError, UserError
from opendino.data.source_files import printable

# Okabe & Ito's palette, told apart by people of every color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
PICTURES = (".png", ".jpg", ".webp", ".pdf", ".svg", ".html")
"""Endings of what a `Sheet` can be written to."""

WIDTH_PX = 2400
"""Of a sheet at most: 360 dots an inch over the 17 cm of a paper."""
_GAP_PX = 8
# Viridis (Smith & van der Walt 2015, CC0) at equal distances: brightness rises evenly, for every color vision.
_VIRIDIS = bytes.fromhex("440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725")


@dataclass(frozen=True)
class Tile:
    """A picture and the lines above it."""

    image: Image.Image
    title: str = ""


class Sheet:
    """Rows of tiles; a place may be empty. Columns are as wide as their widest tile, rows as high as their highest.

    Args:
        rows: At least one tile.
    """

    def __init__(self, rows: Sequence[Sequence[Tile | None]]) -> None:
        self.rows = rows
        columns = zip_longest(*rows)
        self._widths = [max((tile.image.width for tile in column if tile), default=0) for column in columns]
        self._heights = [max((tile.image.height for tile in row if tile), default=0) for row in rows]
        self.width = sum(self._widths) + _GAP_PX * (len(self._widths) + 1)
        self.font_px = max(11, round(self.width / 66))  # 8 points on a paper 17 cm wide
        lines = [max((len(tile.title.splitlines()) for tile in row if tile), default=0) for row in rows]
        self._heads = [round(1.25 * self.font_px * number) for number in lines]
        self.height = sum(self._heights) + sum(self._heads) + _GAP_PX * (len(rows) + 1)

    def image(self) -> Image.Image:
        """As pixels, RGB on white."""
        sheet = Image.new("RGB", (self.width, self.height), "white")
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(self.font_px)
        for x, y, room, tile in self._placed():
            sheet.paste(tile.image, (x, y))
            for base, line in self._lines(tile, y):
                pen.text((x, base), _fitted(line, font, room), "black", font, anchor="ls")
        return sheet

    def svg(self) -> str:
        """As SVG with the pictures inside and text that can be searched."""
        font = ImageFont.load_default(self.font_px)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'font-family="sans-serif" font-size="{self.font_px}"><rect width="100%" height="100%" fill="white"/>'
        ]
        for x, y, room, tile in self._placed():
            png = io.BytesIO()
            tile.image.save(png, "PNG")
            data, size = base64.b64encode(png.getvalue()).decode(), tile.image.size
            parts.append(
                f'<image x="{x}" y="{y}" width="{size[0]}" height="{size[1]}" href="data:image/png;base64,{data}"/>'
            )
            parts += [
                f'<text x="{x}" y="{base:g}">{escape(_fitted(line, font, room))}</text>'
                for base, line in self._lines(tile, y)
            ]
        return "\n".join([*parts, "</svg>\n"])

    def save(self, path: Path) -> None:
        """Write it, in the form that the ending says, at once or not at all."""
        ending = path.suffix.lower()
        if ending == ".svg":
            atomic_write.write(path, self.svg())
        elif ending == ".html":
            atomic_write.write(path, page(path.stem, self.svg()))
        else:
            content = io.BytesIO()
            options = {".png": {"compress_level": 3}, ".jpg": {"quality": 92}, ".webp": {"quality": 92}}
            kind = {".jpg": "JPEG"}.get(ending, ending[1:].upper())
            self.image().save(content, kind, **options.get(ending, {}))
            atomic_write.write(path, content.getvalue())

    def _placed(self) -> Iterator[tuple[int, int, int, Tile]]:
        """Left and upper edge of every tile, and the width of its column."""
        y = _GAP_PX
        for row, head, height in zip(self.rows, self._heads, self._heights, strict=True):
            x, y = _GAP_PX, y + head
            for tile, width in zip(row, self._widths, strict=False):
                if tile:
                    yield x, y, width, tile
                x += width + _GAP_PX
            y += height + _GAP_PX

    def _lines(self, tile: Tile, y: int) -> Iterator[tuple[float, str]]:
        """The lines of a title with their base lines; the last stands just above the picture."""
        lines = tile.title.splitlines()
        for place, line in enumerate(lines):
            yield y - (0.35 + 1.25 * (len(lines) - 1 - place)) * self.font_px, line


def page(title: str, svg: str) -> str:
    """A page of its own around an SVG."""
    style = "body{margin:1rem;background:white}svg{width:100%;height:auto}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{style}</style><body>{svg[svg.index('<svg') :]}</body></html>\n"
    )


def out(text: str, endings: Sequence[str]) -> Path:
    """Where a picture is to go, looked at before any work is done.

    Raises:
        UsageError: Another ending.
        UserError: The folder is missing.
    """
    path = Path(text).expanduser()
    if path.suffix.lower() not in endings:
        raise UsageError(f"--out {printable(text)} ends in none of the forms there are", f"Use {', '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"There is no folder to write {printable(text)} into", "Make it, or choose another --out")
    return path


def color(values: Tensor) -> np.ndarray:
    """Values `[...]` in 0 .. 1 → uint8 `[... 3]` from dark violet to yellow (viridis)."""
    stops = torch.tensor(list(_VIRIDIS), dtype=torch.float64).view(-1, 3)
    place = values.double().clamp(0, 1) * (len(stops) - 1)
    low = place.floor().long().clamp_max(len(stops) - 2)
    part = (place - low)[..., None]
    return (stops[low] * (1 - part) + stops[low + 1] * part).round().to(torch.uint8).numpy()


def enlarged(grid: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A picture of patches, uint8 `[h w 3]`, one color a patch, at (width, height) in pixels."""
    return Image.fromarray(grid).resize(size, Image.Resampling.NEAREST)


def dimmed(image: Image.Image, kept: Tensor) -> Image.Image:
    """The image in its colors where patches bool `[h w]` say so; gray and pale elsewhere."""
    mask = Image.fromarray(kept.to(torch.uint8).mul(255).numpy()).resize(image.size, Image.Resampling.NEAREST)
    pale = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, "white"), 0.65)
    return Image.composite(image, pale, mask)


def cross(image: Image.Image, x: float, y: float, fill: str = COLORS[1]) -> Image.Image:
    """A copy with a cross at a point in pixels, outlined in white and open in the middle."""
    image = image.copy()
    pen, reach = ImageDraw.Draw(image), max(image.size) / 24
    for width, tint in ((max(5, round(reach / 3)), "white"), (max(2, round(reach / 8)), fill)):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            ends = [(x + part * reach * dx, y + part * reach * dy) for part in (0.25, 1)]
            pen.line(ends, tint, width)
    return image


def shrunk(image: Image.Image, width_px: int) -> Image.Image:
    """The image at a width, or itself where it is not wider."""
    if image.width <= width_px:
        return image
    height = max(1, round(image.height * width_px / image.width))
    return image.resize((width_px, height), Image.Resampling.LANCZOS)


def square(image: Image.Image | None, side_px: int) -> Image.Image:
    """The whole image in the middle of a white square; a gray one where there is none to show."""
    if image is None:
        return Image.new("RGB", (side_px, side_px), "#dddddd")
    scale = side_px / max(image.size)
    if min(image.size) * scale < 1:  # a hair-thin image would have no pixel left
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    return ImageOps.pad(image, (side_px, side_px), Image.Resampling.BICUBIC, "white")


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """What of a text fits into a width."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
