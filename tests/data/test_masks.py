"""Masks as indexed PNGs: palettes, what the values mean, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opendino.core.errors import BadImage
from opendino.data import masks


def test_the_palette_of_davis_by_its_known_colours() -> None:
    colours = np.frombuffer(masks.palette(), np.uint8).reshape(256, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 7: (128, 128, 128), 8: (64, 0, 0)}
    known |= {15: (192, 128, 128), 20: (0, 64, 128), 64: (32, 0, 0), 255: (224, 224, 192)}
    for number, colour in known.items():
        assert tuple(colours[number]) == colour, number
    assert len({tuple(colour) for colour in colours}) == 256


@pytest.mark.parametrize("num_colours", [3, 16, 256])
def test_values_and_palette_come_back(num_colours: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, num_colours, (9, 13), dtype=np.uint8)
    colours = rng.integers(0, 256, 3 * num_colours, dtype=np.uint8).tobytes()
    image = Image.fromarray(mask)
    image.putpalette(colours)
    image.save(tmp_path / "in.png")
    values, found = masks.read(tmp_path / "in.png")
    np.testing.assert_array_equal(values, mask)
    assert len(found) == 768 and found.startswith(colours)
    (tmp_path / "out.png").write_bytes(masks.encode(values, found))
    again, same = masks.read(tmp_path / "out.png")
    np.testing.assert_array_equal(again, mask)
    assert same == found
    with Image.open(tmp_path / "out.png") as written:
        assert written.mode == "P"


def test_grey_and_bilevel_files_number_objects_too(tmp_path: Path) -> None:
    mask = np.array([[0, 1], [2, 200]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "grey.png")
    values, colours = masks.read(tmp_path / "grey.png")
    np.testing.assert_array_equal(values, mask)
    assert colours == masks.palette()
    Image.fromarray(mask > 0).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(masks.read(tmp_path / "bilevel.png")[0], mask > 0)


def test_255_is_void_unless_there_is_nothing_else() -> None:
    white = np.array([[0, 255]], np.uint8)
    assert masks.is_black_and_white(white)
    numbered, void = masks.objects(white, black_and_white=True)
    assert (numbered.tolist(), void.tolist()) == ([[0, 1]], [[False, False]])
    mixed = np.array([[0, 3, 255]], np.uint8)
    assert not masks.is_black_and_white(mixed)
    numbered, void = masks.objects(mixed, black_and_white=False)
    assert (numbered.tolist(), void.tolist()) == ([[0, 3, 0]], [[False, False, True]])
    assert not masks.is_black_and_white(np.zeros((1, 1), np.uint8))


def test_what_numbers_nothing_is_refused(tmp_path: Path) -> None:
    path, colour = tmp_path / "mask.png", Image.new("RGB", (4, 4))
    colour.save(path)
    with pytest.raises(BadImage, match="mode RGB, not an indexed or 8-bit grey"):
        masks.read(path)
    colour.save(path, "JPEG")
    with pytest.raises(BadImage, match="not a PNG"):
        masks.read(path)
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)).save(whole, "PNG")
    path.write_bytes(whole.getvalue()[:500])
    with pytest.raises(BadImage, match="not a PNG"):
        masks.read(path)
    with pytest.raises(BadImage, match="No such file"):
        masks.read(tmp_path / "nowhere.png")


def test_resize_takes_the_nearest() -> None:
    mask = np.array([[1, 2], [3, 4]], np.uint8)
    assert masks.resize(mask, 4, 2).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert masks.resize(mask.repeat(3, 0).repeat(3, 1), 2, 2).tolist() == mask.tolist()
