"""Images whose labels are masks, to train on: `--labels masks`."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opendino.core import log
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.decode import working_size
from opendino.datasets.mask_files import VOID
from opendino.datasets.segmentation_dataset import open_segmentation_dataset

_HINT = f"Masks are PNGs of class numbers 0 to {VOID - 1} at the size of the image; {VOID} is ignored"


@final
class LabeledPixels(Source):
    """Images with masks, see `open_segmentation_dataset`; images without one are left out.

    All masks are read once, to find the classes. Those that were trained on stay in memory, at working size.

    Args:
        data: DATA.

    Attributes:
        dataset: The images with their masks.
        classes: The class numbers that occur, ascending, as text.

    Raises:
        UserError: There are no such images, a mask cannot be read, or there are fewer than two classes.
    """

    def __init__(self, data: str) -> None:
        self.dataset = open_segmentation_dataset(data, "train")
        if without := self.dataset.without_mask:
            total = len(without) + len(self.dataset)
            log.say(f"{len(without):,} of {total:,} images have no mask and are not used, e.g. {without[0]}")
        seen = np.zeros(256, bool)
        for index in range(len(self.dataset)):
            seen[np.unique(self._numbers(index))] = True
        seen[VOID] = False
        numbers = np.flatnonzero(seen)
        if len(numbers) < 2:
            raise UserError(f"The masks of {data} have {len(numbers)} classes, and two are needed", _HINT)
        self.classes = tuple(map(str, numbers))
        self._class_of = np.full(256, VOID, np.uint8)
        self._class_of[numbers] = np.arange(len(numbers))
        self._index_of = {self.dataset.key(index): index for index in range(len(self.dataset))}
        self._kept: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def key(self, index: int) -> str:
        """See `Source`."""
        return self.dataset.key(index)

    def label(self, index: int) -> int:
        """0: every image has a label, its mask."""
        return 0

    def read(self, index: int) -> bytes | np.ndarray:
        """See `Source`."""
        return self.dataset.read(index)

    def canvas(self, keys: list[str], sizes: Tensor, max_area_px: int) -> Tensor:
        """The classes of the pixels of a batch of images.

        Args:
            keys: Names of the images.
            sizes: int `[B 2]`, their heights and widths at working size.
            max_area_px: The working size, see `DecodedImages`.

        Returns:
            uint8 `[B Sy Sx]`, indices into `classes`, 255 for pixels to ignore and beside the image.

        Raises:
            UserError: A mask has another size than its image.
        """
        found = torch.full((len(keys), *sizes.amax(0).tolist()), VOID, dtype=torch.uint8)
        for row, key, (height, width) in zip(found, keys, sizes.tolist(), strict=True):
            if key not in self._kept:
                self._kept[key] = self._at_working_size(key, max_area_px)
            mask = self._kept[key]
            if mask.shape != (height, width):
                raise UserError(f"The mask of {key} has not the size of its image", _HINT)
            row[:height, :width] = torch.from_numpy(mask)
        return found

    def _at_working_size(self, key: str, max_area_px: int) -> np.ndarray:
        mask = self._class_of[self._numbers(self._index_of[key])]
        size = working_size((mask.shape[1], mask.shape[0]), max_area_px)
        return np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))

    def _numbers(self, index: int) -> np.ndarray:
        try:
            return self.dataset.numbers(index)
        except BadImage as error:
            raise UserError(f"The mask of {self.key(index)} cannot be used: {error}", _HINT) from error
