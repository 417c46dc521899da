"""Images of any shape fit into a square."""

from __future__ import annotations

import pytest
from PIL import Image, ImageOps

from opendino.visualize.drawing.tile_grid import square


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (1, 1), (300, 100)])
def test_a_square_holds_an_image_of_any_shape(size: tuple[int, int]) -> None:
    drawn = square(Image.new("RGB", size, "black"), 120)
    assert drawn.size == (120, 120) and drawn.getextrema()[0][0] == 0  # something of it is seen


def test_an_ordinary_image_is_padded_as_ever() -> None:
    image = Image.linear_gradient("L").resize((300, 70)).convert("RGB")
    padded = ImageOps.pad(image, (120, 120), Image.Resampling.BICUBIC, "white")
    assert square(image, 120).tobytes() == padded.tobytes()
