"""Going on from trained weights: where it starts, what it may change, and whether it says what came of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.factories import small_vit

from opendino.cli import main
from opendino.config import Config
from opendino.core.errors import UserError
from opendino.engine import optim
from opendino.methods import byol, dino, distill, mean_teacher
from opendino.models import load
from opendino.start import resume, train
from opendino.views.settings import changed

TOY = "toy:textures?n=64&size=16"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    network = small_vit("vit/4", seed=5, depth=2, num_heads=3)
    prep = load.preprocessing(16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    load.save_backbone(tmp_path / "model", {"teacher": network}, preprocessing=prep)
    return tmp_path / "model"


def settings(model: Path, out: Path, **changes: object) -> Config:
    method = dino.Config(out_dim=16, hidden_dim=16, bottleneck_dim=8, momentum=0.9)
    views = changed(dino.VIEWS, {"global.size": 16, "local.size": 8, "local.number": 2})
    base = Config(
        data=TOY, init=str(model), backbone="auto", steps=6, batch=16, workers=0, method=method, views=views,
        out=str(out), report=False,
        optim=optim.Config(freeze_backbone="1"), checkpoint_every="1", keep_checkpoints=20,
    )  # fmt: skip
    return replace(base, **changes)


def backbone_at(run: Path, step: int, network: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    state = load_file(run / "checkpoints" / f"step_{step:08d}" / "tensors.safetensors")
    prefix = f"method.{network}.backbone."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


@pytest.mark.parametrize("method", [None, byol, mean_teacher])
def test_both_networks_start_from_the_weights(model: Path, tmp_path: Path, method: object) -> None:
    config = settings(model, tmp_path / "run")
    if method is byol:
        views = changed(byol.VIEWS, {"global.size": 16})
        config = replace(config, method=byol.Config(hidden_dim=16, projection_dim=8), views=views)
    elif method is mean_teacher:
        views = changed(mean_teacher.VIEWS, {"global.size": 16})
        config = replace(config, method=mean_teacher.Config(), views=views)
    train(config)
    given = load.load(model).backbone.state_dict()
    for network in ("student", "teacher"):
        for step in (0, 1):  # the first step is the head's
            found = backbone_at(tmp_path / "run", step, network)
            assert found.keys() == given.keys()
            assert all(torch.equal(found[key], given[key]) for key in given), (network, step)
    moved = backbone_at(tmp_path / "run", 6, "student")
    assert not torch.equal(moved["blocks.0.attn.qkv.weight"], given["blocks.0.attn.qkv.weight"])


def test_the_run_sees_images_as_the_model_did_and_resumes_without_it(model: Path, tmp_path: Path) -> None:
    whole = train(settings(model, tmp_path / "whole"))
    description = json.loads((tmp_path / "whole" / "backbone.json").read_text())
    assert description["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert (description["name"], description["kwargs"]["depth"]) == ("vit/4", 2)
    assert whole.knn is not None and {"start", "pixels"} < whole.knn.keys() and "untrained" not in whole.knn
    assert whole.against_start is None and f"{whole.knn['start']:.1f}% (at the start) → " in whole.evidence

    train(settings(model, tmp_path / "parts"))
    for checkpoint in sorted((tmp_path / "parts" / "checkpoints").iterdir())[4:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    (model / "backbone.json").unlink()  # no longer needed
    again = resume(tmp_path / "parts")
    assert (again.verdict, again.evidence, again.cure) == (whole.verdict, whole.evidence, whole.cure)
    one, other = (backbone_at(tmp_path / name, 6, "teacher") for name in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_without_labels_crops_are_compared_with_the_start(model: Path, tmp_path: Path) -> None:
    from PIL import Image

    from opendino.data.open_source import open_source

    source = open_source(TOY)
    (tmp_path / "flat").mkdir()
    for index in range(48):
        Image.fromarray(source.read(index)).save(tmp_path / "flat" / f"{index}.png")
    result = train(settings(model, tmp_path / "run", data=str(tmp_path / "flat")))
    assert result.knn is None and result.evidence.startswith("crop matching ")
    assert "% (at the start) → " in result.evidence and "untrained" not in result.evidence


def test_the_command_line_takes_the_recipe_for_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", TOY, "--init", str(model), "--steps", "10", "--batch", "16", "--workers", "0"]
    words += ["--views.local.number", "2", "--out", str(tmp_path / "run"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "layer_decay: 0.75" in text and "freeze_backbone: 10%" in text and "backbone: vit/4" in text
    assert main(["doctor", str(tmp_path / "run"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert all(again[name] == found[name] for name in ("verdict", "evidence", "cure"))


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model does not fit"):
        train(settings(model, tmp_path / "run", backbone="conv4"))
    with pytest.raises(UserError, match="There is no folder"):
        train(settings(tmp_path / "nothing", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_another_patch_size_and_registers_are_adapted_to(model: Path, tmp_path: Path) -> None:
    config = settings(model, tmp_path / "run", backbone="vit/8", backbone_options={
        "embed_dim": 24, "depth": 2, "num_heads": 3, "num_registers": 2,
    })  # fmt: skip
    train(replace(config, steps=2))
    assert load.load(tmp_path / "run").backbone.kwargs["num_registers"] == 2
    frozen = replace(
        config,
        out=str(tmp_path / "student"),
        steps=2,
        method=distill.Config(teacher=str(model)),
        views=changed(distill.VIEWS, {"global.size": 16}),
    )
    assert "at the start" in train(frozen).evidence
