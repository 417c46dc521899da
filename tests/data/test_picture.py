"""Images of any number of channels as RGB pictures."""

from __future__ import annotations

import numpy as np
import pytest

from opendino.core.errors import BadImage
from opendino.data.picture import picture, to_uint8


def pixels(*values: float, dtype: str = "uint8") -> np.ndarray:
    """One pixel of these values `[1 1 C]`."""
    return np.array([[values]], dtype)


def color(values: np.ndarray, names: tuple[str, ...], shown: tuple[str, ...] = ()) -> tuple[int, ...]:
    found = picture(values, names, shown)
    assert (found.mode, found.size) == ("RGB", (1, 1))
    return tuple(np.array(found)[0, 0].tolist())


def test_photographs_stay_as_they_are() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.array(picture(photo)), photo)
    assert color(pixels(1, 2, 3), ("Red", "Green", "Blue")) == (1, 2, 3)


def test_red_green_and_blue_are_found_among_others() -> None:
    names = ("blue", "green", "red", "infrared")
    assert color(pixels(3, 2, 1, 9), names, ("red", "green", "blue")) == (1, 2, 3)


def test_one_channel_is_gray() -> None:
    assert color(pixels(77), ("gray",)) == (77, 77, 77)
    assert color(pixels(1, 77), ("a", "b"), ("b",)) == (77, 77, 77)


def test_others_have_colors_that_add_up_to_white() -> None:
    assert color(pixels(200, 0), ("a", "b")) == (200, 0, 200), "magenta"
    assert color(pixels(0, 200), ("a", "b")) == (0, 200, 0), "green"
    assert color(pixels(255, 255), ("a", "b")) == (255, 255, 255)
    three = ("a", "b", "c")
    singles = [color(pixels(*row), three) for row in (np.eye(3, dtype=int) * 90).tolist()]
    assert singles == [(0, 90, 90), (90, 0, 90), (90, 90, 0)], "cyan, magenta, yellow"
    assert color(pixels(255, 255, 255), three) == (255, 255, 255)


def test_the_first_three_or_the_chosen_ones() -> None:
    names = tuple("abcde")
    assert color(pixels(10, 20, 30, 40, 50), names) == (50, 40, 30)
    assert color(pixels(10, 20, 30, 40, 50), names, ("4", "d", "0")) == (50, 60, 90)
    with pytest.raises(BadImage, match="no channel 'GFP'"):
        color(pixels(1, 2), ("a", "b"), ("GFP",))


def test_values_of_16_bits_and_fractions() -> None:
    assert color(pixels(65535, dtype="uint16"), ("x",)) == (255,) * 3
    assert color(pixels(0.5, dtype="float32"), ("x",)) == (128,) * 3
    every = np.arange(65536, dtype=np.uint16).reshape(-1, 1, 1)
    assert np.array_equal(to_uint8(every)[:, 0, 0], np.rint(np.arange(65536) / 257))
