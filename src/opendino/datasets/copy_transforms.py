"""Transforms that make copies of an image, for copy detection: a fixed set of strong changes, without randomness."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFilter


def crop(image: Image.Image) -> Image.Image:
    """Crop to the upper left 60 % of each side: 36 % of the area."""
    width, height = image.size
    return image.crop((0, 0, max(1, round(0.6 * width)), max(1, round(0.6 * height))))


def jpeg(image: Image.Image) -> Image.Image:
    """Compress as a JPEG of quality 5."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=5)
    with Image.open(file) as saved:
        return saved.convert("RGB")


def blur(image: Image.Image) -> Image.Image:
    """Gaussian blur with a sigma of 2 % of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(0.02 * min(image.size)))


def rotation(image: Image.Image) -> Image.Image:
    """Rotate by 20°, with white corners."""
    return image.rotate(20, Image.Resampling.BICUBIC, fillcolor="white")


def overlay(image: Image.Image) -> Image.Image:
    """Cover the middle third of the height with a striped band."""
    image, (width, height) = image.copy(), image.size
    draw, stripe = ImageDraw.Draw(image), max(1, width // 12)
    for number, left in enumerate(range(0, width, stripe)):
        box = (left, height // 3, left + stripe - 1, max(height // 3, 2 * height // 3 - 1))
        draw.rectangle(box, fill=("gold", "navy")[number % 2])
    return image


def combined(image: Image.Image) -> Image.Image:
    """Rotate, crop, blur and compress."""
    return jpeg(blur(crop(rotation(image))))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop": crop, "jpeg": jpeg, "blur": blur, "rotation": rotation, "overlay": overlay, "combined": combined
}  # fmt: skip
"""Name → transform of an RGB image."""
