"""Intensity: the range of values of a set, per channel, and how it maps any type to 0..255, 0..65535 or 0..1."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.types import PixelFormat
from opendino.data.readers.decoded_image import DecodedImage
from opendino.data.readers.multi_page_files import describe

_HINT = "Use auto, full, per-image, LOW HIGH (once, or for each channel), or a .csv of channel,low,high"


@dataclass(frozen=True)
class Intensity:
    """Values that become black and white, per channel; values outside are clipped.

    Attributes:
        low: C values that become 0; one value holds for all channels.
        high: C values that become 255, 65535 or 1; each larger than its low.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.low or len(self.low) != len(self.high):
            raise UsageError(
                f"intensity has {len(self.low)} low and {len(self.high)} high values", "Give both per channel"
            )
        for low, high in zip(self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UsageError(f"intensity is {low:g} to {high:g}", "Give two numbers, the smaller first")

    @staticmethod
    def of_file(image: DecodedImage) -> Intensity:
        """The range of one file whose set is not known.

        Unsigned integers: the full range of their bits. Others: 0 to 1 if that contains all values, else from the
        smallest to the largest value of the file, without missing ones.
        """
        if image.pixels.dtype.kind == "u":
            return Intensity(image.value_range[:1], image.value_range[1:])
        valid = image.pixels if image.nodata is None else image.pixels[~image.nodata]
        low, high = (float(valid.min()), float(valid.max())) if valid.size else (0.0, 1.0)
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        return Intensity((low,), (high if high > low else low + max(1.0, abs(low)),))

    @staticmethod
    def full(image: DecodedImage) -> Intensity:
        """The range of the sample type: (0, 4095) for 12 bits, (0, 1) for floating point.

        Raises:
            BadImage: Floating-point values beyond 0 to 1: they have no full range.
        """
        if image.pixels.dtype.kind == "f" and image.value_range == (0, 1):
            found = Intensity.of_file(image)
            if found != Intensity((0.0,), (1.0,)):
                low, high = found.low[0], found.high[0]
                raise BadImage(
                    f"floating-point values from {low:g} to {high:g} have no full range: --intensity LOW HIGH"
                )
        return Intensity(image.value_range[:1], image.value_range[1:])

    @staticmethod
    def of_image(image: DecodedImage) -> Intensity:
        """The range of each channel of one image, from 0.1 to 99.9 % of its valid values; only for "per-image"."""
        bounds = []
        for channel in range(image.pixels.shape[2]):
            values = image.pixels[..., channel]
            values = values if image.nodata is None else values[~image.nodata[..., channel]]
            low, high = np.percentile(values, (0.1, 99.9)).tolist() if values.size else (0.0, 1.0)
            bounds.append((low, high if high > low else low + max(1.0, abs(low))))
        return Intensity(tuple(low for low, _ in bounds), tuple(high for _, high in bounds))

    def to_words(self) -> tuple[float, ...]:
        """The numbers LOW HIGH of each channel, as `parse` reads them."""
        return tuple(bound for pair in zip(self.low, self.high, strict=True) for bound in pair)

    def to_uint8(self, image: DecodedImage) -> np.ndarray:
        """Map an image to uint8 `[H W C]`; missing pixels become 0. 8-bit images of range 0..255 are unchanged.

        Raises:
            BadImage: The image has another number of channels.
        """
        return self._mapped(image, np.dtype(np.uint8))

    def to_uint16(self, image: DecodedImage) -> np.ndarray:
        """Map an image to uint16 `[H W C]`; missing pixels become 0.

        Raises:
            BadImage: The image has another number of channels.
        """
        return self._mapped(image, np.dtype(np.uint16))

    def _mapped(self, image: DecodedImage, dtype: np.dtype) -> np.ndarray:
        channels = image.pixels.shape[2]
        if len(self.low) not in (1, channels):
            raise BadImage(f"{channels} channels, but the intensity has {len(self.low)}")
        bounds = list(zip(self.low, self.high, strict=True)) * (channels if len(self.low) == 1 else 1)
        top = float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0
        if image.pixels.dtype == dtype and dtype.kind == "u" and set(bounds) == {(0.0, top)}:
            return image.pixels
        mapped = np.empty(image.pixels.shape, dtype)
        for channel, (low, high) in enumerate(bounds):
            values = image.pixels[..., channel]
            if values.dtype.kind == "u":
                mapped[..., channel] = _table(values.dtype, low, high, dtype)[values]
            else:
                mapped[..., channel] = _scaled(values, low, high, dtype)
        if image.nodata is not None:
            mapped[image.nodata] = 0
        return mapped


Range = Intensity | Literal["full", "per-image"]
"""How the values of a set become pixels."""


def range_of(image: DecodedImage, intensity: Range) -> Intensity:
    """The range to map an image by: that of the set, of its sample type ("full"), or its own ("per-image").

    Raises:
        BadImage: It has no full range.
    """
    if isinstance(intensity, Intensity):
        return intensity
    return Intensity.full(image) if intensity == "full" else Intensity.of_image(image)


def check_bright(image: DecodedImage) -> None:
    """Check that an image of more than 8 bits, whose set is not known, uses enough of its range to be a photograph.

    Raises:
        BadImage: Its largest value is above 0 and at most a sixteenth of what its type can hold: 12 bits stored in 16.
    """
    high = image.value_range[1]
    if image.pixels.dtype.kind != "u" or high <= 255 or not image.pixels.size:
        return
    if 0 < (most := int(image.pixels.max())) * 16 <= high:  # an image of zeros is black in any range
        raise BadImage(
            f"its values end at {most:,} of {high:,.0f}: as a photograph it would be black. A model that is trained on "
            "such images knows their range"
        )


_MUCH_DEEPER = 2 * 255
"""Where the range of a set ends above this, an image of 8 bits is of another kind."""


def to_pixels(
    image: DecodedImage,
    intensity: Range | None = None,
    pixel_format: PixelFormat = PixelFormat(),  # noqa: B008, frozen
) -> np.ndarray:
    """Map an image to the values of a set's pixel format, `[H W C]`; one channel becomes gray in uint8 RGB.

    Args:
        image: The image.
        intensity: Range of the set; default: `Intensity.of_file`.
        pixel_format: Number of channels, and uint8 or uint16.

    Raises:
        BadImage: It has another number of channels, or would be black: see `check_bright`, or it has 8 bits in a set of
            deeper images.
    """
    channels, wanted = image.pixels.shape[2], pixel_format.channels
    becomes_gray = channels == 1 and pixel_format == PixelFormat()
    if channels != wanted and not becomes_gray:
        numbers = " ".join(map(str, range(min(wanted, 12))))
        hint = f": choose {wanted} of them, e.g. --channels {numbers}" if channels > wanted else f", not {wanted}"
        raise BadImage(f"{describe(image.channels)}{hint}"[:240])
    if intensity is None or (intensity == "full" and pixel_format == PixelFormat()):  # photographs
        check_bright(image)
    used = Intensity.of_file(image) if intensity is None else range_of(image, intensity)
    if image.pixels.dtype == np.uint8 and isinstance(intensity, Intensity) and max(intensity.high) > _MUCH_DEEPER:
        raise BadImage(f"8 bits, but the range of the set ends at {max(intensity.high):g}: it would be black")
    pixels = used.to_uint8(image) if pixel_format.bits == 8 else used.to_uint16(image)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], wanted)))


