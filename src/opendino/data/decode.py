"""Decode images to RGB pixels, upright and shrunk to working size. Every error in a file becomes a `BadImage`."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from opendino.core.errors import BadImage
from opendino.core.types import ViewSpec
from opendino.data import unsupported

MAX_PIXELS = 250_000_000
"""Larger images are refused before they are decoded: a small file can claim any size (decompression bomb)."""

MAX_SECONDS = 60.0
"""Time limit for decoding one image. It is checked when the decoder reads more of the file; in a loader worker, a timer
ends the worker at once. The largest images allowed take about ten seconds."""

# fmt: off
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".tga",
})
# fmt: on
"""Suffixes of image files, in lower case."""

# Only the formats of these suffixes: some of Pillow's other formats start external programs (EPS).
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
_TIFF_LOG = logging.getLogger("PIL.TiffImagePlugin")  # writes a line to stderr for each file with many channels
_FIXED_AREA_PX = 4096**2  # working size for fixed crops: a batch has to hold its images whole
_MAX_ELONGATION = 2  # longer side of an image at working size, in units of sqrt(max_area_px)


def decode(data: bytes | np.ndarray, max_area_px: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image, turn it upright, and shrink it to working size; images are never enlarged.

    Animations and documents give their first frame or page. Transparent pixels become white. Gray images of more than 8
    bits are scaled linearly to 0..255. The range depends on the bit depth, so that the brightness of images stays
    comparable: integers are scaled from 0..255, 0..4095 (microscopes, X-rays) or 0..65535, the first range that
    contains all values; floats from 0..1 if it contains all values; all others from their minimum to their maximum.

    Args:
        data: An encoded file, or uint8 `[H W 3]`.
        max_area_px: Shrink until H · W is at most this, and the longer side at most 2 · sqrt(max_area_px), so that one
            very narrow image does not widen the canvas of a whole batch. None keeps the size.
        max_pixels: Encoded images of more pixels are refused before they are decoded.

    Returns:
        uint8 `[H W 3]`, RGB, C-contiguous and writeable; `data` itself if it is such an array and small enough.

    Raises:
        BadImage: Not an image, damaged, cut short, more than `max_pixels` pixels, or slower than `MAX_SECONDS`.
    """
    if isinstance(data, np.ndarray):
        return _checked(data, max_area_px)
    with _bad_images(data, max_pixels), _pillow_guarded(max_pixels), _opened(data, max_pixels) as image:
        size = _working_size(image.size, max_area_px)
        image.draft(None, size)  # a JPEG is decoded at 1/2, 1/4 or 1/8 scale, but never below `size`
        pixels = _fast_jpeg(data, image)  # [H W 3], or None where Pillow decodes
        if pixels is None:
            image.load()
        turn = _TURN.get(_orientation(image))
        if pixels is not None and image.size == size and turn is None:
            return pixels
        image = _rgb(image) if pixels is None else Image.fromarray(pixels)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        return np.array(image if turn is None else image.transpose(turn))


def tiles(data: bytes | np.ndarray, side: int, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[int, int, np.ndarray]]:
    """Cut an upright image, at full resolution, into the fewest square tiles that cover it; they overlap evenly.

    Pillow decodes the whole image: 4 bytes of memory per pixel, 8 if it is rotated by its EXIF orientation, 16 for gray
    of more than 8 bits.

    Args:
        data: An encoded file, or uint8 `[H W 3]`.
        side: Side of a tile in pixels.
        max_pixels: Encoded images of more pixels are refused before they are decoded.

    Yields:
        Row, column and pixels of a tile, uint8 `[side side 3]`; smaller only if the image is smaller than a tile.

    Raises:
        BadImage: As for `decode`.
    """
    if isinstance(data, np.ndarray):
        yield from _cut(Image.fromarray(_checked(data, None)), side)
        return
    with _bad_images(data, max_pixels), _pillow_guarded(max_pixels), _opened(data, max_pixels) as image:
        turn = _TURN.get(_orientation(image))
        whole = _rgb(image) if _is_deep(image) else image  # deep gray is scaled by the range of the whole image
        yield from _cut(whole if turn is None else whole.transpose(turn), side)


