"""Weights of sizes nobody published, of other numbers of channels, and DINOv3's ConvNeXt; features as theirs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from opendino.core.errors import UserError
from opendino.interop.checkpoint_files import Checkpoint
from opendino.interop.importing import import_model, read_recognized
from opendino.interop.timm_folder import network_at_its_size
from opendino.models.build import backbone
from opendino.models.load import Model, preprocessing
from opendino.models.timm_backbone import TimmBackbone


def v2(width: int = 64, patch: int = 16, registers: int = 0, side: int = 64, **options: Any) -> dict[str, Tensor]:
    """A small network by the keys of DINOv2."""
    name = f"vit_small_patch14{'_reg4' if registers else ''}_dinov2"
    sizes: dict[str, Any] = {
        "embed_dim": width,
        "patch_size": patch,
        "img_size": side,
        "depth": 2,
        "num_heads": 1,
        **options,
    }
    sizes |= {"reg_tokens": registers} if registers else {}
    model = timm.create_model(name, num_classes=0, **sizes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    state = {"mask_token": torch.zeros(1, width), **model.state_dict()}
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, width), state["pos_embed"]], 1)
    return state


def read(tree: dict[str, Any], **config: Any) -> Any:
    return read_recognized(Checkpoint(Path("teacher_checkpoint.pth"), tree, config or None))


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({}, {}), ({"patch": 8, "side": 32}, {}), ({"width": 128, "num_heads": 2, "depth": 3}, {}),
        ({"registers": 2}, {}), ({"width": 96, "num_heads": 4}, {"num_heads": 4}), ({"mlp_ratio": 2.3}, {}),
    ],
)  # fmt: skip
def test_dinov2_of_any_size(options: dict[str, Any], config: dict[str, Any]) -> None:
    state = v2(**options)
    tree = {"teacher": {f"backbone.{key}": value for key, value in state.items()}}
    imported = read(tree, **config)
    network = imported.networks["teacher"].eval()
    assert len(network.model.blocks) == options.get("depth", 2)
    assert network.model.blocks[0].attn.num_heads == options.get("num_heads", 1)
    assert network.model.patch_embed.patch_size[0] == options.get("patch", 16)
    assert imported.preprocessing["image_px"] == network.kwargs["image_px"] == options.get("side", 64)
    assert torch.equal(network.state_dict()["model.blocks.1.attn.qkv.weight"], state["blocks.1.attn.qkv.weight"])


def test_heads_that_cannot_be_told_are_asked_for() -> None:
    with pytest.raises(UserError, match=r"is 96 wide, .*--num-heads N"):
        read({"teacher": v2(width=96, num_heads=4)})


def test_the_file_of_one_rank_holds_student_and_teacher() -> None:
    teacher, student = v2(), v2()
    model = {f"teacher.backbone.{key}": value for key, value in teacher.items()}
    model |= {f"student.backbone.{key}": value for key, value in student.items()}
    model |= {"student.dino_head.mlp.0.weight": torch.ones(2, 2), "dino_loss.center": torch.zeros(1, 3)}
    imported = read({"model": model, "iteration": 9})
    for which, wanted in (("teacher", teacher), ("student", student)):
        found = imported.networks[which].state_dict()["model.blocks.0.mlp.fc1.weight"]
        assert torch.equal(found, wanted["blocks.0.mlp.fc1.weight"])
    assert next(iter(imported.networks)) == "teacher"
    with pytest.raises(UserError, match=r"one rank's shard .*teacher_checkpoint\.pth"):
        read({"model": {"teacher.backbone._fsdp_wrapped_module._flat_param": torch.zeros(9)}})


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (96, 96), (48, 80), (224, 224)])
def test_positions_are_resampled_as_the_original_does(size: tuple[int, int]) -> None:
    state, seen = v2(side=64), []
    network: Any = read(dict(state)).networks["teacher"].eval()
    network.model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(1, 3, *size)
    network([images])
    rows, columns = size[0] // 16, size[1] // 16
    square = state["pos_embed"][:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    # facebookresearch/dinov2, interpolate_pos_encoding: offset 0.1, antialias False
    scale = ((rows + 0.1) / 4, (columns + 0.1) / 4)
    other = square if size == (64, 64) else interpolate(square, scale_factor=scale, mode="bicubic", antialias=False)
    patches = network.model.patch_embed(images).flatten(1, 2)
    torch.testing.assert_close(seen[0][:, 1:], patches + other.flatten(2).mT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen[0][:, 0], state["cls_token"][:, 0] + state["pos_embed"][:, 0])


@torch.no_grad()
def test_timms_rule_by_its_name_differs() -> None:
    torch.manual_seed(0)
    state = v2(side=64)
    network: Any = read(dict(state)).networks["teacher"].eval()
    kwargs = {**network.kwargs, "position_resampling": "timm"}
    other: Any = backbone(network.name, **kwargs).eval()
    other.load_state_dict(network.state_dict())
    images = torch.randn(1, 3, 32, 32)
    theirs = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=0, embed_dim=64, patch_size=16, img_size=64, depth=2, num_heads=1,
        dynamic_img_size=True,
    ).eval()  # fmt: skip
    theirs.load_state_dict(network.model.state_dict())
    torch.testing.assert_close(other([images])[0], theirs(images))
    assert (other([images])[0] - network([images])[0]).abs().max() > 1e-4
    # with registers the original antialiases by size, as timm does
    assert "position_resampling" not in read(v2(registers=4)).networks["teacher"].kwargs
    for wrong in ("other", 5):
        with pytest.raises(UserError, match="position_resampling"):
            TimmBackbone("test_vit", image_px=32, position_resampling=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="does not resample its positions"):
        TimmBackbone("test_resnet", position_resampling="dinov2")


@torch.no_grad()
def test_for_timm_positions_are_stored_at_the_size_used() -> None:
    network: Any = read(v2(side=64)).networks["teacher"].eval()
    model = network_at_its_size(Model(network, preprocessing(32), {}))
    assert "position_resampling" not in model.backbone.kwargs and model.backbone.kwargs["image_px"] == 32
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model.backbone([images])[0], network([images])[0])


def first_convolution(state: dict[str, Tensor]) -> str:
    return next(key for key in state if re.search(r"(patch_embed\.proj|^conv1|^stem\.0)\.weight$", key))


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("family", ["dino_v1", "dinov2", "resnet", "timm"])
def test_any_number_of_channels_is_kept(tmp_path: Path, family: str, channels: int) -> None:
    if family == "dino_v1":
        options: dict[str, Any] = {"image_px": 32, "embed_dim": 64, "depth": 1, "num_heads": 1}
        state = backbone("vit/16", in_chans=channels, **options).state_dict()
    elif family == "dinov2":
        state = v2(in_chans=channels)
    else:
        name = "resnet18" if family == "resnet" else "convnext_atto"
        state = timm.create_model(name, num_classes=0, in_chans=channels).state_dict()
    torch.save(dict(state), tmp_path / "a.pth")
    imported, model = import_model(
        str(tmp_path / "a.pth"), str(tmp_path / "m"), "convnext_atto" if family == "timm" else None
    )
    assert imported.about.endswith(f", {channels} channel{'s' * (channels > 1)}")
    weights = model.backbone.state_dict()
    key = first_convolution({key.removeprefix("model."): value for key, value in weights.items()})
    found = next(value for name, value in weights.items() if name.endswith(key))
    assert torch.equal(found, state[key])
    image = torch.zeros(channels, 40, 50, dtype=torch.uint8)
    assert model.embed(image).shape == (1, model.backbone.embed_dim)
    for statistic in ("mean", "std"):  # the file has none for these channels: the average of the usual ones
        assert len(model.preprocessing[statistic]) == channels and len(set(model.preprocessing[statistic])) == 1


@torch.no_grad()
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("widths", [(8, 16, 24, 32), (96, 192, 384, 768)])
def test_convnext_of_dinov3(tmp_path: Path, channels: int, widths: tuple[int, ...]) -> None:
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    published = widths[0] == 96
    config = DINOv3ConvNextConfig(
        hidden_sizes=list(widths), depths=[3, 3, 9, 3] if published else [1, 2, 1, 1], num_channels=channels,
        layer_scale_init_value=0.5,
    )  # fmt: skip
    theirs = DINOv3ConvNextModel(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    imported, model = import_model(str(tmp_path / "hf"), str(tmp_path / "m"))
    assert imported.networks["teacher"].name == "convnext_tiny"
    images = torch.randn(2, channels, 64, 64)
    found = model.backbone([images])[0]
    torch.testing.assert_close(found, theirs(images).pooler_output, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dinov3_of_any_size_and_its_attention(tmp_path: Path) -> None:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    from opendino.models.attention_maps import cls_attention

    config = DINOv3ViTConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=2, num_register_tokens=3,
        patch_size=16, image_size=64,
    )  # fmt: skip
    theirs = DINOv3ViTModel._from_config(config, attn_implementation="eager").eval()
    theirs.save_pretrained(tmp_path / "hf")
    _, model = import_model(str(tmp_path / "hf"), str(tmp_path / "m"))
    images = torch.randn(2, 3, 64, 96)
    wanted = theirs(images, output_attentions=True)
    torch.testing.assert_close(model.embed(images), wanted.pooler_output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.attention(images), wanted.attentions[-1], rtol=1e-4, atol=1e-5)
    heads = cls_attention(model, images, (4, 6))
    torch.testing.assert_close(heads.flatten(2), wanted.attentions[-1][:, :, 0, 4:], rtol=1e-4, atol=1e-5)
