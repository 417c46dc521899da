"""How a model's images are read: its channels, pages and range of values, as stored in its preprocessing."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from opendino.core.contracts import Source
from opendino.core.errors import BadImage
from opendino.data.decode import decode
from opendino.data.image_files import image_files
from opendino.data.intensity import Range, parse
from opendino.data.open_source import open_source
from opendino.data.readers.stacks import Reading

_Bound = Annotated[float, Meta(ge=-3.4e38, le=3.4e38)]


class ImageReading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The field `images` of a model's preprocessing; the default reads photographs.

    Attributes:
        channels: Names or numbers of the channels to use; empty for all.
        stack: What pages of a file are.
        channel_files: Pattern of file names where each channel has its own file; "" without.
        intensity: LOW HIGH for all or each channel, or "full" or "per-image".
    """

    channels: Annotated[tuple[Annotated[str, Meta(max_length=100)], ...], Meta(max_length=10_000)] = ()
    stack: Annotated[str, Meta(pattern=r"^(ask|channels|max|mean|images|[0-9]{1,5})$")] = "ask"
    channel_files: Annotated[str, Meta(max_length=1000)] = ""
    intensity: Annotated[tuple[_Bound, ...], Meta(min_length=2, max_length=20_000)] | Literal["full", "per-image"] = (
        "full"
    )

    @property
    def range(self) -> Range:
        """The intensity to map values by.

        Raises:
            UsageError: A low value is not below its high one.
        """
        return self.intensity if isinstance(self.intensity, str) else _parsed(self.intensity)

    def open_images(self, data: str) -> Source:
        """Open DATA as the model reads it.

        Raises:
            UserError: The path does not exist, or holds no images that fit.
        """
        if self == ImageReading():
            return open_source(data)
        return image_files(open_source(data), Reading(self.stack, self.channels), self.channel_files, self.range)

    def decode(self, data: bytes, max_area_px: int | None = None) -> np.ndarray:
        """Decode one file as the model reads it, uint8 `[H W 3]`.

        Raises:
            BadImage: It cannot be read, or the model reads several files per image.
        """
        if self.channel_files:
            raise BadImage(f"the model reads a file per channel ({self.channel_files}): give the folder")
        if self == ImageReading():
            return decode(data, max_area_px)
        return decode(data, max_area_px, reading=Reading(self.stack, self.channels), intensity=self.range)


def _parsed(words: tuple[float, ...]) -> Range:
    found = parse(words)
    assert not isinstance(found, str)
    return found
