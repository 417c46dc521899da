"""Import files of the original DINOv2 and DINOv3 (Oquab et al. 2024, Siméoni et al. 2025) as models of timm.

Both are ViTs with a mask token that only training uses. DINOv2 with registers adds a position embedding to CLS; timm
stores the sum. DINOv3 masks the key bias to zero; timm omits it, and the whole qkv bias if it is zero. Training
checkpoints of DINOv2 ("teacher": {"backbone.…", "dino_head.…"}) may number blocks by chunk, `blocks.0.3.…`. Width,
depth and patch size are inferred from the shapes.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from opendino.core.contracts import Backbone
from opendino.core.errors import UserError
from opendino.interop import architectures
from opendino.interop.checkpoint_files import Checkpoint, Imported
from opendino.interop.formats import timm
from opendino.models.load import preprocessing
from opendino.models.timm_backbone import published_preprocessing

_DEPTHS = {192: 12, 384: 12, 768: 12, 1024: 24, 1280: 32, 1536: 40, 4096: 40}
"""Number of blocks of the published models, by width."""
_USUAL_OPTIONS = {"image_px", "drop_path", "global_pool", "in_chans", "position_resampling"}
_HEAD = re.compile(r"(dino|ibot)_head\.[\w.]+")
_TRAINING_ONLY = re.compile(r"mask_token|rope_embed\.periods|local_cls_norm\.\w+|blocks\.\d+\.attn\.qkv\.bias_mask")
_RENAMED = (
    (r"^(register_tokens|storage_tokens)$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


def recognizes(checkpoint: Checkpoint) -> bool:
    """Mask token and CLS token, and layer scale with keys `ls1.gamma`."""
    states = [_bare(state) for state in checkpoint.networks.values()]
    wanted = {"cls_token": 3, "mask_token": 2, "patch_embed.proj.weight": 4, "blocks.0.ls1.gamma": 1}
    return bool(states) and all(architectures.has(wanted, state) for state in states)


def read(checkpoint: Checkpoint) -> Imported:
    """Read one network, or teacher and student of a training checkpoint; heads and mask token are dropped.

    Raises:
        UserError: The number of attention heads is unknown, a key is unknown or missing, a shape is wrong, or a value
            is not finite.
    """
    networks: dict[str, Backbone] = {}
    given_heads, patch = (checkpoint.config or {}).get("num_heads"), 0
    for which, original in checkpoint.networks.items():
        state, source = _by_timm(_bare(original)), f"the {which} of '{checkpoint.path}'"
        name, options = _architecture(state, given_heads, source)
        patch = state["patch_embed.proj.weight"].shape[-1]
        image_px = patch * round(256 / patch) or patch  # for DINOv3, which stores no position embeddings
        networks[which] = timm.backbone(name, state, source, image_px, **options)
    first = next(iter(networks.values()))
    version = "DINOv3" if "dinov3" in first.name else "DINOv2"
    side, own_px = patch * max(1, round(224 / patch)), int(str(first.kwargs["image_px"]))
    # The preprocessing of the original evaluations.
    wanted = preprocessing(min(side, own_px)) if version == "DINOv2" else published_preprocessing(first.name)
    if version == "DINOv3" and wanted["image_px"] % patch:
        wanted |= {"image_px": own_px, "resize_px": own_px}
    sizes = "" if first.kwargs.keys() <= _USUAL_OPTIONS else f", {first.embed_dim} wide with patches of {patch} px"
    return Imported(networks, wanted, f"{version}, as {first.name} of timm{sizes}")


def _architecture(state: dict[str, Tensor], given_heads: int | None, source: str) -> tuple[str, dict[str, Any]]:
    """Model name of timm and options for these shapes; sizes are in the options only if the model is not published."""
    projection = state["patch_embed.proj.weight"]
    width, patch = state["cls_token"].shape[-1], projection.shape[-1]
    v3, registers = "pos_embed" not in state, state["reg_token"].shape[1] if "reg_token" in state else 0
    options: dict[str, Any] = {"global_pool": "token", **architectures.channels(state, "patch_embed.proj.weight")}
    if not v3 and not registers:
        options["position_resampling"] = "dinov2"
    depth = architectures.count(state, r"blocks\.(\d+)\.")
    heads = 32 if given_heads is None and width == 4096 else architectures.num_heads(width, given_heads, source)
    up = next((key for key in ("blocks.0.mlp.fc1_g.weight", "blocks.0.mlp.fc1.weight") if key in state), None)
    if up is None:
        raise UserError(f"{source} has blocks without the MLP of DINOv2 or DINOv3", "Is it of another method?")
    hidden, down = len(state[up]), state.get("blocks.0.mlp.fc2.weight", projection).shape[-1]
    gated = "fc1_g" in up or hidden == 2 * down
    name = timm.guess(state)
    published = depth == _DEPTHS.get(width) and heads == (32 if width == 4096 else width // 64)
    if name and published and registers in (0, 4) and (gated or hidden == 4 * width):
        return name, options
    if v3:
        bias = "_qkvb" if "blocks.0.attn.q_bias" in state else ""
        name = f"vit_small{'_plus' if gated else ''}_patch16_dinov3{bias}"
        options |= {"num_reg_tokens": registers} | ({"swiglu_align_to": 1} if gated and hidden % 8 else {})
    else:
        name = f"vit_{'giant' if gated else 'small'}_patch14{'_reg4' if registers else ''}_dinov2"
        options |= {"reg_tokens": registers} if registers else {}
    sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "patch_size": patch}
    return name, {**options, **sizes, "mlp_ratio": architectures.ratio(hidden, width)}


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Backbone weights without prefix and heads, with blocks numbered consecutively."""
    bare = {key.removeprefix("backbone."): value for key, value in state.items() if not _HEAD.fullmatch(key)}
    return {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", key): value for key, value in bare.items()}


def _by_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by timm's keys, without those that only training uses."""
    v3 = "storage_tokens" in state
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if _TRAINING_ONLY.fullmatch(key):
            continue
        for pattern, new in _RENAMED:
            key = re.sub(pattern, new, key)
        found[re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key) if v3 else key] = value
    if (
        "register_tokens" in state
        and "pos_embed" in state
        and state["pos_embed"].shape[2:] == state["cls_token"].shape[2:]
    ):
        found["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        found["pos_embed"] = state["pos_embed"][:, 1:]
    if v3:
        biases: dict[str, Tensor] = {}
        for key in [key for key in found if key.endswith(".attn.qkv.bias")]:
            query, _, value = found.pop(key).flatten().tensor_split(3)
            biases[key.replace("qkv.bias", "q_bias")], biases[key.replace("qkv.bias", "v_bias")] = query, value
        if any(bias.any() for bias in biases.values()):
            found |= biases
    return found
