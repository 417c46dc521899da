"""Compute features of random crops, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opendino.core.contracts import Source
from opendino.core.ranges import cores
from opendino.core.types import ViewGroup, ViewSpec
from opendino.data import cache, loader
from opendino.data.decode import working_area_px
from opendino.data.subset import Subset
from opendino.models.feature_tokens import Tokens
from opendino.models.load import Model
from opendino.views.multi_crop import multi_crop
from opendino.views.settings import View


@dataclass(frozen=True)
class RandomCrops:
    """Which random crops to cut, and how to read the images.

    Attributes:
        augment: Augmentation of each of the V views.
        batch: B, at most the number of images.
        epochs: Passes over the images; each has different crops.
        seed: Seed of order and crops.
        workers: Number of processes that read and decode, at most one per core; 0 for this one.
    """

    augment: tuple[View, ...]
    batch: int = 64
    epochs: int = 1
    seed: int = 0
    workers: int = 4


@torch.no_grad()
def view_features(
    model: Model,
    source: Source,
    indices: Sequence[int],
    crops: RandomCrops,
    tokens: Tokens = Tokens(),  # noqa: B008, frozen
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features of random crops with the model's image size and normalization, shuffled every epoch.

    The crops are those of training: its loader replaces unreadable images by others and drops an incomplete last batch
    of an epoch, and the model's device cuts the crops.

    Args:
        model: The model, on any device.
        source: The images.
        indices: Positions of the images to use.
        crops: The crops, and how to read.
        tokens: Tokens of the network that form the feature.

    Yields:
        Features `[V B D]` on the model's device, and labels int64 `[B]`.

    Raises:
        UserError: A hundred images in a row cannot be read.
    """
    size_px = model.preprocessing["image_px"]
    mean, std = (tuple(model.preprocessing[name]) for name in ("mean", "std"))
    spec = ViewSpec((ViewGroup("crop", size_px, crops.augment),), mean, std)
    area_px = working_area_px(spec)
    where, _ = cache.decide("auto", len(indices), source.pixel_format.bytes_per_pixel * area_px, crops.epochs)
    images = cache.DecodedImages(Subset(source, indices), area_px, where)
    batches = loader.Batches(images, spec, crops.seed, crops.batch)
    weight = next(model.backbone.parameters())
    last, workers = crops.epochs * batches.steps_per_epoch, min(crops.workers, cores())
    for item in loader.batches(batches, 0, last, workers, pin=weight.is_cuda):
        on_device = item.to(weight.device)
        views = multi_crop(on_device.canvas, on_device.draws, spec)["crop"].to(weight.dtype)  # [V B C H W]
        yield torch.stack([tokens(model.backbone, view) for view in views]), on_device.labels
