"""Every exporter on small random networks: loaded again by the software it is for, and compared."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm as real_timm
import torch
import transformers
from PIL import Image
from tests.factories import model_folder, small_vit

from opendino.core.contracts import Backbone
from opendino.core.errors import UsageError, UserError
from opendino.interop import compare_outputs
from opendino.interop.exporting import export_model, writers
from opendino.interop.formats import huggingface, opendino, timm, torch_export
from opendino.interop.formats import onnx as onnx_writer
from opendino.interop.importing import import_model
from opendino.interop.timm_folder import _crop_pct
from opendino.models.build import backbone
from opendino.models.load import Model, load


def vit(**options: Any) -> Backbone:
    return small_vit("vit/4", **{"depth": 2, "num_heads": 3, **options})


def batch(side: int = 16, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side)


def exported(tmp_path: Path, network: Backbone, to: str, image_px: int = 16, name: str = "out") -> tuple[Model, Path]:
    """A model, and where it was exported to; the difference is what float32 allows."""
    config = writers()[to].Config()
    model, difference = export_model(
        model_folder(tmp_path / "model", network, image_px), to, str(tmp_path / name), None, config
    )
    assert difference <= 1e-5
    return model, tmp_path / name


def test_every_layout_that_is_asked_for_can_be_written() -> None:
    assert {"dino-v1", "huggingface", "onnx", "opendino", "timm", "torch-export"} <= writers().keys()


# timm


@pytest.mark.parametrize("options", [{}, {"num_registers": 2}, {"image_px": 20, "mlp_ratio": 3.0}])
def test_vit_in_timm(tmp_path: Path, options: dict[str, Any]) -> None:
    side = options.get("image_px", 16)
    model, out = exported(tmp_path, vit(**options), "timm", side)
    images, config = batch(side), json.loads((out / "config.json").read_text())
    theirs = real_timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    by_path = real_timm.create_model(
        config["architecture"], checkpoint_path=out / "model.safetensors", num_classes=0, **config["model_args"]
    ).eval()
    with torch.no_grad():
        tokens = theirs.forward_features(images)
        torch.testing.assert_close(theirs(images), model.embed(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(by_path(images), model.embed(images), atol=1e-5, rtol=1e-5)
    first = 1 + options.get("num_registers", 0)
    torch.testing.assert_close(tokens[:, first:], model.features(images).patches, atol=1e-5, rtol=1e-5)
    wanted = real_timm.data.resolve_data_config({}, model=theirs)
    assert int(wanted["input_size"][-1] / wanted["crop_pct"]) == model.preprocessing["resize_px"]


@pytest.mark.parametrize("options", [{}, {"num_registers": 2, "drop_path": 0.1}])
def test_there_and_back_by_timm_is_the_same_model(tmp_path: Path, options: dict[str, Any]) -> None:
    model, out = exported(tmp_path, vit(**options), "timm")
    _, back = import_model(str(out), str(tmp_path / "back"))
    assert back.fingerprint == model.fingerprint  # of architecture, preprocessing, and every bit of the weights


def test_timm_crop_share_gives_every_size_back() -> None:
    for image_px in range(8, 400, 3):
        for resize_px in {image_px, image_px + 1, round(image_px * 8 / 7), 2 * image_px - 1}:
            assert int(image_px / _crop_pct(image_px, resize_px)) == resize_px


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_models_of_timm_in_timm(tmp_path: Path, name: str) -> None:
    network = backbone(name, image_px=64)
    network([torch.randn(4, 3, 64, 64)])  # moves running statistics
    model, out = exported(tmp_path, network, "timm", 64)
    images = batch(64)
    with torch.no_grad():
        theirs = real_timm.create_model(f"local-dir:{out}", pretrained=True).eval()(images)
    assert torch.equal(theirs, model.embed(images))
    assert torch.equal(import_model(str(out), str(tmp_path / "back"))[1].embed(images), model.embed(images))


# Hugging Face


@pytest.mark.parametrize(
    ("options", "kind"),
    [({}, "ViTModel"), ({"num_registers": 3}, "Dinov2WithRegistersModel"), ({"image_px": 12}, "ViTModel")],
)
def test_vit_in_transformers_and_back(tmp_path: Path, options: dict[str, Any], kind: str) -> None:
    side = options.get("image_px", 16)
    model, out = exported(tmp_path, vit(**options), "huggingface", side)
    images = batch(side)
    theirs = transformers.AutoModel.from_pretrained(out).eval()
    assert type(theirs).__name__ == kind
    with torch.no_grad():
        found = theirs(images)
    features = model.features(images)
    assert torch.equal(found.pooler_output, found.last_hidden_state[:, 0])
    torch.testing.assert_close(found.pooler_output, features.cls, atol=1e-5, rtol=1e-5)
    first = 1 + options.get("num_registers", 0)
    torch.testing.assert_close(found.last_hidden_state[:, first:], features.patches, atol=1e-5, rtol=1e-5)
    _, back = import_model(str(out), str(tmp_path / "back"))
    own = model.backbone.state_dict()
    assert own.keys() == back.backbone.state_dict().keys() and back.preprocessing == model.preprocessing
    assert all(torch.equal(value, own[key]) for key, value in back.backbone.state_dict().items())
    assert torch.equal(back.embed(images), model.embed(images))


def test_resnet_in_transformers_and_back(tmp_path: Path) -> None:
    network = backbone("resnet18", image_px=64)
    network([torch.randn(2, 3, 64, 64)])
    model, out = exported(tmp_path, network, "huggingface", 64)
    theirs, images = transformers.AutoModel.from_pretrained(out).eval(), batch(64)
    assert type(theirs).__name__ == "ResNetModel"
    with torch.no_grad():
        torch.testing.assert_close(theirs(images).pooler_output.flatten(1), model.embed(images), atol=1e-5, rtol=1e-5)
    assert torch.equal(import_model(str(out), str(tmp_path / "back"))[1].embed(images), model.embed(images))


def test_any_model_of_timm_in_transformers(tmp_path: Path) -> None:
    model, out = exported(tmp_path, backbone("test_convnext", image_px=64), "huggingface", 64)
    theirs, images = transformers.AutoModel.from_pretrained(out).eval(), batch(64)
    with torch.no_grad():
        assert torch.equal(theirs(images).pooler_output, model.embed(images))
    assert transformers.AutoImageProcessor.from_pretrained(out) is not None


def test_a_model_used_at_another_size_is_stored_for_that_size(tmp_path: Path) -> None:
    for to in ("huggingface", "timm"):
        model, out = exported(tmp_path / to, vit(), to, 24)
        _, back = import_model(str(out), str(tmp_path / to / "back"))
        assert back.backbone.kwargs["image_px"] == 24
        images = batch(24)
        torch.testing.assert_close(back.embed(images), model.embed(images), atol=1e-6, rtol=1e-6)


def test_real_photographs_reach_both_networks_alike(data_folder: Path, tmp_path: Path) -> None:
    network = backbone("vit/32", image_px=224, embed_dim=24, depth=1, num_heads=3)
    model, out = exported(tmp_path, network, "huggingface", 224)
    with tarfile.open(data_folder / "davis240_3seq.tar.gz") as tar:
        member = next(member for member in tar if member.name.endswith(".jpg"))
        file = tar.extractfile(member)
        assert file is not None
        picture = Image.open(file).convert("RGB").crop((0, 0, 424, 240))  # 452 px wide then: an even margin
    theirs = transformers.AutoImageProcessor.from_pretrained(out)(picture, return_tensors="pt")["pixel_values"][0]
    # both resize in whole numbers, along one side and then the other, and each rounds in its own way: two levels
    difference = (theirs - model.preprocess(picture)).abs()
    assert difference.max() <= 2.01 / 255 / 0.224 and difference.mean() <= 0.1 / 255 / 0.224


# graphs


@pytest.mark.slow
def test_onnx_of_any_batch_and_size(tmp_path: Path) -> None:
    name, out = model_folder(tmp_path / "model", vit(num_registers=2)), tmp_path / "net.onnx"
    model, _ = export_model(name, "onnx", str(out), None, onnx_writer.Config(attention=True))
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for count, height, width in ((1, 16, 16), (5, 16, 16), (2, 12, 20), (1, 36, 4), (3, 16, 24)):
        images = torch.randn(count, 3, height, width)
        found = session.run(["cls", "patches", "attention"], {"images": images.numpy()})
        ours = model.features(images)
        for mine, theirs in zip((ours.cls, ours.patches, model.attention(images)), found, strict=True):
            assert np.abs(mine.numpy() - theirs).max() <= 1e-4 * mine.abs().max()
    file = onnx.load(out)
    told = {entry.key: entry.value for entry in file.metadata_props}
    assert told["fingerprint"] == model.fingerprint and json.loads(told["preprocessing"]) == model.preprocessing
    assert file.opset_import[0].version == 18
    assert {path.name for path in tmp_path.iterdir()} == {"model", "net.onnx"}


@pytest.mark.slow
def test_onnx_of_a_convolutional_network(tmp_path: Path) -> None:
    config = onnx_writer.Config(opset=20)
    name, out = model_folder(tmp_path / "model", backbone("conv4", width=4), 32), tmp_path / "net.onnx"
    model, _ = export_model(name, "onnx", str(out), None, config)
    images = torch.randn(3, 3, 24, 40)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    cls, patches = session.run(None, {"images": images.numpy()})
    ours = model.features(images)
    for mine, theirs in ((ours.cls, cls), (ours.patches, patches)):
        assert np.abs(mine.numpy() - theirs).max() <= 1e-4 * mine.abs().max()
    assert onnx.load(out).opset_import[0].version == 20


@pytest.mark.slow
def test_torch_export_of_any_batch_and_size(tmp_path: Path) -> None:
    model, out = exported(tmp_path, vit(), "torch-export", 16, "net.pt2")
    again = torch.export.load(out).module()
    for shape in ((1, 3, 16, 16), (4, 3, 12, 20)):
        images = torch.randn(*shape)
        with torch.no_grad():
            cls, patches = again(images)
        torch.testing.assert_close(cls, model.features(images).cls, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(patches, model.features(images).patches, atol=1e-5, rtol=1e-5)


def test_attention_of_a_network_without_is_refused(tmp_path: Path) -> None:
    name = model_folder(tmp_path / "model", backbone("conv4", width=2), 32)
    with pytest.raises(UserError, match=r"no self-attention.*Leave --attention out"):
        export_model(name, "onnx", str(tmp_path / "net.onnx"), None, onnx_writer.Config(attention=True))
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


# our own folder


def test_own_folder_holds_network_classifier_and_card_and_nothing_else(tmp_path: Path) -> None:
    name = model_folder(
        tmp_path / "run", vit(), extra={"data": "toy:"}, classifier=torch.nn.Linear(24, 2), classes=("a", "b")
    )
    (tmp_path / "run" / "checkpoints").mkdir()
    model, difference = export_model(name, "opendino", str(tmp_path / "out"), None, opendino.Config())
    assert difference == 0.0
    names = {"README.md", "backbone.json", "backbone.safetensors", "classifier.safetensors"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    again = load(tmp_path / "out", classifier=True)
    assert again.fingerprint == model.fingerprint and again.classes == ("a", "b") and again.trained_on == "toy:"
    card = (tmp_path / "out" / "README.md").read_text()
    assert model.fingerprint in card and "- data: toy:" in card and "\nlicense:" not in card


def test_the_student_is_exported_as_the_student(tmp_path: Path) -> None:
    model_folder(tmp_path / "run", vit(), student=vit(seed=1))
    export_model(str(tmp_path / "run"), "opendino", str(tmp_path / "out"), "student", opendino.Config())
    images, again = batch(), load(tmp_path / "out")
    assert again.which == "student"
    assert torch.equal(again.embed(images), load(tmp_path / "run", "student").embed(images))


# refusals


@pytest.mark.parametrize("to", ["timm", "huggingface"])
@pytest.mark.parametrize(("name", "what"), [("conv4", "conv4"), ("resnet18/3x3", "3×3 stem")])
def test_what_the_other_side_does_not_know_is_refused(tmp_path: Path, to: str, name: str, what: str) -> None:
    model = model_folder(tmp_path / "model", backbone(name, image_px=32), 32)
    with pytest.raises(UserError, match=f"no .*{what}"):
        export_model(model, to, str(tmp_path / "out"), None, writers()[to].Config())
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_nothing_is_left_where_the_other_side_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_outputs, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"differ by up to .*nothing was written"):
        export_model(model_folder(tmp_path / "model", vit()), "timm", str(tmp_path / "out"), None, timm.Config())
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_difference_that_is_no_number_is_one() -> None:
    with pytest.raises(UserError, match="differ"):
        compare_outputs.largest_difference([torch.ones(2)], [torch.tensor([1.0, torch.nan])], "it")
    with pytest.raises(UserError, match="was expected"):
        compare_outputs.largest_difference([torch.ones(2)], [torch.ones(3)], "it")
    assert compare_outputs.largest_difference([torch.ones(2)], [torch.tensor([1.0, 1.00005])], "it") == pytest.approx(
        5e-5, rel=0.01
    )


def test_places_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    name = model_folder(tmp_path / "model", vit())
    with pytest.raises(UserError, match="exists already"):
        export_model(name, "timm", name, None, timm.Config())
    with pytest.raises(UserError, match="There is no folder"):
        export_model(name, "timm", str(tmp_path / "a" / "b"), None, timm.Config())
    with pytest.raises(UsageError, match="Did you mean timm"):
        export_model(name, "tim", str(tmp_path / "out"), None, None)
    for to, module, ending in (("onnx", onnx_writer, ".onnx"), ("torch-export", torch_export, ".pt2")):
        with pytest.raises(UserError, match=f"does not end in {ending}"):
            export_model(name, to, str(tmp_path / "out"), None, module.Config())
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_an_mlp_that_transformers_cannot_have_is_refused(tmp_path: Path) -> None:
    name = model_folder(tmp_path / "model", vit(num_registers=1, mlp_ratio=2.5))
    with pytest.raises(UserError, match=r"2\.5 times"):
        export_model(name, "huggingface", str(tmp_path / "out"), None, huggingface.Config())
