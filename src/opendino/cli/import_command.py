"""Import a checkpoint of another library: opendino import CHECKPOINT --out MODEL"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from opendino.cli import Outcome, flags
from opendino.core.progress import waiting
from opendino.core.ranges import Checked, Width
from opendino.interop.importing import import_model


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino import`."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A DINO v1, v2 or v3, timm or torchvision file (.pth, .safetensors), or a Hugging Face or timm folder."""
    out: str
    """Model folder to write."""
    architecture: str | None = None
    """timm name of the architecture, if the file does not determine it, e.g. convnext_tiny."""
    num_heads: Width | None = None
    """Number of attention heads of a DINO v1 ViT, if its head dimension is not 64."""


def run(args: list[str]) -> Outcome:
    """Detect the layout, check every weight, and write a model folder."""
    config = flags.parse(
        Config,
        args,
        "opendino import",
        "Import a checkpoint of another library. No code in the checkpoint is executed.",
    )
    with waiting("reading and checking the weights"):
        imported, model = import_model(config.checkpoint, config.out, config.architecture, config.num_heads)
    networks = list(imported.networks)
    millions = sum(weight.numel() for weight in model.backbone.parameters()) / 1e6
    text = (
        f"{imported.about}\n"
        f"{' and '.join(networks)}, {millions:.1f} million parameters{' each' if len(networks) > 1 else ''}, "
        f"feature dimension {model.backbone.embed_dim} → {config.out}\n"
        f"Try it: opendino eval knn {config.out} --train DIR --val DIR"
    )
    fields = {
        "path": config.out,
        "recognized": imported.about,
        "networks": networks,
        "fingerprint": model.fingerprint,
    }
    return Outcome(text, fields)
