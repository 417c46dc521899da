"""Networks built from the shapes of their weights, and weights put into them."""

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
"""By (bottlenecks?, blocks of each stage), He et al. 2016, table 1."""
_CONVNEXTS: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {
    ((3, 3, 9, 3), (96, 192, 384, 768)): "convnext_tiny", ((3, 3, 27, 3), (96, 192, 384, 768)): "convnext_small",
    ((3, 3, 27, 3), (128, 256, 512, 1024)): "convnext_base", ((3, 3, 27, 3), (192, 384, 768, 1536)): "convnext_large",
}  # fmt: skip
"""By (blocks, width) of each stage, Liu et al. 2022, section 3."""


def is_vit(state: Mapping[str, Tensor]) -> bool:
    """Has it the tokens and the patch projection of a vision transformer by the keys of DINO and timm?"""
    wanted = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    return has(wanted, state)


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    """Has it the stem and the stages of a ResNet by torchvision's keys?"""
    return has({"conv1.weight": 4, "bn1.weight": 1, "layer4.0.conv1.weight": 4}, state)


def has(wanted: Mapping[str, int], state: Mapping[str, Tensor]) -> bool:
    """Has it these keys, with so many dimensions?"""
    return all(key in state and state[key].ndim == ndim for key, ndim in wanted.items())


def vit(state: Mapping[str, Tensor], source: str, heads: int | None = None) -> Backbone:
    """A vision transformer as DINO v1 has it, with these weights.

    Args:
        state: By the keys of DINO v1.
        source: What to call it in an error.
        heads: Of its attention; 64 numbers a head where None, as in every published one.

    Raises:
        UserError: It is another kind of network, or its weights are not finite numbers.
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
    """A ResNet-18, 34, 50, 101 or 152 without its classifier, with these weights.

    Args:
        state: By torchvision's keys, without `fc`.
        source: What to call it in an error.

    Raises:
        UserError: It is another kind of network, or its weights are not finite numbers.
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
    """A ConvNeXt of any depths and widths, with these weights.

    Args:
        state: By timm's keys, without a classifier.
        source: What to call it in an error.
        image_px: Side of the images it is used on.

    Raises:
        UserError: It is another kind of network, or its weights are not finite numbers.
    """
    depths = tuple(count(state, rf"stages\.{stage}\.blocks\.(\d+)\.") for stage in range(4))
    widths = tuple(state[key].numel() if (key := f"stages.{i}.blocks.0.gamma") in state else 0 for i in range(4))
    name = _CONVNEXTS.get((depths, widths))
    sizes = {} if name else {"depths": list(depths), "dims": list(widths)}
    options = {"image_px": image_px, **sizes, **channels(state, "stem.0.weight")}
    return timm(name or "convnext_tiny", options, state, source)


def timm(name: str, kwargs: dict[str, Any], state: Mapping[str, Tensor], source: str) -> TimmBackbone:
    """A model of timm with these weights; none is made that is larger than they are.

    Args:
        name: Of timm.
        kwargs: As for `TimmBackbone`.
        state: By timm's keys, without a classifier.
        source: What to call it in an error.

    Raises:
        UserError: There is no such model, the weights do not fit it, or one is not finite.
    """
    on_meta = build_on_meta(name, kwargs, state, source)
    assert isinstance(on_meta, TimmBackbone)
    check_weights(on_meta.model, {**_counters(on_meta.model), **state}, source)
    network = materialize(on_meta)
    assert isinstance(network, TimmBackbone)
    fill(network.model, state, source)
    return network


def channels(state: Mapping[str, Tensor], first: str) -> dict[str, int]:
    """The option `in_chans` by the first convolution's weights, nothing where they are for three."""
    found = state[first].shape[1] if first in state and state[first].ndim == 4 else 3
    return {} if found == 3 else {"in_chans": found}


def ratio(hidden: int, width: int) -> float:
    """The number that makes `hidden` of `width` where the product is rounded down."""
    exact = hidden / max(width, 1)
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def num_heads(width: int, told: int | None, source: str) -> int:
    """Heads of an attention: what the user says, else 64 numbers a head, as in every published ViT but the largest.

    Raises:
        UserError: The width cannot be shared so.
    """
    if told is None and (width % 64 or not width):
        raise UserError(
            f"{source} is {width} wide, from which the heads of its attention cannot be told",
            "Say how many: --num-heads N",
        )
    return told or width // 64


def classifier(state: Mapping[str, Tensor], prefix: str, source: str) -> nn.Linear | None:
    """The linear layer under `prefix`, None where there is none.

    Raises:
        UserError: What is there is no linear layer.
    """
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not own:
        return None
    if own.keys() != {"weight", "bias"} or own["weight"].ndim != 2:
        raise UserError(f"{source} has {prefix}{min(own)}, no linear classifier", "Save the network without it")
    classes, width = own["weight"].shape
    linear = nn.Linear(width, classes)
    fill(linear, own, source)
    return linear


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put weights into a module, strictly.

    Raises:
        UserError: Keys, shapes or kinds of numbers differ, or one is not finite.
    """
    load_foreign_weights(module, {**_counters(module), **state}, source)


def _counters(module: nn.Module) -> dict[str, Tensor]:
    """Counters of batches, which normalize nothing and are absent from files older than they are."""
    return {key: value for key, value in module.state_dict().items() if key.endswith(".num_batches_tracked")}


def count(keys: Iterable[str], pattern: str) -> int:
    """How many different numbers stand where the pattern has its group."""
    return len({found[1] for key in keys if (found := re.match(pattern, key))})
