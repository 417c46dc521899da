"""Images of any shape fit into a square."""

from __future__ import annotations

from functools import partial

import pytest
from PIL import Image, ImageFont, ImageOps

from opendino.visualize.drawing.tile_grid import Sheet, Tile, end_of_path, square


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (1, 1), (300, 100)])
def test_a_square_holds_an_image_of_any_shape(size: tuple[int, int]) -> None:
    drawn = square(Image.new("RGB", size, "black"), 120)
    assert drawn.size == (120, 120) and drawn.getextrema()[0][0] == 0  # something of it is seen


def test_an_ordinary_image_is_padded_as_ever() -> None:
    image = Image.linear_gradient("L").resize((300, 70)).convert("RGB")
    padded = ImageOps.pad(image, (120, 120), Image.Resampling.BICUBIC, "white")
    assert square(image, 120).tobytes() == padded.tobytes()


def _fits(most: int, text: str) -> bool:
    return len(text) <= most


def test_of_a_long_path_the_end_is_shown() -> None:
    for shown in ("plates/2026/a7/well.png", "…/a7/well.png", "…/well.png", "….png"):
        assert end_of_path("plates/2026/a7/well.png", partial(_fits, len(shown))) == shown
    tile = Image.new("RGB", (120, 120))
    titles = "0.98\na/very/long/folder/image_of_the_07.png", "image_" * 9 + "7.png"
    svg = Sheet([[Tile(tile, title) for title in titles]]).svg()
    assert svg.count("07.png<") == 1 and svg.count("_7.png<") == 1 and svg.count("…") == 2


def test_a_title_that_is_too_long_is_wrapped_between_words_and_not_cut() -> None:
    title = "1 global\nflip, color_jitter b1.1 c0.9 s1.0 h+0.02, blur 0.6 px"
    sheet = Sheet([[Tile(Image.new("RGB", (400, 40)), title)] * 6])
    (lines, *_) = [[text for _, text in lines] for _, _, lines, _ in sheet._placed_tiles()]
    assert lines[0] == "1 global" and len(lines) > 2 and " ".join(lines) == title.replace("\n", " ")
    font = ImageFont.load_default(sheet.font_px)
    assert all(font.getlength(line) <= 400 for line in lines)
    top = min(baseline for _, _, lines, _ in sheet._placed_tiles() for baseline, _ in lines)
    assert top >= sheet.font_px * 0.8  # the first line is inside the picture
