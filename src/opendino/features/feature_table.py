"""One pass of a network over a source of images → a table of features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from opendino.core import distributed
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.decode import decode
from opendino.data.sampler import permutation
from opendino.features.image_stream import Bad, prefetch_images, skipped_message
from opendino.models.feature_tokens import Tokens
from opendino.models.load import Model


@dataclass(frozen=True)
class FeatureTable:
    """Features of the readable images of a source, on the host, in the source's order.

    Attributes:
        features: `[M D]`, as the network gives them: not of unit length.
        labels: int64 `[M]`, positions in `classes`, -1 where unknown.
        indices: int64 `[M]`, positions in the source.
        classes: Names.
        bad: (key, reason) of images that could not be read.
    """

    features: Tensor
    labels: Tensor
    indices: Tensor
    classes: tuple[str, ...]
    bad: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> FeatureTable:
        """Some rows: a mask or positions."""
        return FeatureTable(self.features[rows], self.labels[rows], self.indices[rows], self.classes, self.bad)

    def labeled(self) -> FeatureTable:
        """The rows whose class is known; the table itself where that is all of them, so that nothing is copied."""
        known = self.labels >= 0
        return self if known.all() else self[known]

    def labels_by(self, classes: Sequence[str]) -> Tensor:
        """Labels in another numbering, by name: -1 stays -1, a class that is not among them becomes `len(classes)`."""
        number = {name: i for i, name in enumerate(classes)}
        return torch.tensor([*(number.get(name, len(number)) for name in self.classes), -1])[self.labels]

    @property
    def unread(self) -> str:
        """What to tell people of unreadable images: part of a sentence, or nothing."""
        return f", {skipped_message(self.bad)}" if self.bad else ""


def hold_out(whole: FeatureTable, share: float) -> tuple[FeatureTable, FeatureTable]:
    """Two parts of a table: the larger, and a `share` of at least one row that is always the same for as many rows."""
    chosen = torch.zeros(len(whole), dtype=torch.bool)
    chosen[permutation(len(whole), 0, 0)[: math.ceil(len(whole) * share)]] = True
    return whole[~chosen], whole[chosen]


@torch.no_grad()
def table(
    model: Model,
    source: Source,
    tokens: Tokens = Tokens(),  # noqa: B008, frozen
    indices: Sequence[int] | None = None,
    batch: int = 64,
    workers: int = 4,
    dtype: torch.dtype = torch.float32,
) -> FeatureTable:
    """Look at every image once, prepared as the model wants it. Ranks share the work and all get the whole table.

    Holds the table and three batches of images; the ranks' parts of the table twice while they are gathered.

    Args:
        model: On any device.
        source: Images.
        tokens: What of the network's output is kept.
        indices: Which images, ascending; all where None.
        batch: Images at a time.
        workers: Threads that read and decode while the network works.
        dtype: Of the table; float16 halves it.

    Raises:
        UserError: No image can be read, or the network gives what is not a number.
    """
    tokens.check(model.backbone)
    indices = range(len(source)) if indices is None else indices
    each = -(-len(indices) // distributed.world_size())
    mine = indices[distributed.rank() * each : (distributed.rank() + 1) * each]
    weight = next(model.backbone.parameters())

    def look(place: int) -> Tensor:
        return model.preprocess(Image.fromarray(decode(source.read(mine[place]))))

    rows = torch.empty(0, 0, dtype=dtype)
    kept: list[int] = []
    bad: Bad = []
    for looked, unread in prefetch_images(source, mine, look, batch, workers):
        bad += unread
        if looked:
            images = torch.stack([image for _, image in looked])
            found = tokens(model.backbone, images.to(weight.device, weight.dtype))
            if not kept:
                rows = torch.empty(len(mine), found.shape[1], dtype=dtype)
            rows[len(kept) : len(kept) + len(looked)] = found
            kept += [mine[place] for place, _ in looked]
    width = max(distributed.all_gather_object([rows.shape[1]]))
    features = distributed.all_gather_rows(rows[: len(kept)].reshape(len(kept), width))
    kept, bad = distributed.all_gather_object(kept), distributed.all_gather_object(bad)
    if not kept:
        example = f", e.g. {bad[0][0]}: {bad[0][1]}" if bad else ""
        raise UserError(
            f"None of the {len(indices)} images can be read{example}", "Check that the folder holds intact images"
        )
    if not all(part.isfinite().all() for part in features.split(2**16)):
        raise UserError("The network's features are not finite numbers", "Its weights are broken; take an earlier one")
    labels = torch.tensor([source.label(index) for index in kept])
    return FeatureTable(features, labels, torch.tensor(kept), source.classes, tuple(bad))
