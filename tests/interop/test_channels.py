"""Round trips of networks of 1, 2, 5 and 12 channels; an exported model gives the same vectors for a 16-bit image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm as real_timm
import torch
import transformers
from tests.factories import small_vit
from torch import Tensor

from opendino.interop.exporting import export_model, writers
from opendino.interop.importing import import_model
from opendino.models.build import backbone
from opendino.models.load import Model, load, preprocessing, save_backbone

NUMBERS = [1, 2, 5, 12]
LOW, HIGH = 100, 3000


def channel_model(folder: Path, channels: int, **images: Any) -> str:
    """A small ViT for 16-bit images of 18 px, of which the middle 16 are used."""
    network = small_vit("vit/8", in_chans=channels, embed_dim=64, num_heads=1)
    wanted = preprocessing(16, [0.4] * channels, [0.2] * channels)
    bounds = [value for channel in range(channels) for value in (LOW + channel, HIGH - channel)]
    wanted["images"] = {"names": [f"c{i}" for i in range(channels)], "intensity": bounds, **images}
    save_backbone(folder, {"teacher": network}, preprocessing=wanted)
    return str(folder)


def exported(tmp_path: Path, to: str, channels: int, name: str = "out") -> tuple[Model, Path]:
    folder = channel_model(tmp_path / "model", channels)
    export_model(folder, to, str(tmp_path / name), None, writers()[to].Config())
    return load(folder), tmp_path / name


def deep_image(channels: int) -> np.ndarray:
    """Values inside the range, uint16 `[18 18 C]`: as large as the preprocessing wants them."""
    return np.random.default_rng(0).integers(LOW + 20, HIGH - 20, (18, 18, channels), dtype=np.uint16)


def prepared(image: np.ndarray, described: dict[str, Any]) -> Tensor:
    """The network's input `[1 C 16 16]` from what an exported file says about images, without opendino."""
    bounds = np.array(described["images"]["intensity"])
    values = ((image - bounds[::2]) / (bounds[1::2] - bounds[::2])).clip(0, 1)
    values = (values - described["mean"]) / described["std"]
    return torch.from_numpy(values[1:17, 1:17]).permute(2, 0, 1)[None].float()


def close(found: Any, wanted: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", NUMBERS)
@pytest.mark.parametrize("to", ["opendino", "timm", "huggingface"])
def test_folders_come_back_with_channels_and_range(tmp_path: Path, to: str, channels: int) -> None:
    model, out = exported(tmp_path, to, channels)
    back = load(out) if to == "opendino" else import_model(str(out), str(tmp_path / "back"))[1]
    assert back.reading == model.reading and back.preprocessing == model.preprocessing
    image = deep_image(channels)
    close(back.embed(image), model.embed(image))
    assert f"{channels} channel{'s' * (channels > 1)} (0 c0" in (out / "README.md").read_text()


@pytest.mark.parametrize("channels", NUMBERS)
def test_dino_v1_keeps_the_channels_but_has_no_place_for_the_range(
    tmp_path: Path, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = exported(tmp_path, "dino-v1", channels, "out.pth")
    assert "holds no preprocessing; keep it" in (said := capsys.readouterr().err) and "values 100 to 3000" in said
    imported, back = import_model(str(out), str(tmp_path / "back"))
    assert back.backbone.in_chans == len(back.preprocessing["mean"]) == channels
    assert imported.about.endswith(f", {channels} channel{'s' * (channels > 1)}")
    images = torch.randn(2, channels, 16, 16)
    assert torch.equal(back.embed(images), model.embed(images))


@pytest.mark.parametrize("channels", [1, 5])
def test_timm_sees_the_same(tmp_path: Path, channels: int) -> None:
    model, out = exported(tmp_path, "timm", channels)
    config, image = json.loads((out / "config.json").read_text()), deep_image(channels)
    described = {**config["pretrained_cfg"], "images": config["opendino"]["images"]}
    theirs = real_timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.no_grad():
        close(theirs(prepared(image, described)), model.embed(image))


@pytest.mark.parametrize("channels", NUMBERS)
def test_transformers_sees_the_same_through_its_processor(tmp_path: Path, channels: int) -> None:
    model, out = exported(tmp_path, "huggingface", channels)
    image = deep_image(channels)
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    inputs = processor(image.astype(np.float32), return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        found = transformers.AutoModel.from_pretrained(out).eval()(**inputs).pooler_output
    close(found, model.embed(image))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 5])
def test_graphs_hold_the_range_next_to_the_network(tmp_path: Path, channels: int) -> None:
    import onnxruntime

    image = deep_image(channels)
    model, out = exported(tmp_path / "onnx", "onnx", channels, "net.onnx")
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    described = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    assert described == model.preprocessing
    close(session.run(["cls"], {"images": prepared(image, described).numpy()})[0], model.embed(image))
    model, out = exported(tmp_path / "pt2", "torch-export", channels, "net.pt2")
    files = {"preprocessing": ""}
    again = torch.export.load(out, extra_files=files).module()
    with torch.no_grad():
        close(again(prepared(image, json.loads(files["preprocessing"])))[0], model.embed(image))


@pytest.mark.parametrize("name", ["resnet18", "conv4", "convnext_atto"])
def test_other_networks_of_five_channels(tmp_path: Path, name: str) -> None:
    network = backbone(name, image_px=64, in_chans=5)
    save_backbone(tmp_path / "m", {"teacher": network}, preprocessing=preprocessing(64, [0.4] * 5, [0.2] * 5))
    for to in {"conv4": ("opendino",), "resnet18": ("dino-v1", "huggingface", "timm")}.get(
        name, ("huggingface", "timm")
    ):
        export_model(str(tmp_path / "m"), to, str(tmp_path / to), None, writers()[to].Config())
        model = load(tmp_path / "m")
        back = (
            load(tmp_path / to) if to == "opendino" else import_model(str(tmp_path / to), str(tmp_path / f"{to}-b"))[1]
        )
        images = torch.randn(2, 5, 64, 64)
        close(back.embed(images), model.embed(images))
