"""Grids of images with captions, as pixels, SVG or HTML. Drawn by Pillow: every pixel of an image stays as it is."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from opendino.core import atomic_write
from opendino.core.errors import UsageError, UserError
from opendino.data.source_files import is_image, printable
from opendino.visualize.drawing import templates
from opendino.visualize.drawing.style import COLORS
from opendino.visualize.drawing.templates import Markup

PICTURES = (".png", ".jpg", ".webp", ".pdf", ".svg", ".html")
"""Suffixes of the file formats for a `Sheet`."""

WIDTH_PX = 2400
"""Maximum width of a sheet: 360 dpi at 17 cm, the text width of a paper."""
_GAP_PX = 8


@dataclass(frozen=True)
class Tile:
    """An image and the title lines above it."""

    image: Image.Image
    title: str = ""


class Sheet:
    """A grid of tiles; None is an empty cell.

    Each column is as wide as its widest tile, and each row as high as its highest tile.

    Args:
        rows: Rows of tiles, at least one tile in total.
        title: What stands above all of them.
    """

    def __init__(self, rows: Sequence[Sequence[Tile | None]], title: str = "") -> None:
        self.rows = rows
        columns = zip_longest(*rows)
        self._widths = [max((tile.image.width for tile in column if tile), default=0) for column in columns]
        self._heights = [max((tile.image.height for tile in row if tile), default=0) for row in rows]
        self.width = sum(self._widths) + _GAP_PX * (len(self._widths) + 1)
        self.font_px = max(11, round(self.width / 66))  # 8 pt if printed 17 cm wide
        self._titles = [
            [self._wrapped(tile.title, width) if tile else [] for tile, width in zip(row, self._widths, strict=False)]
            for row in rows
        ]
        self._heads = [round(1.25 * self.font_px * max(map(len, row), default=0)) for row in self._titles]
        self._title = self._wrapped(title, self.width - 2 * _GAP_PX)
        self._top = round(1.25 * self.font_px * len(self._title)) + _GAP_PX * bool(title)
        self.height = self._top + sum(self._heights) + sum(self._heads) + _GAP_PX * (len(rows) + 1)

    def image(self) -> Image.Image:
        """The sheet as an RGB image on white."""
        sheet = Image.new("RGB", (self.width, self.height), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(self.font_px)
        for baseline, line in self.title_lines():
            draw.text((_GAP_PX, baseline), line, "black", font, anchor="ls")
        for x, y, lines, tile_image in self._placed_tiles():
            sheet.paste(tile_image, (x, y))
            for baseline, line in lines:
                draw.text((x, baseline), line, "black", font, anchor="ls")
        return sheet

    def svg(self) -> Markup:
        """The sheet as an SVG element with embedded images and searchable text."""
        tiles = []
        for x, y, lines, image in self._placed_tiles():
            png = io.BytesIO()
            image.save(png, "PNG")
            data = base64.b64encode(png.getvalue()).decode()
            tiles.append({"x": x, "y": y, "image": image, "png": data, "lines": lines})
        return Markup(templates.render("sheet.svg", sheet=self, tiles=tiles))

    def save(self, path: Path) -> None:
        """Write the sheet atomically in the format of the suffix."""
        suffix = path.suffix.lower()
        if suffix == ".svg":
            atomic_write.write(path, self.svg())
        elif suffix == ".html":
            atomic_write.write(path, templates.render("page.html", title=path.stem, svg=self.svg()))
        else:
            content = io.BytesIO()
            options = {".png": {"compress_level": 3}, ".jpg": {"quality": 92}, ".webp": {"quality": 92}}
            format_name = {".jpg": "JPEG"}.get(suffix, suffix[1:].upper())
            self.image().save(content, format_name, **options.get(suffix, {}))
            atomic_write.write(path, content.getvalue())

    def title_lines(self) -> list[tuple[float, str]]:
        """(baseline, text that fits) of the lines above all tiles."""
        return [(_GAP_PX + (0.9 + 1.25 * n) * self.font_px, text) for n, text in enumerate(self._title)]

    def _placed_tiles(self) -> Iterator[tuple[int, int, list[tuple[float, str]], Image.Image]]:
        """(left, top, title lines, image) of every tile, in pixels. A title line is (baseline, text that fits)."""
        y = self._top + _GAP_PX
        for row, row_titles, head, height in zip(self.rows, self._titles, self._heads, self._heights, strict=True):
            x, y = _GAP_PX, y + head
            for tile, titles, width in zip(row, row_titles, self._widths, strict=False):
                if tile:
                    above = range(len(titles) - 1, -1, -1)  # the last line is directly above the image
                    lines = [
                        (y - (0.35 + 1.25 * n) * self.font_px, text) for n, text in zip(above, titles, strict=True)
                    ]
                    yield x, y, lines, tile.image
                x += width + _GAP_PX
            y += height + _GAP_PX

    def _wrapped(self, text: str, width: int) -> list[str]:
        """A title in lines that fit a width: wrapped between words, a path or a long word shortened."""
        font, lines = ImageFont.load_default(self.font_px), []
        for line in text.splitlines():
            words = [line] if "/" in line or is_image(line) else line.split()
            start = len(lines)
            for word in words:
                joined = f"{lines[-1]} {word}" if len(lines) > start else word
                if len(lines) > start and font.getlength(joined) <= width:
                    lines[-1] = joined
                else:
                    lines.append(_shorten(word, font, width))
        return lines


def out(text: str, endings: Sequence[str]) -> Path:
    """Check an output path before any work is done.

    Raises:
        UsageError: The suffix is not one of `endings`.
        UserError: The parent folder does not exist.
    """
    path = Path(text).expanduser()
    if path.suffix.lower() not in endings:
        raise UsageError(f"--out {printable(text)} has no supported suffix", f"Use one of {', '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"There is no folder to write {printable(text)} into", "Create the folder, or choose another --out"
        )
    return path


def enlarged(grid: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Upsample one color per patch, uint8 `[h w 3]`, to `size` (width, height) by nearest neighbor."""
    return Image.fromarray(grid).resize(size, Image.Resampling.NEAREST)


