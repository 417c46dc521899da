"""NIfTI by nibabel: one .nii file, also compressed (.nii.gz), of slices and time points, scaled as its header says."""

from __future__ import annotations

import io
import math
import zlib
from typing import Any

import numpy as np

from opendino.core.errors import BadImage
from opendino.data.readers import photograph
from opendino.data.readers.decoded_image import GRAY, DecodedImage, from_array, type_range
from opendino.data.readers.limits import MAX_PAGES, check_size, one_line
from opendino.data.readers.multi_page_files import Reading, ask_about_pages, check_page, combine

_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348


def matches(data: bytes) -> bool:
    """Whether a file is NIfTI-1 or 2 with header and values in one file."""
    start = _start(data, 348)
    return start[344:348] == b"n+1\0" or start[4:8] == b"n+2\0"


def read(data: bytes, reading: Reading, max_pixels: int) -> DecodedImage:
    """Read a file `[X Y]`, `[X Y Z]` or `[X Y Z T]`: rows are its y axis and columns its x axis, as they are stored.

    Raises:
        BadImage: nibabel is not installed, the file is cut short, or its values are of an unsupported kind.
    """
    header = _header(data)
    shape, dtype = _shape(header), header.get_data_dtype()
    width, height, slices, times = shape
    if dtype.fields is not None or dtype.kind not in "uifc":
        raise BadImage("NIfTI of colors, which is not read: save a file of gray values per channel")
    stored = header.get_slope_inter()  # None, None without scaling
    slope, inter = (1.0 if stored[0] is None else float(stored[0]), float(stored[1] or 0.0))
    scaled = (slope, inter) != (1, 0)
    check_size(height, width, slices * times * (8 if scaled else dtype.itemsize), max_pixels)
    num = slices * times
    if reading.page is not None:
        check_page(reading.page, num)
    elif num > 1 and reading.stack in ("ask", "images"):
        axes = [(axis, size) for axis, size in (("T", times), ("Z", slices)) if size > 1]
        names, sizes = zip(*axes, strict=True)
        raise ask_about_pages("".join(names), sizes, f"{width}×{height}", f"1 channel (0 gray), {dtype}")
    values = _values(data, header.get_data_offset(), dtype, shape)  # [N H W]
    if reading.page is not None:
        values = values[reading.page : reading.page + 1]
    value_range = type_range(dtype) if dtype.kind in "ui" else (0.0, 1.0)
    if scaled:
        from nibabel.volumeutils import apply_read_scaling

        values = apply_read_scaling(values, slope, inter)
        ends = [bound * slope + inter for bound in value_range]
        value_range = min(ends), max(ends)
    pixels, channels = combine(values[..., None], GRAY, reading)
    return from_array(pixels, channels, value_range).select(reading)


def count(data: bytes) -> int:
    """Number of slices of all time points.

    Raises:
        BadImage: nibabel is not installed, or the header is damaged.
    """
    return math.prod(_shape(_header(data))[2:])


def _start(data: bytes, num_bytes: int) -> bytes:
    """The first bytes, unpacked if the file is compressed; fewer if it is shorter or damaged."""
    if data[:2] != _GZIP:
        return data[:num_bytes]
    try:
        return zlib.decompressobj(31).decompress(data[: 16 * num_bytes], num_bytes)
    except zlib.error:
        return b""


def _header(data: bytes) -> Any:
    try:
        import nibabel
    except ImportError:
        raise BadImage('NIfTI needs nibabel: pip install "opendino[medical]"') from None
    start = _start(data, _HEADER_BYTES)
    kind = nibabel.Nifti2Header if start[4:8] == b"n+2\0" else nibabel.Nifti1Header
    try:
        with photograph.quiet():
            return kind.from_fileobj(io.BytesIO(start), check=False)
    except Exception as error:  # nibabel raises many kinds of errors for damaged headers
        raise BadImage(f"NIfTI: {one_line(error)}"[:200]) from error


def _shape(header: Any) -> tuple[int, int, int, int]:
    """Sizes of the axes x, y, z and time."""
    shape = tuple(int(side) for side in header.get_data_shape())
    if len(shape) < 2 or any(side < 1 for side in shape) or any(side > 1 for side in shape[4:]):
        raise BadImage(f"NIfTI of the shape {list(shape)}: x, y, slices and time points are read")
    width, height, slices, times = (*shape, 1, 1)[:4]
    if slices * times > MAX_PAGES:
        raise BadImage(f"NIfTI of {slices * times:,} slices, more than {MAX_PAGES:,}")
    return width, height, slices, times


def _values(data: bytes, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The stored values as pages `[N H W]`, time before slices; its size has been checked."""
    size = math.prod(shape) * dtype.itemsize
    if offset < 0:
        raise BadImage(f"NIfTI whose values begin at byte {offset}")
    if data[:2] == _GZIP:
        if offset > _HEADER_BYTES + 2**20:
            raise BadImage(f"NIfTI with {offset:,} bytes before its values")
        data = zlib.decompressobj(31).decompress(data, offset + size)
    if len(data) < offset + size:
        raise BadImage(f"cut short: {max(0, len(data) - offset):,} of {size:,} bytes")
    values = np.frombuffer(data, dtype, math.prod(shape), offset)
    return values.reshape(shape[::-1]).reshape(-1, shape[1], shape[0])  # the file has x as its fastest axis
