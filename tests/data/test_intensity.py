"""Intensity: one range for the whole set, mapped the same way for every type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.types import PixelFormat
from opendino.data.intensity import Intensity, parse, read_csv, to_pixels
from opendino.data.readers.decoded_image import RGB, DecodedImage, from_array


def image(values: object, dtype: str, nodata: float | None = None, bits: int | None = None) -> DecodedImage:
    array = np.array(values, dtype)
    channels = tuple(map(str, range(array.shape[2])))
    return from_array(array, channels, (0, 2.0**bits - 1) if bits else None, nodata)


def test_8_bit_images_are_unchanged_to_the_bit() -> None:
    picture = image(np.random.default_rng(0).integers(0, 256, (5, 6, 3)), "u1")
    assert Intensity((0,), (255,)).to_uint8(picture) is picture.pixels
    assert to_pixels(picture) is picture.pixels or np.array_equal(to_pixels(picture), picture.pixels)
    assert (Intensity((0,), (255,)).to_uint16(picture) == picture.pixels.astype(np.uint16) * 257).all()
    deep = image(picture.pixels.astype(np.uint16) * 250, "u2")
    assert Intensity((0,), (65535,)).to_uint16(deep) is deep.pixels


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16, 0])
def test_the_same_scene_in_any_depth_gives_the_same_pixels(bits: int) -> None:
    scene = np.random.default_rng(0).random((20, 30, 2))
    top = 2**bits - 1 if bits else 1
    values = np.rint(scene * top) if bits else scene
    stored = image(values, "u1" if bits == 8 else "u2" if bits else "f4", bits=bits or None)
    low, high = 0.1 * top, 0.8 * top
    expected = ((scene - 0.1) / 0.7).clip(0, 1)
    step = 1 / top / 0.7 / 2 if bits else 1e-6
    for mapped, full in (
        (Intensity((low,), (high,)).to_uint8(stored), 255),
        (Intensity((low, low), (high, high)).to_uint16(stored), 65535),
    ):
        assert np.abs(mapped / full - expected).max() <= step + 0.501 / full
        assert mapped.flags.c_contiguous


def test_two_exposures_keep_their_ratio() -> None:
    scene = np.random.default_rng(0).integers(0, 4200, (20, 30, 1))
    intensity = Intensity((0,), (4200,))
    bright, dim = (intensity.to_uint16(image(scene // part, "u2")) for part in (1, 2))
    assert dim.mean() / bright.mean() == pytest.approx(0.5, abs=0.01)


def test_each_channel_has_its_range_and_missing_pixels_are_black() -> None:
    picture = image([[[0, 100], [50, 300], [-9999, 200], [99, 999]]], "f4", nodata=-9999)
    mapped = Intensity((0, 100), (100, 300)).to_uint8(picture)
    assert mapped.tolist() == [[[0, 0], [128, 255], [0, 128], [252, 255]]]
    with pytest.raises(BadImage, match="2 channels, but the intensity has 3"):
        Intensity((0, 0, 0), (1, 1, 1)).to_uint8(picture)


def test_a_file_without_a_set_has_the_range_of_its_type() -> None:
    assert Intensity.of_file(image([[[5], [900]]], "u2")) == Intensity((0,), (65535,))
    assert Intensity.of_file(image([[[5], [900]]], "u2", bits=12)) == Intensity((0,), (4095,))
    assert Intensity.of_file(image([[[0.2], [0.7]]], "f4")) == Intensity((0,), (1,))
    assert Intensity.of_file(image([[[-40], [60], [-9999]]], "f4", nodata=-9999)) == Intensity((-40,), (60,))
    assert Intensity.of_file(image([[[np.nan]]], "f4")) == Intensity((0,), (1,))
    own = Intensity.of_image(image([[[10, 7], [30, 7]]], "u2"))
    assert own.low == pytest.approx((10.02, 7)) and own.high == pytest.approx((29.98, 14))


def test_a_dark_image_of_16_bits_is_no_photograph() -> None:
    pixels = np.zeros((4, 4, 3), np.uint16)
    pixels[0, 0] = 4095  # 12 bits in 16
    with pytest.raises(BadImage, match="its values end at 4,095 of 65,535: as a photograph it would be black"):
        to_pixels(from_array(pixels, RGB))
    assert to_pixels(from_array(pixels, RGB), Intensity((0.0,), (4095.0,))).max() == 255
    pixels[0, 0] = 4096
    assert to_pixels(from_array(pixels, RGB)).max() == 16
    assert to_pixels(from_array(pixels.clip(0, 100).astype(np.uint8), RGB)).max() == 100


def test_gray_becomes_rgb_and_other_counts_are_refused() -> None:
    gray = to_pixels(image([[[0], [65535]]], "u2"))
    assert gray.tolist() == [[[0, 0, 0], [255, 255, 255]]] and gray.flags.c_contiguous
    with pytest.raises(BadImage, match=r"2 channels \(0, 1\), not 3"):
        to_pixels(image([[[0, 1]]], "u2"))
    with pytest.raises(BadImage, match=r"2 channels \(0, 1\): choose 1 of them, e.g. --channels 0"):
        to_pixels(image([[[0, 1]]], "u2"), pixel_format=PixelFormat(1))


def test_a_pixel_format_has_its_own_channels_and_bits() -> None:
    two = to_pixels(image([[[0, 50], [4095, 100]]], "u2"), Intensity((0, 0), (4095, 100)), PixelFormat(2, 16))
    assert two.dtype == np.uint16 and two.tolist() == [[[0, 32768], [65535, 65535]]]
    assert to_pixels(image([[[7]]], "u2"), Intensity((0,), (14,)), PixelFormat(1, 8)).tolist() == [[[128]]]
    with pytest.raises(BadImage, match=r"1 channel \(0\), not 3"):  # gray becomes RGB for photographs only
        to_pixels(image([[[7]]], "u2"), Intensity((0,), (14,)), PixelFormat(3, 16))


def test_the_setting() -> None:
    assert parse(["auto"]) == "auto" and parse(["full"]) == "full" and parse(["ranges.csv"]) == "ranges.csv"
    assert parse(["0", "4095"]) == Intensity((0,), (4095,))
    assert parse([0, 1, 2.5, 3]) == Intensity((0, 2.5), (1, 3)) == parse(Intensity((0, 2.5), (1, 3)).to_words())
    for wrong in ([], ["robust"], ["1", "x"], ["1"], ["1", "2", "3"], ["5", "5"], ["nan", "1"], ["0", "inf"]):
        with pytest.raises(UsageError):
            parse(wrong)


def test_a_range_per_channel_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ranges.csv"
    path.write_text("channel,low,high\nDAPI,10,900\n1,0,4095\n")
    assert read_csv(str(path), ["DAPI", "GFP"]) == Intensity((10, 0), (900, 4095))
    with pytest.raises(UserError, match="no range for Cy5"):
        read_csv(str(path), ["DAPI", "GFP", "Cy5"])
    path.write_text("name,low\na,1\n")
    with pytest.raises(UserError, match="does not have a channel, low and high"):
        read_csv(str(path), ["a"])
    with pytest.raises(UserError, match="Cannot read"):
        read_csv(str(tmp_path / "none.csv"), ["a"])
