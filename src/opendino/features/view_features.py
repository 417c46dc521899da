"""Random crops of images → features, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from opendino.core.contracts import Source
from opendino.core.ranges import cores
from opendino.core.types import Augment, ViewGroup, ViewSpec
from opendino.data import cache, loader
from opendino.data.decode import working_area_px
from opendino.data.subset import Subset
from opendino.models.feature_tokens import Tokens
from opendino.models.load import Model
from opendino.views.multi_crop import multi_crop


@torch.no_grad()
def views(
    model: Model,
    source: Source,
    indices: Sequence[int],
    augment: Sequence[Augment],
    tokens: Tokens = Tokens(),  # noqa: B008, frozen
    batch: int = 64,
    epochs: int = 1,
    seed: int = 0,
    workers: int = 4,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features of crops of the size and normalization that the model wants, in a new order every epoch.

    Images that cannot be read are replaced by others; what does not fill a batch is left out of the epoch.

    Args:
        model: On any device.
        source: Images.
        indices: Which of them.
        augment: How each of the V views is drawn.
        tokens: What of the network's output is kept.
        batch: B, at most the number of indices.
        epochs: Passes over the images; crops differ from one to the next.
        seed: Decides order and crops.
        workers: Processes that read and decode, at most one per core; 0 for this one.

    Yields:
        Features `[V B D]` on the model's device, and labels int64 `[B]`.

    Raises:
        UserError: A hundred images in a row cannot be read.
    """
    size_px = model.preprocessing["image_px"]
    mean, std = (tuple(model.preprocessing[name]) for name in ("mean", "std"))
    spec = ViewSpec((ViewGroup("crop", size_px, tuple(augment)),), mean, std)
    area_px = working_area_px(spec)
    where, _ = cache.decide("auto", len(indices), 3 * area_px, epochs)
    images = cache.DecodedImages(Subset(source, indices), area_px, where)
    batches = loader.Batches(images, spec, seed, batch)
    workers = min(workers, cores())
    weight = next(model.backbone.parameters())
    pin = weight.device.type == "cuda"
    for item in loader.batches(batches, 0, epochs * batches.steps_per_epoch, workers, pin):
        there = item.to(weight.device)
        drawn = multi_crop(there.canvas, there.draws, spec)["crop"].to(weight.dtype)
        yield torch.stack([tokens(model.backbone, view) for view in drawn]), there.labels
