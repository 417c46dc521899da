"""Low-rank adapters (LoRA) in the linear layers of a network, by the library peft."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from opendino.core.contracts import Backbone
from opendino.core.errors import UsageError, UserError

N = TypeVar("N", bound=nn.Module)


def add_adapters(backbone: Backbone, rank: int) -> None:
    """Freeze a network, and add an adapter to each of its linear layers; only the adapters are trained then.

    A layer's output becomes W·x + b + B·A·x, where A is `[rank in]`, B is `[out rank]`, and B is 0 at first, so the
    network still computes the same (Hu et al. 2021, arXiv:2106.09685; with α equal to the rank).

    Args:
        backbone: Changed in place; also on the meta device.
        rank: Rank of B·A, at least 1.

    Raises:
        UserError: peft is not installed, or the network has no linear layers.
        UsageError: Adapters of this rank are no smaller than the layers.
    """
    layers = _linear_layers(backbone)
    if not layers:
        raise UserError(
            f"{backbone.name} has no linear layers that adapters of lora_rank {rank} could be added to",
            "Train all of its weights (--method.lora-rank 0), or start from a vision transformer",
        )
    added = sum(rank * (layer.in_features + layer.out_features) for layer in layers.values())
    if added >= (whole := sum(layer.weight.numel() for layer in layers.values())):
        raise UsageError(
            f"Adapters of lora_rank {rank} have {added:,} weights, and the linear layers of {backbone.name} {whole:,}",
            "Use a lower rank, e.g. --method.lora-rank 8, or train all weights: --method.lora-rank 0",
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(f"lora_rank {rank} needs peft", 'pip install "opendino[finetune]"') from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers)), backbone)


def with_merged_adapters(network: N) -> N:
    """A copy of a network whose linear layers are plain again, each with B·A added to its weight."""
    from peft.tuners.lora import Linear

    merged = copy.deepcopy(network)
    for name, layer in list(merged.named_modules()):
        if isinstance(layer, Linear):
            layer.merge()
            merged.set_submodule(name, layer.get_base_layer())
    for module in merged.modules():
        if hasattr(module, "peft_config"):
            del module.peft_config
    return merged.requires_grad_(True)


def _linear_layers(backbone: Backbone) -> dict[str, nn.Linear]:
    """The linear layers by name that the network calls.

    Not those that it reads the weight of: nothing would come through their adapters. These are the projections of
    `nn.MultiheadAttention`, which are of a subclass, and in timm those of attention with separate biases (`q_bias`).
    """
    return {
        name: layer
        for name, layer in backbone.named_modules()
        if type(layer) is nn.Linear
        and not (name.endswith("qkv") and hasattr(backbone.get_submodule(name.rpartition(".")[0]), "q_bias"))
    }
