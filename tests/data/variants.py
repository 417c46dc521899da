"""A generated file and what reading it must give."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from opendino.core.errors import BadImage
from opendino.data import readers
from opendino.data.readers.multi_page_files import Reading

HEIGHT, WIDTH = 19, 24


@dataclass(frozen=True)
class Variant:
    """A file and what reading it must give: an array `[H W C]`, or a part of the reason why it is refused."""

    name: str
    data: bytes
    expected: np.ndarray | str
    reading: Reading = field(default_factory=Reading)
    channels: tuple[str, ...] = ()
    missing: np.ndarray | None = None


def result(variant: Variant) -> str:
    """ "equal", "refused: reason", or what is wrong, in capitals."""
    try:
        image = readers.read(variant.data, variant.reading)
    except BadImage as error:
        text = str(error)
        if "\n" in text or not 0 < len(text) <= 250:
            return f"WRONG: not one line: {text}"
        expected = isinstance(variant.expected, str) and variant.expected in text
        return f"refused: {text}" if expected else f"WRONG: refused: {text}"
    if isinstance(variant.expected, str):
        return f"WRONG: read as {image.pixels.dtype} {list(image.pixels.shape)}, not refused"
    if image.pixels.shape != variant.expected.shape:
        return f"WRONG: shape {list(image.pixels.shape)}, not {list(variant.expected.shape)}"
    valid = np.ones(image.pixels.shape, bool) if image.nodata is None else ~image.nodata
    if variant.missing is not None and (valid == variant.missing).any():
        return f"WRONG: {np.count_nonzero(~valid)} missing values, not {np.count_nonzero(variant.missing)}"
    if variant.missing is None and not valid.all():
        return f"WRONG: {np.count_nonzero(~valid)} missing values, not 0"
    if not np.array_equal(image.pixels.astype(np.float64)[valid], variant.expected.astype(np.float64)[valid]):
        return "WRONG: other values"
    if variant.channels and image.channels != variant.channels:
        return f"WRONG: channels {image.channels}, not {variant.channels}"
    note = f" ({image.notes[0]})" if image.notes else ""
    return f"equal: {image.pixels.dtype} {' '.join(image.channels[:4])}{note}"


def values(dtype: str, channels: int = 1, bits: int | None = None) -> np.ndarray:
    """Values that use the range of a type, `[H W]` or `[H W C]`; 64-bit types stay where float32 is exact enough."""
    kind = np.dtype(dtype)
    shape = (HEIGHT, WIDTH) if channels == 1 else (HEIGHT, WIDTH, channels)
    rng = np.random.default_rng(sum(map(ord, dtype)) + channels + (bits or 0))
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    if kind.kind == "f":
        return (rng.standard_normal(shape) * 100).astype(kind)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    if bits is not None:
        low, high = 0, 2**bits - 1
    drawn = rng.integers(low, high, shape, kind, endpoint=True)
    drawn.flat[:2] = low, high
    return drawn


def kept(array: np.ndarray) -> np.ndarray:
    """The rule for types: what is not uint8, uint16 or float32 becomes float32; bool becomes uint8."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    with np.errstate(over="ignore"):  # a fill value
        return array if array.dtype in (np.uint8, np.uint16, np.float32) else array.astype(np.float32)
