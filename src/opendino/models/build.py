"""Backbones by name: our ViTs as `vit_small/16`, anything else is timm's."""

from __future__ import annotations

import inspect
import re
from typing import Any

from opendino.core.contracts import Backbone
from opendino.core.errors import UsageError, unknown
from opendino.models.conv4 import Conv4
from opendino.models.vit import SIZES, VisionTransformer


def backbone(
    name: str, *, image_px: int = 224, drop_path: float = 0.0, num_registers: int = 0, **kwargs: Any
) -> Backbone:
    """Build a backbone with fresh weights. `backbone(b.name, **b.kwargs)` rebuilds the architecture of any `b`.

    Args:
        name: `vit_tiny/16`, `vit_small/8`, `vit_base/14`: ours, any patch size after the slash. `vit/4` with
            `embed_dim`, `depth`, `num_heads`: ours, any size. `resnet50`, `timm:convnext_atto`: any model of timm.
            `resnet18/3x3`: a timm ResNet with a stem for small images. `conv4`: four convolutions, for demos.
        image_px: Side of the images the network is made for; others work too.
        drop_path: Stochastic depth of the last block.
        num_registers: Register tokens (ours only; timm's have them by name).
        **kwargs: Passed to `VisionTransformer` or to `timm.create_model`.

    Raises:
        UsageError: No such name or option.
        UserError: The sizes do not fit together.
    """
    family = name.partition("/")[0]
    if family == "vit" or family in SIZES:
        return _vit(name, dict(kwargs, image_px=image_px, drop_path=drop_path, num_registers=num_registers))
    if num_registers:
        raise UsageError(
            f"num_registers {num_registers} cannot be added to '{name}'",
            f"Choose one of ours ({', '.join(backbone_names())}) or a timm model with registers by name (*_reg4_*)",
        )
    if name == "conv4":
        _check_options(name, kwargs, Conv4)
        return Conv4(**kwargs)
    from opendino.models.timm_backbone import TimmBackbone

    return TimmBackbone(name.removeprefix("timm:"), image_px=image_px, drop_path=drop_path, **kwargs)


def patch_px(name: str) -> int:
    """What the sides of its images must be multiples of, by its name; 16 for networks that do not mind."""
    found = re.search(r"^vit[a-z_]*/(\d+)$|patch(\d+)", name)
    return int(found[1] or found[2]) if found else 16


def backbone_names() -> list[str]:
    """Our backbones with the usual patch sizes; every name of `timm.list_models()` works as well."""
    return ["conv4", *(f"{family}/{patch}" for family in SIZES for patch in (16, 8))]


def _vit(name: str, options: dict[str, Any]) -> VisionTransformer:
    family, _, patch = name.partition("/")
    if not (patch.isascii() and patch.isdecimal() and int(patch) > 0):
        raise UsageError(f"'{name}' lacks a patch size in pixels", f"Write {family}/16 for patches of 16×16 px")
    _check_options(name, options, VisionTransformer)
    built = VisionTransformer(patch_px=int(patch), **{**SIZES.get(family, {}), **options})
    built.name, built.kwargs = name, options
    return built


def _check_options(name: str, options: dict[str, Any], built: type[Backbone]) -> None:
    known = set(inspect.signature(built).parameters) - {"patch_px"}
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
