"""A decoded image: an array of uint8, uint16 or float32 with any number of channels, and what its numbers mean."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from opendino.core.errors import BadImage
from opendino.data.readers.multi_page_files import Reading, choose_channels

RGB = ("red", "green", "blue")
GRAY = ("gray",)

_KEPT = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))
_FILL_VALUES = (-9999.0, -99999.0, -32768.0, -32767.0, 1e20, 9.969209968386869e36, 3.4028235e38, 1.7976931348623157e308)
"""Numbers that programs write where they have no value; the large ones are used with either sign."""


@dataclass(frozen=True)
class DecodedImage:
    """An image as its file has it: not scaled, not clipped.

    Attributes:
        pixels: uint8, uint16 or float32 `[H W C]`, C-contiguous, upright; larger values are brighter.
        channels: C names, from the file where it has them; else "gray", or the numbers "0", "1", …
        value_range: Smallest and largest value that the file's sample type can hold, e.g. (0, 4095) for 12 bits;
            (0, 1) for floating-point samples.
        nodata: bool `[H W C]`, True where the file has no value (GDAL_NODATA, NaN, infinity, a usual fill value); None
            if every pixel has a value.
        notes: What is not kept exactly or was decided, one line each, e.g. "float64 rounded to float32, …".
    """

    pixels: np.ndarray
    channels: tuple[str, ...]
    value_range: tuple[float, float]
    nodata: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pixels = self.pixels
        assert pixels.dtype in _KEPT and pixels.ndim == 3 and pixels.flags.c_contiguous, (pixels.dtype, pixels.shape)
        assert len(self.channels) == pixels.shape[2], (self.channels, pixels.shape)
        assert self.nodata is None or self.nodata.shape == pixels.shape

    @property
    def is_photograph(self) -> bool:
        """Whether it is 8-bit gray or RGB without missing pixels, whose values need no other range."""
        return self.pixels.dtype == np.uint8 and self.value_range == (0, 255) and self.channels in (RGB, GRAY)

    def select(self, reading: Reading) -> DecodedImage:
        """The image with only the channels of `reading.channels`; itself if all are wanted.

        Raises:
            BadImage: There is no such channel.
        """
        if not reading.channels:
            return self
        chosen = choose_channels(self.channels, reading.channels)
        return replace(
            self,
            pixels=np.ascontiguousarray(self.pixels[..., chosen]),
            channels=tuple(self.channels[i] for i in chosen),
            nodata=None if self.nodata is None else self.nodata[..., chosen],
        )


def from_array(
    values: np.ndarray,
    channels: tuple[str, ...],
    value_range: tuple[float, float] | None = None,
    nodata: float | None = None,
    notes: tuple[str, ...] = (),
) -> DecodedImage:
    """Build a `DecodedImage` from an array of any numeric type.

    uint8, uint16 and float32 are kept; bool becomes uint8; int8, int16 and float16 become float32, which holds them
    exactly; 32- and 64-bit integers and float64 become float32 and are refused if that merges values: if the rounding
    error is more than 1/65535 of the range of the image.

    Args:
        values: `[H W C]`.
        channels: C names.
        value_range: Range of the sample type; default: that of `values.dtype`.
        nodata: Value of pixels without data.
        notes: Lines for `DecodedImage.notes`.

    Raises:
        BadImage: Complex numbers, text, or values that float32 cannot hold.
    """
    if values.dtype.kind not in "buif":
        kind = "complex numbers" if values.dtype.kind == "c" else f"values of type {values.dtype}"
        raise BadImage(f"{kind} are not read: save real numbers, e.g. the magnitude")
    missing, found = _missing(values, nodata)
    pixels, rounded = _to_kept(values, missing)
    if missing is not None and not missing.any():
        missing = None
    return DecodedImage(
        np.ascontiguousarray(pixels),
        channels,
        value_range or type_range(values.dtype),
        missing,
        (*notes, *found, *rounded),
    )


def type_range(dtype: np.dtype) -> tuple[float, float]:
    """Smallest and largest value of an integer type; (0, 1) for bool and floating point."""
    if dtype.kind in "bf":
        return 0.0, 1.0
    info = np.iinfo(dtype)
    return float(info.min), float(info.max)


def bits_range(bits: int) -> tuple[float, float]:
    """Range of unsigned integers of this many bits."""
    return 0.0, float(2**bits - 1)


def numbered(count: int) -> tuple[str, ...]:
    """Names of channels that the file does not name: "gray" for one, else "0", "1", …"""
    return GRAY if count == 1 else tuple(map(str, range(count)))


def clean_name(name: str) -> str:
    """The name of a channel from a file: printable characters only, at most 60."""
    return "".join(letter if letter.isprintable() else " " for letter in name[:60]).strip()


def _missing(values: np.ndarray, nodata: float | None) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Where an array has no data, bool of its shape or None; and a note."""
    missing = None if values.dtype.kind in "bui" else ~np.isfinite(values)
    if nodata is not None and not np.isnan(nodata):
        with np.errstate(over="ignore"):
            same = values == (values.dtype.type(nodata) if values.dtype.kind == "f" else nodata)
        return (same if missing is None else missing | same), ()
    if values.dtype.kind not in "if" or nodata is not None:
        return missing, ()
    fill = _fill_value(values if missing is None else values[~missing])
    if fill is None:
        return missing, ()
    same = values == fill
    note = f"{same.mean():.1%} of the values are {fill:g}, far from all others: taken as missing"
    return (same if missing is None else missing | same), (note,)


def _fill_value(values: np.ndarray) -> float | None:
    """A usual fill value that lies farther from all other values than these from each other; None if there is none."""
    if values.size == 0:
        return None
    for fill in (values.min(), values.max()):
        number = float(fill)
        if not any(np.isclose(abs(number) if abs(usual) > 1e19 else number, usual, 1e-6) for usual in _FILL_VALUES):
            continue
        rest = values[values != fill]
        if rest.size:
            low, high = float(rest.min()), float(rest.max())
            if min(abs(number - low), abs(number - high)) > high - low:
                return fill
    return None


def _to_kept(values: np.ndarray, missing: np.ndarray | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The values as uint8, uint16 or float32, and a note if they are rounded."""
    dtype = values.dtype.newbyteorder("=")
    if dtype in _KEPT:
        return values.astype(dtype, copy=False), ()
    if dtype.kind == "b":
        return values.astype(np.uint8), ()
    with np.errstate(over="ignore", invalid="ignore"):
        pixels = values.astype(np.float32)
        if dtype.itemsize < 4:
            return pixels, ()
        given = values.astype(np.float64)
        valid = np.isfinite(given) if missing is None else ~missing
        error = float(np.abs(pixels - given).max(where=valid, initial=0))
        span = float(given.max(where=valid, initial=-np.inf) - given.min(where=valid, initial=np.inf))
    if not error:
        return pixels, ()
    if not error * 65535 <= span:
        raise BadImage(
            f"{dtype} values that float32 cannot tell apart (it rounds them by up to {error:g}, their range is "
            f"{max(span, 0):g}): subtract an offset or divide them by a factor first"
        )
    return pixels, (f"{dtype} rounded to float32, by at most {error:g}",)
