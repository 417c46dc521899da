"""Fine-tuning from masks: what it trains on, that masks are cut as images are, and what `predict` takes afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import checkpoint_tensors, difference, model_folder, small_vit

import opendino
from opendino import existing_runs, finetuning
from opendino.cli import main
from opendino.config import Config
from opendino.core.errors import UsageError, UserError
from opendino.core.types import ViewGroup, ViewSpec
from opendino.data.fingerprint import key_digests
from opendino.data.held_out import is_held_out
from opendino.data.labels import WORDS
from opendino.datasets.labeled_pixels import LabeledPixels
from opendino.methods.supervised import balanced_cross_entropy
from opendino.models import segmentation_head
from opendino.models.classifier import which_of_two
from opendino.resolve import absolute_paths
from opendino.views.multi_crop import crop_labels, multi_crop
from opendino.views.sampling import sample_views
from opendino.views.settings import GlobalView, changed

TOY = "toy:forms?n=40&size=32"
QUICK: dict[str, Any] = {
    "labels": "masks", "steps": 40, "batch": 16, "workers": 0, "checkpoint_every": "20", "keep_checkpoints": 9,
    "report": False, "precision": "float32", "threads": 1, "optim": {"lr": 4e-2}, "hold_out": 0.4,
}  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    home = tmp_path_factory.mktemp("masks")
    network = small_vit("vit/4", seed=5, image_px=32, depth=2, num_heads=2)
    model = model_folder(home / "model", network, 32)
    return home / "run", opendino.finetune(model, TOY, out=str(home / "run"), **QUICK)


def test_masks_rise_above_the_frozen_features(tuned: tuple[Path, Any]) -> None:
    run, result = tuned
    found = result.against_start
    held = is_held_out(key_digests(LabeledPixels(TOY)), 0.4)
    assert found["measure"] == "segmentation" and found["num_images"] == held.sum()
    assert found["after"] > found["before"] + 3, found["says"]
    model, head = segmentation_head.load_head(run / "head")
    expected = run if found["keep"] == "finetuned" else run.parent / "model"
    assert model.fingerprint == opendino.load(expected).fingerprint
    assert head.measured.startswith(f"{found['keep']} network: mean mIoU of an image")
    assert opendino.load(run).classes == (), "a classifier of pixels is none of images"
    assert which_of_two(run) == f"This is the fine-tuned network. `opendino predict` takes {head.measured}"
    assert opendino.load(run / "frozen").fingerprint == opendino.load(run.parent / "model").fingerprint


def test_a_stopped_run_resumes_exactly(tuned: tuple[Path, Any], tmp_path: Path) -> None:
    run, whole = tuned
    shutil.copytree(run, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/step_00000040")
    again = opendino.resume(tmp_path / "parts")
    assert again.against_start and whole.against_start
    assert difference(run, tmp_path / "parts", 40) is None
    assert {**again.against_start, "says": ""} == {**whole.against_start, "says": ""}


def test_predict_writes_masks_of_the_run(
    tuned: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(tuned[0]), "toy:forms?n=2&size=32", "--out", str(tmp_path / "masks"), "--device", "cpu"]
    assert main(words) == 0
    assert "mean mIoU of an image" in capsys.readouterr().out
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 2


def test_a_worse_network_is_not_handed_out(tuned: tuple[Path, Any], tmp_path: Path) -> None:
    """The classifier is trained alone for the first fifth, so a run of so few steps changes nothing."""
    options = QUICK | {"steps": 1, "hold_out": 0.4}
    result = opendino.finetune(tuned[0].parent / "model", TOY, out=str(tmp_path / "run"), **options)
    found = result.against_start
    assert found is not None and (found["verdict"], found["keep"]) == ("no better", "frozen")
    assert result.cure == "", "what to use is known"
    assert "Not shown to be better" in found["says"] and found["says"].endswith("takes the frozen features")
    assert segmentation_head.load_head(tmp_path / "run/head")[1].measured.startswith("frozen network")


@pytest.mark.parametrize("name", ["flip", "vertical_flip", "quarter_turns"])
def test_masks_are_cut_as_images_are(name: str) -> None:
    view = changed({"global": GlobalView()}, {
        "global.size": 24, f"global.{name}.p": 0.5, "global.color_jitter.p": 0.0, "global.gray.p": 0.0,
        "global.blur.p": 0.0,
    })["global"]  # fmt: skip
    mask = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (6, 5, 7), np.uint8))
    mask = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)  # [6, 40, 56], in squares of 8 px
    canvas = 255 * mask[:, None].expand(-1, 3, -1, -1)
    for fixed in (True, False):
        own = changed({"global": view}, {"global.crop.fixed": fixed})["global"]
        spec = ViewSpec((ViewGroup("global", 24, (own,)),), (0.0,) * 3, (1.0,) * 3)
        draws = sample_views(spec, 1, 0, range(6), [[40, 56]] * 6)
        pixels = multi_crop(canvas.contiguous(), draws, spec)["global"][:, :, 0]  # [V, B, 24, 24]
        labels = crop_labels(mask, draws, spec)["global"]
        agree = ((pixels > 0.5) == (labels == 1)).float().mean()
        assert labels.float().mean() not in (0, 1)
        assert agree == 1 if fixed else agree > 0.97


def test_every_class_counts_the_same_and_ignored_pixels_do_not() -> None:
    scores, labels = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.zeros(2, 4, 4, dtype=torch.int64)
    labels[0, 0, 0], labels[1] = 2, 255
    losses = -scores.log_softmax(1)[0]
    zeros = losses[0].flatten()[1:].mean()
    torch.testing.assert_close(balanced_cross_entropy(scores, labels, 0.0), (zeros + losses[2, 0, 0]) / 2)
    assert balanced_cross_entropy(scores, torch.full_like(labels, 255), 0.0) == 0


def folder(root: Path, masks: dict[str, np.ndarray]) -> str:
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for name, mask in masks.items():
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return str(root)


def test_classes_sizes_and_images_without_a_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.full((20, 30), 255, np.uint8)
    mask[:5], mask[5:9] = 3, 7
    data = folder(tmp_path / "data", {"a": mask, "b": mask.T.copy(), "c": mask})
    (tmp_path / "data/masks/c.png").unlink()
    found = LabeledPixels(data)
    assert (len(found), found.classes) == (2, ("3", "7")) and "1 of 3 images have no mask" in capsys.readouterr().err
    canvas = found.canvas(["a"], torch.tensor([[10, 15]]), 150)
    assert canvas.shape == (1, 10, 15) and canvas[0, :, 0].tolist() == [0, 0, 1, 1, *[255] * 6]
    with pytest.raises(UserError, match="mask of b has not the size of its image"):
        found.canvas(["b"], torch.tensor([[20, 30]]), 10**6)
    with pytest.raises(UserError, match="have 1 classes, and two are needed"):
        LabeledPixels(folder(tmp_path / "one", {"a": np.ones((20, 30), np.uint8)}))


def test_a_model_that_is_gone_leaves_nothing_to_compare(tuned: tuple[Path, Any], tmp_path: Path) -> None:
    config = existing_runs.read_run_config(tuned[0])
    gone = type(config)(**vars(config) | {"init": str(tmp_path / "gone")})
    found = finetuning.against_frozen_head(gone, tuned[0], torch.device("cpu"))
    assert (found["measure"], found["verdict"]) == ("segmentation", "unknown") and "is not there" in found["says"]


@pytest.mark.parametrize("word", WORDS)
def test_a_folder_beside_the_user_is_no_list_of_labels(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / word).mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute_paths(Config(TOY, labels=word)).labels == word


def test_what_does_not_go_with_masks(tuned: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--labels masks with the method dino"):
        opendino.train(TOY, labels="masks", out=str(tmp_path / "dino"), backbone="conv4")
    with pytest.raises(UsageError, match="cannot be rotated by any angle"):
        views = {"global": {"rotation": {"p": 1.0}}}
        opendino.finetune(tuned[0].parent / "model", TOY, out=str(tmp_path / "run"), views=views, **QUICK)
    assert not (tmp_path / "run").exists() and len(checkpoint_tensors(tuned[0], 40))
