"""DICOM by pydicom: rescaled to the units of the modality (CT: Hounsfield), MONOCHROME1 inverted, several frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from opendino.core.errors import BadImage
from opendino.data.readers import photograph
from opendino.data.readers.decoded_image import GRAY, RGB, DecodedImage, from_array
from opendino.data.readers.limits import MAX_PAGES, TimeLimitedFile, check_size, one_line
from opendino.data.readers.multi_page_files import Reading, ask_about_pages, check_page, combine

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")


def read(data: bytes, reading: Reading, max_pixels: int) -> DecodedImage:
    """Read a DICOM file. Windows (center and width) are not applied: they are for the eye and differ between files.

    Raises:
        BadImage: pydicom is not installed, the file has no pixels, or they are of an unsupported kind.
    """
    pydicom = _pydicom()
    with photograph.quiet():
        try:
            return _image(pydicom.dcmread(TimeLimitedFile(data)), reading, max_pixels)
        except BadImage:
            raise
        except Exception as error:  # pydicom raises many kinds of errors for damaged files
            raise BadImage(f"DICOM: {one_line(error)}"[:200]) from error


def count(data: bytes) -> int:
    """Number of frames.

    Raises:
        BadImage: pydicom is not installed.
    """
    pydicom = _pydicom()
    with photograph.quiet():
        return int(_value(pydicom.dcmread(TimeLimitedFile(data), stop_before_pixels=True), "NumberOfFrames", 1))


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise BadImage('DICOM needs pydicom: pip install "opendino[medical]"') from None
    return pydicom


def _image(dataset: Any, reading: Reading, max_pixels: int) -> DecodedImage:
    photometric = str(_value(dataset, "PhotometricInterpretation", ""))
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise BadImage(f"DICOM without an image ({_value(dataset, 'Modality', 'unknown modality')})")
    if photometric not in (*_GRAY, *_COLOR):
        raise BadImage(f"DICOM of {photometric[:40] or 'no photometric interpretation'}, which is not read")
    height, width = int(_value(dataset, "Rows", 0)), int(_value(dataset, "Columns", 0))
    frames = int(_value(dataset, "NumberOfFrames", 1) or 1)
    samples, bits = int(_value(dataset, "SamplesPerPixel", 1)), int(_value(dataset, "BitsAllocated", 8))
    if not 1 <= frames <= MAX_PAGES:
        raise BadImage(f"DICOM of {frames:,} frames, more than {MAX_PAGES:,}")
    check_size(height, width, frames * samples * max(1, bits // 8), max_pixels)
    if reading.page is not None:
        check_page(reading.page, frames)
    elif frames > 1 and reading.stack in ("ask", "images"):
        raise ask_about_pages(
            "T", (frames,), f"{width}×{height}", f"{samples} per pixel, {_value(dataset, 'BitsStored', bits)} bit"
        )
    values = _frames(dataset, reading.page, frames)  # [N H W C]
    if photometric in _COLOR:
        stored = int(_value(dataset, "BitsStored", bits))
        if photometric == "PALETTE COLOR":  # the indices have few bits, the colors those of the palette, or of its type
            stored = int(dataset.RedPaletteColorLookupTableDescriptor[2])
            stored = stored if values.max(initial=0) < 2**stored else 8 * values.dtype.itemsize
        names, value_range = RGB, (0.0, 2.0**stored - 1)
    else:
        names = GRAY
        values, value_range = _rescaled(dataset, values, photometric == "MONOCHROME1")
    if values.shape[3] != len(names):
        raise BadImage(f"DICOM of {values.shape[3]} samples and {photometric}")
    pixels, names = combine(values, names, reading)
    return from_array(pixels, names, value_range).select(reading)


def _value(dataset: Any, name: str, default: Any) -> Any:
    found = getattr(dataset, name, None)
    return default if found is None or found == "" else found


def _frames(dataset: Any, page: int | None, frames: int) -> np.ndarray:
    """The stored values of one frame or of all, color as RGB, `[N H W C]`."""
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    values = pixel_array(dataset, index=page) if frames > 1 and page is not None else pixel_array(dataset)
    if _value(dataset, "PhotometricInterpretation", "") == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    many = page is None and frames > 1
    if not many:
        values = values[None]
    return values[..., None] if values.ndim == 3 else values


def _rescaled(dataset: Any, values: np.ndarray, inverted: bool) -> tuple[np.ndarray, tuple[float, float]]:
    """Values in the units of the modality, larger is brighter; and their range."""
    from pydicom.pixels.processing import apply_modality_lut

    if values.dtype.kind == "f":
        low, high = 0.0, 1.0
    else:
        bits, signed = int(_value(dataset, "BitsStored", 16)), bool(_value(dataset, "PixelRepresentation", 0))
        low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    slope, intercept = float(_value(dataset, "RescaleSlope", 1)), float(_value(dataset, "RescaleIntercept", 0))
    integral = slope.is_integer() and intercept.is_integer()
    if "ModalityLUTSequence" in dataset:
        values = apply_modality_lut(values, dataset)
        low, high = 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    elif (slope, intercept) != (1, 0):
        values = apply_modality_lut(values, dataset)
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    if inverted:
        values = (low + high) - values.astype(np.float64)
    if values.dtype == np.float64 and integral:
        fits = low >= 0 and high < 65536 and values.min(initial=0) >= 0 and values.max(initial=0) < 65536
        values = values.astype(np.uint16 if fits else np.float32)
    return values, (low, high)
