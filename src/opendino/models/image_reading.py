"""How a model's images are read: its channels, pages and range of values, as stored in its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from PIL import Image

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.core.types import PixelFormat
from opendino.data import readers
from opendino.data.decode import decode
from opendino.data.image_files import image_files
from opendino.data.intensity import Range, parse, to_pixels
from opendino.data.open_source import open_source
from opendino.data.picture import picture
from opendino.data.readers.decoded_image import RGB, DecodedImage, from_array, numbered
from opendino.data.readers.limits import MAX_PIXELS
from opendino.data.readers.multi_page_files import Reading, check_channels, describe

_Bound = Annotated[float, Meta(ge=-3.4e38, le=3.4e38)]
_Name = Annotated[str, Meta(max_length=100)]


class ImageReading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The field `images` of a model's preprocessing; the default reads photographs.

    Attributes:
        channels: Names or numbers of the channels of a file to use; empty for all.
        stack: What pages of a file are.
        channel_files: Pattern of file names where each channel has its own file; "" without.
        intensity: LOW HIGH for all or each channel, or "full" or "per-image".
        names: Names of the C channels that the network takes, in order; empty for red, green and blue, where one
            channel becomes gray.
        channel_mode: "together"; or "separate": the network takes one channel, and each of the C goes through it.
        bits: Bits to which values are mapped if there are names; as in training.
    """

    channels: Annotated[tuple[_Name, ...], Meta(max_length=10_000)] = ()
    stack: Annotated[str, Meta(pattern=r"^(ask|channels|max|mean|images|[0-9]{1,5})$")] = "ask"
    channel_files: Annotated[str, Meta(max_length=1000)] = ""
    intensity: Annotated[tuple[_Bound, ...], Meta(min_length=2, max_length=20_000)] | Literal["full", "per-image"] = (
        "full"
    )
    names: Annotated[tuple[_Name, ...], Meta(max_length=1024)] = ()
    channel_mode: Literal["together", "separate"] = "together"
    bits: Literal[8, 16] = 16

    @staticmethod
    def of(preprocessing: Mapping[str, Any]) -> ImageReading:
        """The reading that is stored in a model's preprocessing; channels without names are numbered.

        Raises:
            msgspec.ValidationError: It has unknown fields or values.
        """
        found = msgspec.convert(preprocessing.get("images", {}), ImageReading)
        num = len(preprocessing["mean"])
        if len(found.names or RGB) == num:
            return found
        return msgspec.structs.replace(found, names=numbered(num))

    @property
    def range(self) -> Range:
        """The intensity to map values by.

        Raises:
            UsageError: A low value is not below its high one.
        """
        return self.intensity if isinstance(self.intensity, str) else _parsed(self.intensity)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the C channels that the network takes."""
        return self.names or RGB

    @property
    def pixel_format(self) -> PixelFormat:
        """Format of decoded images: uint8 RGB, or `bits` where the channels have names."""
        return PixelFormat(len(self.names), self.bits) if self.names else PixelFormat()

    def check_frames(self, model: str) -> None:
        """Check that a model sees frames of videos as they are read: 8-bit RGB.

        Args:
            model: Its name, for the error.

        Raises:
            UserError: It was trained on images with channels or a range of their own.
        """
        if self != ImageReading():
            raise UserError(
                f"'{model}' was trained on {describe(self.channel_names)} with a range of their own, and frames are "
                "8-bit RGB",
                "Use a model of photographs; `opendino visualize pca` and `correspondence` read other images",
            )

    def open_images(self, data: str) -> Source:
        """Open DATA as the model reads it.

        Raises:
            UserError: The path does not exist, or holds no images that fit.
        """
        return self.images(open_source(data))

    def images(self, files: Source) -> Source:
        """The images of opened files as the model reads them.

        Raises:
            UserError: They hold no images that fit.
        """
        if self == ImageReading():
            return files
        found = image_files(files, Reading(self.stack, self.channels), self.channel_files, self.range)
        found.pixel_format, found.model_channels = self.pixel_format, self.names
        return found

    def decode(self, data: bytes, max_area_px: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """Decode one file as the model reads it, uint8 or uint16 `[H W C]`.

        Args:
            data: The file.
            max_area_px: Larger images are shrunk to this area, see `data.decode.decode`.
            max_pixels: Images of more pixels are refused before they are decoded.

        Raises:
            BadImage: It cannot be read, is too large, has other channels than the model, or the model reads several
                files per image.
        """
        if self.channel_files:
            raise BadImage(f"the model reads a file per channel ({self.channel_files}): give the folder")
        reading = Reading(self.stack, self.channels)
        if not self.names:
            own = {} if self == ImageReading() else {"reading": reading, "intensity": self.range}
            return decode(data, max_area_px, max_pixels, **own)
        read = readers.read(data, reading, max_pixels)
        return decode(self._mapped(read), max_area_px, pixel_format=self.pixel_format)

    def from_array(self, values: np.ndarray) -> np.ndarray:
        """Map the values of an image as a file would have them, `[H W C]` of any numeric type, by the intensity.

        Returns:
            uint8 or uint16 `[H W C]`.

        Raises:
            BadImage: It has another number of channels than the model, or values that the intensity does not cover.
        """
        if values.ndim != 3 or not values.size:
            raise BadImage(f"array of {values.dtype} {list(values.shape)}, not [H W {len(self.channel_names)}]")
        if self == ImageReading() and values.dtype == np.uint8 and values.shape[2] == 3:
            return values
        num = values.shape[2]
        return self._mapped(from_array(values, self.channel_names if num == len(self.channel_names) else numbered(num)))

    def picture(self, pixels: np.ndarray, shown: tuple[str, ...] = ()) -> Image.Image:
        """Draw decoded pixels `[H W C]`, or the channels `shown` of them, see `data.picture`.

        Raises:
            BadImage: There is no such channel.
        """
        return picture(pixels, self.channel_names, shown)

    def _mapped(self, image: DecodedImage) -> np.ndarray:
        if self.names or len(image.channels) != 1:  # one channel becomes gray
            check_channels(image.channels, self.channel_names)
        return to_pixels(image, self.range, self.pixel_format)


def _parsed(words: tuple[float, ...]) -> Range:
    found = parse(words)
    assert not isinstance(found, str)
    return found
