"""Images with masks of class numbers, read as a model reads its images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opendino.core.errors import BadImage, UserError
from opendino.datasets.mask_files import VOID
from opendino.datasets.segmentation_dataset import SegmentationDataset
from opendino.features.image_stream import Bad, encode_images
from opendino.models.load import Model

MASKS = f"Masks are indexed or gray PNGs of class numbers 0 to {VOID - 1}; {VOID} is ignored"


class MaskedImages:
    """Images with their masks.

    Args:
        model: Says how images are read.
        dataset: Images and masks.
        workers: Number of threads that decode.

    Attributes:
        dataset: As given.
        bad: (key, reason) of the images that could not be read so far.

    Raises:
        UserError: The model reads several files per image or several images per file.
    """

    def __init__(self, model: Model, dataset: SegmentationDataset, workers: int) -> None:
        if model.reading.channel_files or model.reading.stack == "images":
            raise UserError(
                "The model reads several files per image, or several images per file; masks need one file per image",
                "Write all channels of an image into one TIFF, and train on these",
            )
        self.dataset, self._images, self._workers = dataset, model.reading.images(dataset), workers
        self.bad: Bad = []

    def __len__(self) -> int:
        return len(self.dataset)

    def each(self, most: int | None = None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Number, pixels `[H W C]` and mask uint8 `[H W]` of each readable image, of the first `most` of them.

        Raises:
            UserError: A mask cannot be read, or has another size than its image.
        """
        indices = range(len(self))[:most]
        for part in encode_images(self._images, indices, self._with_mask, lambda one: one[0], 1, self._workers):
            self.bad += [each for each in part.bad if each not in self.bad]
            if part.output is not None:
                yield part.positions[0], *part.output

    def _with_mask(self, index: int, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        name = self.dataset.key(index)
        try:
            mask = self.dataset.numbers(index)
        except BadImage as error:
            raise UserError(f"The mask of {name} cannot be used: {error}", MASKS) from error
        if mask.shape != pixels.shape[:2]:
            has, wants = (f"{shape[1]} × {shape[0]} px" for shape in (mask.shape, pixels.shape))
            raise UserError(f"The mask of {name} has {has}, its image {wants}", "Draw masks at the size of the image")
        return pixels, mask
