"""Checks of a TIFF before it is decoded: which kinds are read, and that sizes and offsets are possible."""

from __future__ import annotations

import io
import math
import re
import zlib
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from tifffile import TiffFile, TiffPage

from opendino.core.errors import BadImage
from opendino.data.readers.limits import MAX_PAGES, MAX_PIXELS, check_size

try:
    import imagecodecs  # noqa: F401 - tifffile uses it; its own decoders have no limits
except ImportError:
    _HAS_IMAGECODECS = False
else:
    _HAS_IMAGECODECS = True

_PHOTOMETRIC = {
    4: "a transparency mask", 5: "CMYK or inks", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab",
    32803: "the color mosaic of a camera (CFA)", 32844: "LogL", 32845: "LogLuv", 34892: "raw data of a camera",
}  # fmt: skip
_COMPRESSIONS = {
    1: "nothing", 2: "CCITT", 3: "CCITT G3", 4: "CCITT G4", 5: "LZW", 7: "JPEG", 8: "zlib", 32773: "PackBits",
    32946: "zlib", 33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34925: "LZMA", 34933: "PNG",
    50000: "Zstandard", 50001: "WebP",
}  # fmt: skip
_OLD_JPEG, _JPEG, _ZLIB, _PACKBITS, _WITH_HEADER = 6, 7, (8, 32946), 32773, (33003, 33005, 34712, 34933, 50001)
_GDAL_NODATA = 42113
_MAX_XML = 2**22
_MAX_PACKBITS = 2**20  # bytes of a strip; tifffile's own decoder, used without imagecodecs, needs 500 bytes for each


def is_photograph(page: TiffPage) -> bool:
    """Whether Pillow reads the page right: up to 8 bits, gray, color or palette, pixel by pixel, every pixel valid."""
    bits, samples, extra = page.bitspersample, page.samplesperpixel, tuple(map(int, page.extrasamples))
    if bits not in (1, 2, 4, 8) or page.sampleformat != 1 or page.imagedepth != 1 or _GDAL_NODATA in page.tags:
        return False
    if int(page.compression) not in (*_COMPRESSIONS, _OLD_JPEG):
        return False
    if samples > 1 and (page.planarconfig != 1 or bits != 8):
        return False
    color = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}.get(int(page.photometric))
    if color is None or (page.photometric == 6 and page.is_subsampled and page.compression not in (_OLD_JPEG, _JPEG)):
        return False
    return samples == color or (samples == color + 1 and extra in ((1,), (2,)) and page.photometric in (0, 1, 2))


def check_kind(page: TiffPage) -> None:
    """Check that the samples are of a kind that is read.

    Raises:
        BadImage: Says what the file has.
    """
    samples, photometric = page.samplesperpixel, int(page.photometric)
    if isinstance(page.bitspersample, tuple) or (page.tags.get(339) and len(set(np.ravel(page.tags[339].value))) > 1):
        raise BadImage(f"a TIFF whose channels differ in type ({page.bitspersample} bit): save one type for all")
    if page.sampleformat in (5, 6):
        raise BadImage("a TIFF of complex numbers: save real numbers, e.g. the magnitude")
    if page.dtype is None:
        kind = {1: "unsigned", 2: "signed", 3: "floating-point"}.get(int(page.sampleformat), "unknown")
        raise BadImage(f"a TIFF of {page.bitspersample}-bit {kind} samples, which are not read: save 8, 16 or 32 bit")
    if int(page.compression) not in _COMPRESSIONS:
        name = getattr(page.compression, "name", page.compression)
        raise BadImage(f"a TIFF compressed by {name}, which is not read: save it with LZW or zlib")
    converted = photometric == 6 and page.compression == _JPEG and page.bitspersample == 8 and samples == 3
    if photometric in _PHOTOMETRIC and not converted:
        raise BadImage(
            f"a TIFF of {_PHOTOMETRIC[photometric]} ({samples} samples of {page.bitspersample} bit), which is not "
            "read: save it as RGB or gray"
        )
    if photometric == 0 and page.dtype.kind not in "bu":
        raise BadImage(f"a TIFF of {page.dtype} samples where the smallest is white: save it as min-is-black")
    if photometric == 3 and (samples != 1 or page.bitspersample > 8 or page.colormap is None):
        raise BadImage(f"a TIFF with a palette for {samples} samples of {page.bitspersample} bit, which is not read")
    if photometric == 2 and samples < 3:
        raise BadImage(f"a TIFF that says RGB and has {samples} samples: damaged")
    if page.imagedepth != 1:
        raise BadImage(f"a TIFF volume of depth {page.imagedepth}: save each slice as a page")


