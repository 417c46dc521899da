"""Write and read model folders in the format of timm on the Hugging Face Hub."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from opendino.core import atomic_write
from opendino.core.contracts import Backbone
from opendino.core.errors import UserError
from opendino.interop import architectures
from opendino.models.build import build_on_meta, materialize
from opendino.models.description import check_network
from opendino.models.load import Model
from opendino.models.separate_channels import network_of
from opendino.models.timm_backbone import TimmBackbone
from opendino.models.vit import VisionTransformer
from opendino.models.weights import check_weights

OURS = "opendino"
"""Key in config.json that stores the original network of a folder exported by us, and how its images are read."""

IMAGE_KEYS = ("images", "mean", "std")
"""Parts of the preprocessing that it stores where images are no photographs."""


_OWN = ("image_px", "drop_path", "position_resampling")
"""Options of `TimmBackbone` that `timm.create_model` does not know."""


def network_at_its_size(model: Model) -> Model:
    """The model as other libraries can have it.

    Its position embeddings are stored for its image size, as others resample them differently. Where each channel goes
    through the network by itself, it is the network of one channel; the preprocessing stays that of all channels.
    """
    own, side = network_of(model.backbone), model.preprocessing["image_px"]
    if hasattr(own, "stored_for") and own.kwargs["image_px"] != side:
        assert isinstance(own, VisionTransformer | TimmBackbone)
        own = own.stored_for(side)
    return model if own is model.backbone else Model(own, model.preprocessing, model.description, which=model.which)


def write_folder(model: Model, out: Path, readme: str) -> None:
    """Write model.safetensors, config.json and README.md.

    Raises:
        UserError: timm has no such architecture.
    """
    architecture, arguments, state = _as_timm(model.backbone)
    own, wanted = model.backbone, model.preprocessing
    side = wanted["image_px"]
    known = own.model.pretrained_cfg if isinstance(own, TimmBackbone) else {}
    described = {
        "custom_load": False,
        "input_size": [own.in_chans, side, side],
        "fixed_input_size": "img_size" in arguments and "dynamic_img_size" not in arguments,
        "interpolation": wanted["interpolation"],
        "crop_pct": _crop_pct(side, wanted["resize_px"]),
        "crop_mode": "center",
        "mean": wanted["mean"][: own.in_chans],
        "std": wanted["std"][: own.in_chans],
        "num_classes": 0,
        "pool_size": None,
        "first_conv": known.get("first_conv", "patch_embed.proj"),
        "classifier": known.get("classifier", "head"),
    }
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": own.embed_dim,
        "pretrained_cfg": described,
        "model_args": arguments,
        OURS: {"name": own.name, "kwargs": own.kwargs}
        | ({key: wanted[key] for key in IMAGE_KEYS} if "images" in wanted else {}),
    }
    out.mkdir()
    weights = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    atomic_write.write(out / "model.safetensors", safetensors.torch.save(weights, metadata={"format": "pt"}))
    atomic_write.write(out / "config.json", json.dumps(config, indent=2, allow_nan=False) + "\n")
    atomic_write.write(out / "README.md", readme)


def read_ours(description: Any, state: dict[str, Tensor], source: str) -> Backbone:
    """Build a network that was written by `write_folder`, with its weights.

    Raises:
        UserError: The description is not valid, or the weights do not fit.
    """
    try:
        name, kwargs = check_network(description["name"], description["kwargs"], source)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{source} has no valid description of an opendino network: {error}", f'Remove "{OURS}" from it'
        ) from error
    on_meta = build_on_meta(name, kwargs, state, source)
    if isinstance(on_meta, VisionTransformer):
        registers, positions = on_meta.num_registers, state.get("pos_embed")
        if registers and positions is not None and positions.ndim == 3:
            state = {**state, "pos_embed": torch.cat([positions[:, :1], positions[:, 1 + registers :]], dim=1)}
    elif isinstance(on_meta, TimmBackbone):
        return architectures.timm(name, kwargs, state, source)
    check_weights(on_meta, state, source)
    network = materialize(on_meta)
    architectures.fill(network, state, source)
    return network


def _as_timm(own: Backbone) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(architecture, model arguments, weights) with timm's names."""
    if isinstance(own, VisionTransformer):
        return _vit_as_timm(own)
    if not isinstance(own, TimmBackbone) or own.name.endswith("/3x3"):
        what = "ResNet with a 3×3 stem" if own.name.endswith("/3x3") else own.name
        raise UserError(f"timm has no {what}", "Use --to opendino, onnx or torch-export")
    arguments: dict[str, Any] = {key: own.kwargs[key] for key in own.kwargs if key not in _OWN}
    if getattr(getattr(own.model, "patch_embed", None), "img_size", None):
        arguments["img_size"] = own.kwargs["image_px"]
    if hasattr(own.model, "dynamic_img_size"):
        arguments["dynamic_img_size"] = True
    return own.model.pretrained_cfg["architecture"], arguments, own.model.state_dict()


def _vit_as_timm(own: VisionTransformer) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Our ViT as timm's. timm adds position embeddings to registers, ours have none, so theirs are zeros."""
    kwargs: dict[str, Any] = own.kwargs
    block: Any = own.blocks[0]
    arguments = {
        "img_size": kwargs["image_px"],
        "patch_size": own.patch_px,
        "embed_dim": own.embed_dim,
        "depth": len(own.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / own.embed_dim,
        "dynamic_img_size": True,
    }
    if "in_chans" in kwargs:
        arguments["in_chans"] = kwargs["in_chans"]
    state = own.state_dict()
    if own.num_registers:
        arguments["reg_tokens"] = own.num_registers
        positions = state["pos_embed"]
        zeros = positions.new_zeros(1, own.num_registers, own.embed_dim)
        state["pos_embed"] = torch.cat([positions[:, :1], zeros, positions[:, 1:]], dim=1)
    sizes = {192: "tiny", 384: "small", 768: "base"}
    return f"vit_{sizes.get(own.embed_dim, 'small')}_patch16_224", arguments, state


def _crop_pct(image_px: int, resize_px: int) -> float:
    """`crop_pct` from which timm computes `resize_px`: it rounds image_px / crop_pct down."""
    crop_pct = image_px / resize_px
    return crop_pct if math.floor(image_px / crop_pct) == resize_px else math.nextafter(crop_pct, 0)
