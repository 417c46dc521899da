"""Color of more than 8 bits in PNG and JPEG 2000: all bits, or a reason."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from opendino.core.errors import BadImage
from opendino.data import readers
from opendino.data.decode import decode
from opendino.data.readers.decoded_image import RGB
from opendino.data.readers.multi_page_files import Reading

imagecodecs = pytest.importorskip("imagecodecs")


def values(channels: int = 3, top: int = 65535) -> np.ndarray:
    """uint16 `[19 24 C]`."""
    return np.random.default_rng(channels).integers(0, top + 1, (19, 24, channels), dtype=np.uint16)


@pytest.mark.parametrize(("channels", "names"), [(3, RGB), (4, (*RGB, "alpha")), (2, ("gray", "alpha"))])
def test_png_keeps_16_bits(channels: int, names: tuple[str, ...]) -> None:
    pixels = values(channels)
    found = readers.read(imagecodecs.png_encode(pixels))
    assert np.array_equal(found.pixels, pixels) and found.channels == names
    assert found.value_range == (0, 65535)


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("form", ["jp2", "j2k"])
def test_jpeg_2000_keeps_its_bits(bits: int, form: str) -> None:
    pixels = values(3, 2**bits - 1)
    data = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat=form, bitspersample=bits, mct=False, reversible=True)
    found = readers.read(data)
    assert np.array_equal(found.pixels, pixels) and found.channels == RGB
    assert found.value_range == (0, 2**bits - 1)


def test_opaque_alpha_is_left_out_and_channels_are_chosen() -> None:
    pixels = values(4)
    pixels[..., 3] = 65535
    found = readers.read(imagecodecs.png_encode(pixels), Reading(channels=("2", "red")))
    assert np.array_equal(found.pixels, pixels[..., [2, 0]]) and found.channels == ("blue", "red")


def test_8_bits_stay_photographs() -> None:
    shallow = values(3, 255).astype(np.uint8)
    for data in (imagecodecs.png_encode(shallow), imagecodecs.jpeg2k_encode(shallow, level=0, reversible=True)):
        assert readers.kind_of(data) == "photograph" and np.array_equal(decode(data), shallow)


def test_a_model_of_photographs_sees_the_upper_bits() -> None:
    pixels = values()
    found = decode(imagecodecs.png_encode(pixels))
    assert found.dtype == np.uint8 and np.array_equal(found, np.rint(pixels / 257).astype(np.uint8))


def test_turned_upright_by_its_exif_orientation() -> None:
    pixels, data = values(), imagecodecs.png_encode(values())
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    turned = readers.read(data[:33] + chunk + data[33:])
    assert np.array_equal(turned.pixels, np.rot90(pixels, -1))


def test_without_imagecodecs_it_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    png, j2k = imagecodecs.png_encode(values()), imagecodecs.jpeg2k_encode(values(3, 4095), bitspersample=12)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    for data, kind in ((png, "16-bit color PNG"), (j2k, "12-bit color JPEG 2000")):
        with pytest.raises(BadImage, match=rf'{kind} needs imagecodecs: pip install "opendino\[science\]"'):
            readers.read(data)


def test_damaged_and_huge_files_are_refused() -> None:
    data = imagecodecs.png_encode(values())
    with pytest.raises(BadImage):
        readers.read(data[:300])
    huge = data[:16] + struct.pack(">II", 60_000, 60_000) + data[24:]
    with pytest.raises(BadImage, match="60000 x 60000 pixels"):
        readers.read(huge)
    file = io.BytesIO()
    Image.fromarray(values(1)[..., 0]).save(file, "PNG")
    assert readers.kind_of(file.getvalue()) == "photograph", "gray is read by Pillow"