@functools.lru_cache(64)
def _table(dtype: np.dtype, low: float, high: float, target: np.dtype) -> np.ndarray:
    """The mapped value of each value of an integer type."""
    table = _scaled(np.arange(np.iinfo(dtype).max + 1, dtype=np.float64), low, high, target)
    table.flags.writeable = False
    return table


def _scaled(values: np.ndarray, low: float, high: float, target: np.dtype) -> np.ndarray:
    top = float(np.iinfo(target).max) if target.kind == "u" else 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (values - values.dtype.type(low)) * (top / (high - low))
    scaled = np.nan_to_num(scaled, copy=False, nan=0.0, posinf=top, neginf=0.0).clip(0, top)
    return (np.rint(scaled) if target.kind == "u" else scaled).astype(target)


def parse(words: Sequence[str | float]) -> str | Intensity:
    """Read the setting `intensity`: auto, full, per-image, a .csv file, or LOW HIGH for all channels or for each.

    Raises:
        UsageError: It is none of these.
    """
    if len(words) == 1 and isinstance(words[0], str):
        word = words[0]
        if word in ("auto", "full", "per-image") or word.lower().endswith(".csv"):
            return word
    shown = " ".join(map(str, words))[:80]
    if not words or len(words) % 2:
        raise UsageError(f"intensity is '{shown}'", _HINT)
    try:
        numbers = tuple(map(float, words))
    except ValueError:
        raise UsageError(f"intensity is '{shown}'", _HINT) from None
    return Intensity(numbers[::2], numbers[1::2])


def read_csv(path: str, channels: Sequence[str]) -> Intensity:
    """Read the range of each channel from a .csv file with the columns channel (name or number), low and high.

    Raises:
        UserError: The file cannot be read, has other columns, or lacks a channel.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        found = {row["channel"].strip(): (float(row["low"]), float(row["high"])) for row in rows}
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}", _HINT) from None
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error):
        raise UserError(f"{path} does not have a channel, low and high in every line", _HINT) from None
    chosen = [found.get(name, found.get(str(number))) for number, name in enumerate(channels)]
    if lacking := [name for name, each in zip(channels, chosen, strict=True) if each is None]:
        raise UserError(
            f"{path} has no range for {', '.join(lacking[:8])}", f"Write a line such as {lacking[0]},0,4095"
        )
    bounds = [each for each in chosen if each is not None]
    return Intensity(tuple(low for low, _ in bounds), tuple(high for _, high in bounds))
