"""Features to compare a model's with: of the same network untrained, and of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opendino.core.contracts import Source
from opendino.features.crop_features import measuring_batch_norm
from opendino.features.feature_table import FeatureTable, table
from opendino.features.pixel_baseline import NAME, thumbnail_and_histogram
from opendino.features.train_val_features import TrainValFeatures
from opendino.models.load import Model
from opendino.models.untrained import untrained

UNTRAINED = "untrained network"
_BATCH_NORM_IMAGES = 512


def baseline_features(model: Model, data: TrainValFeatures, batch: int, workers: int) -> dict[str, TrainValFeatures]:
    """The images of `data` with features of the untrained network and of pixels, by what they are called in reports.

    Args:
        model: The model that `data` is of.
        data: Its features of labeled images.
        batch, workers: As for `feature_table.table`.
    """

    def by_pixels(part: FeatureTable, validation: bool) -> FeatureTable:
        source = data.val_source if validation else data.source
        return replace(part, features=thumbnail_and_histogram(source, part.indices.tolist(), workers))

    pixels = replace(data, train=by_pixels(data.train, False), val=by_pixels(data.val, True))
    return {UNTRAINED: untrained_features(model, data, batch, workers), NAME: pixels}


def untrained_features(model: Model, data: TrainValFeatures, batch: int, workers: int) -> TrainValFeatures:
    """The images of `data` with features of the untrained network; arguments as for `baseline_features`."""
    fresh = untrained_on(model, data.source, data.train.indices.tolist(), batch=batch, workers=workers)

    def by_network(part: FeatureTable, validation: bool) -> FeatureTable:
        source = data.val_source if validation else data.source
        found = table(fresh, source, indices=part.indices.tolist(), batch=batch, workers=workers)
        return replace(part, features=found.features)

    return replace(data, train=by_network(data.train, False), val=by_network(data.val, True))


def untrained_on(
    model: Model, source: Source, indices: Sequence[int], seed: int = 0, batch: int = 64, workers: int = 4
) -> Model:
    """The model with random weights, on its device; its BatchNorm has the statistics of the first of the images.

    Args:
        model: The trained model.
        source: Images, such as it was trained on.
        indices: Positions of the images to use, of which 512 suffice.
        seed: Of the weights.
        batch, workers: As for `feature_table.table`.
    """
    some = indices[:_BATCH_NORM_IMAGES]
    if len(some) % batch == 1:  # no variance from one image
        some = some[: len(some) - 1] or some
    found = untrained(model, seed).to(next(model.backbone.parameters()).device)
    with measuring_batch_norm(found.backbone):
        table(found, source, indices=some, batch=batch, workers=workers)
    return found
