"""Masks on disk: indexed PNGs whose pixel values are the numbers of objects, as DAVIS and PASCAL VOC keep them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from opendino.core.errors import BadImage
from opendino.data.decode import MAX_PIXELS
from opendino.data.source_files import read_regular

VOID = 255
"""The value of pixels that belong to nothing and count for nothing."""


def palette() -> bytes:
    """The 256 colors of DAVIS and VOC, RGB after RGB: a channel takes every third bit of the number, lowest first."""
    colors = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            if 3 * bit + channel < 8:
                colors[:, channel] |= ((np.arange(256) >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colors.tobytes()


def read(path: Path) -> tuple[np.ndarray, bytes]:
    """Read a mask.

    Returns:
        uint8 `[H W]`, the values as stored; and 256 colors, the file's own or, where it has none, `palette()`.

    Raises:
        BadImage: No indexed or gray PNG, or damaged.
    """
    data = read_regular(path)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} million")
            if image.mode not in ("P", "L", "1"):
                raise BadImage(f"a PNG of mode {image.mode}, not an indexed or 8-bit gray one that numbers objects")
            colors = bytes(image.getpalette("RGB") or b"")
            return np.array(image, dtype=np.uint8), colors + palette()[len(colors) :]
    except BadImage:
        raise
    except Exception as error:  # Pillow's parsers raise whatever a damaged file leads them to
        raise BadImage("not a PNG that can be read") from error


def encode(mask: np.ndarray, colors: bytes) -> bytes:
    """An indexed PNG of a mask uint8 `[H W]`, with 256 colors."""
    image = Image.fromarray(mask)
    image.putpalette(colors)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def resize(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """By nearest neighbor, uint8 `[H W]` → `[height width]`."""
    return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def is_black_and_white(mask: np.ndarray) -> bool:
    """Whether a mask, as read, holds no number but 255, which then is an object and not void."""
    return bool((mask == VOID).any() and not ((mask > 0) & (mask < VOID)).any())


def objects(mask: np.ndarray, black_and_white: bool) -> tuple[np.ndarray, np.ndarray]:
    """What a mask, as read, says: which object is where, and which pixels do not count.

    Args:
        mask: uint8 `[H W]`.
        black_and_white: Whether 255 is object 1 rather than void. A film's first mask decides for all.

    Returns:
        uint8 `[H W]`, 0 where there is no object; bool `[H W]`, the void.
    """
    white = mask == VOID
    return np.where(white, np.uint8(black_and_white), mask), white & (not black_and_white)
