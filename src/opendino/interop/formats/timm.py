"""Import and export timm models: folders of timm on the Hub (config.json and weights), or files with timm's keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opendino.core import log
from opendino.core.errors import UserError, first_line
from opendino.core.ranges import Checked
from opendino.interop import architectures, compare_outputs, timm_folder
from opendino.interop.checkpoint_files import Checkpoint, Imported
from opendino.interop.model_card import card
from opendino.models.description import check_kwargs
from opendino.models.load import Model
from opendino.models.timm_backbone import TimmBackbone, described_preprocessing, published_preprocessing

_PLAIN = {192: ("tiny", (16,)), 384: ("small", (8, 16, 32)), 768: ("base", (8, 16, 32)), 1024: ("large", (16, 32))}
"""timm's standard ViTs by width: size name, and patch sizes in pixels."""
_DINOV2 = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
_DINOV3 = {
    (192, False): "tiny", (384, False): "small", (384, True): "small_plus", (768, False): "base",
    (1024, False): "large", (1280, True): "huge_plus", (4096, True): "7b",
}  # fmt: skip
"""DINOv3 size names by (width, gated MLP?)."""


_INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


def recognizes(checkpoint: Checkpoint) -> bool:
    """config.json or the user names an architecture of timm, or the shapes match only one."""
    return isinstance((checkpoint.config or {}).get("architecture"), str) or guess(checkpoint.state) is not None


def read(checkpoint: Checkpoint) -> Imported:
    """Read any model of timm; a linear classifier on its features is kept.

    Raises:
        UserError: There is no such model, a key is unknown or missing, a shape is wrong, or a value is not finite.
    """
    config, source = checkpoint.config or {}, f"'{checkpoint.path}'"
    name = config.get("architecture") or guess(checkpoint.state)
    if not checkpoint.state:
        raise UserError(f"{source} holds no single state dict with timm's keys", "Leave --architecture out")
    if timm_folder.OURS in config:
        ours = timm_folder.read_ours(config[timm_folder.OURS], checkpoint.state, source)
        wanted = described_preprocessing(config.get("pretrained_cfg") or {})
        own = config[timm_folder.OURS]
        wanted |= {key: own[key] for key in timm_folder.IMAGE_KEYS if key in own}
        return Imported({"teacher": ours}, wanted, f"{ours.name}, exported by opendino for timm")
    if ":" in str(name):
        raise UserError(f"'{name}' is an address, not an architecture of timm", "Download it, then import the folder")
    try:
        described, options = dict(config.get("pretrained_cfg") or {}), dict(config.get("model_args") or {})
        pool = options.get("global_pool") or config.get("global_pool")
        for option in ("img_size", "in_chans", "num_classes", "drop_path_rate", "global_pool"):
            options.pop(option, None)
        wanted = described_preprocessing(described) if described else published_preprocessing(str(name))
        if not config:
            mean, std = (" ".join(f"{value:g}" for value in wanted[key]) for key in ("mean", "std"))
            log.warn(
                f"{source} does not say how its images were normalized: as for timm's {name}, mean {mean}, std {std}. "
                "If that is wrong, change both in backbone.json"
            )
        if wanted["interpolation"] not in _INTERPOLATIONS:
            raise UserError(
                f"{source} needs the interpolation {wanted['interpolation']!r}",
                f"Supported: {', '.join(_INTERPOLATIONS)}",
            )
        options |= {"global_pool": pool} if pool else {}
        check_kwargs(str(name), options, source)
        heads, first = (_names(str(name), config, key) for key in ("classifier", "first_conv"))
        options |= architectures.channels(checkpoint.state, f"{first[0]}.weight") if first else {}
        top = {key: value for key, value in checkpoint.state.items() if key.startswith(heads)}
        rest = {key: value for key, value in checkpoint.state.items() if key not in top}
        network = backbone(str(name), rest, source, wanted["image_px"], **options)
    except UserError:
        raise
    except Exception as error:  # timm raises many types for an invalid config.json
        raise UserError(
            f"timm cannot build '{name}' as {source} describes it: {first_line(error)}", "Choose another --architecture"
        ) from error
    heads = tuple(f"{head}." for head in heads)
    ours = len(heads) == 1 and top.keys() == {f"{heads[0]}weight", f"{heads[0]}bias"}  # other classifiers are dropped
    ours = ours and top[f"{heads[0]}weight"].shape[1:] == (network.embed_dim,)
    linear = architectures.classifier(top, heads[0], source) if ours else None
    about = f"{network.name} of timm" + (f", {linear.out_features:,} classes" if linear else "")
    return Imported({"teacher": network}, sized(wanted, network), about, linear)


