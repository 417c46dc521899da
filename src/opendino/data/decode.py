"""Decode images to pixels, upright and shrunk to working size. Every error in a file becomes a `BadImage`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from opendino.core.errors import BadImage
from opendino.core.types import PixelFormat, ViewSpec
from opendino.data import readers
from opendino.data.intensity import Range, to_pixels
from opendino.data.readers import photograph
from opendino.data.readers.limits import MAX_PIXELS
from opendino.data.readers.multi_page_files import Reading

# fmt: off
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".tga", ".npy", ".npz", ".dcm", ".dicom",
    ".nii", ".nii.gz",
})
# fmt: on
"""Suffixes of image files, in lower case."""

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
"""Those that hold other things than images as often; in shards they are never images."""

_FIXED_AREA_PX = 4096**2  # working size for fixed crops: a batch has to hold its images whole
_RGB = PixelFormat()
_MAX_ELONGATION = 2  # longer side of an image at working size, in units of sqrt(max_area_px)


def decode(
    data: bytes | np.ndarray,
    max_area_px: int | None = None,
    max_pixels: int = MAX_PIXELS,
    reading: Reading | None = None,
    intensity: Range | None = None,
    pixel_format: PixelFormat = _RGB,
) -> np.ndarray:
    """Decode an image, turn it upright, and shrink it to working size; images are never enlarged.

    Photographs (8-bit gray or color): animations give their first frame, transparent pixels become white. All other
    images are read by `data.readers` and mapped to `pixel_format` by `intensity`; pixels without data become black. By
    default every image becomes uint8 RGB, and one channel becomes gray.

    Args:
        data: An encoded file, or an array of `pixel_format`.
        max_area_px: Shrink until H · W is at most this, and the longer side at most 2 · sqrt(max_area_px), so that one
            very narrow image does not widen the canvas of a whole batch. None keeps the size.
        max_pixels: Encoded images of more pixels are refused before they are decoded.
        reading: What pages are, and which channels to keep; default: all channels; several pages are refused.
        intensity: Range of the values of the whole set; default: `Intensity.of_file`.
        pixel_format: Number of channels, and uint8 or uint16.

    Returns:
        uint8 or uint16 `[H W C]`, C-contiguous and writeable; `data` itself if it is such an array and small enough.

    Raises:
        BadImage: Not an image, damaged, cut short, more than `max_pixels` pixels, slower than `MAX_SECONDS`, or
            another number of channels.
    """
    if isinstance(data, np.ndarray):
        return _shrunk(data, max_area_px, pixel_format)
    photographs = pixel_format == _RGB
    read = readers.read_science if photographs else readers.read
    if (image := read(data, reading, max_pixels)) is not None:
        return _shrunk(to_pixels(image, intensity, pixel_format), max_area_px, pixel_format)
    with photograph.opened(data, max_pixels) as image:
        size = working_size(image.size, max_area_px)
        image.draft(None, size)  # a JPEG is decoded at 1/2, 1/4 or 1/8 scale, but never below `size`
        pixels = photograph.fast_jpeg(data, image)  # [H W 3], or None where Pillow decodes
        if pixels is None:
            image.load()
        turn = photograph.turn(image)
        if pixels is not None and image.size == size and turn is None:
            return pixels
        image = _rgb(image, intensity) if pixels is None else Image.fromarray(pixels)
        if image.size != size:
            image = _resized(image, size)
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
        yield from _cut(Image.fromarray(_shrunk(data, None, _RGB)), side)
        return
    if (image := readers.read_science(data, None, max_pixels)) is not None:
        yield from _cut(Image.fromarray(to_pixels(image)), side)
        return
    with photograph.opened(data, max_pixels) as image:
        turn = photograph.turn(image)
        whole = _rgb(image) if photograph.is_deep(image) else image  # deep gray is scaled by one range
        yield from _cut(whole if turn is None else whole.transpose(turn), side)


def _cut(image: Image.Image, side: int) -> Iterator[tuple[int, int, np.ndarray]]:
    def starts(length: int) -> list[int]:
        num = -(-length // side)
        return [round(i * (length - side) / (num - 1)) for i in range(num)] if num > 1 else [0]

    for row, top in enumerate(starts(image.height)):
        for column, left in enumerate(starts(image.width)):
            box = (left, top, min(left + side, image.width), min(top + side, image.height))
            yield row, column, np.array(photograph.rgb(image.crop(box)))


def measure(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, tuple[int, int]]:
    """Read the header of an encoded image.

    Returns:
        The name of the format, and width and height before the orientation is applied.

    Raises:
        BadImage: Not an image, or more than `max_pixels` pixels.
    """
    if (image := readers.read_science(data, None, max_pixels)) is not None:
        return readers.kind_of(data), (image.pixels.shape[1], image.pixels.shape[0])
    with photograph.opened(data, max_pixels) as image:
        return image.format or "", image.size


def apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Convert an opened image as `decode` does, without resizing: upright by its EXIF orientation, RGB, on white."""
    turn = photograph.turn(image)
    image = _rgb(image)
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, intensity: Range | None = None) -> Image.Image:
    """Convert an image of any mode to RGB; gray of more than 8 bits by the range of the set."""
    if photograph.is_deep(image):
        return Image.fromarray(to_pixels(photograph.deep_gray(image), intensity))
    return photograph.rgb(image)


def working_area_px(spec: ViewSpec) -> int:
    """Image area, in pixels, at which even the smallest crop need not be enlarged: max of `H · W / min scale`.

    Fixed crops are cut from images at their own size, up to `_FIXED_AREA_PX`.
    """
    views = [(group.view_px[0] * group.view_px[1], view.crop) for group in spec.groups for view in group.views]
    return max(_FIXED_AREA_PX if crop.fixed else math.ceil(area / crop.scale[0] - 1e-6) for area, crop in views)


def working_size(size: tuple[int, int], max_area_px: int | None) -> tuple[int, int]:
    """Width and height of an image of some width and height after `decode`."""
    if max_area_px is None:
        return size
    scale = min(math.sqrt(max_area_px / (size[0] * size[1])), _MAX_ELONGATION * math.sqrt(max_area_px) / max(size))
    if scale >= 1:
        return size
    width, height = (max(1, int(side * scale + 1e-6)) for side in size)
    # A very narrow image: its short side is already 1 px, so the longer side is limited by the area.
    return min(width, max(1, max_area_px // height)), min(height, max(1, max_area_px // width))


def _shrunk(array: np.ndarray, max_area_px: int | None, pixel_format: PixelFormat) -> np.ndarray:
    """Shrink an array of a pixel format to working size."""
    if not pixel_format.fits(array):
        raise BadImage(f"array of {array.dtype} {list(array.shape)}, not {pixel_format}")
    size = (array.shape[1], array.shape[0])
    target = working_size(size, max_area_px)
    if target == size:
        return np.require(array, requirements=["C", "W"])
    if pixel_format == _RGB:
        return np.array(_resized(Image.fromarray(array), target))
    planes = np.moveaxis(array, 2, 0)  # Pillow has no images of C channels, and resizes 16 bits as float32
    if pixel_format.bits == 8:
        return np.stack([np.array(_resized(Image.fromarray(plane), target)) for plane in planes], 2)
    shrunk = np.stack([np.array(_resized(Image.fromarray(plane.astype(np.float32)), target)) for plane in planes], 2)
    return np.rint(shrunk).clip(0, 65535).astype(np.uint16)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
