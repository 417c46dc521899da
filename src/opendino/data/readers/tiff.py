"""TIFF by tifffile: any depth, sample format and layout; pages by OME or ImageJ metadata, else by the user's choice.

A TIFF of one page of 8-bit gray or color is a photograph, which Pillow reads.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from tifffile import TiffFile, TiffPage

from opendino.core.errors import BadImage
from opendino.data.readers import photograph, tiff_checks, tiff_names
from opendino.data.readers.decoded_image import GRAY, RGB, DecodedImage, bits_range, from_array, type_range
from opendino.data.readers.limits import MAX_PAGES, TimeLimitedFile, check_size, one_line
from opendino.data.readers.multi_page_files import (
    Reading,
    StackQuestion,
    ask_about_pages,
    check_page,
    combine,
    describe,
)

# Layouts of whole-slide scanners and of files in several parts, which tifffile would interpret: not read here.
_IGNORED = (
    "mmstack",
    "ndtiff",
    "ndpi",
    "svs",
    "scn",
    "qpi",
    "bif",
    "avs",
    "eer",
    "philips",
    "indica",
    "scanimage",
    "sis",
)
_AUXILIARY = 1 | 4  # bits of NewSubfileType: a thumbnail or smaller copy, a transparency mask
_MIN_IS_WHITE, _PALETTE = 0, 3
_GDAL_NODATA, _ORIENTATION = 42113, 274


def read(data: bytes, reading: Reading, max_pixels: int) -> DecodedImage | None:
    """Read a TIFF; None if it is a photograph for Pillow.

    Raises:
        BadImage: Damaged, cut short, too large, of a kind that is not read, or a stack without an answer in `reading`.
    """
    with _opened(data) as file:
        return _read(file, data, reading, max_pixels)


def count(data: bytes) -> int:
    """Number of images in a TIFF if each page, slice or time point is one.

    Raises:
        BadImage: Damaged.
    """
    with _opened(data) as file:
        _pages(file)
        return sum(map(_num_planes, _series(file)))


def _read(file: TiffFile, data: bytes, reading: Reading, max_pixels: int) -> DecodedImage | None:
    pages, every = _pages(file), _series(file)
    total = sum(map(_num_planes, every))
    one = len(pages) == 1 and total == 1 and len(every[0].shape) <= 3
    if one and not reading.channels and tiff_checks.is_photograph(pages[0]):
        has_alpha = bool(pages[0].extrasamples)
        if not has_alpha or _is_transparency(data, max_pixels):
            return None
    page = reading.page
    if page is None:
        if len(every) > 1:
            sizes = ", ".join(sorted({f"{each.keyframe.imagewidth}×{each.keyframe.imagelength}" for each in every}))
            raise StackQuestion(
                f"{len(every)} images of different kinds ({sizes}) in one file? Choose --stack images, or a page from "
                f"0 to {total - 1}"
            )
        return _read_series(file, every[0], reading, None, max_pixels)
    check_page(page, total)
    for series in every:
        if page < _num_planes(series):
            return _read_series(file, series, reading, page, max_pixels)
        page -= _num_planes(series)
    raise AssertionError("unreachable")


def _pages(file: TiffFile) -> list[TiffPage]:
    """All pages but thumbnails and masks; stops at `MAX_PAGES`, because the chain of pages may be a circle."""
    pages: list[TiffPage] = []
    for number in range(MAX_PAGES + 1):
        try:
            page = file.pages[number]
        except IndexError:
            break
        if number == MAX_PAGES:
            raise BadImage(f"more than {MAX_PAGES:,} pages, or a circle of pages")
        if not isinstance(page, TiffPage) or not int(page.subfiletype) & _AUXILIARY:
            pages.append(page)  # pyright: ignore[reportArgumentType]
    if not pages:
        raise BadImage("a TIFF without an image: it is damaged, or not an image")
    return pages


def _series(file: TiffFile) -> list[Any]:
    """The images of a file, each with the pages that belong together; without thumbnails, masks and smaller copies."""
    tiff_checks.check_ome(file)
    # tifffile takes any smaller page for a smaller copy; it is one only if the file says so.
    levels = [level for series in file.series for level in series.levels]
    return [level for level in levels if not int(level.keyframe.subfiletype) & _AUXILIARY] or levels[:1]


def _stack_axes(series: Any) -> tuple[str, tuple[int, ...]]:
    """Letters and lengths of the axes that are neither height, width, channels nor samples, if longer than 1."""
    found = [
        (axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXCS" and size > 1
    ]
    return "".join(axis for axis, _ in found), tuple(size for _, size in found)


def _num_planes(series: Any) -> int:
    return math.prod(_stack_axes(series)[1])


def _read_series(
    file: TiffFile, series: Any, reading: Reading, page: int | None, max_pixels: int
) -> DecodedImage | None:
    first = series.keyframe
    tiff_checks.check_kind(first)
    axes, sizes = _stack_axes(series)
    num_channels = math.prod(size for axis, size in zip(series.axes, series.shape, strict=True) if axis in "CS")
    numbers = _page_numbers(series)
    used = num_channels * (1 if page is not None and numbers is not None else math.prod(sizes))
    check_size(first.imagelength, first.imagewidth, used * np.dtype(first.dtype).itemsize, max_pixels)
    names = tiff_names.channel_names(file, first, num_channels)
    if sizes and page is None and reading.stack in ("ask", "images"):
        size, bits = f"{first.imagewidth}×{first.imagelength}", first.bitspersample
        raise ask_about_pages(axes, sizes, size, f"{describe(names)}, {bits} bit")
    tiff_checks.check_segments(series, file.filehandle)
    planes = _planes(series, page, numbers)  # [N H W C]
    nodata = _nodata(first)
    planes, value_range, nodata = _brightness(first, planes, nodata)
    if first.photometric == _PALETTE:
        names = RGB
    pixels, names = combine(planes, names, reading, nodata)
    pixels, names = _without_opaque_alpha(_upright(pixels, first), names, value_range)
    return from_array(pixels, names, value_range, nodata).select(reading)


def _page_numbers(series: Any) -> np.ndarray | None:
    """Which pages of the file hold each plane, int `[planes, channels]`; None if pages do not divide into planes."""
    lead = len(series.shape) - len(series.keyframe.shape)
    axes, shape = series.axes[:lead], series.shape[:lead]
    if series.axes[lead:] != series.keyframe.axes or len(series.pages) != math.prod(shape):
        return None
    order = sorted(range(lead), key=lambda axis: axes[axis] in "CS")  # planes first, then channels
    return np.arange(len(series.pages)).reshape(shape).transpose(order).reshape(_num_planes(series), -1)


def _planes(series: Any, page: int | None, numbers: np.ndarray | None) -> np.ndarray:
    """The values of a series, or of one of its planes, `[N H W C]`."""
    if page is not None and numbers is not None:
        axes = "C" + series.keyframe.axes
        values = np.stack([series.pages[number].asarray(maxworkers=1) for number in numbers[page]])
    else:
        axes, values = series.axes, series.asarray(maxworkers=1).reshape(series.shape)
    outer = [i for i, axis in enumerate(axes) if axis not in "YXCS"]
    inner = [i for i, axis in enumerate(axes) if axis in "CS"]
    values = values.transpose([*outer, axes.index("Y"), axes.index("X"), *inner])
    height, width = values.shape[len(outer) : len(outer) + 2]
    values = values.reshape(math.prod(values.shape[: len(outer)]), height, width, -1)
    return values if page is None or numbers is not None else values[page : page + 1]


def _brightness(
    page: TiffPage, planes: np.ndarray, nodata: float | None
) -> tuple[np.ndarray, tuple[float, float], float | None]:
    """Values of which larger ones are brighter, their range, and the value of pixels without data among them."""
    bits, photometric = int(page.bitspersample), int(page.photometric)
    value_range = bits_range(bits) if planes.dtype.kind in "bu" else type_range(planes.dtype)
    if photometric == _PALETTE:
        colors = np.asarray(page.colormap)  # [3 2^bits], 16 bit
        return (colors[:, planes[..., 0]] >> 8).astype(np.uint8).transpose(1, 2, 3, 0), (0.0, 255.0), None
    if photometric == _MIN_IS_WHITE:
        top = planes.dtype.type(2**bits - 1) if planes.dtype.kind == "u" else None
        planes = ~planes if top is None else top - planes
        nodata = None if nodata is None else value_range[1] - nodata
    return planes, value_range, nodata


def _nodata(page: TiffPage) -> float | None:
    """The number in GDAL_NODATA, None without one."""
    tag = page.tags.valueof(_GDAL_NODATA)
    if tag is None:
        return None
    try:
        return float(str(tag).strip("\0 ").replace(",", "."))
    except ValueError:
        return None


def _upright(pixels: np.ndarray, page: TiffPage) -> np.ndarray:
    """Turn `[H W C]` upright by the tag Orientation."""
    turn = page.tags.valueof(_ORIENTATION, 1)
    if turn in (5, 6, 7, 8):  # rows are columns
        pixels = pixels.transpose(1, 0, 2)
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if turn in (3, 4, 7, 8) else pixels


def _without_opaque_alpha(
    pixels: np.ndarray, names: tuple[str, ...], value_range: tuple[float, float]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Leave out an alpha channel that is opaque everywhere: it says nothing."""
    if names[-1] != "alpha" or pixels.dtype.kind != "u" or (pixels[..., -1] != value_range[1]).any():
        return pixels, names
    return pixels[..., :-1], names[:-1] if names[:-1] != ("0",) else GRAY


def _is_transparency(data: bytes, max_pixels: int) -> bool:
    """Whether a channel tagged as alpha is one: at least half of its pixels are fully transparent or fully opaque.

    Programs for aerial images tag infrared as alpha. Pasting such an image on white would destroy it.
    """
    with photograph.opened(data, max_pixels) as image:
        if not image.has_transparency_data:
            return False
        alpha = np.asarray(image.getchannel("A"))
    return bool(((alpha == 0) | (alpha == 255)).mean() >= 0.5)


def _reason(error: Exception) -> str:
    text = one_line(error)
    if "imagecodecs" in text:
        return f'a TIFF that needs imagecodecs ({text[:80]}): pip install "opendino[science]"'
    return f"a damaged or unsupported TIFF: {text}"[:200]


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[TiffFile]:
    """Open a TIFF; every error inside the context becomes a `BadImage`."""
    options: dict[str, Any] = {f"is_{name}": False for name in _IGNORED}
    with photograph.quiet():  # what matters is checked here
        try:
            with TiffFile(TimeLimitedFile(data), _multifile=False, **options) as file:
                yield file
        except BadImage:
            raise
        except Exception as error:  # tifffile raises many kinds of errors for damaged files
            raise BadImage(_reason(error)) from error