def _cut(image: Image.Image, side: int) -> Iterator[tuple[int, int, np.ndarray]]:
    def starts(length: int) -> list[int]:
        num = -(-length // side)
        return [round(i * (length - side) / (num - 1)) for i in range(num)] if num > 1 else [0]

    for row, top in enumerate(starts(image.height)):
        for column, left in enumerate(starts(image.width)):
            box = (left, top, min(left + side, image.width), min(top + side, image.height))
            yield row, column, np.array(_rgb(image.crop(box)))


def measure(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, tuple[int, int]]:
    """Read the header of an encoded image.

    Returns:
        Pillow's name of the format, and width and height before the EXIF orientation is applied.

    Raises:
        BadImage: Not an image, or more than `max_pixels` pixels.
    """
    with _bad_images(data, max_pixels), _pillow_guarded(max_pixels), _opened(data, max_pixels) as image:
        return image.format or "", image.size


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image; only its header is read."""
    image = Image.open(_TimeLimitedFile(data), formats=_formats())
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(_too_large(f"{width} x {height}", width * height, max_pixels))
    return image


@contextlib.contextmanager
def _bad_images(data: bytes, max_pixels: int) -> Iterator[None]:
    """Turn every error in the context into a `BadImage`."""
    try:
        yield
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(_reason_unknown(data)) from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, checked when it reads the header
        pixels = re.search(r"(\d+) pixels", str(error))
        num = int(pixels[1]) if pixels else max_pixels + 1
        raise BadImage(_too_large(f"{num:,}", num, max_pixels)) from None
    except KeyError:  # a TIFF with a compression that Pillow does not know
        raise BadImage(unsupported.kind_of(data) or "damaged") from None
    except Exception as error:  # Pillow's parsers raise many kinds of errors for damaged files
        reason = " ".join(str(error).split())[:200]
        raise BadImage(reason or type(error).__name__) from error


def apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Convert an opened image as `decode` does, without resizing: upright by its EXIF orientation, RGB, on white."""
    turn = _TURN.get(_orientation(image))
    image = _rgb(image)
    return image if turn is None else image.transpose(turn)


def working_area_px(spec: ViewSpec) -> int:
    """Image area, in pixels, at which even the smallest crop need not be enlarged: max of `H · W / min scale`.

    Fixed crops are cut from images at their own size, up to `_FIXED_AREA_PX`.
    """
    views = [(group.view_px[0] * group.view_px[1], view.crop) for group in spec.groups for view in group.views]
    return max(_FIXED_AREA_PX if crop.fixed else math.ceil(area / crop.scale[0] - 1e-6) for area, crop in views)


def _working_size(size: tuple[int, int], max_area_px: int | None) -> tuple[int, int]:
    if max_area_px is None:
        return size
    scale = min(math.sqrt(max_area_px / (size[0] * size[1])), _MAX_ELONGATION * math.sqrt(max_area_px) / max(size))
    if scale >= 1:
        return size
    width, height = (max(1, int(side * scale + 1e-6)) for side in size)
    # A very narrow image: its short side is already 1 px, so the longer side is limited by the area.
    return min(width, max(1, max_area_px // height)), min(height, max(1, max_area_px // width))


def _checked(array: np.ndarray, max_area_px: int | None) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise BadImage(f"array of {array.dtype} {list(array.shape)}, not uint8 [H W 3]")
    size = (array.shape[1], array.shape[0])
    target = _working_size(size, max_area_px)
    if target == size:
        return np.require(array, requirements=["C", "W"])
    return np.array(Image.fromarray(array).resize(target, Image.Resampling.BICUBIC, reducing_gap=2.0))


class _TimeLimitedFile(io.BytesIO):
    """A file in memory that raises `BadImage` if it is read after `MAX_SECONDS`."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._last = time.monotonic() + MAX_SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._last:
            raise BadImage(too_slow())
        return super().read(size)


def _fast_jpeg(data: bytes, image: Image.Image) -> np.ndarray | None:
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


def too_slow() -> str:
    """The reason why an image that takes too long to decode is unreadable."""
    return f"not decoded within {MAX_SECONDS:g} s"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data does not make the image unreadable
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, transparent pixels on white."""
    if _is_deep(image):
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    """Whether an image is gray with more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def _to_uint8(gray: np.ndarray) -> np.ndarray:
    """Scale a gray image of any depth to uint8, by the rule in the docstring of `decode`."""
    values = gray.astype(np.float32)
    values[~np.isfinite(values)] = np.nan
    if np.isnan(values).all():
        return np.zeros(values.shape, np.uint8)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    scales = (1,) if gray.dtype.kind == "f" else (255, 4095, 65535)
    full = next((scale for scale in scales if low >= 0 and high <= scale), None)
    if full is not None:
        low, high = 0.0, float(full)
    with np.errstate(all="ignore"):  # the floats of a file may overflow
        values = (values - low) * (255 / max(high - low, 1e-30))
    return np.rint(np.nan_to_num(values, nan=0.0)).clip(0, 255).astype(np.uint8)


def _too_large(size: str, num: int, limit: int) -> str:
    """The reason why an image has too many pixels; with the options of `opendino pack` unless the limit is lower."""
    ways = f": use opendino pack DATA --tiles 1024, or --max-pixels {num} to shrink it" if limit >= MAX_PIXELS else ""
    return f"{size} pixels, more than {limit / 10**6:g} million{ways}"


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


_guard = threading.Lock()
_guarded = contextlib.ExitStack()
_num_inside = 0


@contextlib.contextmanager
def _pillow_guarded(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Silence Pillow's warnings and set its size limit while any thread is in this context; then restore both.

    Threads are counted, because `catch_warnings` restores the wrong filters when contexts of several threads overlap.
    """
    global _num_inside
    with _guard:
        if _num_inside == 0:
            _guarded.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _guarded.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice this, also in later frames
            _guarded.callback(setattr, _TIFF_LOG, "disabled", _TIFF_LOG.disabled)
            _TIFF_LOG.disabled = True
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, (max_pixels + 1) // 2)
        _num_inside += 1
    try:
        yield
    finally:
        with _guard:
            _num_inside -= 1
            if _num_inside == 0:
                _guarded.close()


def _in_forked_child() -> None:  # other threads do not exist in the child, so they never leave the context
    global _guard, _num_inside
    _guard, _num_inside = threading.Lock(), 0
    _guarded.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
