"""NumPy files: .npy with one array, .npz with one array per channel or a single array. Nothing is unpickled."""

from __future__ import annotations

import io
import math
import zipfile

import numpy as np
from numpy.lib import format as npy

from opendino.core.errors import BadImage
from opendino.data.readers.decoded_image import DecodedImage, clean_name, from_array, numbered
from opendino.data.readers.limits import TimeLimitedFile, check_size
from opendino.data.readers.multi_page_files import Reading, ask_about_pages, check_page, combine, describe

_MAX_HEADER = 10_000
_MAX_MEMBERS = 1000


def read(data: bytes, reading: Reading, max_pixels: int) -> DecodedImage:
    """Read `[H W]`, `[H W C]` (C < H, W), or a stack `[N H W]`, `[N H W C]` or `[N C H W]`.

    Raises:
        BadImage: Objects instead of numbers, sizes that do not match the file, or too large.
    """
    if data[:4] != b"PK\3\4":
        return _arranged(_array(data, max_pixels), reading)
    with zipfile.ZipFile(TimeLimitedFile(data)) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        if not 1 <= len(members) <= _MAX_MEMBERS or len(members) < len(archive.infolist()):
            raise BadImage(
                f"a .npz of {len(archive.infolist())} files: save one array, or one `[H W]` array per channel"
            )
        arrays = {info.filename.removesuffix(".npy"): _member(archive, info, max_pixels) for info in members}
    if len(arrays) == 1:
        return _arranged(next(iter(arrays.values())), reading)
    shapes = {(array.shape, array.dtype) for array in arrays.values()}
    if len(shapes) > 1 or next(iter(arrays.values())).ndim != 2:
        found = ", ".join(f"{name:.20} {list(array.shape)} {array.dtype}" for name, array in [*arrays.items()][:4])
        raise BadImage(f"a .npz of several arrays ({found}): save `[H W]` arrays of one type and size, one per channel")
    first = next(iter(arrays.values()))
    check_size(first.shape[0], first.shape[1], first.itemsize * len(arrays), max_pixels)
    return from_array(np.stack([*arrays.values()], -1), tuple(map(clean_name, arrays))).select(reading)


def count(data: bytes) -> int:
    """Number of images in a stack `[N …]`; 1 for an archive of channels.

    Raises:
        BadImage: Not a file of numbers.
    """
    if data[:4] == b"PK\3\4":
        return 1
    shape = _header(data)[0]
    channels_last = len(shape) > 2 and shape[-1] < min(shape[-3:-1])
    return shape[0] if len(shape) == 4 or (len(shape) == 3 and not channels_last) else 1


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_pixels: int) -> np.ndarray:
    """An array of a .npz; never more than its own header says is unpacked."""
    with archive.open(info) as file:
        start = file.read(_MAX_HEADER + 128)
        shape, _, dtype, offset = _header(start)
        size = _checked_size(shape, dtype, max_pixels)
        return _array(start + file.read(max(0, offset + size - len(start))), max_pixels)


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether the order is Fortran's, type, and the first byte of the values."""
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise BadImage(f"a .npy of version {version[0]}.{version[1]}, which is not known")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(file, max_header_size=_MAX_HEADER)
    if dtype.hasobject or dtype.fields is not None or dtype.kind not in "buifc":
        raise BadImage(f"a .npy of {'objects' if dtype.hasobject else dtype}: save numbers")
    return shape, fortran, dtype, file.tell()


def _checked_size(shape: tuple[int, ...], dtype: np.dtype, max_pixels: int) -> int:
    """Bytes of an array, after a check of what its header claims."""
    if not 2 <= len(shape) <= 4:
        raise BadImage(f"an array of shape {list(shape)[:8]}: save [H W], [H W C] or a stack [N H W C]")
    height, width = sorted(shape)[-2:]
    num = math.prod(shape)
    check_size(height, width, -(-num // max(1, height * width)) * dtype.itemsize, max_pixels)
    return num * dtype.itemsize


def _array(data: bytes, max_pixels: int) -> np.ndarray:
    shape, fortran, dtype, offset = _header(data)
    size = _checked_size(shape, dtype, max_pixels)
    if len(data) - offset < size:
        raise BadImage(f"cut short: {len(data) - offset:,} of {size:,} bytes")
    values = np.frombuffer(data, dtype, math.prod(shape), offset)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def _arranged(values: np.ndarray, reading: Reading) -> DecodedImage:
    """Find height, width and channels by the shape: a last axis that is the shortest is that of the channels."""
    channels_last = values.ndim > 2 and values.shape[-1] < min(values.shape[-3:-1])
    if values.ndim == 4 and not channels_last:
        if values.shape[1] >= min(values.shape[2:]):
            raise BadImage(f"an array of shape {list(values.shape)}: save [N H W C] with C < H, W")
        values = np.moveaxis(values, 1, 3)
    elif not channels_last:
        values = values[..., None]
    if values.ndim == 3:
        values = values[None]
    num, height, width, channels = values.shape  # [N H W C]
    names = numbered(channels)
    if reading.page is not None:
        check_page(reading.page, num)
        values = values[reading.page : reading.page + 1]
    elif num > 1 and reading.stack in ("ask", "images"):
        raise ask_about_pages("I", (num,), f"{width}×{height}", f"{describe(names)}, {values.dtype}")
    pixels, names = combine(values, names, reading)
    return from_array(pixels, names).select(reading)
