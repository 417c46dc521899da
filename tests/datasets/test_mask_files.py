"""Masks as indexed PNGs: palettes, what the values mean, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opendino.core.errors import BadImage
from opendino.datasets import mask_files


def test_the_palette_of_davis_by_its_known_colors() -> None:
    colors = np.frombuffer(mask_files.palette(), np.uint8).reshape(256, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 7: (128, 128, 128), 8: (64, 0, 0)}
    known |= {15: (192, 128, 128), 20: (0, 64, 128), 64: (32, 0, 0), 255: (224, 224, 192)}
    for number, color in known.items():
        assert tuple(colors[number]) == color, number
    assert len({tuple(color) for color in colors}) == 256


@pytest.mark.parametrize("num_colors", [3, 16, 256])
def test_values_and_palette_come_back(num_colors: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, num_colors, (9, 13), dtype=np.uint8)
    colors = rng.integers(0, 256, 3 * num_colors, dtype=np.uint8).tobytes()
    image = Image.fromarray(mask)
    image.putpalette(colors)
    image.save(tmp_path / "in.png")
    values, found = mask_files.read(tmp_path / "in.png")
    np.testing.assert_array_equal(values, mask)
    assert len(found) == 768 and found.startswith(colors)
    (tmp_path / "out.png").write_bytes(mask_files.encode(values, found))
    again, same = mask_files.read(tmp_path / "out.png")
    np.testing.assert_array_equal(again, mask)
    assert same == found
    with Image.open(tmp_path / "out.png") as written:
        assert written.mode == "P"


def test_gray_and_bilevel_files_number_objects_too(tmp_path: Path) -> None:
    mask = np.array([[0, 1], [2, 200]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "gray.png")
    values, colors = mask_files.read(tmp_path / "gray.png")
    np.testing.assert_array_equal(values, mask)
    assert colors == mask_files.palette()
    Image.fromarray(mask > 0).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(mask_files.read(tmp_path / "bilevel.png")[0], mask > 0)


def test_numbers_of_16_bits_are_read_if_they_fit(tmp_path: Path) -> None:
    mask = np.array([[0, 1], [2, 254]], np.uint16)
    Image.fromarray(mask).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(mask_files.read(tmp_path / "deep.png")[0], mask)
    Image.fromarray(mask + 46).save(tmp_path / "deep.png")
    with pytest.raises(BadImage, match="it has the number 300; numbers are at most 254, and 255 is void"):
        mask_files.read(tmp_path / "deep.png")


def test_255_is_void_unless_there_is_nothing_else() -> None:
    white = np.array([[0, 255]], np.uint8)
    assert mask_files.is_black_and_white(white)
    numbered, void = mask_files.objects(white, black_and_white=True)
    assert (numbered.tolist(), void.tolist()) == ([[0, 1]], [[False, False]])
    mixed = np.array([[0, 3, 255]], np.uint8)
    assert not mask_files.is_black_and_white(mixed)
    numbered, void = mask_files.objects(mixed, black_and_white=False)
    assert (numbered.tolist(), void.tolist()) == ([[0, 3, 0]], [[False, False, True]])
    assert not mask_files.is_black_and_white(np.zeros((1, 1), np.uint8))


def test_what_numbers_nothing_is_refused(tmp_path: Path) -> None:
    path, color = tmp_path / "mask.png", Image.new("RGB", (4, 4))
    color.save(path)
    with pytest.raises(BadImage, match="mode RGB, not an indexed or 8-bit gray"):
        mask_files.read(path)
    color.save(path, "JPEG")
    with pytest.raises(BadImage, match="not a PNG"):
        mask_files.read(path)
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)).save(whole, "PNG")
    path.write_bytes(whole.getvalue()[:500])
    with pytest.raises(BadImage, match="not a PNG"):
        mask_files.read(path)
    with pytest.raises(BadImage, match="No such file"):
        mask_files.read(tmp_path / "nowhere.png")


def test_resize_takes_the_nearest() -> None:
    mask = np.array([[1, 2], [3, 4]], np.uint8)
    assert mask_files.resize(mask, 4, 2).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert mask_files.resize(mask.repeat(3, 0).repeat(3, 1), 2, 2).tolist() == mask.tolist()
