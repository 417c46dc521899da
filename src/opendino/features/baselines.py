"""Features to compare a model's with: of the same network untrained, and of pixels."""

from __future__ import annotations

from dataclasses import replace

from opendino.features.crop_features import measuring_batch_norm
from opendino.features.feature_table import FeatureTable, table
from opendino.features.pixel_baseline import NAME, thumbnail_and_histogram
from opendino.features.train_val_features import TrainValFeatures
from opendino.models.load import Model
from opendino.models.untrained import untrained

_BATCH_NORM_IMAGES = 512


def baseline_features(model: Model, data: TrainValFeatures, batch: int, workers: int) -> dict[str, TrainValFeatures]:
    """The images of `data` with features of the untrained network and of pixels, by what they are called in reports.

    Args:
        model: The model that `data` is of.
        data: Its features of labeled images.
        batch, workers: As for `feature_table.table`.
    """
    fresh = _untrained(model, data, batch, workers)

    def by_network(part: FeatureTable, validation: bool) -> FeatureTable:
        source = data.val_source if validation else data.source
        found = table(fresh, source, indices=part.indices.tolist(), batch=batch, workers=workers)
        return replace(part, features=found.features)

    def by_pixels(part: FeatureTable, validation: bool) -> FeatureTable:
        source = data.val_source if validation else data.source
        return replace(part, features=thumbnail_and_histogram(source, part.indices.tolist(), workers))

    return {
        name: replace(data, train=features(data.train, False), val=features(data.val, True))
        for name, features in (("untrained network", by_network), (NAME, by_pixels))
    }


def _untrained(model: Model, data: TrainValFeatures, batch: int, workers: int) -> Model:
    """The network with random weights (seed 0), its BatchNorm statistics those of the first training images."""
    found = untrained(model, 0).to(next(model.backbone.parameters()).device)
    first = data.train.indices[:_BATCH_NORM_IMAGES].tolist()
    with measuring_batch_norm(found.backbone):
        table(found, data.source, indices=first, batch=batch, workers=workers)
    return found
