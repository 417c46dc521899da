"""A linear classifier on a network's features, on disk: a model folder with `classifier.safetensors`.

A linear probe's folder has `classifier.json` too: classes, and the tokens it was trained on. The run of a method that
classifies needs none: its classifier is on CLS, and `backbone.json` names the classes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from opendino.core import atomic_write
from opendino.core.accuracy import Accuracy
from opendino.core.errors import UserError
from opendino.models.description import convert
from opendino.models.feature_tokens import Tokens
from opendino.models.load import CLASSIFIER, Model, load, read_classifier, save_backbone

DESCRIPTION = "classifier.json"


class _Description(msgspec.Struct, forbid_unknown_fields=True):
    classes: list[str]
    tokens: Tokens
    format: Literal[1] = 1
    extra: dict[str, Any] = {}


@dataclass(frozen=True)
class Classifier:
    """Scores of classes, linear in features.

    Attributes:
        weight: float32 `[C D]`.
        bias: float32 `[C]`.
        classes: C names.
        tokens: The features it was trained on.
        known: How good it was found to be; None where nobody has looked.
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]
    tokens: Tokens
    known: Accuracy | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Logits float32 `[B C]` of features `[B D]`."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias

    def to(self, device: str | torch.device) -> Classifier:
        """The same on a device."""
        return Classifier(self.weight.to(device), self.bias.to(device), self.classes, self.tokens, self.known)


def save(folder: Path, model: Model, classifier: Classifier, extra: dict[str, Any]) -> None:
    """Write a folder that is all that `load` needs: the network too, so that it stays right when the run goes on.

    Args:
        folder: Made if absent.
        model: The network under the classifier.
        classifier: On any device.
        extra: Anything JSON to remember with it, e.g. the accuracy.
    """
    networks = {"teacher": model.backbone}
    kept = model.description.get("extra", {})
    save_backbone(folder, networks, preprocessing=model.preprocessing, extra=kept)
    state = {"weight": classifier.weight.cpu().contiguous(), "bias": classifier.bias.cpu().contiguous()}
    atomic_write.write(folder / CLASSIFIER, safetensors.torch.save(state, metadata={"format": "pt"}))
    description = {"format": 1, "classes": classifier.classes, "tokens": asdict(classifier.tokens), "extra": extra}
    atomic_write.write(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def load_classifier(folder: str | Path) -> tuple[Model, Classifier]:
    """Open what `save` or the run of a method that classifies wrote, on the CPU.

    Raises:
        UserError: It is no such folder, or its files do not fit together.
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
    try:
        told = convert(json.loads((home / DESCRIPTION).read_text(encoding="utf-8")), _Description, "", DESCRIPTION)
        state = safetensors.torch.load_file(home / CLASSIFIER)
        weight, bias = state["weight"], state["bias"]
    except (OSError, ValueError, KeyError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"The classifier in '{folder}' cannot be read: {error}", "Train it again") from error
    classes, tokens = tuple(told.classes), told.tokens
    tokens.check(model.backbone)
    if weight.ndim != 2 or len(weight) != len(classes) or bias.shape != weight.shape[:1]:
        shapes = f"weight {list(weight.shape)}, bias {list(bias.shape)} for {len(classes)} classes"
        raise UserError(f"The classifier in '{folder}' does not fit together: {shapes}", "Train it again")
    if not weight.isfinite().all() or bias.isnan().any():  # -inf is the bias of a class without an image
        raise UserError(f"The classifier in '{folder}' holds weights that are not numbers", "Train it again")
    return model, Classifier(weight, bias, classes, tokens, _known(told.extra))


def _known(extra: dict[str, Any]) -> Accuracy | None:
    """What `save` was told of its accuracy; None where it was not told all."""
    try:
        of_top1 = [float(extra[name]) for name in ("top1", "balanced_accuracy", "majority")]
        return Accuracy(of_top1[0], None, of_top1[1], of_top1[2], int(extra["num_queries"]))
    except (KeyError, TypeError, ValueError):
        return None
