"""Color of more than 8 bits in PNG and JPEG 2000, by imagecodecs (extra `science`): Pillow cuts it to 8 bits."""

from __future__ import annotations

import struct

import numpy as np

from opendino.core.errors import BadImage
from opendino.data.readers import photograph
from opendino.data.readers.decoded_image import RGB, DecodedImage, bits_range, from_array, numbered
from opendino.data.readers.limits import MAX_PIXELS, check_size
from opendino.data.readers.multi_page_files import Reading

_PNG, _PNG_SAMPLES = b"\x89PNG\r\n\x1a\n", {2: 3, 4: 2, 6: 4}  # color type → samples per pixel
_JP2, _CODESTREAM = b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"
_MAX_BOXES = 2**20  # bytes before the codestream of a JPEG 2000 file
_ALPHA = {2: ("gray", "alpha"), 4: (*RGB, "alpha")}


def matches(data: bytes) -> bool:
    """Whether a file is a PNG or JPEG 2000 of several channels with more than 8 bits; only its header is read."""
    return _header(data) is not None


def read(data: bytes, reading: Reading, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Read an image with all its bits, upright; an opaque alpha channel is left out.

    Raises:
        BadImage: imagecodecs is not installed; the file is damaged, too large or has more than 16 bits; or there is no
            such channel.
    """
    header = _header(data)
    assert header is not None
    kind, height, width, samples, bits = header
    try:
        import imagecodecs
    except ImportError:
        raise BadImage(f'{bits}-bit color {kind} needs imagecodecs: pip install "opendino[science]"') from None
    if bits > 16:
        raise BadImage(f"a {kind} of {bits} bits, more than 16")
    check_size(height, width, 2 * samples, max_pixels)
    pixels = imagecodecs.png_decode(data) if kind == "PNG" else imagecodecs.jpeg2k_decode(data)
    if pixels.ndim != 3 or pixels.dtype != np.uint16:
        raise BadImage(f"a {kind} that is decoded to {pixels.dtype} {list(pixels.shape)}")
    with photograph.opened(data, max_pixels) as image:
        pixels = photograph.upright(pixels, image)
    value_range = bits_range(bits)
    names = _ALPHA.get(pixels.shape[2], RGB if pixels.shape[2] == 3 else numbered(pixels.shape[2]))
    if names[-1] == "alpha" and (pixels[..., -1] == value_range[1]).all():
        pixels, names = pixels[..., :-1], names[:-1]
    return from_array(pixels, names, value_range).select(reading)


def count(data: bytes) -> int:
    """1: these files have no pages."""
    return 1


def _header(data: bytes) -> tuple[str, int, int, int, int] | None:
    """Kind, height, width, samples per pixel and bits; None if it has one channel, at most 8 bits or another format."""
    if data[:8] == _PNG and len(data) > 26:
        width, height, bits, color = struct.unpack(">IIBB", data[16:26])
        return ("PNG", height, width, _PNG_SAMPLES[color], 16) if bits == 16 and color in _PNG_SAMPLES else None
    start = data.find(_CODESTREAM, 0, _MAX_BOXES) if data.startswith((_JP2, _CODESTREAM)) else -1
    if start < 0 or len(data) < start + 42:
        return None
    right, bottom, left, top = struct.unpack(">IIII", data[start + 8 : start + 24])
    (samples,) = struct.unpack(">H", data[start + 40 : start + 42])
    bits = max(((depth & 0x7F) + 1 for depth in data[start + 42 : start + 42 + 3 * samples : 3]), default=0)
    return ("JPEG 2000", bottom - top, right - left, samples, bits) if samples > 1 and bits > 8 else None