def dimmed(image: Image.Image, kept: Tensor) -> Image.Image:
    """The image with patches outside `kept`, bool `[h w]`, in pale gray."""
    mask = Image.fromarray(kept.to(torch.uint8).mul(255).numpy()).resize(image.size, Image.Resampling.NEAREST)
    pale = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, "white"), 0.65)
    return Image.composite(image, pale, mask)


def cross(image: Image.Image, x: float, y: float, fill: str = COLORS[1]) -> Image.Image:
    """A copy with a cross at a point in pixels, with a white outline and an open center."""
    image = image.copy()
    draw, arm = ImageDraw.Draw(image), max(image.size) / 24
    for width, line_color in ((max(5, round(arm / 3)), "white"), (max(2, round(arm / 8)), fill)):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            segment = [(x + fraction * arm * dx, y + fraction * arm * dy) for fraction in (0.25, 1)]
            draw.line(segment, line_color, width)
    return image


def shrunk(image: Image.Image, width_px: int) -> Image.Image:
    """The image resized to a width; the image itself if it is not wider."""
    if image.width <= width_px:
        return image
    height = max(1, round(image.height * width_px / image.width))
    return image.resize((width_px, height), Image.Resampling.LANCZOS)


def square(image: Image.Image | None, side_px: int) -> Image.Image:
    """The whole image centered in a white square; a gray square for None."""
    if image is None:
        return Image.new("RGB", (side_px, side_px), "#dddddd")
    scale = side_px / max(image.size)
    if min(image.size) * scale < 1:  # keep at least 1 pixel of a very thin image
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    return ImageOps.pad(image, (side_px, side_px), Image.Resampling.BICUBIC, "white")


def end_of_path(path: str, fits: Callable[[str], bool]) -> str:
    """A path, shortened in front to what fits: the end of its folder often tells more than that there is one."""
    ends = (f"…{path[start:]}" for start in range(1, len(path)))
    return next((each for each in (path, *ends) if fits(each)), "…")


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, max_width: int) -> str:
    """The text, shortened with an ellipsis to fit a width in pixels; of a path the end is kept."""

    def fits(text: str) -> bool:
        return font.getlength(text) <= max_width

    if "/" in text or is_image(text):
        return end_of_path(text, fits)
    if fits(text):
        return text
    while text and not fits(text + "…"):
        text = text[:-1]
    return text + "…"
