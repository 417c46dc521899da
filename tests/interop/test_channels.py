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

from opendino.core.contracts import Backbone
from opendino.core.errors import UserError
from opendino.interop.exporting import export_model, writers
from opendino.interop.importing import import_model
from opendino.models.build import backbone
from opendino.models.load import Model, load, preprocessing, save_backbone

NUMBERS = [1, 2, 5, 12]
LOW, HIGH = 100, 3000


def channel_model(
    folder: Path, channels: int, network: Backbone | None = None, image_px: int = 16, **images: Any
) -> str:
    """A small ViT, or another network, for 16-bit images of 18 px, of which the middle 16 are used."""
    wanted = preprocessing(image_px, [0.4] * channels, [0.2] * channels)
    network = network or small_vit("vit/8", in_chans=channels, embed_dim=64, num_heads=1)
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
@pytest.mark.parametrize("channels", [5])
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


def separate_model(folder: Path, name: str = "vit/8") -> str:
    """A model through whose network of one channel each of five channels goes by itself."""
    if name == "vit/8":
        return channel_model(folder, 5, small_vit(name, in_chans=1, embed_dim=64, num_heads=1), channel_mode="separate")
    return channel_model(folder, 5, backbone(name, image_px=32, in_chans=1), 32, channel_mode="separate")


@pytest.mark.parametrize(
    ("to", "name"), [("timm", "vit/8"), ("huggingface", "vit/8"), ("huggingface", "convnext_atto")]
)
def test_separate_channels_come_back(tmp_path: Path, to: str, name: str) -> None:
    folder = separate_model(tmp_path / "model", name)
    export_model(folder, to, str(tmp_path / "out"), None, writers()[to].Config())
    imported, back = import_model(str(tmp_path / "out"), str(tmp_path / "back"))
    model, image = load(folder), deep_image(5)
    assert imported.about.endswith("for each channel by itself") and back.preprocessing == model.preprocessing
    assert back.backbone.in_chans == 5 and back.embed(image).shape == model.embed(image).shape
    close(back.embed(image), model.embed(image))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "each channel by itself, the features joined in this order" in card


def test_other_libraries_get_the_network_of_one_channel(tmp_path: Path) -> None:
    folder, image = separate_model(tmp_path / "model"), deep_image(5)
    model = load(folder)
    export_model(folder, "timm", str(tmp_path / "timm"), None, writers()["timm"].Config())
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [1, 16, 16] and config["pretrained_cfg"]["mean"] == [0.4]
    theirs = real_timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        close(theirs(prepared(image, config["opendino"]).transpose(0, 1)).reshape(1, -1), model.embed(image))
    export_model(folder, "huggingface", str(tmp_path / "hf"), None, writers()["huggingface"].Config())
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    pixels = processor(image.astype(np.float32), return_tensors="pt", input_data_format="channels_last").pixel_values
    with torch.no_grad():
        found = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()(pixels.transpose(0, 1))
    close(found.pooler_output.reshape(1, -1), model.embed(image))


def test_a_format_without_a_place_for_it_is_refused(tmp_path: Path) -> None:
    folder = separate_model(tmp_path / "model")
    with pytest.raises(UserError, match="each channel by itself, and a file of DINO v1 has no place") as refused:
        export_model(folder, "dino-v1", str(tmp_path / "out.pth"), None, writers()["dino-v1"].Config())
    assert "timm, huggingface, onnx or torch-export" in (refused.value.hint or "")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_graphs_of_separate_channels_join_them(tmp_path: Path, to: str) -> None:
    import onnxruntime

    folder, out = separate_model(tmp_path / "model"), tmp_path / ("net.onnx" if to == "onnx" else "net.pt2")
    config = writers()[to].Config(**({"attention": True} if to == "onnx" else {}))
    export_model(folder, to, str(out), None, config)  # compares cls, patches and attention at several sizes
    model, images = load(folder), torch.randn(3, 5, 24, 32)
    if to == "onnx":
        session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
        found = session.run(["cls"], {"images": images.numpy()})[0]
        assert json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"]) == model.preprocessing
    else:
        with torch.no_grad():
            found = torch.export.load(out).module()(images)[0]
    close(found, model.embed(images))
