"""Labeled images on two sides: those to learn from, and those to be judged on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.open_source import open_source
from opendino.features.feature_table import FeatureTable, hold_out, table
from opendino.features.image_stream import skipped_message
from opendino.models.feature_tokens import Tokens
from opendino.models.load import Model


@dataclass(frozen=True)
class TrainValFeatures:
    """Features of two sets of images whose classes are known.

    Attributes:
        train, val: One or more rows each.
        source: Of `train`.
        data, origin: Where `train` and `val` come from, for people.
        bad: (key, reason) of images that could not be read, of both.
    """

    train: FeatureTable
    val: FeatureTable
    source: Source
    data: str
    origin: str
    bad: tuple[tuple[str, str], ...]

    @property
    def truth(self) -> Tensor:
        """`val`'s labels by the classes of `train`, matched by name; the number of these for one they lack."""
        return self.val.labels_by(self.train.classes)

    @property
    def notes(self) -> list[str]:
        """What people should know of the images, a line each: unreadable ones, classes of `val` that `train` lacks."""
        lost = int(torch.isin(self.truth, self.train.labels, invert=True).sum())
        notes = [skipped_message(self.bad)] if self.bad else []
        if lost:
            notes.append(f"{lost:,} of the images judged are of classes that {self.data} lacks, and count as wrong")
        if len(self.val.labels.unique()) == 1:
            notes.append(f"all images judged are {self.val.classes[self.val.labels[0]]}: accuracy says little")
        return notes


def train_val_features(
    model: Model,
    train: str | None,
    val: str | None,
    tokens: Tokens = Tokens(),  # noqa: B008, frozen
    batch: int = 64,
    workers: int = 4,
    dtype: torch.dtype = torch.float32,
) -> TrainValFeatures:
    """Open both sides and look at their images.

    Args:
        model: On any device.
        train: DATA; what the model was trained on where None.
        val: DATA; a fifth of `train`, the same every time, where None.
        tokens, batch, workers, dtype: As for `table`.

    Raises:
        UserError: There are no such images, none that can be read, none with a class, or one class only.
    """

    def look(data: str) -> tuple[Source, FeatureTable]:
        source = open_source(data)
        if not source.classes:
            raise UserError(f"{data} names no classes", "Give folders named by their class, or a CSV of path,class")
        return source, table(model, source, tokens, batch=batch, workers=workers, dtype=dtype)

    data = data_of(model, train, "Give labeled images: --train DIR")
    source, mine = look(data)
    bad, mine = mine.bad, mine.labeled()
    if val is not None:
        _, other = look(val)
        bad, other, origin = bad + other.bad, other.labeled(), val
    else:
        mine, other = hold_out(mine, 1 / 5)
        origin = f"{data}, a fifth held out"
    for side, name in ((mine, data), (other, origin)):
        if not len(side):
            raise UserError(f"There are too few images with a class in {name}", "Both sides need some")
    if len(mine.labels.unique()) < 2:
        raise UserError(
            f"All labeled images of {data} are {mine.classes[mine.labels[0]]}",
            "With one class every answer is right: give images of two classes or more",
        )
    return TrainValFeatures(mine, other, source, data, origin, bad)


def data_of(model: Model, data: str | None, advice: str) -> str:
    """DATA where it is given, else what the model was trained on.

    Raises:
        UserError: The model does not say; with the advice.
    """
    if (data := data or model.trained_on) is None:
        raise UserError("The model does not say what it was trained on", advice)
    return data
