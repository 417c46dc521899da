"""Segmentation from a few masks: a whole run on drawn shapes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.factories import model_folder, noise_image, small_vit

import opendino
from opendino.cli import main
from opendino.core.errors import UsageError, UserError
from opendino.data.sources.toy import ToySource
from opendino.evals.segmentation import Config, evaluate
from opendino.models.build import backbone


@pytest.fixture
def model(tmp_path: Path) -> str:
    return model_folder(tmp_path / "model", small_vit("vit/4", depth=2))


def folder(root: Path, masks: dict[str, np.ndarray]) -> str:
    """Images whose blue channel is 30 times the class, with noise in the others, and their masks."""
    for each in ("images", "masks"):
        (root / each).mkdir(parents=True)
    for number, (stem, mask) in enumerate(masks.items()):
        pixels = np.array(noise_image(mask.shape[1], mask.shape[0], number))
        pixels[..., 2] = 30 * (mask % 8)
        Image.fromarray(pixels).save(root / "images" / f"{stem}.png")
        Image.fromarray(mask).save(root / "masks" / f"{stem}.png")
    return str(root)


def blocks_of(classes: list[int], seed: int = 0, height: int = 24, width: int = 40) -> np.ndarray:
    """A mask of squares of 8 px."""
    coarse = np.random.default_rng(seed).choice(np.array(classes, np.uint8), (height // 8, width // 8))
    return coarse.repeat(8, 0).repeat(8, 1)


def test_a_whole_run_and_its_masks(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = folder(tmp_path / "train", {f"{i}": blocks_of([0, 3, 5], i) for i in range(6)})
    val = folder(tmp_path / "val", {f"{i}": blocks_of([0, 3, 5], 10 + i) for i in range(3)})
    Path(train, "masks", "5.png").unlink()
    words = ["eval", "segmentation", model, "--train", train, "--val", val, "--num-images", "2", "--num-draws", "1"]
    assert main([*words, "--device", "cpu", "--json", "--out", str(tmp_path / "head")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["classes"], found["num_train"], found["num_val"], found["num_images"]) == ([0, 3, 5], 5, 3, 5)
    own = {(each["features"], each["head"], each["num_images"]): each for each in found["scores"]}
    assert len(own) == 3 * 2 * 2
    assert own["teacher", "linear", 5]["miou"] == found["miou"] > 70  # the class is a color: even random weights do
    assert own["pixels", "linear", 5]["miou"] > 60
    assert own["teacher", "linear", 5]["iou"][3] is None, "no class that --train lacks"
    assert found["notes"] == [f"1 of 6 images of {train} are left out: no mask, e.g. 5"]

    words = ["predict", str(tmp_path / "head"), f"{val}/images", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 0
    assert "mIoU" in capsys.readouterr().out
    right = [
        np.array(Image.open(tmp_path / "out" / f"{i}.png")) == np.array(Image.open(f"{val}/masks/{i}.png"))
        for i in range(3)
    ]
    assert 100 * np.mean(right) == pytest.approx(own["teacher", "linear", 5]["pixel_accuracy"], abs=1e-9)


def test_without_val_a_head_is_measured_on_what_it_has_not_seen(model: str) -> None:
    report = evaluate(Config(model, train="toy:forms?n=4&size=32", num_images=(1, 3), num_draws=1, device="cpu"))
    assert sorted({each["num_images"] for each in report.fields["scores"]}) == [1, 3]
    assert report.fields["num_images"] == 3 and "masks" in report.text
    alone = evaluate(Config(model, train="toy:forms?n=1&size=32", device="cpu"))
    assert alone.fields["miou"] is None and "not measured" in alone.text


def test_a_convolutional_network(tmp_path: Path) -> None:
    own = model_folder(tmp_path / "conv", backbone("conv4", width=4), 16)
    report = evaluate(Config(own, train="toy:forms?n=3&size=40", num_images=(1,), num_draws=1, device="cpu"))
    assert report.fields["blocks"] == 1 and 0 < report.fields["miou"] < 100


def test_a_class_that_train_lacks_counts_as_wrong(model: str, tmp_path: Path) -> None:
    train = folder(tmp_path / "train", {"a": blocks_of([0, 3], 1), "b": blocks_of([0, 3], 2)})
    val = folder(tmp_path / "val", {"a": blocks_of([0, 3], 3), "b": np.full((24, 40), 5, np.uint8)})
    report = evaluate(Config(model, train=train, val=val, num_images=(1,), num_draws=1, device="cpu"))
    assert "50.0 % of the pixels" in report.text
    last = report.fields["scores"][-1]
    assert last["iou"][-1] == 0 and last["pixel_accuracy"] <= 50
    assert last["miou"] == pytest.approx(sum(last["iou"]) / 3)


def test_mistakes_say_what_to_do(model: str, tmp_path: Path) -> None:
    def spoilt(name: str, mask: np.ndarray | None, told: str) -> None:
        root = Path(folder(tmp_path / name, {"a": blocks_of([0, 1])}))
        if mask is None:
            (root / "masks" / "a.png").unlink()
        else:
            Image.fromarray(mask).save(root / "masks" / "a.png")
        with pytest.raises(UserError, match=told) as caught:
            evaluate(Config(model, train=str(root), device="cpu"))
        assert "\n" not in str(caught.value)

    spoilt("size", np.zeros((24, 20), np.uint8), r"mask of a has 20 × 24 px, its image 40 × 24 px\. Draw masks")
    spoilt("numbers", np.full((24, 40), 300, np.uint16), "it has the number 300; numbers are at most 254")
    spoilt("color", np.zeros((24, 40, 3), np.uint8), "mode RGB.*Masks are indexed or gray PNGs of class numbers")
    spoilt("one", np.ones((24, 40), np.uint8), "Every pixel of the 1 masks is class 1, and a head needs two classes")
    spoilt("void", np.full((24, 40), 255, np.uint8), "is ignored, and a head needs two classes")
    spoilt("missing", None, "has a mask")
    with pytest.raises(UsageError, match="--train is missing"):
        evaluate(Config(model))
    with pytest.raises(UsageError, match=r"All 2 images of --val toy:forms.* without --val"):
        evaluate(Config(model, train="toy:forms?n=2", val="toy:forms?n=2"))
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        evaluate(Config(model, train="toy:forms?n=2", out=str(tmp_path / "there")))


def test_from_python_on_drawn_shapes(model: str) -> None:
    assert ToySource("forms", n=1).mask(0).max() == 1
    train, val = "toy:forms?n=2&size=48", "toy:forms?n=2&size=48&split=val"
    report = opendino.evaluate.segmentation(model, train=train, val=val, num_images=[1], num_draws=1, device="cpu")
    assert report.fields["classes"] == [0, 1] and report.fields["num_val"] == 2
