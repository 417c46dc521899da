"""Export to our own model folder: safetensors, JSON and a model card, without training state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from opendino.core import atomic_write
from opendino.core.ranges import Checked
from opendino.interop import compare_outputs
from opendino.interop.model_card import card
from opendino.models.load import Model, load, save_backbone


@dataclass(frozen=True)
class Config(Checked):
    """No options."""


def write(model: Model, out: Path, config: Config) -> float:
    """Write a folder for `opendino.load` and every command that takes a MODEL, with the classifier if there is one.

    Returns:
        The largest difference of the features after loading it again.
    """
    save_backbone(
        out,
        {model.which: model.backbone},
        preprocessing=model.preprocessing,
        extra=model.description.get("extra", {}),
        classifier=model.classifier,
        classes=model.classes if model.classifier is not None else (),
    )
    name = model.description.get("extra", {}).get("repository", out.name)
    loading = f'import opendino\n\nmodel = opendino.load("{name}")\nfeatures = model.embed("image.jpg")  # [1, D]'
    atomic_write.write(out / "README.md", card(model, "opendino", loading))
    images, again = compare_outputs.random_images(model), load(out)
    with torch.no_grad():
        return compare_outputs.largest_difference([model.embed(images)], [again.embed(images)], "opendino")
