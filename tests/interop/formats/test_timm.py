"""timm's layouts: folders of its hub, files of its keys; features are those of timm itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from opendino.core.errors import UserError
from opendino.interop import checkpoint_files
from opendino.interop.checkpoint_files import Checkpoint
from opendino.interop.formats.timm import guess
from opendino.interop.importing import import_model, read_recognized


def made(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, **options).eval()


def folder(path: Path, model: nn.Module, **config: Any) -> Path:
    """As timm writes it, with changes to its config.json."""
    save_for_hf(model, str(path), {"model_args": config.pop("model_args", {})}, safe_serialization=True)
    told = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(told | config))
    return path


@torch.no_grad()
def test_folder_of_a_convolutional_network_with_its_classifier(tmp_path: Path) -> None:
    theirs = made("convnext_atto", num_classes=7)
    imported, model = import_model(str(folder(tmp_path / "hub", theirs)), str(tmp_path / "ours"))
    assert imported.about == "convnext_atto of timm, 7 classes"
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.embed(images), theirs.forward_head(theirs.forward_features(images), True))
    assert imported.classifier is not None
    torch.testing.assert_close(imported.classifier(model.embed(images)), theirs(images))
    assert model.preprocessing == {
        "image_px": 224, "resize_px": 256, "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    }  # fmt: skip


@torch.no_grad()
def test_folder_of_a_vit_of_another_size_and_pooling(tmp_path: Path) -> None:
    options = {"img_size": 96, "global_pool": "avg"}
    theirs = made("vit_tiny_patch16_224", num_classes=0, **options)
    path = folder(tmp_path / "hub", theirs, model_args={**options, "num_classes": 0, "in_chans": 3})
    imported, model = import_model(str(path), str(tmp_path / "ours"))
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(model.embed(images), theirs(images))
    assert imported.classifier is None
    assert (model.preprocessing["image_px"], model.preprocessing["resize_px"]) == (96, 106)


def test_file_alone_of_a_named_architecture(tmp_path: Path) -> None:
    theirs = made("mobilenetv3_small_050", num_classes=3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"has no known format \(dino_v1, .*; its keys are .* and \d+ more.*--architecture"
    ):
        import_model(str(tmp_path / "a.pth"), str(tmp_path / "ours"))
    imported, _ = import_model(str(tmp_path / "a.pth"), str(tmp_path / "ours"), "mobilenetv3_small_050")
    found, wanted = imported.networks["teacher"].state_dict(), theirs.state_dict()
    assert all(torch.equal(found[f"model.{key}"], value) for key, value in wanted.items() if "classifier" not in key)
    with pytest.raises(UserError, match=r"does not fit MobileNetV3: it also has .*; has in another shape "):
        import_model(str(tmp_path / "a.pth"), str(tmp_path / "other"), "tf_mobilenetv3_small_minimal_100")
    with pytest.raises(UserError, match=r"Unknown backbone 'mobilenetv3_smal'\. Did you mean mobilenetv3_small"):
        import_model(str(tmp_path / "a.pth"), str(tmp_path / "other"), "mobilenetv3_smal")


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch8_224", "vit_base_patch32_224", "vit_large_patch16_224",
        "vit_small_patch14_dinov2", "vit_giant_patch14_reg4_dinov2", "vit_large_patch14_dinov2",
        "vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3_qkvb", "vit_7b_patch16_dinov3",
    ],
)  # fmt: skip
def test_shapes_tell_the_vits_of_timm(name: str) -> None:
    with torch.device("meta"):
        plain = "dinov" not in name
        state = timm.create_model(name, **({} if plain else {"num_classes": 0})).state_dict()
    assert guess(state) == name


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3_qkvb"])
def test_what_shapes_tell_is_read(name: str) -> None:
    theirs = made(name, num_classes=0 if "dinov" in name else 5, dynamic_img_size=True)
    imported = read_recognized(Checkpoint(Path("a.pth"), dict(theirs.state_dict())))
    assert imported.networks["teacher"].name == name
    assert (imported.classifier is not None) == ("dinov" not in name)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = theirs.forward_head(theirs.forward_features(images), pre_logits=True)  # type: ignore[operator]
        torch.testing.assert_close(imported.networks["teacher"].eval()([images])[0], wanted)


def test_a_description_may_not_name_files_or_places(tmp_path: Path) -> None:
    theirs = made("resnet18", num_classes=0)
    for odd in ({"checkpoint_path": "evil.pth"}, {"pretrained_cfg": {"file": "evil.pth"}}, {"cache_dir": "/"}):
        path = folder(tmp_path / min(odd), theirs, model_args=odd)
        with pytest.raises(UserError, match=f"takes no option '{min(odd)}'"):
            read_recognized(checkpoint_files.read(path))
    for place in ("local-dir:/tmp/evil", "hf-hub:evil/model"):
        path = folder(tmp_path / place[:5], theirs, architecture=place)
        with pytest.raises(UserError, match=f"'{place}' is an address, not an architecture of timm"):
            read_recognized(checkpoint_files.read(path))
    path = folder(tmp_path / "nonsense", theirs, model_args={"layers": "many"})
    with pytest.raises(UserError, match=r"timm cannot build 'resnet18' as '.*nonsense' describes it|takes no option"):
        read_recognized(checkpoint_files.read(path))
