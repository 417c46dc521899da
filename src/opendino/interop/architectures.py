"""Infer the architecture from the shapes of weights, build the network and load the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from opendino.core.contracts import Backbone
from opendino.core.errors import UserError
from opendino.models.build import build_on_meta, materialize
from opendino.models.timm_backbone import TimmBackbone
from opendino.models.vit import SIZES
from opendino.models.weights import check_weights, load_foreign_weights

_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18", (False, (3, 4, 6, 3)): "resnet34", (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101", (True, (3, 8, 36, 3)): "resnet152",
}  # fmt: skip
"""ResNet names by (bottleneck blocks?, blocks per stage); He et al. 2016, table 1."""
_CONVNEXTS: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {
    ((3, 3, 9, 3), (96, 192, 384, 768)): "convnext_tiny", ((3, 3, 27, 3), (96, 192, 384, 768)): "convnext_small",
    ((3, 3, 27, 3), (128, 256, 512, 1024)): "convnext_base", ((3, 3, 27, 3), (192, 384, 768, 1536)): "convnext_large",
}  # fmt: skip
"""ConvNeXt names by (blocks, widths) per stage; Liu et al. 2022, section 3."""


def is_vit(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the tokens and the patch projection of a ViT by the keys of DINO and timm."""
    wanted = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    return has(wanted, state)


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the stem and the stages of a ResNet by torchvision's keys."""
    return has({"conv1.weight": 4, "bn1.weight": 1, "layer4.0.conv1.weight": 4}, state)


