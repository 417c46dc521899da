"""Segmentation mask files: indexed PNGs whose pixel values are object numbers, as in DAVIS and PASCAL VOC."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from opendino.core.errors import BadImage
from opendino.data.decode import MAX_PIXELS
from opendino.data.source_files import read_regular

VOID = 255
"""The value of void pixels, which are ignored in evaluations."""


def palette() -> bytes:
    """The color map of DAVIS and PASCAL VOC: 256 RGB colors, 768 bytes.

    A channel takes every third bit of the object number, the lowest bit as the most significant bit of the color.
    """
    colors = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            if 3 * bit + channel < 8:
                colors[:, channel] |= ((np.arange(256) >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colors.tobytes()


def read(path: Path) -> tuple[np.ndarray, bytes]:
    """Read a mask.

    Returns:
        uint8 `[H W]`, the stored values; and a palette of 256 RGB colors, from the file or, where it has none, from
        `palette()`.

    Raises:
        BadImage: Not an indexed or gray PNG, damaged, too large, or with a number above 255.
    """
    data = read_regular(path)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} million")
            if image.mode.startswith("I"):  # 16 bit
                _check_numbers(np.array(image))
            elif image.mode not in ("P", "L", "1"):
                raise BadImage(f"a PNG of mode {image.mode}, not an indexed or 8-bit gray one that numbers objects")
            colors = bytes(image.getpalette("RGB") or b"")
            return np.array(image, dtype=np.uint8), colors + palette()[len(colors) :]
    except BadImage:
        raise
    except Exception as error:  # Pillow's parsers raise many kinds of errors for damaged files
        raise BadImage("not a PNG that can be read") from error


def _check_numbers(mask: np.ndarray) -> None:
    """Check that the numbers of a 16-bit mask fit into 8 bits."""
    if (largest := int(mask.max())) > VOID:
        raise BadImage(f"it has the number {largest}; numbers are at most {VOID - 1}, and {VOID} is void")


def encode(mask: np.ndarray, colors: bytes) -> bytes:
    """Encode a mask, uint8 `[H W]`, as an indexed PNG with a palette of 256 RGB colors."""
    image = Image.fromarray(mask)
    image.putpalette(colors)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def resize(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a mask by nearest neighbor: uint8 `[H W]` → `[height width]`."""
    return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def is_black_and_white(mask: np.ndarray) -> bool:
    """Whether a mask from `read` has no value except 0 and 255; 255 is then an object and not void."""
    return bool((mask == VOID).any() and not ((mask > 0) & (mask < VOID)).any())


def objects(mask: np.ndarray, black_and_white: bool) -> tuple[np.ndarray, np.ndarray]:
    """Split a mask into object numbers and void pixels.

    Args:
        mask: uint8 `[H W]`, from `read`.
        black_and_white: Whether 255 is object 1 and not void. For a video, the first mask decides for all frames.

    Returns:
        Object numbers, uint8 `[H W]`, 0 for background; and void pixels, bool `[H W]`.
    """
    white = mask == VOID
    return np.where(white, np.uint8(black_and_white), mask), white & (not black_and_white)
