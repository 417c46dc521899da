"""Fine-tuning from labels: the settings of a run, and whether it is better than a classifier of the frozen features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opendino import mask_finetuning
from opendino.config import Config, ResolvedConfig
from opendino.core import distributed, log
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.held_out import held_out_labeled, training_images
from opendino.data.labels import MASKS, all_labels, labels_for_val, relabel
from opendino.data.subset import Subset, evenly_spaced
from opendino.data.train_val_overlap import only_in_val_at_the_end
from opendino.features.classification_metrics import accuracy
from opendino.features.feature_table import table
from opendino.features.few_labels import MOST_CROSS_VALIDATED
from opendino.features.logistic_regression import cross_validated
from opendino.features.paired_change import Change, change
from opendino.methods import supervised
from opendino.models import build
from opendino.models.adapt import adapt
from opendino.models.classifier import Classifier, save_choice
from opendino.models.feature_tokens import Tokens, protocol_for, tokens_of
from opendino.models.image_reading import ImageReading
from opendino.models.load import Model, load
from opendino.recipes import finetune
from opendino.views.settings import changed

_CONV4_LR = 1.6e-2  # the small network of CPUs learns too slowly at the rate of vision transformers


def settings(model: str | Path, data: str = "") -> Config:
    """Settings of a run that fine-tunes a model: the recipe, with views of its size and images read as it reads them.

    Raises:
        UserError: There is no such model, or it takes each channel by itself.
    """
    loaded, base = load(model), finetune.config(data)
    reading = loaded.reading
    if reading.channel_mode == "separate":
        raise UserError(
            f"{model} takes each channel by itself, and a classifier needs all of them",
            f"Classify its frozen features: opendino eval linear {model} --train DIR --out FOLDER",
        )
    images: dict[str, Any] = {}
    if reading != ImageReading():
        found = reading.intensity
        images = {
            "stack": reading.stack, "channels": reading.channels, "channel_files": reading.channel_files or None,
            "intensity": (found,) if isinstance(found, str) else found, "bits": reading.bits,
        }  # fmt: skip
    views = changed(base.views, {"global.size": loaded.preprocessing["image_px"]})
    optimizer = replace(base.optim, lr=_CONV4_LR) if loaded.backbone.name == "conv4" else base.optim
    return replace(base, init=str(model), views=views, optim=optimizer, **images)


def against_frozen_head(config: ResolvedConfig, folder: Path, device: torch.device) -> dict[str, Any]:
    """Compare a fine-tuned network with a linear classifier of the features it started from, image by image.

    Both classify the labeled images that the run did not train on: those of `val`, or those held out. The classifier of
    the fine-tuned network is fitted again, as that of the frozen features is: it was trained on crops, and whole images
    look different to it (Touvron et al. 2019, arXiv:1906.06423). Both are saved, and
    `models.classifier.load_classifier` opens the fine-tuned one only if it is better.

    With masks as labels two segmentation heads are compared, see `mask_finetuning`.

    Args:
        config: Settings of the run: method `supervised` with `init`.
        folder: The run's folder.
        device: Where to run the networks.

    Returns:
        "measure" ("classifier" or "segmentation"), "verdict" (better, no better, worse, unknown), "keep" (finetuned,
        frozen), fields of `Change` ("before" is the frozen one), and a sentence "says".
    """
    tuned = load(folder)
    try:
        start = load(config.init or "")
    except UserError:
        says = f"Cannot say whether it is better than its frozen features: {config.init} is not there"
        measure = "segmentation" if config.labels == MASKS else "classifier"
        return {"measure": measure, "verdict": "unknown", "keep": "finetuned", "says": says}
    start = _reading_as(tuned, start, str(config.init)).to(device)
    if config.labels == MASKS:
        with distributed.single_process():
            return mask_finetuning.against_frozen_head(config, folder, start, tuned.to(device))
    with distributed.single_process():
        log.say("comparing with a classifier of the frozen features on held-out images")
        tuned = tuned.to(device)
        classes, tokens = tuned.classes, tokens_of(protocol_for(start.backbone), start.backbone)[0]
        before = _fitted(start, classes, tokens, config, "a classifier of the frozen features")
        after = _fitted(tuned, classes, Tokens(), config, "the fine-tuned network")
    found = _paired(before, after)
    verdict = found.verdict if found else "unknown"
    keep = "finetuned" if verdict == "better" else "frozen"
    save_choice(folder, keep, (after.classifier, after.about), (start, before.classifier, before.about))
    return {
        "measure": "classifier", "verdict": verdict, "keep": keep, **(vars(found) if found else {}),
        "says": _says(found, folder),
    }  # fmt: skip


def _reading_as(tuned: Model, start: Model, name: str) -> Model:
    """The model that a run starts from, with images read as the run reads them, and a network for their channels.

    A model of photographs cannot read images of 16 bits or of five channels, but a run may start from it.
    """
    if tuned.reading == start.reading:
        return start
    network, channels = start.backbone, len(tuned.preprocessing["mean"])
    if channels != len(start.preprocessing["mean"]):
        options: dict[str, Any] = {**network.kwargs, "image_px": start.preprocessing["image_px"], "in_chans": channels}
        wider = build.backbone(network.name, **options)
        adapt(network, wider, name)
        network = wider
    of_the_run = ("mean", "std", "images")
    kept = {key: value for key, value in start.preprocessing.items() if key not in of_the_run}
    preprocessing = kept | {key: value for key, value in tuned.preprocessing.items() if key in of_the_run}
    return Model(network, preprocessing, start.description)


def _says(found: Change | None, folder: Path) -> str:
    """What came out, and what `predict` takes."""
    frozen = f"`opendino predict {folder} DATA` takes the classifier of the frozen features ({folder}/frozen)"
    if found is None:
        return f"No labeled images were kept out to compare with the frozen features: {frozen}. Give --val DIR"
    figures = f"accuracy {found.after:.1f} %, frozen {found.before:.1f} %, {found.difference}"
    taken = f"`opendino predict {folder} DATA` takes the fine-tuned network" if found.verdict == "better" else frozen
    return f"{found.summary} than a classifier of the frozen features ({figures}): {taken}"


@dataclass(frozen=True)
class _Measured:
    """A classifier, and its answers for held-out images, of which there may be none.

    Attributes:
        classifier: The classifier.
        about: What a model folder stores about it: its accuracy and how it was measured.
        indices: int64 `[M]`, positions of the images that could be read.
        right: float64 `[M]`, 1 where it is right.
    """

    classifier: Classifier
    about: dict[str, Any]
    indices: Tensor
    right: Tensor


def _paired(before: _Measured, after: _Measured) -> Change | None:
    """Compare two classifiers on the images that both could read; None if there are none."""
    both = torch.from_numpy(np.intersect1d(before.indices.numpy(), after.indices.numpy()))
    if not len(both):
        return None
    was, now = (each.right[torch.isin(each.indices, both)] for each in (before, after))
    return change(was, now)


def _fitted(model: Model, classes: tuple[str, ...], tokens: Tokens, config: Config, name: str) -> _Measured:
    """The classifier of `eval linear` on the features of the training images, and its answers for held-out ones."""
    source = training_images(_images(model, config), config.hold_out, labeled_only=True)
    some = evenly_spaced(len(source), MOST_CROSS_VALIDATED)
    rows = table(model, source, tokens, some)
    fitted = cross_validated(rows.features, rows.labels_by(classes), len(classes))
    return _measured(Classifier(fitted.weight, fitted.bias, classes, tokens), name, model, config)


def _measured(classifier: Classifier, name: str, model: Model, config: Config) -> _Measured:
    held_out = _held_out(model, config)
    if held_out is None:
        about = {"measured": f"this is {name}, and no labeled images were kept out"}
        return _Measured(classifier, about, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64))
    rows = table(model, held_out, classifier.tokens)
    scores, truth = classifier(rows.features), rows.labels_by(classifier.classes)
    images = f"images of {config.val}" if config.val else "images kept out of training"
    about = accuracy(scores, truth).fields | {"measured": f"{name}, on {images}"}
    return _Measured(classifier, about, rows.indices, (scores.argmax(1) == truth).double())


def _images(model: Model, config: Config) -> Source:
    return relabel(model.reading.open_images(config.data), config.labels, config.seed)


def _held_out(model: Model, config: Config) -> Source | None:
    """Labeled images that the run did not train on."""
    if config.val is None:
        return held_out_labeled(_images(model, config), config.hold_out)
    train, val = model.reading.open_images(config.data), model.reading.open_images(config.val)
    val = relabel(val, labels_for_val(config.labels, train, val), config.seed)
    if not (all_labels(val) >= 0).any():
        return None
    keys, val_keys = ([source.key(index) for index in range(len(source))] for source in (train, val))
    kept = only_in_val_at_the_end((config.data, keys), (config.val, val_keys))
    val = val if len(kept) == len(val) else Subset(val, kept)
    return training_images(val, 0, labeled_only=True) if (all_labels(val) >= 0).any() else None


def is_finetuning(config: Config) -> bool:
    """Whether a run fine-tunes a model as a classifier."""
    return bool(config.init) and isinstance(config.method, supervised.Config)
