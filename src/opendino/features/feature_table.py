"""Compute a table of features of all images of a source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from opendino.core import distributed
from opendino.core.contracts import Source
from opendino.data.sampler import permutation
from opendino.features.image_stream import Bad, check_finite, encode_images, none_readable, skipped_message
from opendino.models.feature_tokens import Tokens
from opendino.models.load import Model


@dataclass(frozen=True)
class FeatureTable:
    """Features of the readable images of a source, on the CPU, in the order of the source.

    Attributes:
        features: `[M D]`, not L2-normalized.
        labels: int64 `[M]`, positions in `classes`, -1 if unknown.
        indices: int64 `[M]`, positions in the source.
        classes: Class names.
        bad: (key, reason) of unreadable images.
    """

    features: Tensor
    labels: Tensor
    indices: Tensor
    classes: tuple[str, ...]
    bad: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> FeatureTable:
        """Select rows by a bool mask or by positions."""
        return FeatureTable(self.features[rows], self.labels[rows], self.indices[rows], self.classes, self.bad)

    def labeled(self) -> FeatureTable:
        """Rows with a known label; returns this table without a copy if all are known."""
        known = self.labels >= 0
        return self if known.all() else self[known]

    def labels_by(self, classes: Sequence[str]) -> Tensor:
        """Labels in another numbering, matched by class name: -1 stays -1, other classes become `len(classes)`."""
        number = {name: i for i, name in enumerate(classes)}
        return torch.tensor([*(number.get(name, len(number)) for name in self.classes), -1])[self.labels]

    @property
    def unread(self) -> str:
        """Text about unreadable images to append to a message; empty if there are none."""
        return f", {skipped_message(self.bad)}" if self.bad else ""


def hold_out(full: FeatureTable, share: float) -> tuple[FeatureTable, FeatureTable]:
    """Split a table into (rest, held out), at least one row held out; the same rows for every table of this length."""
    chosen = torch.zeros(len(full), dtype=torch.bool)
    chosen[permutation(len(full), 0, 0)[: math.ceil(len(full) * share)]] = True
    return full[~chosen], full[chosen]


def table(
    model: Model,
    source: Source,
    tokens: Tokens = Tokens(),  # noqa: B008, frozen
    indices: Sequence[int] | None = None,
    batch: int = 64,
    workers: int = 4,
    dtype: torch.dtype = torch.float32,
) -> FeatureTable:
    """Compute the features of images with the model's preprocessing. Ranks split the images; each gets the full table.

    Memory: the table and three batches of images, and each rank's part of the table twice while parts are gathered.

    Args:
        model: The model, on any device.
        source: The images.
        tokens: Tokens of the network that form the feature.
        indices: Positions of the images to use, ascending; None for all.
        batch: Images per forward pass.
        workers: Number of threads that read and decode.
        dtype: Of the table; float16 halves its memory.

    Raises:
        UserError: No image can be read, or the network outputs NaN or infinity.
    """
    tokens.check(model.backbone)
    indices = range(len(source)) if indices is None else indices
    per_rank = -(-len(indices) // distributed.world_size())
    mine = indices[distributed.rank() * per_rank : (distributed.rank() + 1) * per_rank]

    def network(images: list[Tensor]) -> Tensor:
        return model.run(partial(tokens, model.backbone), torch.stack(images))  # [B D]

    rows = torch.empty(0, 0, dtype=dtype)
    kept: list[int] = []
    bad: Bad = []
    for part in encode_images(source, mine, lambda _, pixels: model.prepare(pixels), network, batch, workers):
        bad += part.bad
        if part.output is not None:
            if not kept:  # the width is known from the first batch
                rows = torch.empty(len(mine), part.output.shape[1], dtype=dtype)
            rows[len(kept) : len(kept) + len(part.positions)] = part.output
            kept += [mine[position] for position in part.positions]
    width = max(distributed.all_gather_object([rows.shape[1]]))
    features = distributed.all_gather_rows(rows[: len(kept)].reshape(len(kept), width))
    kept, bad = distributed.all_gather_object(kept), distributed.all_gather_object(bad)
    if not kept:
        raise none_readable(len(indices), bad)
    check_finite(features)
    labels = torch.tensor([source.label(index) for index in kept])
    return FeatureTable(features, labels, torch.tensor(kept), source.classes, tuple(bad))