@dataclass(frozen=True)
class Config(Checked):
    """No options."""


def write(model: Model, out: Path, config: Config) -> float:
    """Write a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`, without classifier.

    timm's own transforms know no range of values: those of images that are no photographs have to be mapped to 0..1
    first, as the model card says. `opendino import` reads names and range back. A model that takes each channel by
    itself becomes its network of one channel; the card says so, and `opendino import` joins the channels again.

    Returns:
        The largest difference of the features, at the image size of the model.

    Raises:
        UserError: timm has no such architecture, or loads a different network.
    """
    import timm

    model = timm_folder.network_at_its_size(model)
    loading = f'import timm\nmodel = timm.create_model("local-dir:{out.name}", pretrained=True).eval()'
    remarks = (
        "" if isinstance(model.backbone, TimmBackbone) else
        "At image sizes other than that of training, timm resamples position embeddings differently, so features "
        "differ from opendino's, which follow DINO v1. `checkpoint_path=` takes `model.safetensors` together with "
        "`model_args` of `config.json`."
    )  # fmt: skip
    timm_folder.write_folder(model, out, card(model, "timm", loading, remarks))
    try:
        again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    except Exception as error:  # timm raises many types for models it cannot build
        raise UserError(
            f"timm cannot load the exported {model.backbone.name}: {first_line(error)}", "Choose another --to"
        ) from error
    images = compare_outputs.random_images(model)
    with torch.no_grad():
        return compare_outputs.largest_difference([model.embed(images)], [again(images)], "timm")


def backbone(
    name: str, state: dict[str, Tensor], source: str, image_px: int | None = None, **options: Any
) -> TimmBackbone:
    """Build a model of timm with these weights, for the image size of their position embeddings."""
    image_px = _image_px(state) or image_px or published_preprocessing(name)["image_px"]
    return architectures.timm(name, {**options, "image_px": image_px}, state, source)


def _names(name: str, config: dict[str, Any], key: str) -> tuple[str, ...]:
    """Layer names for `key`, "classifier" or "first_conv", of an architecture: from timm, or else from config.json."""
    import timm

    published = timm.get_pretrained_cfg(name)
    found = (published.to_dict() if published else config.get("pretrained_cfg") or {}).get(key) or ()
    return (found,) if isinstance(found, str) else tuple(found)


def sized(wanted: dict[str, Any], network: TimmBackbone) -> dict[str, Any]:
    """Scale a preprocessing to the image size of a network."""
    image_px: Any = network.kwargs["image_px"]
    return {**wanted, "image_px": image_px, "resize_px": wanted["resize_px"] * image_px // wanted["image_px"]}


def guess(state: dict[str, Tensor]) -> str | None:
    """Name of the timm model with these keys and shapes; None if it is ambiguous."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    width, patch = (sum(shapes.get(key, ())[-1:]) for key in ("cls_token", "patch_embed.proj.weight"))
    gated = "blocks.0.mlp.fc1_g.weight" in shapes
    if {"blocks.0.gamma_1", "reg_token"} <= shapes.keys() and patch == 16 and (width, gated) in _DINOV3:
        return f"vit_{_DINOV3[width, gated]}_patch16_dinov3{'_qkvb' if 'blocks.0.attn.q_bias' in shapes else ''}"
    if "pos_embed" not in shapes or "mask_token" in shapes:
        return None
    if "blocks.0.ls1.gamma" in shapes and patch == 14 and width in _DINOV2:
        return f"vit_{_DINOV2[width]}_patch14{'_reg4' if 'reg_token' in shapes else ''}_dinov2"
    if "head.weight" in shapes and width in _PLAIN and patch in _PLAIN[width][1]:
        return f"vit_{_PLAIN[width][0]}_patch{patch}_224"
    return None


def _image_px(state: dict[str, Tensor]) -> int | None:
    """Image side in pixels of the stored position embeddings (square grid, with or without CLS); None if unknown."""
    positions, patch = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    if positions is None or patch is None or positions.ndim != 3 or patch.ndim != 4:
        return None
    sides = (round(max(tokens, 0) ** 0.5) for tokens in (positions.shape[1], positions.shape[1] - 1))
    return next(
        (side * patch.shape[-1] for side in sides if side**2 in (positions.shape[1], positions.shape[1] - 1)), None
    )
