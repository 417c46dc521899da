"""Resize and crop images of any number of channels with Pillow's filters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]


def resize(
    pixels: np.ndarray, size: tuple[int, int], resampling: Image.Resampling, box: Box | None = None
) -> np.ndarray:
    """Resize an image.

    Args:
        pixels: uint8, uint16, or float32 in [0, 1], `[H W C]`.
        size: (width, height) in pixels.
        resampling: Pillow's filter; all but the nearest neighbor are antialiased.
        box: (left, top, right, bottom), the part of the image to resize; default: all of it.

    Returns:
        uint8 `[height width 3]` for uint8 RGB, exactly as Pillow gives it; else float32 `[height width C]` in [0, 1].
    """
    return _each_plane(pixels, lambda image: image.resize(size, resampling, box))


def thumbnail(pixels: np.ndarray, side: int) -> np.ndarray:
    """Shrink an image `[H W C]` until it fits into a square, as `PIL.Image.thumbnail` with the Lanczos filter does.

    Returns:
        As for `resize`.
    """

    def shrink(image: Image.Image) -> Image.Image:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image

    return _each_plane(pixels, shrink)


def center_crop(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """The middle of an image `[H W C]`, with black around it where it is smaller: `[height width C]`."""
    top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
    if top < 0 or left < 0:
        pixels = np.pad(pixels, [(max(0, -top), height), (max(0, -left), width), (0, 0)])
    top, left = max(0, top), max(0, left)
    return pixels[top : top + height, left : left + width]


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """uint8, uint16, or float32 in [0, 1] → float32 in [0, 1]."""
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32, copy=False)
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def _each_plane(pixels: np.ndarray, function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Call a function of Pillow on an RGB image, or on every channel as a float32 image: Pillow has no others."""
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return np.array(function(Image.fromarray(pixels)))
    planes = np.ascontiguousarray(np.moveaxis(to_unit(pixels), 2, 0))
    changed = np.stack([np.asarray(function(Image.fromarray(plane))) for plane in planes], 2)
    return changed.clip(0, 1)  # a bicubic filter overshoots
