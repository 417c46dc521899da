"""Images of any shape fit into a square."""

from __future__ import annotations

from functools import partial

import pytest
from PIL import Image, ImageOps

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