def has(wanted: Mapping[str, int], state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has all `wanted` keys, each with the given number of dimensions."""
    return all(key in state and state[key].ndim == ndim for key, ndim in wanted.items())


def vit(state: Mapping[str, Tensor], source: str, heads: int | None = None) -> Backbone:
    """Build our vision transformer with these weights.

    Args:
        state: Weights by the keys of DINO v1.
        source: Name of the weights, for errors.
        heads: Number of attention heads; None for a head width of 64, as in every published model.

    Raises:
        UserError: The weights are of another architecture or not finite.
    """
    patch, width = state["patch_embed.proj.weight"], state["cls_token"].shape[-1]
    depth, side = count(state, r"blocks\.(\d+)\."), round(max(0, state["pos_embed"].shape[1] - 1) ** 0.5)
    sizes = {"embed_dim": width, "depth": depth, "num_heads": num_heads(width, heads, source)}
    options: dict[str, Any] = {"image_px": side * patch.shape[-1]}
    if "reg_token" in state:
        options["num_registers"] = state["reg_token"].shape[1]
    if patch.shape[1] != 3:
        options["in_chans"] = patch.shape[1]
    hidden = len(state["blocks.0.mlp.fc1.weight"])
    if hidden != 4 * width:
        options["mlp_ratio"] = ratio(hidden, width)
    family = next((name for name, known in SIZES.items() if known == sizes), "vit")
    name = f"{family}/{patch.shape[-1]}"
    on_meta = build_on_meta(name, {**options, **(sizes if family == "vit" else {})}, state, source)
    check_weights(on_meta, state, source)
    network = materialize(on_meta)
    fill(network, state, source)
    return network


def resnet(state: Mapping[str, Tensor], source: str) -> Backbone:
    """Build a ResNet-18, 34, 50, 101 or 152 without classifier, with these weights.

    Args:
        state: Weights by torchvision's keys, without `fc`.
        source: Name of the weights, for errors.

    Raises:
        UserError: The weights are of another architecture or not finite.
    """
    blocks = tuple(count(state, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    name = _RESNETS.get(("layer1.0.conv3.weight" in state, blocks))
    if name is None:
        raise UserError(
            f"{source} is a ResNet of {'-'.join(map(str, blocks))} blocks, not 18, 34, 50, 101 or 152",
            "If timm has it: --architecture NAME",
        )
    stem = "/3x3" if state["conv1.weight"].shape[-1] == 3 else ""
    return timm(f"{name}{stem}", {"image_px": 224, **channels(state, "conv1.weight")}, state, source)


def convnext(state: Mapping[str, Tensor], source: str, image_px: int) -> TimmBackbone:
    """Build a ConvNeXt of any depths and widths, with these weights.

    Args:
        state: Weights by timm's keys, without classifier.
        source: Name of the weights, for errors.
        image_px: Side of the images the model is used on, in pixels.

    Raises:
        UserError: The weights are of another architecture or not finite.
    """
    depths = tuple(count(state, rf"stages\.{stage}\.blocks\.(\d+)\.") for stage in range(4))
    widths = tuple(state[key].numel() if (key := f"stages.{i}.blocks.0.gamma") in state else 0 for i in range(4))
    name = _CONVNEXTS.get((depths, widths))
    sizes = {} if name else {"depths": list(depths), "dims": list(widths)}
    options = {"image_px": image_px, **sizes, **channels(state, "stem.0.weight")}
    return timm(name or "convnext_tiny", options, state, source)


def timm(name: str, kwargs: dict[str, Any], state: Mapping[str, Tensor], source: str) -> TimmBackbone:
    """Build a model of timm with these weights; a description larger than its weights is refused.

    Args:
        name: Model name of timm.
        kwargs: As for `TimmBackbone`.
        state: Weights by timm's keys, without classifier.
        source: Name of the weights, for errors.

    Raises:
        UserError: There is no such model, the weights do not fit it, or a value is not finite.
    """
    on_meta = build_on_meta(name, kwargs, state, source)
    assert isinstance(on_meta, TimmBackbone)
    check_weights(on_meta.model, {**_counters(on_meta.model), **state}, source)
    network = materialize(on_meta)
    assert isinstance(network, TimmBackbone)
    fill(network.model, state, source)
    return network


def channels(state: Mapping[str, Tensor], first: str) -> dict[str, int]:
    """`{"in_chans": C}` from the weights of the first convolution; empty for three channels."""
    found = state[first].shape[1] if first in state and state[first].ndim == 4 else 3
    return {} if found == 3 else {"in_chans": found}


def ratio(hidden: int, width: int) -> float:
    """MLP ratio for which `int(width * ratio)` is `hidden`."""
    exact = hidden / max(width, 1)
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def num_heads(width: int, given: int | None, source: str) -> int:
    """Number of attention heads: the given one, else width / 64 as in every published ViT but the largest.

    Raises:
        UserError: None is given and the width is not a multiple of 64.
    """
    if given is None and (width % 64 or not width):
        raise UserError(
            f"{source} is {width} wide, not a multiple of 64, so its number of attention heads is unknown",
            "Give it with --num-heads N",
        )
    return given or width // 64


def classifier(state: Mapping[str, Tensor], prefix: str, source: str) -> nn.Linear | None:
    """Linear layer from the weights with `prefix`; None if there are none.

    Raises:
        UserError: These weights are not a linear layer.
    """
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not own:
        return None
    if own.keys() != {"weight", "bias"} or own["weight"].ndim != 2:
        raise UserError(
            f"{source} has {prefix}{min(own)}, which is not a linear classifier", "Save the network without it"
        )
    classes, width = own["weight"].shape
    linear = nn.Linear(width, classes)
    fill(linear, own, source)
    return linear


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a module; every key must match.

    Raises:
        UserError: Keys, shapes or kinds of dtype differ, or a value is not finite.
    """
    load_foreign_weights(module, {**_counters(module), **state}, source)


def _counters(module: nn.Module) -> dict[str, Tensor]:
    """BatchNorm's `num_batches_tracked`: not used in eval mode, and missing in files of old PyTorch versions."""
    return {key: value for key, value in module.state_dict().items() if key.endswith(".num_batches_tracked")}


def count(keys: Iterable[str], pattern: str) -> int:
    """Number of different matches of the pattern's first group among the keys, e.g. the number of blocks."""
    return len({found[1] for key in keys if (found := re.match(pattern, key))})
