"""Whole runs on images that are no photographs: 1 to 12 channels of 8 or 16 bits, read to the end with all of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file
from tests.factories import difference, dino_run, metric_rows, model_folder, small_vit

import opendino
from opendino.config import Config
from opendino.core.contracts import Callback
from opendino.interop.exporting import export_model
from opendino.interop.formats import opendino as opendino_format
from opendino.methods import distill


def science_folder(folder: Path, channels: int, count: int = 40, top: int = 3000) -> Path:
    """TIFF files, uint16 `[32 32 C]` up to `top`, of two classes that differ in the brightness of the last channel."""
    rng = np.random.default_rng(channels)
    for number in range(count):
        label = number % 2
        pixels = rng.integers(0, top // 2, (32, 32, channels))
        pixels[..., -1] += label * (top // 2)
        path = folder / "ab"[label] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = pixels.astype(np.uint16)
        planar = "contig" if channels > 1 else None
        tifffile.imwrite(path, values if planar else values[..., 0], photometric="minisblack", planarconfig=planar)
    return folder


def run_on(data: Path, out: Path, **changes: object) -> Config:
    """A short run of DINO on a folder."""
    return dino_run(out, str(data), val=None, **changes)


@pytest.fixture(scope="module")
def five_channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return science_folder(tmp_path_factory.mktemp("five"), 5)


@pytest.mark.parametrize("channels", [1, 2, 12])
def test_a_run_uses_all_channels_of_16_bits(channels: int, tmp_path: Path) -> None:
    data = science_folder(tmp_path / "images", channels)
    opendino.train(run_on(data, tmp_path / "run", steps=2, eval_every="2"))
    weights = load_file(tmp_path / "run" / "backbone.safetensors")
    assert any(value.ndim == 4 and value.shape[1] == channels for value in weights.values())
    description = json.loads((tmp_path / "run" / "backbone.json").read_text())
    assert len(description["preprocessing"]["mean"]) == len(description["preprocessing"]["std"]) == channels
    assert "bits: 16" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.fixture(scope="module")
def finished(five_channels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(opendino.train(run_on(five_channels, tmp_path_factory.mktemp("runs") / "whole")).run)


@pytest.mark.parametrize(("workers", "cache"), [(1, "disk"), (0, "ram"), (0, "device")])
def test_workers_and_cache_of_16_bits_change_nothing(
    finished: Path, five_channels: Path, tmp_path: Path, workers: int, cache: str
) -> None:
    opendino.train(run_on(five_channels, tmp_path / "run", workers=workers, cache=cache))
    assert difference(finished, tmp_path / "run", 10) is None


def test_separate_channels_are_one_channel_images_in_training_and_joined_afterwards(
    five_channels: Path, tmp_path: Path
) -> None:
    run = Path(opendino.train(run_on(five_channels, tmp_path / "run", steps=2, channel_mode="separate")).run)
    model = opendino.load(run)
    assert model.backbone.in_chans == 5 and model.backbone.embed_dim == 5 * 24
    image = tifffile.imread(next(five_channels.rglob("*.tif")))
    features = model.embed(image)
    assert features.shape == (1, 5 * 24)
    swapped = model.embed(np.ascontiguousarray(image[..., ::-1]))
    low, high = model.reading.intensity[0::2], model.reading.intensity[1::2]
    assert len(low) == len(high) == 5
    assert swapped.shape == features.shape and not np.allclose(swapped, features)
    export_model(str(run), "opendino", str(tmp_path / "exported"), None, opendino_format.Config())
    assert torch.equal(opendino.load(tmp_path / "exported").embed(image), features)
    judged = [row for row in metric_rows(run) if "knn" in row]
    assert judged[-1]["num_queries"] == 8, "of 40 images, not of 200 channels"


class _Stop(Callback):
    """Ends a run in the middle, as a crash does."""

    def on_step(self, step: int, metrics: dict[str, object]) -> None:
        if step >= 6:
            raise RuntimeError("stopped")


def test_a_run_resumes_exactly_with_a_cache_of_16_bits(finished: Path, five_channels: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="stopped"):
        opendino.train(run_on(five_channels, run, cache="disk"), callbacks=[_Stop()])
    assert (run / "cache.bin").is_file()
    opendino.resume(run)
    assert difference(finished, run, 10) is None


def test_weights_of_rgb_start_a_run_on_five_channels(five_channels: Path, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", small_vit(depth=2))
    run = Path(opendino.train(run_on(five_channels, tmp_path / "run", steps=1, init=model, backbone="auto")).run)
    assert "3 channels became 5" in (run / "log.txt").read_text()
    assert opendino.load(run).backbone.in_chans == 5
    mean = json.loads((run / "backbone.json").read_text())["preprocessing"]["mean"]
    assert len(mean) == 5 and mean[:3] != [0.485, 0.456, 0.406], "the model has none for five channels"


def test_a_teacher_of_five_channels_is_distilled(finished: Path, five_channels: Path, tmp_path: Path) -> None:
    method = distill.Config(teacher=str(finished))
    config = run_on(five_channels, tmp_path / "run", steps=2, method=method)
    run = Path(opendino.train(config).run)
    student, teacher = opendino.load(run), opendino.load(finished)
    assert student.backbone.in_chans == 5 and student.preprocessing["images"] == teacher.preprocessing["images"]
