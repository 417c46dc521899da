"""The images of an embedding table, as far as they can still be read."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.decode import decode
from opendino.data.open_source import open_source
from opendino.data.source_files import exists


class TableImages:
    """Some images of a table, by their keys.

    Args:
        data: DATA of the table. It comes from a file, so nothing is ever downloaded from there.
        keys: Keys of the images that will be read.
        max_area_px: Images are shrunk to at most this many pixels.
    """

    def __init__(self, data: str, keys: Iterable[str], max_area_px: int) -> None:
        self._source: Source | None = None
        self._max_area_px, self._index = max_area_px, dict[str, int]()
        wanted = set(keys)
        if not exists(data) and not data.startswith("toy:"):
            return
        try:
            self._source = source = open_source(data)
        except UserError:  # the images were moved
            return
        self._index = {key: index for index in range(len(source)) if (key := source.key(index)) in wanted}

    def read(self, key: str) -> Image.Image | None:
        """An image as RGB; None if it can no longer be read."""
        index = self._index.get(key)
        if self._source is None or index is None:
            return None
        try:
            return Image.fromarray(decode(self._source.read(index), self._max_area_px))
        except BadImage:
            return None
