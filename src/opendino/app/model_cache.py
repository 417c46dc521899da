"""Models and tables, each opened once for everybody; none is ever changed."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from opendino.core import log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.decode import decode
from opendino.data.open_source import open_source
from opendino.embeddings.embedding_table import EmbeddingTable
from opendino.embeddings.open_table import open_table
from opendino.models.load import Model, load
from opendino.visualize.drawing.image_encoder import ImageEncoder

T = TypeVar("T")
_OPEN = 6  # models and tables kept
_PATCHES = 4096
"""Of one picture at most: attention takes the square of it in memory."""
_THUMBNAIL_AREA_PX = 240 * 240


class ModelCache:
    """Opens what was asked for, or hands out what is open already.

    Args:
        device: Where models work.
        images: What a table says of where its images are → where that may be opened; None for not at all.
    """

    def __init__(self, device: torch.device, images: Callable[[str], str | None] = lambda data: None) -> None:
        self._device, self._images, self._lock = device, images, threading.Lock()
        self._open: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def model(self, name: str) -> Model:
        """The network to use of a model; anew where its weights have changed.

        Raises:
            UserError: It cannot be opened.
        """
        return self._kept(name, "backbone.safetensors", lambda: load(name).to(self._device))

    def table(self, name: str) -> ShownTable:
        """A table and its images.

        Raises:
            UserError: It cannot be opened.
        """
        return self._kept(name, "", lambda: self._shown(open_table(name)))

    def _shown(self, table: EmbeddingTable) -> ShownTable:
        data = table.about["data"]
        allowed = self._images(data)
        if allowed is None:
            log.warn(f"the images of {table.name} are shown only if you name them too: opendino app … {data}")
        return ShownTable(table, allowed)

    def _kept(self, name: str, file: str, opened: Callable[[], T]) -> T:
        path = Path(name) / file if file else Path(name)
        key = name, path.stat().st_mtime_ns if path.exists() else 0
        with self._lock:  # whoever else wants it waits rather than opens it again
            if key not in self._open:
                for old in [each for each in self._open if each[0] == name]:
                    del self._open[old]
                self._open[key] = opened()
            self._open.move_to_end(key)
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)
            return self._open[key]


@dataclass
class ShownTable:
    """A table and small pictures of its images, as long as these are still where they were.

    Attributes:
        table: The table.
        images: Where its images may be opened; None for not at all.
    """

    table: EmbeddingTable
    images: str | None = None

    def thumbnail(self, key: str) -> Image.Image:
        """A small picture, gray where the image cannot be read any more, or may not be."""
        try:
            source, places = self._source
            return Image.fromarray(decode(source.read(places[key]), _THUMBNAIL_AREA_PX))
        except (BadImage, UserError, KeyError):
            return Image.new("RGB", (96, 96), "#dddddd")

    @cached_property
    def _source(self) -> tuple[Source, dict[str, int]]:
        if self.images is None:
            raise UserError("The images were not named when the page was started")
        source = open_source(self.images)
        return source, {source.key(index): index for index in range(len(source))}


def encoder_for(model: Model, image: Image.Image, size_px: int) -> ImageEncoder:
    """A model that looks at a picture, at a size that memory can bear."""
    found = ImageEncoder(model, size_px)
    width, height = (side * size_px / min(image.size) / found.patch_px for side in image.size)
    if found.any_size and width * height > _PATCHES:
        found = ImageEncoder(model, int(size_px * math.sqrt(_PATCHES / (width * height))))
    return found
