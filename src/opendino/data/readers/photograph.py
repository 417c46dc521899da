"""Photographs: the formats that Pillow reads, decoded to 8-bit RGB or to gray of any depth."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from opendino.core.errors import BadImage
from opendino.data import unsupported
from opendino.data.readers import limits
from opendino.data.readers.decoded_image import GRAY, RGB, DecodedImage, from_array
from opendino.data.readers.limits import TimeLimitedFile, one_line, too_large

# Only the formats of `decode.SUFFIXES`: some of Pillow's other formats start external programs (EPS).
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


@contextlib.contextmanager
def opened(data: bytes, max_pixels: int = limits.MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image; only its header is read. Every error inside the context becomes a `BadImage`.

    Raises:
        BadImage: Not an image, damaged, cut short, more than `max_pixels` pixels, or slower than `MAX_SECONDS`.
    """
    try:
        with quiet(max_pixels), Image.open(TimeLimitedFile(data), formats=_formats()) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(too_large(f"{width} x {height}", width * height, max_pixels))
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(_reason_unknown(data)) from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, checked when it reads the header
        pixels = re.search(r"(\d+) pixels", str(error))
        num = int(pixels[1]) if pixels else max_pixels + 1
        raise BadImage(too_large(f"{num:,}", num, max_pixels)) from None
    except Exception as error:  # Pillow's parsers raise many kinds of errors for damaged files
        raise BadImage(one_line(error)) from error


def fast_jpeg(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Decode a baseline RGB JPEG: the same bits as Pillow in two thirds of the time. None where Pillow must decode.

    Both use libjpeg-turbo; simplejpeg saves one copy. Pillow decodes progressive files, which may hold any number of
    scans, because its reading can be stopped by the time limit; and damaged files, so that its rules decide which are
    accepted.
    """
    if image.format != "JPEG" or image.mode != "RGB" or "progressive" in image.info:
        return None
    try:
        return simplejpeg.decode_jpeg(data, min_height=image.height, min_width=image.width)
    except ValueError:
        return None


def turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn an image upright, from its EXIF orientation; None if it is upright."""
    try:
        return _TURN.get(int(image.getexif().get(_ORIENTATION, 1)))
    except Exception:  # damaged EXIF data does not make the image unreadable
        return None


def upright(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Turn the pixels `[H W C]` of an image upright by its EXIF orientation."""
    numbers = np.arange(pixels.shape[0] * pixels.shape[1], dtype=np.int32).reshape(pixels.shape[:2])
    direction = turn(image)
    if direction is None:
        return pixels
    order = np.asarray(Image.fromarray(numbers).transpose(direction))
    return pixels.reshape(-1, pixels.shape[2])[order]


def may_be_deep(data: bytes) -> bool:
    """Whether a file may be gray with more than 8 bits; only its header is read."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return data[24:26] == b"\x10\0"  # 16 bits, gray
    if data.startswith((b"P5", b"Pf", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):  # PGM, PFM, JPEG 2000
        with contextlib.suppress(BadImage), opened(data) as image:
            return is_deep(image)
    return False


def is_deep(image: Image.Image) -> bool:
    """Whether an image is gray with more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def rgb(image: Image.Image) -> Image.Image:
    """Convert an image of 8 bits to RGB, transparent pixels on white."""
    assert not is_deep(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def read(data: bytes, max_pixels: int = limits.MAX_PIXELS) -> DecodedImage:
    """Read a photograph: color as uint8 `[H W 3]`, gray `[H W 1]` as it is, of any depth; upright.

    Raises:
        BadImage: As for `opened`.
    """
    with opened(data, max_pixels) as image:
        direction = turn(image)
        upright = image if direction is None else image.transpose(direction)
        if is_deep(image):
            return deep_gray(upright)
        if image.mode in ("1", "L") and not image.has_transparency_data:
            return from_array(np.array(upright.convert("L"))[..., None], GRAY)
        return from_array(np.array(rgb(upright)), RGB)


def deep_gray(image: Image.Image) -> DecodedImage:
    """The values of a gray image of more than 8 bits, `[H W 1]`."""
    values = np.asarray(image)[..., None]
    if values.dtype == np.int32 and values.min() >= 0 and values.max() <= 65535:
        values = values.astype(np.uint16)  # Pillow's mode for a 16-bit PGM
    return from_array(values, GRAY)


def _reason_unknown(data: bytes) -> str:
    """Why Pillow does not recognize the bytes, for common cases."""
    if not data:
        return "empty file"
    if data.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image itself: run git lfs pull"
    if data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not an image"
    return unsupported.kind_of(data) or "not an image in a known format"


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", module=r"(PIL|pydicom|tifffile)\.")
    _IGNORED = warnings.filters[0]
_guard = threading.Lock()
_guarded = contextlib.ExitStack()
_num_inside = 0


@contextlib.contextmanager
def quiet(max_pixels: int = limits.MAX_PIXELS) -> Iterator[None]:
    """Silence libraries and set Pillow's size limit while any thread is in this context; then restore both.

    Threads are counted, because `catch_warnings` restores the wrong filters when contexts of several threads overlap.
    """
    global _num_inside
    with _guard:
        if _num_inside == 0:
            _guarded.enter_context(warnings.catch_warnings())
            warnings.filters = [_IGNORED, *warnings.filters]  # `filterwarnings` is slow, and this is per image
            _guarded.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = limits.MAX_PIXELS // 2  # Pillow refuses twice this, also in later frames
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, (max_pixels + 1) // 2)
        _num_inside += 1
    try:
        yield
    finally:
        with _guard:
            _num_inside -= 1
            if _num_inside == 0:
                _guarded.close()


for name in ("PIL.TiffImagePlugin", "pydicom", "tifffile"):  # they log a line for each oddity of a file
    logging.getLogger(name).addFilter(lambda _: _num_inside == 0)


def _in_forked_child() -> None:  # other threads do not exist in the child, so they never leave the context
    global _guard, _num_inside
    _guard, _num_inside = threading.Lock(), 0
    _guarded.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
