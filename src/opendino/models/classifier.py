"""Save and load a linear classifier on features: a model folder with `classifier.safetensors`.

The folder of a linear probe also has `classifier.json` with its classes and the tokens it was trained on, and
`labels.csv` with the images that were labeled, if these are files. The run of a supervised method needs neither: its
classifier uses CLS, and `backbone.json` has the classes. A run of `opendino finetune` has a second classifier, of the
frozen features, in `frozen/`, and says in `finetuning.json` which of the two is better.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from opendino.core import atomic_write
from opendino.core.accuracy import Accuracy
from opendino.core.errors import UserError
from opendino.data.list_columns import read_columns
from opendino.data.source_files import cell, printable
from opendino.models import segmentation_head
from opendino.models.description import convert
from opendino.models.feature_tokens import Tokens
from opendino.models.linear_head import HeadFiles
from opendino.models.load import CLASSIFIER, Model, load, read_classifier
from opendino.models.weights import write_weights

DESCRIPTION = "classifier.json"
_LABELS = "labels.csv"
_NEVER = -1e4  # the bias of a class without a training image, where -inf is not allowed
CHOICE, FROZEN = "finetuning.json", "frozen"
_FILES = HeadFiles(CLASSIFIER, DESCRIPTION, "classifier", "Train it again")


class _Description(msgspec.Struct, forbid_unknown_fields=True):
    classes: list[str]
    tokens: Tokens
    format: Literal[1] = 1
    extra: dict[str, Any] = {}


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    keep: Literal["finetuned", "frozen"]
    finetuned: dict[str, Any]
    format: Literal[1] = 1


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
        caution: The simple baselines that it is not shown to beat, in a clause; empty if there are none.
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]
    tokens: Tokens
    known: Accuracy | None = None
    measured: str = ""
    caution: str = ""

    def __call__(self, features: Tensor) -> Tensor:
        """Features `[B D]` → logits float32 `[B C]`."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias

    @property
    def accuracy(self) -> str:
        """What is known about its accuracy, in one line."""
        if self.known:
            how = f", {self.measured}" if self.measured else ""
            return f"accuracy of this classifier{how}: {self.known.sentence}" + (
                f"; {self.caution}" if self.caution else ""
            )
        return f"accuracy of this classifier is not known: {self.measured or 'it was not measured'}"

    def to(self, device: str | torch.device) -> Classifier:
        """A copy of this classifier on a device."""
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))


def save(
    folder: Path, model: Model, classifier: Classifier, extra: dict[str, Any], given: Mapping[str, str] = {}
) -> None:
    """Write a model folder with network and classifier: it stays valid if the original run continues.

    Args:
        folder: Created if absent.
        model: The model whose features the classifier uses.
        classifier: The classifier, on any device.
        extra: JSON values to store with it, e.g. the accuracy.
        given: Absolute path of an image → the label it was trained on, for `given_labels`.
    """
    described = {"classes": classifier.classes, "tokens": asdict(classifier.tokens), "extra": extra}
    _FILES.save(folder, model, classifier.weight, classifier.bias, described)
    if given:
        text = io.StringIO()
        rows = ((cell(path), cell(label)) for path, label in given.items())
        csv.writer(text, lineterminator="\n").writerows([("path", "class"), *rows])
        atomic_write.write(folder / _LABELS, text.getvalue())


def given_labels(folder: str | Path) -> dict[str, str]:
    """Absolute path of an image → the label that a classifier was trained on; empty if they were not stored.

    Raises:
        UserError: The list cannot be read.
    """
    path = Path(folder).expanduser() / _LABELS
    listed = read_columns(str(path)) if path.is_file() else {}
    return {printable(image): columns.get("class", "") for image, columns in listed.items()}


def save_choice(
    run: Path,
    keep: str,
    finetuned: tuple[Classifier, dict[str, Any]],
    frozen: tuple[Model, Classifier, dict[str, Any]],
) -> None:
    """Write the two classifiers of a run that fine-tuned a model, and which of them `load_classifier` opens.

    Args:
        run: The run's folder.
        keep: "finetuned" or "frozen".
        finetuned: The classifier of the run's network, of CLS, and JSON values about it as `extra` of `save`.
        frozen: The model that the run started from, its classifier, and the same values about it.
    """
    own, about = finetuned
    linear = nn.Linear(own.weight.shape[1], len(own.weight))
    with torch.no_grad():
        linear.weight.copy_(own.weight)
        linear.bias.copy_(own.bias.clamp_min(_NEVER))
    write_weights(run / CLASSIFIER, linear)
    save(run / FROZEN, *frozen)
    choice = {"format": 1, "keep": keep, "finetuned": about}
    atomic_write.write(run / CHOICE, json.dumps(choice, indent=2) + "\n")


def load_classifier(folder: str | Path) -> tuple[Model, Classifier]:
    """Load model and classifier on the CPU, from a folder of `save` or the run of a supervised method.

    Of a run that fine-tuned a model it is the better one of two, see `save_choice`.

    Raises:
        UserError: The folder holds no classifier, or its files do not match.
    """
    home, told = Path(folder).expanduser(), dict[str, Any]()
    if (home / CHOICE).is_file():
        choice = _choice(home / CHOICE)
        told, home = choice.finetuned, home / FROZEN if choice.keep == FROZEN else home
    model = load(home)
    if model.classes:
        linear = read_classifier(home, model.backbone.embed_dim)
        weight, bias = linear.weight.data, linear.bias.data
        return model, Classifier(weight, bias, model.classes, Tokens(), _known(told), str(told.get("measured", "")))
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
    measured, caution = (str(described.extra.get(name, "")) for name in ("measured", "caution"))
    return model, Classifier(weight, bias, classes, tokens, _known(described.extra), measured, caution)


def which_of_two(folder: str | Path) -> str:
    """Whether `load` and `load_classifier` open the same network of a run that fine-tuned a model, and why.

    Returns:
        A sentence; "" for other folders.

    Raises:
        UserError: The files about its two classifiers cannot be read.
    """
    home = Path(folder).expanduser()
    if (home / segmentation_head.OF_RUN).is_dir():
        kept = segmentation_head.load_head(home / segmentation_head.OF_RUN)[1]
        return f"This is the fine-tuned network. `opendino predict` takes {kept.measured or 'the frozen network'}"
    if not (home / CHOICE).is_file():
        return ""
    choice, frozen = _choice(home / CHOICE), _FILES.read(home / FROZEN, _Description)[0]
    tuned, start = _known(choice.finetuned), _known(frozen.extra)
    measured = "no held-out images to compare it on"
    if tuned and start:
        measured = (
            f"its classifier has {tuned.top1:.1f} % on {tuned.num_queries:,} held-out images, that of the frozen "
            f"features {start.top1:.1f} %"
        )
    if choice.keep == FROZEN:
        return (
            "This is the fine-tuned network. `opendino predict` takes the frozen one, because this one is not shown to "
            f"be better: {measured}"
        )
    return f"This is the fine-tuned network, which `opendino predict` takes too: {measured}"


def _choice(path: Path) -> _Choice:
    try:
        return convert(json.loads(path.read_text(encoding="utf-8")), _Choice, "", CHOICE)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}", "Remove it to use the fine-tuned network") from error


def _known(extra: dict[str, Any]) -> Accuracy | None:
    """Accuracy stored in `extra`; None if it is incomplete."""
    try:
        values = [float(extra[name]) for name in ("top1", "balanced_accuracy", "majority")]
        return Accuracy(values[0], None, values[1], values[2], int(extra["num_queries"]))
    except (KeyError, TypeError, ValueError):
        return None
