"""Files of the original DINOv2 and DINOv3, made from timm's models by undoing what timm did to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from opendino.core.errors import UserError
from opendino.interop.checkpoint_files import Checkpoint
from opendino.interop.importing import read_recognized
from opendino.models.load import preprocessing


def made(name: str) -> nn.Module:
    model = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    for parameter in model.parameters():  # none may be zero or one by chance
        nn.init.normal_(parameter, std=0.05)
    return model


def v2(theirs: nn.Module) -> dict[str, Tensor]:
    """facebookresearch/dinov2: a mask token; with registers, a position for CLS too."""
    state = {"mask_token": torch.zeros(1, 384), **theirs.state_dict()}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        position = torch.randn(1, 1, 384) * 0.02
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    return state


def v3(theirs: nn.Module) -> dict[str, Tensor]:
    """facebookresearch/dinov3: storage tokens, the keys' bias masked away, periods of the rotation."""
    state: dict[str, Tensor] = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    for key, value in theirs.state_dict().items():
        if key.endswith(("q_bias", "v_bias")):
            continue
        key = key.replace("reg_token", "storage_tokens").replace("fc1_g", "w1").replace("fc1_x", "w2")
        key = key.replace("fc2", "w3") if "blocks.0.mlp.fc1_g.weight" in theirs.state_dict() else key
        state[re.sub(r"gamma_(\d)", r"ls\1.gamma", key)] = value
    for i in range(12):
        attention: Any = theirs.get_submodule(f"blocks.{i}.attn")
        zero = torch.zeros(384)
        parts = (
            [zero, zero, zero] if attention.q_bias is None else [attention.q_bias.data, zero + 7, attention.v_bias.data]
        )
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat(parts)
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat([zero + 1, zero, zero + 1])
    return state


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3",
        "vit_small_plus_patch16_dinov3_qkvb",
    ],
)  # fmt: skip
def test_an_original_gives_the_features_of_timm(name: str) -> None:
    theirs = made(name)
    original = v2(theirs) if "dinov2" in name else v3(theirs)
    imported = read_recognized(Checkpoint(Path("pretrain.pth"), original))
    found = imported.networks["teacher"].eval()
    assert found.name == name and imported.about == f"DINOv{name.split('dinov')[1][0]}, as {name} of timm"
    # without registers the original resamples positions otherwise than timm: tests/interop/test_any_size.py
    side = {"vit_small_patch14_dinov2": 518, "vit_small_patch14_reg4_dinov2": 56}.get(name, 64)
    images = torch.randn(1, 3, side, side)
    tokens: Any = theirs.forward_features(images)  # type: ignore[operator]
    wanted = tokens[:, 0]  # CLS is the feature of the original, of v3 too, where timm's head would average the patches
    # with registers CLS comes from a difference and a sum, so from two roundings
    torch.testing.assert_close(found([images])[0], wanted, rtol=1e-5, atol=1e-5)
    assert imported.preprocessing["image_px"] == (224 if "dinov2" in name else 256)
    if "dinov2" in name:
        assert imported.preprocessing == preprocessing(224) and found.kwargs["image_px"] == 518


def test_a_training_checkpoint_of_v2_with_blocks_in_chunks() -> None:
    theirs = made("vit_small_patch14_dinov2")
    original = {
        re.sub(r"^blocks\.(\d+)", lambda b: f"blocks.{int(b[1]) // 3}.{b[1]}", k): v for k, v in v2(theirs).items()
    }
    assert "blocks.3.11.ls1.gamma" in original
    head = {"dino_head.mlp.0.weight": torch.ones(4, 384), "ibot_head.last_layer.weight_g": torch.ones(9, 1)}
    tree = {"teacher": {**{f"backbone.{key}": value for key, value in original.items()}, **head}, "iteration": 9}
    found = read_recognized(Checkpoint(Path("teacher_checkpoint.pth"), tree)).networks["teacher"].state_dict()
    assert all(torch.equal(found[f"model.{key}"], value) for key, value in theirs.state_dict().items())


def test_near_misses() -> None:
    original = v2(made("vit_small_patch14_dinov2"))
    del original["blocks.11.ls2.gamma"]
    original["more"] = torch.ones(1)
    with pytest.raises(UserError, match=r"it lacks blocks\.11\.ls2\.gamma; also has more\."):
        read_recognized(Checkpoint(Path("pretrain.pth"), original))
    original["cls_token"] = torch.ones(1, 1, 100)
    with pytest.raises(
        UserError, match="is 100 wide, not a multiple of 64, so its number of attention heads is unknown"
    ):
        read_recognized(Checkpoint(Path("pretrain.pth"), original))
