"""Files of the original DINOv2 and DINOv3 (Oquab et al. 2024, Siméoni et al. 2025), which become models of timm.

Both are ViTs with a mask token, which only training needs. v2's register models add a position embedding to CLS, which
timm has added up. v3 masks the bias of the keys to zero; timm leaves it out, and the whole bias where it is zero.
Training checkpoints of v2 ("teacher": {"backbone.…", "dino_head.…"}) may number blocks by chunk, `blocks.0.3.…`.
"""

from __future__ import annotations

import re

from torch import Tensor

from opendino.core.errors import UserError
from opendino.interop import _architectures, timm
from opendino.interop._checkpoint import Checkpoint, Imported
from opendino.models.load import preprocessing
from opendino.models.timm_backbone import published_preprocessing

_HEAD = re.compile(r"(dino|ibot)_head\.[\w.]+")
_TRAINING_ONLY = re.compile(r"mask_token|rope_embed\.periods|local_cls_norm\.\w+|blocks\.\d+\.attn\.qkv\.bias_mask")
_RENAMED = (
    (r"^(register_tokens|storage_tokens)$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


def recognises(checkpoint: Checkpoint) -> bool:
    """A mask token beside a CLS token, and layer scale as `ls1.gamma`."""
    states = [_bare(state) for state in checkpoint.networks.values()]
    wanted = {"cls_token": 3, "mask_token": 2, "patch_embed.proj.weight": 4, "blocks.0.ls1.gamma": 1}
    return bool(states) and all(_architectures.has(wanted, state) for state in states)


def read(checkpoint: Checkpoint) -> Imported:
    """One network, or teacher and student of a training checkpoint; heads and mask token are left out.

    Raises:
        UserError: It is none of the published sizes, a key is unknown or missing, a shape wrong, a number not finite.
    """
    networks = {}
    for which, original in checkpoint.networks.items():
        state = _by_timm(_bare(original))
        name = timm.guess(state)
        if name is None:
            width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
            raise UserError(
                f"'{checkpoint.path}' is {width} wide with patches of {patch} px, no published size of DINOv2 or v3",
                "Published are small, base, large, giant with 14 px; small, base, large, huge+ and 7B with 16 px",
            )
        networks[which] = network = timm.backbone(name, state, global_pool="token")  # timm would average v3
        _architectures.fill(network.model, state, f"the {which} of '{checkpoint.path}'")
    first = next(iter(networks.values()))
    version = "DINOv3" if "dinov3" in first.name else "DINOv2"
    wanted = preprocessing() if version == "DINOv2" else published_preprocessing(first.name)  # as they evaluate
    return Imported(networks, wanted, f"{version}, as {first.name} of timm")


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's keys, blocks numbered in one row."""
    bare = {key.removeprefix("backbone."): value for key, value in state.items() if not _HEAD.fullmatch(key)}
    return {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", key): value for key, value in bare.items()}


def _by_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
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
