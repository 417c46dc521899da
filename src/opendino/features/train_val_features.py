"""Features of labeled training and validation images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.labels import all_labels, labels_for_val, relabel
from opendino.data.train_val_overlap import only_in_val
from opendino.features.feature_table import FeatureTable, hold_out, table
from opendino.features.image_stream import skipped_message
from opendino.models.feature_tokens import Tokens
from opendino.models.load import Model


@dataclass(frozen=True)
class LabeledData:
    """Which images to use, as a user names them.

    Attributes:
        train: DATA; None for the training data of the model.
        val: DATA with labels of its own, of which images that are in `train` too are not used; None to hold out a fifth
            of `train`, the same images every time.
        labels: The labels of `train`, see `data.labels.relabel`: "auto" for those of DATA, or a CSV of path,class.
    """

    train: str | None
    val: str | None
    labels: str = "auto"


@dataclass(frozen=True)
class TrainValFeatures:
    """Features of labeled training and validation images.

    Attributes:
        train, val: Tables of one or more rows.
        source, val_source: The images of `train` and `val`; the same if `val` was held out.
        data, origin: Where `train` and `val` come from, for messages.
        bad: (key, reason) of unreadable images of both.
    """

    train: FeatureTable
    val: FeatureTable
    source: Source
    val_source: Source
    data: str
    origin: str
    bad: tuple[tuple[str, str], ...]

    def all_labeled(self) -> FeatureTable:
        """All labeled rows of --train, in the order of the source, with those that were held out as `val`."""
        if self.val_source is not self.source:
            return self.train
        rows = torch.cat([self.train.indices, self.val.indices]).argsort()
        features = torch.cat([self.train.features, self.val.features])[rows]
        labels, indices = (
            torch.cat([getattr(part, name) for part in (self.train, self.val)])[rows] for name in ("labels", "indices")
        )
        return FeatureTable(features, labels, indices, self.train.classes)

    @property
    def truth(self) -> Tensor:
        """Labels of `val` in the numbering of `train`, matched by name; C (their number) for classes `train` lacks."""
        return self.val.labels_by(self.train.classes)

    @property
    def notes(self) -> list[str]:
        """Warnings for the report, one line each: unreadable images, classes missing from `train`, one class only."""
        lost = int(torch.isin(self.truth, self.train.labels, invert=True).sum())
        notes = [skipped_message(self.bad)] if self.bad else []
        if lost:
            notes.append(f"{lost:,} of the validation images are of classes that {self.data} lacks, and count as wrong")
        if len(self.val.labels.unique()) == 1:
            notes.append(
                f"all validation images are {self.val.classes[self.val.labels[0]]}: accuracy is not meaningful"
            )
        return notes


def train_val_features(
    model: Model,
    wanted: LabeledData,
    tokens: Tokens = Tokens(),  # noqa: B008, frozen
    batch: int = 64,
    workers: int = 4,
    dtype: torch.dtype = torch.float32,
) -> TrainValFeatures:
    """Compute the features of training and validation images.

    Args:
        model: The model, on any device.
        wanted: The images; only those with a label are read.
        tokens, batch, workers, dtype: As for `table`.

    Raises:
        UserError: There are no such images, none can be read, none has a class, there is one class only, or all images
            of `val` are in `train` too.
    """
    data = data_of(model, wanted.train, "Give labeled images: --train DIR")
    (source, train_rows), (val_source, val_rows) = _labeled_images(model, wanted, data)

    def features(source: Source, rows: list[int]) -> FeatureTable:
        return table(model, source, tokens, rows, batch=batch, workers=workers, dtype=dtype)

    train_table = features(source, train_rows)
    bad, train_table = train_table.bad, train_table.labeled()
    if len(train_table) and len(train_table.labels.unique()) < 2:
        raise UserError(
            f"All labeled images of {data} are {train_table.classes[train_table.labels[0]]}",
            "A classifier needs two classes: give images of two classes or more",
        )
    if wanted.val is not None:
        val_table = features(val_source, val_rows)
        bad, val_table, origin = bad + val_table.bad, val_table.labeled(), wanted.val
    else:
        train_table, val_table = hold_out(train_table, 1 / 5)
        origin = f"{data}, a fifth held out"
    for part, name in ((train_table, data), (val_table, origin)):
        if not len(part):
            raise UserError(
                f"There are too few images with a class in {name}", "Training and validation need one each at least"
            )
    return TrainValFeatures(train_table, val_table, source, val_source, data, origin, bad)


def _labeled_images(model: Model, wanted: LabeledData, data: str) -> list[tuple[Source, list[int]]]:
    """The sources to train on and to test on, each with the positions of its labeled images; none to hold some out."""
    found: list[tuple[Source, list[int]]] = []
    for name, labels in ((data, wanted.labels), (wanted.val, "")):
        if name is None:
            return [*found, (found[0][0], [])]
        opened = model.reading.open_images(name)
        source = relabel(opened, labels or labels_for_val(wanted.labels, found[0][0], opened), seed=0)
        labeled = np.flatnonzero(all_labels(source) >= 0).tolist()
        if not labeled:
            raise UserError(
                f"{name} names no classes", "Give folders named by their class, or --labels FILE.csv of path,class"
            )
        found.append((source, labeled))
    keys, val_keys = ([source.key(row) for row in rows] for source, rows in found)
    val_source, rows = found[1]
    return [found[0], (val_source, [rows[n] for n in only_in_val((data, keys), (str(wanted.val), val_keys))])]


def data_of(model: Model, data: str | None, advice: str) -> str:
    """`data` if it is given, else the training DATA of the model.

    Raises:
        UserError: The model does not record it; `advice` is the hint.
    """
    if (data := data or model.trained_on) is None:
        raise UserError("The model does not record what it was trained on", advice)
    return data
