"""State-dict keys of Hugging Face transformers, translated from and to those of DINO, torchvision and timm."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from opendino.models.vit import VisionTransformer

_VIT = (
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(?=cls_token|mask_token|register_tokens)", ""),
    (r"^(encoder\.|model\.)?layer\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(attention\.(?=query|key|value))?", ".attn."),
    (r"\.attn\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attn\.([qkv])(uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(?<!attn)\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
)
"""ViT keys of transformers → of the original code."""
_CONVNEXT = (
    (r"^model\.", ""),
    (r"^stages\.0\.downsample_layers\.", "stem."),
    (r"\.downsample_layers\.", ".downsample."),
    (r"\.layers\.", ".blocks."),
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.layer_norm\.", ".norm."),
    (r"\.pointwise_conv(\d)\.", r".mlp.fc\1."),
    (r"^layer_norm\.", "head.norm."),
)
"""ConvNeXt keys of transformers → of timm."""
_RESNET = (
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^classifier\.1\.", "fc."),
)
"""ResNet keys of transformers → of torchvision."""


def vit_to_dino(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' ViT, DINOv2 or DINOv3 → by the original keys, with one qkv matrix."""
    state = {_renamed(key, _VIT): value for key, value in tree.items()}
    gated = "blocks.0.mlp.gate_proj.weight" in state
    mlp_names = {"gate_proj": "w1", "up_proj": "w2" if gated else "fc1", "down_proj": "w3" if gated else "fc2"}
    for key in list(state):
        if found := re.search(r"\.mlp\.(gate_proj|up_proj|down_proj)\.", key):
            state[key.replace(found[1], mlp_names[found[1]])] = state.pop(key)
    for key in [key for key in state if re.search(r"\.attn\.q\.(weight|bias)$", key)]:
        query = state.pop(key)
        parts = [state.pop(key.replace(".q.", f".{part}."), torch.zeros_like(query)) for part in "kv"]
        state[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([query, *parts])
    return state


def convnext_to_timm(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' DINOv3 ConvNeXt → by the keys of timm."""
    return {_renamed(key, _CONVNEXT): value for key, value in tree.items()}


def resnet_to_torchvision(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' ResNet → by the keys of torchvision."""
    state = {}
    for key, value in tree.items():
        key = re.sub(r"^encoder\.stages\.(\d)\.layers\.(\d+)\.", lambda at: f"layer{int(at[1]) + 1}.{at[2]}.", key)
        key = re.sub(r"\.layer\.(\d)\.convolution\.", lambda at: f".conv{int(at[1]) + 1}.", key)
        key = re.sub(r"\.layer\.(\d)\.normalization\.", lambda at: f".bn{int(at[1]) + 1}.", key)
        state[_renamed(key, _RESNET)] = value
    return state


def vit_from_dino(own: VisionTransformer) -> dict[str, Tensor]:
    """Weights of our ViT by the keys of transformers: `ViTModel`, or `Dinov2WithRegistersModel` with registers."""
    state, width = own.state_dict(), own.embed_dim
    plain = not own.num_registers
    found = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    if plain:
        found |= {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    else:
        found |= {
            "embeddings.register_tokens": state["reg_token"],
            "embeddings.mask_token": torch.zeros(1, width),
        }
    names = {
        "norm1": "layernorm_before" if plain else "norm1",
        "norm2": "layernorm_after" if plain else "norm2",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense" if plain else "mlp.fc1",
        "mlp.fc2": "output.dense" if plain else "mlp.fc2",
    }
    for i in range(len(own.blocks)):
        mine, other = f"blocks.{i}", f"encoder.layer.{i}"
        for kind in ("weight", "bias"):
            for name, new in names.items():
                found[f"{other}.{new}.{kind}"] = state[f"{mine}.{name}.{kind}"]
            parts = state[f"{mine}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                found[f"{other}.attention.attention.{name}.{kind}"] = part
        if not plain:
            found |= {f"{other}.layer_scale{n}.lambda1": torch.ones(width) for n in (1, 2)}
    return found


def resnet_from_torchvision(network: nn.Module) -> dict[str, Tensor]:
    """Weights of timm's or torchvision's ResNet by the keys of transformers' `ResNetModel`."""
    found = {}
    for key, value in network.state_dict().items():
        key = re.sub(r"^conv1\.", "embedder.embedder.convolution.", key)
        key = re.sub(r"^bn1\.", "embedder.embedder.normalization.", key)
        key = re.sub(r"^layer(\d)\.(\d+)\.", lambda at: f"encoder.stages.{int(at[1]) - 1}.layers.{at[2]}.", key)
        key = re.sub(r"\.conv(\d)\.", lambda at: f".layer.{int(at[1]) - 1}.convolution.", key)
        key = re.sub(r"\.bn(\d)\.", lambda at: f".layer.{int(at[1]) - 1}.normalization.", key)
        key = key.replace(".downsample.0.", ".shortcut.convolution.")
        found[key.replace(".downsample.1.", ".shortcut.normalization.")] = value
    return found


def _renamed(key: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in patterns:
        key = re.sub(pattern, new, key)
    return key
