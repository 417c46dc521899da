"""Folders as transformers writes them, read: the features are transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

from opendino.core.errors import UserError
from opendino.interop.formats import huggingface
from opendino.interop.importing import import_model
from opendino.models.timm_backbone import TimmBackbone
from opendino.models.vit import VisionTransformer

TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 16, "patch_size": 4}


def shaken(network: nn.Module) -> nn.Module:
    """Weights that show a swapped or forgotten one."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return network.eval()


def folder(home: Path, network: Any) -> Path:
    network.save_pretrained(home)
    return home


def agree(home: Path, network: Any, side: int) -> Any:
    """The model made of a folder, whose features and patches are those of the network that wrote it."""
    _, model = import_model(str(home), str(home) + ".ours")
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        tokens = network(images).last_hidden_state
    found = model.features(images)
    torch.testing.assert_close(found.cls, tokens[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.patches, tokens[:, -found.patches.shape[1] :], atol=1e-4, rtol=1e-4)
    return model


def test_vit_becomes_ours(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**TINY, intermediate_size=72)
    network = shaken(transformers.ViTModel(config))
    model = agree(folder(tmp_path / "hf", network), network, 16)
    assert isinstance(model.backbone, VisionTransformer) and model.backbone.name == "vit/4"


def test_classifier_on_cls_is_kept(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**TINY, intermediate_size=96, num_labels=5, layer_norm_eps=1e-6)
    network = shaken(transformers.ViTForImageClassification(config))
    imported, model = import_model(str(folder(tmp_path / "hf", network)), str(tmp_path / "ours"))
    images = torch.randn(2, 3, 16, 16)
    assert imported.classifier is not None
    with torch.no_grad():
        logits = network(images).logits
        torch.testing.assert_close(imported.classifier(model.embed(images)), logits, atol=1e-5, rtol=1e-5)


def test_dinov2_with_its_layer_scale_becomes_timm_s(tmp_path: Path) -> None:
    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 42, "patch_size": 14}
    for kind in ("Dinov2", "Dinov2WithRegisters"):
        config = getattr(transformers, f"{kind}Config")(**sizes)
        network = shaken(getattr(transformers, f"{kind}Model")(config))
        model = agree(folder(tmp_path / kind, network), network, 42)
        assert isinstance(model.backbone, TimmBackbone)


def test_dinov3_becomes_timm_s(tmp_path: Path) -> None:
    config = transformers.DINOv3ViTConfig(num_register_tokens=4, image_size=64)  # as small as they are published
    network = shaken(transformers.DINOv3ViTModel(config))
    model = agree(folder(tmp_path / "hf", network), network, 64)
    assert isinstance(model.backbone, TimmBackbone) and "dinov3" in model.backbone.name


def test_resnet(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    network = shaken(transformers.ResNetModel(config))
    _, model = import_model(str(folder(tmp_path / "hf", network)), str(tmp_path / "ours"))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs = network(images).pooler_output.flatten(1)
    torch.testing.assert_close(model.embed(images), theirs, atol=1e-5, rtol=1e-5)


def test_preprocessing_is_taken_from_the_processor(tmp_path: Path) -> None:
    home = folder(tmp_path / "hf", transformers.ViTModel(transformers.ViTConfig(**TINY)))
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}, resample=2, image_mean=[0.1, 0.2, 0.3]
    )
    processor.save_pretrained(home)
    wanted = import_model(str(home), str(tmp_path / "ours"))[1].preprocessing
    assert (wanted["image_px"], wanted["resize_px"], wanted["interpolation"]) == (16, 20, "bilinear")
    assert wanted["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("hidden_act", "relu", "hidden_act relu; only gelu"),
        ("layer_norm_eps", 1e-3, "layer_norm_eps 0.001"),
        ("num_attention_heads", "3", "num_attention_heads"),
        ("num_attention_heads", 5, "not a multiple of num_heads"),
    ],
)
def test_what_no_network_here_computes_is_refused(tmp_path: Path, setting: str, value: Any, said: str) -> None:
    home = folder(tmp_path / "hf", transformers.ViTModel(transformers.ViTConfig(**TINY)))
    config = json.loads((home / "config.json").read_text()) | {setting: value}
    (home / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        import_model(str(home), str(tmp_path / "ours"))
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}


def test_a_key_too_many_or_too_few_is_refused(tmp_path: Path) -> None:
    home = folder(tmp_path / "hf", transformers.ViTModel(transformers.ViTConfig(**TINY)))
    state = safetensors.torch.load_file(home / "model.safetensors")
    for changed, said in (
        ({**state, "adapter.weight": torch.zeros(1)}, "adapter"),
        ({key: state[key] for key in state if key != "layernorm.bias"}, "lacks norm.bias"),
    ):
        safetensors.torch.save_file(changed, home / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=said):
            import_model(str(home), str(tmp_path / "ours"))


@pytest.mark.parametrize(
    ("processor", "found"),
    [
        ({"size": 224, "crop_pct": 0.875}, {"image_px": 224, "resize_px": 256}),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, {"image_px": 384, "resize_px": 384}),
        ({"size": {"height": 32, "width": 32}}, {"image_px": 32, "resize_px": 32, "mean": [0.5] * 3}),
        ({"size": 32, "do_normalize": False}, {"mean": [0.0] * 3, "std": [1.0] * 3}),
    ],
)
def test_images_are_prepared_as_the_processor_says(
    tmp_path: Path, processor: dict[str, Any], found: dict[str, Any]
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    read = huggingface._preprocessing(tmp_path)
    assert read is not None and {key: read[key] for key in found} == found


def test_a_broken_processor_is_one_line(tmp_path: Path) -> None:
    home = folder(tmp_path / "hf", transformers.ViTModel(transformers.ViTConfig(**TINY)))
    not_square = '{"size": {"height": 224, "width": 112}}'
    for content in ("[]", "{", '{"size": {}}', '{"resample": 77}', not_square, '{"do_rescale": false}'):
        (home / "preprocessor_config.json").write_text(content)
        with pytest.raises(UserError, match="cannot be used"):
            import_model(str(home), str(tmp_path / "ours"))
