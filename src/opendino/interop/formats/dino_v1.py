"""Import and export files of the original DINO (Caron et al. 2021): full checkpoints, and files of a backbone alone.

A full checkpoint is {"student": {"module.backbone.…", "module.head.…"}, "teacher": {"backbone.…", "head.…"}, …}. The
backbone is a ViT by the keys of `models.vit`, or a ResNet by torchvision's. A file of a backbone alone has the same
keys without prefix; `formats.torchvision` reads a ResNet without prefix.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opendino.core import atomic_write, log
from opendino.core.contracts import Backbone
from opendino.core.errors import UserError
from opendino.core.ranges import Checked
from opendino.interop import architectures, checkpoint_files
from opendino.interop.checkpoint_files import Checkpoint, Imported
from opendino.interop.model_card import images_as_text
from opendino.models.load import Model, load, preprocessing
from opendino.models.separate_channels import SeparateChannels
from opendino.models.timm_backbone import TimmBackbone
from opendino.models.vit import VisionTransformer

# The last layer is weight-normalized; in early files the head has other names.
_HEAD = re.compile(
    r"head\.mlp\.(\d+\.(weight|bias|running_mean|running_var|num_batches_tracked)|weight|bias)"
    r"|head\.last_layer\.(weight|weight_g|weight_v|parametrizations\.weight\.original[01])"
    r"|(projection_head|prototypes)\.[\w.]+"
)


def recognizes(checkpoint: Checkpoint) -> bool:
    """Student and teacher with the prefix `backbone.`, or the keys of a ViT without layer scale and classifier."""
    if "architecture" in (checkpoint.config or {}):
        return False
    parts = [_parts(state) for state in checkpoint.networks.values()]
    full = "teacher" in checkpoint.tree or "student" in checkpoint.tree
    known = [_is_plain_vit(backbone) or (full and architectures.is_resnet(backbone)) for backbone, _ in parts]
    return bool(known) and all(known)


def read(checkpoint: Checkpoint) -> Imported:
    """Read teacher and student, or the single network; keys of heads are checked and dropped.

    Raises:
        UserError: A key is unknown or missing, a shape is wrong, or a value is not finite.
    """
    networks, prototypes = {}, 0
    for which, state in checkpoint.networks.items():
        source = f"the {which} of '{checkpoint.path}'" if len(checkpoint.networks) > 1 else f"'{checkpoint.path}'"
        backbone, rest = _parts(state)
        if unknown := [key for key in rest if not _HEAD.fullmatch(key)]:
            raise UserError(f"{source} has {unknown[0]}, part of neither backbone nor head", "Is it of another method?")
        last = [value.shape[:1] for key, value in rest.items() if key.startswith("head.last_layer.weight")]
        prototypes = max(prototypes, *(rows for shape in last for rows in shape), 0)
        networks[which] = _network(backbone, source, checkpoint.config or {})
    first = next(iter(networks.values()))
    if any((other.name, other.kwargs) != (first.name, first.kwargs) for other in networks.values()):
        names = " and ".join(f"{which} {network.name}" for which, network in networks.items())
        raise UserError(
            f"'{checkpoint.path}' holds networks of different shapes: {names}", "Save one of the two to a separate file"
        )
    return Imported(networks, preprocessing(int(str(first.kwargs["image_px"]))), _about(checkpoint, first, prototypes))


@dataclass(frozen=True)
class Config(Checked):
    """Options of the DINO v1 export."""

    with_student: str | None = None
    """Run or model folder whose student is also exported: the file is {"teacher", "student"} instead of a backbone."""


def write(model: Model, out: Path, config: Config) -> float:
    """Write weights by the original keys with `torch.save`.

    The format has no field for the preprocessing: where images are no photographs, a warning states their range.

    Returns:
        The largest difference of features on random images after reading the file back.

    Raises:
        UserError: DINO v1 has no such architecture, or there is no such student.
    """
    state: dict[str, Any] = _state(model.backbone)
    if config.with_student is not None:
        student = _state(load(config.with_student, "student").backbone)
        state = {
            "student": {f"module.backbone.{key}": value for key, value in student.items()},
            "teacher": {f"backbone.{key}": value for key, value in state.items()},
        }
    if "images" in model.preprocessing:
        log.warn(f"a file of DINO v1 holds no preprocessing; keep it: {images_as_text(model.preprocessing)}")
    content = io.BytesIO()
    torch.save(state, content)
    atomic_write.write(out, content.getvalue())
    kwargs: dict[str, Any] = model.backbone.kwargs
    again = replace(checkpoint_files.read(out), config={"num_heads": kwargs.get("num_heads")})
    side = model.preprocessing["image_px"]
    images = torch.rand(2, model.backbone.in_chans, side, side)
    with torch.no_grad():
        found = read(again).networks["teacher"].eval()([images])[0]
        return float((found - model.backbone([images])[0]).abs().max())


def _parts(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state dict into (backbone without prefix, rest); all of it is backbone if no key has `backbone.`."""
    inside = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    return (inside, {key: state[key] for key in state if not key.startswith("backbone.")}) if inside else (state, {})


def _is_plain_vit(state: dict[str, Tensor]) -> bool:
    foreign_keys = {"mask_token", "head.weight", "blocks.0.ls1.gamma", "reg_token"}
    return architectures.is_vit(state) and not foreign_keys & state.keys()


def _network(state: dict[str, Tensor], source: str, config: dict[str, Any]) -> Backbone:
    if architectures.is_resnet(state):
        return architectures.resnet(state, source)
    return architectures.vit(state, source, config.get("num_heads"))


def _about(checkpoint: Checkpoint, backbone: Backbone, prototypes: int) -> str:
    kwargs: dict[str, Any] = backbone.kwargs
    epoch = checkpoint.tree.get("epoch")
    kind = "full checkpoint" if prototypes else "backbone"
    parts = [f"{kind} of {backbone.name} with the keys of DINO v1"]
    if isinstance(backbone, VisionTransformer):
        block: Any = backbone.blocks[0]
        parts.append(f"for {kwargs['image_px']} px, {len(backbone.blocks)} blocks of {block.attn.num_heads} heads")
    if isinstance(epoch, int) and 0 < epoch < 10**6:
        parts.append(f"after {epoch} epochs")
    if prototypes:
        parts.append(f"its heads of {prototypes:,} prototypes are not imported")
    return ", ".join(parts)


def _state(backbone: Backbone) -> dict[str, Tensor]:
    """Weights by the original keys.

    Raises:
        UserError: DINO v1 has no such architecture, or the file could not say that each channel goes through by itself.
    """
    if isinstance(backbone, SeparateChannels):
        raise UserError(
            "The model takes each channel by itself, and a file of DINO v1 has no place to say so",
            "Use --to opendino, timm, huggingface, onnx or torch-export",
        )
    if isinstance(backbone, VisionTransformer) and not backbone.num_registers:
        state = backbone.state_dict()
    elif isinstance(backbone, TimmBackbone) and architectures.is_resnet(backbone.model.state_dict()):
        state = backbone.model.state_dict()
    else:
        raise UserError(
            f"DINO v1 has no {backbone.name}, only ViTs without registers and ResNets", "Choose another --to"
        )
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}
