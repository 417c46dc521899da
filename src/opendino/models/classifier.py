"""Save and load a linear classifier on features: a model folder with `classifier.safetensors`.

The folder of a linear probe also has `classifier.json` with its classes and the tokens it was trained on. The run of a
supervised method needs none: its classifier uses CLS, and `backbone.json` has the classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from opendino.core.accuracy import Accuracy
from opendino.core.errors import UserError
from opendino.models.feature_tokens import Tokens
from opendino.models.linear_head import HeadFiles
from opendino.models.load import CLASSIFIER, Model, load, read_classifier

DESCRIPTION = "classifier.json"
_FILES = HeadFiles(CLASSIFIER, DESCRIPTION, "classifier", "Train it again")


class _Description(msgspec.Struct, forbid_unknown_fields=True):
    classes: list[str]
    tokens: Tokens
    format: Literal[1] = 1
    extra: dict[str, Any] = {}


@dataclass(frozen=True)
class Classifier:
    """A linear classifier: logits = weight · features + bias.

    Attributes:
        weight: float32 `[C D]`.
        bias: float32 `[C]`.
        classes: Names of the C classes.
        tokens: Tokens of the network that form its input features.
        known: Measured accuracy; None if it was not measured.
        measured: How `known` was measured, or why it was not; empty for classifiers of older versions and of runs.
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]
    tokens: Tokens
    known: Accuracy | None = None
    measured: str = ""

    def __call__(self, features: Tensor) -> Tensor:
        """Features `[B D]` → logits float32 `[B C]`."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias

    def to(self, device: str | torch.device) -> Classifier:
        """A copy of this classifier on a device."""
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))


def save(folder: Path, model: Model, classifier: Classifier, extra: dict[str, Any]) -> None:
    """Write a model folder with network and classifier: it stays valid if the original run continues.

    Args:
        folder: Created if absent.
        model: The model whose features the classifier uses.
        classifier: The classifier, on any device.
        extra: JSON values to store with it, e.g. the accuracy.
    """
    described = {"classes": classifier.classes, "tokens": asdict(classifier.tokens), "extra": extra}
    _FILES.save(folder, model, classifier.weight, classifier.bias, described)


def load_classifier(folder: str | Path) -> tuple[Model, Classifier]:
    """Load model and classifier on the CPU, from a folder of `save` or the run of a supervised method.

    Raises:
        UserError: The folder holds no classifier, or its files do not match.
    """
    home = Path(folder).expanduser()
    model = load(home)
    if model.classes:
        linear = read_classifier(home, model.backbone.embed_dim)
        return model, Classifier(linear.weight.data, linear.bias.data, model.classes, Tokens())
    if not (home / DESCRIPTION).is_file():
        raise UserError(
            f"'{folder}' holds no {DESCRIPTION}", "Train a classifier: opendino eval linear MODEL --train DIR --out DIR"
        )
    described, weight, bias = _FILES.read(home, _Description)
    classes, tokens = tuple(described.classes), described.tokens
    tokens.check(model.backbone)
    if weight.ndim != 2 or len(weight) != len(classes) or bias.shape != weight.shape[:1]:
        shapes = f"weight {list(weight.shape)}, bias {list(bias.shape)} for {len(classes)} classes"
        raise UserError(f"The classifier in '{folder}' has shapes that do not match: {shapes}", "Train it again")
    if not weight.isfinite().all() or bias.isnan().any():  # -inf is the bias of a class without an image
        raise UserError(f"The classifier in '{folder}' holds weights that are NaN or infinite", "Train it again")
    measured = str(described.extra.get("measured", ""))
    return model, Classifier(weight, bias, classes, tokens, _known(described.extra), measured)


def _known(extra: dict[str, Any]) -> Accuracy | None:
    """Accuracy stored in `extra`; None if it is incomplete."""
    try:
        values = [float(extra[name]) for name in ("top1", "balanced_accuracy", "majority")]
        return Accuracy(values[0], None, values[1], values[2], int(extra["num_queries"]))
    except (KeyError, TypeError, ValueError):
        return None
