"""Read image files: one module per kind; each gives a `DecodedImage` or refuses with a one-line `BadImage`.

photograph: Pillow and simplejpeg. tiff: tifffile. numpy_file: .npy and .npz. dicom: pydicom; nifti: nibabel (extra
`medical`).
deep_color: PNG and JPEG 2000 in color with more than 8 bits, by imagecodecs (extra `science`).
"""

from __future__ import annotations

import importlib

from opendino.core.errors import BadImage
from opendino.data.readers import deep_color, nifti
from opendino.data.readers.decoded_image import DecodedImage
from opendino.data.readers.limits import MAX_PAGES, MAX_PIXELS, one_line
from opendino.data.readers.multi_page_files import Reading

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def kind_of(data: bytes) -> str:
    """The module of this package that reads a file, by its content."""
    head = data[:132]
    if head[:3] == b"\xff\xd8\xff":  # JPEG, first because it is by far the most frequent
        return "photograph"
    if head[:4] in _TIFF:
        return "tiff"
    if head[:6] == b"\x93NUMPY" or (head[:4] == b"PK\3\4" and b".npy" in head[30:]):
        return "numpy_file"
    if head[128:132] == b"DICM":
        return "dicom"
    if nifti.matches(data):
        return "nifti"
    if deep_color.matches(data):
        return "deep_color"
    return "photograph"


def read_science(data: bytes, reading: Reading | None = None, max_pixels: int = MAX_PIXELS) -> DecodedImage | None:
    """Read a file that is not a photograph: TIFF, NumPy, DICOM, NIfTI, and color with more than 8 bits.

    Args:
        data: The file.
        reading: What pages are, and which channels to keep.
        max_pixels: Images of more pixels are refused before memory is allocated for them.

    Returns:
        The image; None if the file is a photograph: any other format, or a TIFF of one page of 8-bit gray or color.

    Raises:
        BadImage: The file is damaged, too large, of an unsupported kind, has several pages and `reading` does not say
            what they are, or has no such channel.
    """
    kind = kind_of(data)
    if kind == "photograph":
        return None
    reader = importlib.import_module(f"opendino.data.readers.{kind}")  # its library is imported when it is needed
    try:
        return reader.read(data, reading or Reading(), max_pixels)
    except BadImage as error:
        raise type(error)(one_line(error)) from error  # it may quote what stands in the file
    except MemoryError:
        raise BadImage("not enough memory") from None
    except Exception as error:  # parsers raise many kinds of errors for damaged files
        raise BadImage(one_line(error)) from error


def read(data: bytes, reading: Reading | None = None, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Read any image file at full size.

    Args:
        data: The file.
        reading: What pages are, and which channels to keep.
        max_pixels: Images of more pixels are refused before memory is allocated for them.

    Raises:
        BadImage: As for `read_science`, or not an image.
    """
    from opendino.data.readers import photograph

    image = read_science(data, reading, max_pixels)
    return photograph.read(data, max_pixels).select(reading or Reading()) if image is None else image


def read_unless_photograph(
    data: bytes, reading: Reading | None = None, max_pixels: int = MAX_PIXELS
) -> DecodedImage | None:
    """Read an image file; None, without decoding it, if it is an 8-bit photograph all of whose channels are wanted.

    Args:
        data: The file.
        reading: What pages are, and which channels to keep.
        max_pixels: Images of more pixels are refused before memory is allocated for them.

    Raises:
        BadImage: As for `read_science`.
    """
    from opendino.data.readers import photograph

    if reading is not None and reading.channels:
        return read(data, reading, max_pixels)
    image = read_science(data, reading, max_pixels)
    return photograph.read(data, max_pixels) if image is None and photograph.may_be_deep(data) else image


def count(data: bytes) -> int:
    """Number of images in a file if each page, slice, time point or frame is one; 1 for photographs.

    Raises:
        BadImage: The file cannot be read.
    """
    kind = kind_of(data)
    if kind == "photograph":
        return 1
    reader = importlib.import_module(f"opendino.data.readers.{kind}")
    try:
        num = reader.count(data)
        if not 1 <= num <= MAX_PAGES:
            raise BadImage(f"{num:,} pages; 1 to {MAX_PAGES:,} are read")
        return num
    except BadImage as error:
        raise type(error)(one_line(error)) from error
    except Exception as error:
        raise BadImage(one_line(error)) from error
