"""Stacks: what to do with pages, slices or frames, and which channels to keep. Nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opendino.core.errors import BadImage, UsageError

STACKS = ("ask", "channels", "max", "mean", "images")
_AXES = {"T": "time points", "Z": "slices", "I": "pages", "Q": "pages", "P": "positions", "M": "tiles"}
_NUMBER = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True)
class Reading:
    """How to read files that hold more than one image or more than one channel.

    Attributes:
        stack: What several pages, slices, time points or frames are. "ask": a file with them is refused with the
            choices; "channels": each is a channel; "max", "mean": projected to one image; "images": each is an image of
            its own; a number: only that page, from 0.
        channels: Numbers or names of the channels to keep, in this order; empty for all.
    """

    stack: str = "ask"
    channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.stack not in STACKS and not _NUMBER.fullmatch(self.stack):
            raise UsageError(
                f"stack is '{self.stack:.60}'", f"Use {', '.join(STACKS)}, or the number of a page, from 0"
            )

    @property
    def page(self) -> int | None:
        """The one page to read, None if `stack` is not a number."""
        return int(self.stack) if self.stack not in STACKS else None


class StackQuestion(BadImage):
    """A file has pages, slices or frames, and nothing says what they are."""


def ask_about_pages(axes: str, sizes: Sequence[int], size: str, kind: str) -> StackQuestion:
    """The refusal of a stack: what was found, and the flags that decide.

    Args:
        axes: Letter of each stack axis: Z slices, T time, others pages.
        sizes: Length of each.
        size: Width x height.
        kind: Type of the samples, and the number of channels.
    """
    what = " and ".join(f"{count} {_AXES.get(axis, 'pages')}" for axis, count in zip(axes, sizes, strict=True))
    num = int(np.prod(sizes))
    unknown = ": channels, or slices" if set(axes) - set("ZT") else ""
    return StackQuestion(
        f"{what} of {size}, {kind}{unknown}? Choose --stack channels, max, mean, images, or a page from 0 to {num - 1}"
    )


def check_page(page: int, num: int) -> None:
    """Check the number of a page.

    Raises:
        BadImage: There is no such page.
    """
    if page >= num:
        raise BadImage(f"there is no page {page}: the file has pages 0 to {num - 1}")


def combine(
    planes: np.ndarray, names: tuple[str, ...], reading: Reading, nodata: float | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Combine the planes of a stack according to `reading.stack`.

    Args:
        planes: `[N H W C]`, N pages.
        names: C names of channels.
        reading: What the pages are.
        nodata: Value of pixels without data, left out of "max" and "mean"; where all pages have it, it stays.

    Returns:
        `[H W C']` and C' names. "mean" gives float32, or float64 for types of 32 bits and more.
    """
    if len(planes) == 1:
        return planes[0], names
    if reading.stack in ("max", "mean"):
        if nodata is not None and (np.isnan(nodata) or not _holds(planes.dtype, nodata)):
            nodata = None  # NaN is missing anyway, and no value of this type can be the other
        valid = np.ma.masked_invalid(planes, copy=False) if nodata is None else np.ma.masked_values(planes, nodata)
        fill = np.nan if nodata is None else nodata
        if reading.stack == "max":
            return valid.max(0).filled(None if planes.dtype.kind in "bui" and nodata is None else fill), names
        mean = valid.mean(0, dtype=np.float64).filled(fill)
        return (mean if planes.dtype.itemsize >= 4 else mean.astype(np.float32)), names
    assert reading.stack == "channels", reading
    num, height, width, channels = planes.shape
    if channels > 1:
        names = tuple(f"{name} {page}" for page in range(num) for name in names)
    else:
        names = tuple(map(str, range(num)))
    return planes.transpose(1, 2, 0, 3).reshape(height, width, num * channels), names


def _holds(dtype: np.dtype, value: float) -> bool:
    """Whether an array of this type can hold a value."""
    if dtype.kind not in "iu":
        return True
    return float(value).is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def choose_channels(names: tuple[str, ...], wanted: tuple[str, ...]) -> list[int]:
    """Indices of the channels to keep; all if none are wanted.

    Args:
        names: Names of the image's channels.
        wanted: Names, or numbers from 0; a name has priority.

    Raises:
        BadImage: There is no such channel, or one is named twice.
    """
    chosen = []
    for each in wanted:
        if each in names:
            chosen.append(names.index(each))
        elif _NUMBER.fullmatch(each) and int(each) < len(names):
            chosen.append(int(each))
        else:
            raise BadImage(f"no channel '{each:.40}': it has {describe(names)}")
    if len(set(chosen)) < len(chosen):
        raise BadImage(f"--channels {' '.join(wanted)} names a channel twice")
    return chosen or list(range(len(names)))


def check_channels(found: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """Check the channels of an image against those that a trained model takes.

    Raises:
        BadImage: They are not as many.
    """
    if len(found) != len(wanted):
        raise BadImage(f"it has {describe(found)}, but the model takes {describe(wanted)}")


def describe(names: tuple[str, ...]) -> str:
    """The channels of an image, for a message: "3 channels (0 DAPI, 1 GFP, 2 Cy5)"."""
    count = "1 channel" if len(names) == 1 else f"{len(names)} channels"
    listed = [f"{i} {name}" if name != str(i) else name for i, name in enumerate(names)]
    return f"{count} ({', '.join(listed[:8])}{', …' if len(names) > 8 else ''})"
