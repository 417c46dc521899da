"""Labeled pixels of masks, a few of each class and image, to train a segmentation head on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opendino.datasets.mask_files import VOID
from opendino.features.logistic_regression import cross_validated, with_strength

ROWS = 4_000
"""Rows of a head, all classes together; twice as many gain a point or two of mIoU in twice the time."""
_LEAST, _MOST, _ALL = 20, 200, 100_000  # pixels of a class in one image; about the number of all of a class
_LEAST_ROWS = 200  # of a class
# `C` to try. Stronger penalties see only brightness; where that misleads, the loss first rises with C and then falls
# far below, and the search would end at the rise.
_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_CONSTANT = -1e9  # score of a class that a head has not seen; finite, so that scores can be interpolated


@dataclass(frozen=True)
class PixelSamples:
    """Features of sampled pixels.

    Attributes:
        features: float `[M D]`.
        labels: int64 `[M]`, 0 to K - 1.
        images: int64 `[M]`, the number of the image.
        places: int64 `[M 2]`, row and column.
    """

    features: Tensor
    labels: Tensor
    images: Tensor
    places: Tensor

    def balanced(self, images: Tensor, seed: int, rows: int = ROWS) -> PixelSamples:
        """As many pixels of each class of some images, in random order: a rare class repeats its own.

        Args:
            images: int64, numbers of the images.
            seed: Of the choice.
            rows: Number of pixels, all classes together, but at least 200 of each.
        """
        rng = np.random.Generator(np.random.Philox(key=[seed, 3]))
        own = torch.isin(self.images, images).nonzero().flatten()
        classes = self.labels[own].unique()
        per_class = max(_LEAST_ROWS, rows // len(classes))
        chosen = []
        for label in classes:
            same = own[self.labels[own] == label]
            order = torch.from_numpy(rng.permutation(len(same)))
            chosen.append(same[order.repeat(-(-per_class // len(same)))[:per_class]])
        every = torch.cat(chosen)
        return PixelSamples(self.features[every], self.labels[every], self.images[every], self.places[every])

    def linear(self, num_classes: int, seed: int, strength: float | None = None) -> tuple[Tensor, Tensor]:
        """Logistic regression on these pixels, its penalty chosen by cross-validation over images.

        Pixels of one image are alike, so all of them are held out together; of a single image its four quarters.

        Args:
            num_classes: K.
            seed: Of the folds.
            strength: `C`; if given, nothing is chosen, which takes a twentieth of the time.

        Returns:
            Weight float32 `[K D]` and bias float32 `[K]`; a class without a pixel is never predicted.
        """
        seen = self.labels.unique()
        if len(seen) == 1:
            bias = torch.full((num_classes,), _CONSTANT).index_fill_(0, seen, 0.0)
            return torch.zeros(num_classes, self.features.shape[1]), bias
        if strength is not None:
            weight, bias = with_strength(self.features, self.labels, num_classes, strength)
            return weight, bias.clamp_min(_CONSTANT)
        groups = self.images
        if len(groups.unique()) == 1:
            half = self.places > self.places.double().mean(0)  # [M 2]
            groups = 2 * half[:, 0].long() + half[:, 1]
        found = cross_validated(self.features, self.labels, num_classes, _STRENGTHS, seed, groups)
        return found.weight, found.bias.clamp_min(_CONSTANT)


def sample_points(mask: np.ndarray, num_images: int, seed: int, image: int) -> tuple[Tensor, Tensor]:
    """Random pixels of each class of a mask: up to 200, fewer where there are more than 500 images.

    Args:
        mask: uint8 `[H W]`, numbers of classes; 255 is ignored.
        num_images: Number of all images.
        seed, image: Of the choice; the number of this image.

    Returns:
        Rows and columns, int64 `[m 2]`, and class numbers, int64 `[m]`; m is 0 if all is ignored.
    """
    most = min(_MOST, max(_LEAST, _ALL // num_images))
    rng = np.random.Generator(np.random.Philox(key=[seed, image]))
    places, numbers = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    for number in np.unique(mask):
        if number != VOID:
            flat = np.flatnonzero(mask == number)
            chosen = rng.choice(flat, min(most, len(flat)), replace=False)
            places.append(np.stack(np.divmod(chosen, mask.shape[1]), 1))
            numbers.append(np.full(len(chosen), number, np.int64))
    return torch.from_numpy(np.concatenate(places)), torch.from_numpy(np.concatenate(numbers))
