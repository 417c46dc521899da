"""The fixed set of transforms for copy detection."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from opendino.datasets.copy_transforms import COPIES


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("size", [(64, 48), (1, 1), (3, 200), (200, 2)])
def test_each_changes_an_image_of_any_size_always_alike_and_leaves_it_as_it_was(
    name: str, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    copy = COPIES[name](image)
    assert copy.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)
    assert np.array_equal(np.asarray(copy), np.asarray(COPIES[name](image)))
    if size == (64, 48):
        assert not np.array_equal(np.asarray(copy.resize(size)), pixels)
        assert copy.size == ((38, 29) if name in ("crop", "combined") else size)
