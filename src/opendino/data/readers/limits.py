"""Limits for decoding one image: pixels, bytes and seconds; a small file can claim any size (decompression bomb)."""

from __future__ import annotations

import io
import time

from opendino.core.errors import BadImage

MAX_PIXELS = 250_000_000
"""Larger images are refused before they are decoded."""

MAX_SECONDS = 60.0
"""Time limit for decoding one image. It is checked when the decoder reads more of the file; in a loader worker, a timer
ends the worker at once. The largest images allowed take about ten seconds."""

MAX_PAGES = 10_000
"""Files with more pages, slices or frames are refused."""

_BYTES_PER_PIXEL = 4


class TimeLimitedFile(io.BytesIO):
    """A file in memory that raises `BadImage` if it is read after `MAX_SECONDS`."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._last = time.monotonic() + MAX_SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, unless the time is over."""
        if time.monotonic() > self._last:
            raise BadImage(too_slow())
        return super().read(size)

    def readinto(self, buffer: object, /) -> int:  # NumPy and tifffile read into arrays
        """Read into a buffer, unless the time is over."""
        if time.monotonic() > self._last:
            raise BadImage(too_slow())
        return super().readinto(buffer)  # pyright: ignore[reportArgumentType]


def too_slow() -> str:
    """The reason why an image that takes too long to decode is unreadable."""
    return f"not decoded within {MAX_SECONDS:g} s"


def too_large(size: str, num: int, limit: int) -> str:
    """The reason why an image has too many pixels; with the options of `opendino pack` unless the limit is lower."""
    ways = f": use opendino pack DATA --tiles 1024, or --max-pixels {num} to shrink it" if limit >= MAX_PIXELS else ""
    return f"{size} pixels, more than {limit / 10**6:g} million{ways}"


def check_size(height: int, width: int, bytes_per_pixel: int, max_pixels: int) -> None:
    """Check the size that a header claims, before memory is allocated for it.

    Args:
        height: Rows.
        width: Columns.
        bytes_per_pixel: Bytes for all channels and pages of one pixel, as stored.
        max_pixels: Largest H · W; all channels and pages together may take 4 bytes for each of these pixels.

    Raises:
        BadImage: A side is not positive, or the image is too large.
    """
    if height < 1 or width < 1:
        raise BadImage(f"an image of {width} x {height} pixels")
    if width * height > max_pixels:
        raise BadImage(too_large(f"{width} x {height}", width * height, max_pixels))
    if width * height * bytes_per_pixel > _BYTES_PER_PIXEL * max_pixels:
        num_bytes = width * height * bytes_per_pixel
        raise BadImage(
            f"{width} x {height} pixels of {bytes_per_pixel:,} bytes are {num_bytes / 2**20:,.0f} MiB, "
            f"more than {_BYTES_PER_PIXEL * max_pixels / 2**20:,.0f}: cut it into tiles, or give each page its own file"
        )


def one_line(error: BaseException) -> str:
    """The message of an error, on one line of at most 240 printable characters."""
    text = " ".join(str(error)[:2000].split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:240] or type(error).__name__
