"""Take over weights from elsewhere: opendino import CHECKPOINT --out MODEL"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from opendino.cli import Outcome, flags
from opendino.core.ranges import Checked, Width
from opendino.interop.importing import import_model


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino import` takes."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A file of DINO v1, v2 or v3, timm or torchvision (.pth, .safetensors), or a folder of Hugging Face or timm."""
    out: str
    """The model folder to make."""
    architecture: str | None = None
    """The model of timm it is, where the file alone does not tell, e.g. convnext_tiny."""
    num_heads: Width | None = None
    """Attention heads of a ViT of DINO v1, where they are not 64 wide."""


def run(args: list[str]) -> Outcome:
    """Recognize, check every weight, and write a model folder."""
    config = flags.parse(Config, args, "opendino import", "Take over weights from elsewhere. Nothing in them is run.")
    imported, model = import_model(config.checkpoint, config.out, config.architecture, config.num_heads)
    networks = list(imported.networks)
    millions = sum(weight.numel() for weight in model.backbone.parameters()) / 1e6
    text = (
        f"{imported.about}\n"
        f"{' and '.join(networks)}, {millions:.1f} million weights{' each' if len(networks) > 1 else ''}, "
        f"features of {model.backbone.embed_dim} → {config.out}\n"
        f"Try it: opendino eval knn {config.out} --train DIR --val DIR"
    )
    fields = {
        "path": config.out,
        "recognized": imported.about,
        "networks": networks,
        "fingerprint": model.fingerprint,
    }
    return Outcome(text, fields)
