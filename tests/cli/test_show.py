"""`opendino visualize` (alias show) finds every kind in its folder, and the crops of a run by its settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tests.factories import model_folder, small_vit

from opendino import config as configs
from opendino.cli import main
from opendino.core import registry
from opendino.recipes import demo

KINDS = registry.names("opendino.visualize")


def test_the_kinds_are_the_files() -> None:
    wanted = ["attention", "correspondence", "crops", "curves", "pca", "temperature", "video"]
    assert wanted == KINDS


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "visualize takes the name of a kind"),
        (["atention"], "Did you mean attention"),
        (["attention"], "No model was named"),
        (["pca", "no/folder", "a.png"], ""),
        (["curves"], "No run was named"),
        (["crops", "no/run"], "no/run does not exist"),
        (["crops", "--stages"], "No run and no images were named"),
        (["crops", "toy:textures", "--out", "x.gif"], "Use one of .png"),
        (["crops", "toy:textures", "--views.all.gama.p", "1"], "Unknown option '--views.global.gama.p'"),
        (["temperature", "--temperatures", "0"], "from 0.0001"),
        (["video", "m", "f.mp4", "--out", "x.gif"], "Use one of .mp4"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", *words]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and told in captured.err


def test_attention_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_folder(tmp_path / "m", small_vit("vit/4", image_px=32), 32)
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "a.png")
    words = [str(tmp_path / "m"), str(tmp_path / "a.png"), "--out", str(tmp_path / "o.png"), "--heads", "1"]
    assert main(["show", "attention", *words, "--size-px", "32", "--overlay", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["paths"] == [str(tmp_path / "o.png")] and found["mass"] == 0.6
    words = [words[0], words[1], words[1], "--at", "3", "4", "--out", words[3], "--size-px", "32"]
    assert main(["show", "correspondence", *words]) == 0
    assert "(3, 4) →" in capsys.readouterr().out


def test_crops_of_a_run_are_found_by_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = demo.config("toy:textures?n=64")
    method = replace(base.method, out_dim=64, momentum=0.9, student_views="local")
    config = replace(
        base, method=method, batch=8, steps=5, epochs=None, seed=11, optim=replace(base.optim, grad_accum_steps=2)
    )
    (tmp_path / "config.yaml").write_text(configs.dump(config))
    out = str(tmp_path / "c.png")
    assert main(["show", "crops", str(tmp_path), "--step", "3", "--images", "1", "--out", out, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    from opendino.data.cache import DecodedImages
    from opendino.data.loader import Batches
    from opendino.data.open_source import open_source
    from opendino.methods import dino

    batches = Batches(DecodedImages(open_source(config.data), 10**6), dino.views(method, base.views), 11, 8)
    batch = batches[3]
    assert found["images"][0]["image"] == batches.images.source.key(int(batch.indices[0]))  # pyright: ignore
    assert found["images"][0]["views"][0]["box"] == batch.draws["global"]["crop"]["box"][0, 0].tolist()  # pyright: ignore
    assert (found["student"], found["teacher"]) == ("the local views", "the global views")
    (tmp_path / "config.yaml").write_text(configs.dump(replace(config, batch="auto")))
    assert main(["show", "crops", str(tmp_path)]) == 1
    assert "still has auto values" in capsys.readouterr().err
    assert main(["show", "crops", str(tmp_path), "--views.all.gamma.p", "1"]) == 2
    assert "is a run, which has its own settings" in capsys.readouterr().err


def test_crops_of_images_are_those_that_training_would_begin_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    import torch

    from opendino import resolve
    from opendino.cli.train_command import parse
    from opendino.data.cache import DecodedImages
    from opendino.data.loader import Batch, Batches

    images = tmp_path / "cells"
    images.mkdir()
    for n, pixels in enumerate(np.random.default_rng(0).integers(300, 900, (12, 40, 40), np.uint16)):
        Image.fromarray(pixels).save(images / f"{n}.png")
    out = str(tmp_path / "c.png")
    words = [str(images), "--recipe", "microscopy", "--views.all.gamma.p", "1", "--device", "cpu", "--workers", "0"]
    assert main(["show", "crops", *words, "--minutes", "5", "--stages", "--images=1", "--out", out, "--json"]) == 0
    captured = capsys.readouterr()
    (shown,) = json.loads(captured.out)["images"]
    assert captured.err == ""
    assert all("gamma" in view["augmentations"] for view in shown["views"])
    config, source = resolve.resolve_config(parse([*words, "--epochs", "9", "--threads", "1"]), torch.device("cpu"))
    batch = Batches(DecodedImages(source, 10**6), configs.views(config), config.seed, config.batch)[0]
    assert isinstance(batch, Batch) and shown["image"] == source.key(int(batch.indices[0]))
    assert shown["views"][-1]["box"] == batch.draws["local"]["crop"]["box"][-1, 0].tolist()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["c.png", "cells"]