def check_ome(file: TiffFile) -> None:
    """Check the number of planes that OME-XML claims, before tifffile makes a list of them.

    Raises:
        BadImage: More than `MAX_PAGES`, or not XML.
    """
    if not file.is_ome:
        return
    sizes = re.findall(r"""<(?:\w+:)?Pixels\b[^>]*""", (file.ome_metadata or "")[:_MAX_XML])
    for pixels in sizes:
        found = {name: int(size) for name, size in re.findall(r"""Size([CZT])\s*=\s*["'](\d{1,12})["']""", pixels)}
        if math.prod(found.values()) > MAX_PAGES:
            raise BadImage(f"{math.prod(found.values()):,} planes by its OME-XML, more than {MAX_PAGES:,}")


def check_segments(series: Any, file: Any) -> None:
    """Check where the strips or tiles of all pages lie, and that none unpacks to more than its part of the image.

    Raises:
        BadImage: Cut short, a page is missing or lies in another file, strips overlap, or a strip is a bomb.
    """
    first, size = series.keyframe, file.size
    item = np.dtype(first.dtype).itemsize
    chunk = math.prod(first.chunks) * item
    if chunk > max(2**26, 4 * math.prod(first.shape) * item):
        raise BadImage(f"tiles of {chunk / 2**20:,.0f} MiB in an image of {math.prod(first.shape) * item / 2**20:,.1f}")
    if series.dataoffset is not None:
        if series.dataoffset + series.nbytes > size:
            raise BadImage(f"cut short: {size - series.dataoffset:,} of {series.nbytes:,} bytes")
        return
    if any(page is None for page in series.pages):
        raise BadImage(f"pages are missing, or lie in other files: {len(series.pages)} expected")
    total, num = 0, math.prod(first.chunked)
    for page in series.pages:
        offsets, counts = page.dataoffsets, page.databytecounts
        if first.is_contiguous:
            offsets, counts = offsets[:1], (math.prod(first.shape) * item,)
        elif len(offsets) < num or len(counts) < num:
            raise BadImage(f"cut short: {min(len(offsets), len(counts))} of {num} strips or tiles")
        if not offsets:
            raise BadImage("a page without pixels: damaged")
        for offset, count in zip(offsets[:num], counts[:num], strict=False):
            if count == 0 and _GDAL_NODATA in first.tags:
                continue  # a sparse file: the tile is filled with GDAL_NODATA
            if count <= 0 or offset <= 0 or offset + count > size:
                raise BadImage(f"cut short or damaged: {count:,} bytes at {offset:,} of a file of {size:,}")
            total += count
            _check_unpacked(first, file, offset, count, chunk)
        if total > 2 * size + 2**16:
            raise BadImage("its strips or tiles overlap: damaged")


def _check_unpacked(page: TiffPage, file: Any, offset: int, count: int, chunk: int) -> None:
    """Check the size of one compressed strip or tile before its decoder allocates memory for it."""
    compression = int(page.compression)
    if compression == _JPEG or compression in _WITH_HEADER:
        file.seek(offset)
        head = file.read(count)
        if compression == _JPEG:
            _, height, width, samples = tifffile.tifffile.jpeg_shape(head)
        else:
            with Image.open(io.BytesIO(head), formats=("JPEG2000", "PNG", "WEBP")) as image:
                (width, height), samples = image.size, len(image.getbands())
        if height * width * samples > 2 * chunk:
            check_size(height, width, samples * 2, min(MAX_PIXELS, chunk))
    elif not _HAS_IMAGECODECS and compression in _ZLIB:
        file.seek(offset)
        unpacker = zlib.decompressobj()
        if len(unpacker.decompress(file.read(count), chunk + 1)) > chunk:
            raise BadImage("a strip or tile unpacks to more than its part of the image: damaged")
    elif not _HAS_IMAGECODECS and (compression not in (1, _PACKBITS) or (count > _MAX_PACKBITS and compression != 1)):
        raise BadImage(
            f'a TIFF compressed by {_COMPRESSIONS[compression]} needs imagecodecs: pip install "opendino[science]"'
        )
