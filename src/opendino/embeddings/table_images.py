"""The images of an embedding table, as far as they can still be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from PIL import Image

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.decode import decode
from opendino.data.source_files import exists
from opendino.data.video_file import split_every
from opendino.models.image_reading import ImageReading


class TableImages:
    """Some images of a table, by their keys.

    Args:
        about: What the table says about itself, see `embed_images.table_origin`. Its "data" comes from a file, so
            nothing is ever downloaded from there; images are read as the table's model reads them.
        keys: Keys of the images that will be read.
        max_area_px: Images are shrunk to at most this many pixels.
    """

    def __init__(self, about: Mapping[str, Any], keys: Iterable[str], max_area_px: int) -> None:
        self._source: Source | None = None
        data = about["data"]
        self._max_area_px, self._index = max_area_px, dict[str, int]()
        wanted = set(keys)
        if not exists(split_every(data)[0]) and not data.startswith("toy:"):
            return
        try:
            self._reading = ImageReading.of(about["preprocessing"])
            self._source = source = self._reading.open_images(data)
        except (UserError, msgspec.ValidationError):  # the images were moved, or the table was edited
            return
        self._index = {key: index for index in range(len(source)) if (key := source.key(index)) in wanted}

    def read(self, key: str) -> Image.Image | None:
        """A picture of an image, see `data.picture`; None if it can no longer be read."""
        index = self._index.get(key)
        if self._source is None or index is None:
            return None
        try:
            pixels = decode(self._source.read(index), self._max_area_px, pixel_format=self._source.pixel_format)
            return self._reading.picture(pixels)
        except BadImage:
            return None
