"""Cache of open models and tables, shared by all sessions; entries are never modified."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opendino.app.catalog import ServerImage
from opendino.core import log
from opendino.embeddings.embedding_table import EmbeddingTable
from opendino.embeddings.open_table import open_table
from opendino.embeddings.table_images import TableImages
from opendino.features.projection import project
from opendino.models.image_reading import ImageReading
from opendino.models.load import Model, load
from opendino.visualize.drawing.image_encoder import ImageEncoder

T = TypeVar("T")
_MAX_OPEN = 6  # models and tables
_MAX_PATCHES = 4096
"""Limit per image: the memory for attention maps grows with its square."""
_THUMBNAIL_AREA_PX = 240 * 240


class ModelCache:
    """Opens models and tables and keeps the most recently used ones.

    Args:
        device: Device of the models.
        images: Maps the image path that a table states to the path that may be opened, or to None if it may not.
    """

    def __init__(self, device: torch.device, images: Callable[[str], str | None] = lambda data: None) -> None:
        self._device, self._images, self._lock = device, images, threading.Lock()
        self._open: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def model(self, name: str) -> Model:
        """The recommended network of a model, loaded again if its weights file has changed.

        Raises:
            UserError: The model cannot be opened.
        """
        return self._get(name, "backbone.safetensors", lambda: load(name).to(self._device))

    def table(self, name: str) -> ShownTable:
        """A table and its images.

        Raises:
            UserError: The table cannot be opened.
        """
        # Of a .lance table only the folder of its versions changes with every update.
        return self._get(name, "_versions" * name.endswith(".lance"), lambda: self._with_images(open_table(name)))

    def _with_images(self, table: EmbeddingTable) -> ShownTable:
        data = table.about["data"]
        allowed = self._images(data)
        if allowed is None:
            log.warn(f"the images of {table.name} are shown only if their path is given too: opendino app … {data}")
        return ShownTable(table, allowed)

    def _get(self, name: str, file: str, open_: Callable[[], T]) -> T:
        """The open object, or a new one if `file` has changed since; closes the least recently used one."""
        path = Path(name) / file if file else Path(name)
        key = name, path.stat().st_mtime_ns if path.exists() else 0
        with self._lock:  # held while opening: a second session waits instead of opening it too
            if key not in self._open:
                for old in [each for each in self._open if each[0] == name]:
                    del self._open[old]
                self._open[key] = open_()
            self._open.move_to_end(key)
            while len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
            return self._open[key]


@dataclass
class ShownTable:
    """A table and thumbnails of its images.

    Attributes:
        table: The table.
        images: Path of its images; None if they may not be opened.
    """

    table: EmbeddingTable
    images: str | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What the table says about itself, with the path of its images only if they may be opened."""
        return self.table.about | {"data": self.images or ""}

    @property
    def hint(self) -> str:
        """How to see the images if they may not be opened: the end of a text, or an empty string."""
        hint = " To see the images, start the page with their path too: `opendino app RUN TABLE IMAGES`."
        return hint * (self.images is None)

    @cached_property
    def vectors(self) -> tuple[list[str], Tensor]:
        """Keys and L2-normalized vectors `[M D]` of all images whose vector has a direction."""
        return self.table.normalized()

    @cached_property
    def map(self) -> Tensor:
        """The images as points of a map, `[M 2]` in [0, 1]."""
        return project(self.vectors[1])

    @cached_property
    def files(self) -> TableImages:
        """The images themselves, as the table's model reads them; none if they may not be opened."""
        return TableImages(self.about, None, _THUMBNAIL_AREA_PX)

    def server_images(self, keys: Sequence[str]) -> list[ServerImage]:
        """Images of the table as the tab Look opens them; none if they may not be opened."""
        if not self.images:
            return []
        reading = ImageReading.of(self.about["preprocessing"])
        return [ServerImage(self.images, key, reading.stack, reading.channel_files) for key in keys]

    def thumbnail(self, key: str) -> Image.Image:
        """A thumbnail; plain gray if the image can no longer be read, or may not be opened."""
        return self.files.read(key) or Image.new("RGB", (96, 96), "#dddddd")


def encoder_for(model: Model, pixels: np.ndarray, size_px: int) -> ImageEncoder:
    """An encoder for an image `[H W C]`, with a smaller input size if the image would have too many patches."""
    encoder = ImageEncoder(model, size_px)
    sides = pixels.shape[:2]
    height, width = (side * size_px / min(sides) / encoder.patch_px for side in sides)  # in patches
    if encoder.any_size and width * height > _MAX_PATCHES:
        encoder = ImageEncoder(model, int(size_px * math.sqrt(_MAX_PATCHES / (width * height))))
    return encoder
