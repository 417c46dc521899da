"""Whole runs of every method: they go on exactly, and leave what each method promises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.factories import checkpoint_tensors, difference, dino_run

import opendino
from opendino.cli import main
from opendino.core.errors import UserError
from opendino.engine import optim
from opendino.methods import byol, distill, lejepa, mean_teacher, swav


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(opendino.train(dino_run(tmp_path_factory.mktemp("runs") / "whole")).run)


METHODS = {
    "byol": byol.Config(hidden_dim=16, projection_dim=8, momentum=0.9),
    "mean_teacher": mean_teacher.Config(),
    "distill": distill.Config(),
    "swav": swav.Config(out_dim=16, hidden_dim=16, bottleneck_dim=8),
    "lejepa": lejepa.Config(num_directions=16, hidden_dim=16, projection_dim=8),
    "distill-whole": distill.Config(teacher_view="whole"),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_exactly(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    method = METHODS[name]
    if name.startswith("distill"):
        method = replace(method, teacher=str(finished))
    whole, cut = (
        dino_run(tmp_path / part, backbone="conv4", backbone_options={"width": 4}, method=method, labels="50%")
        for part in ("whole", "cut")
    )
    opendino.train(whole)
    real, calls = optim.step, []

    def failing(*args: object) -> None:
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("power cut")
        real(*args)

    monkeypatch.setattr(optim, "step", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        opendino.train(cut)
    monkeypatch.setattr(optim, "step", real)
    opendino.resume(cut.out)
    assert difference(tmp_path / "whole", tmp_path / "cut", 10) is None


def test_distillation_leaves_the_student_and_the_teacher_as_it_was(finished: Path, tmp_path: Path) -> None:
    before = (finished / "backbone.safetensors").read_bytes()
    run = tmp_path / "run"
    config = dino_run(
        run, backbone="conv4", backbone_options={"width": 4},
        method=distill.Config(teacher=str(finished)), checkpoint_every="10", keep_checkpoints=9,
    )  # fmt: skip
    result = opendino.train(config)
    assert (finished / "backbone.safetensors").read_bytes() == before
    start, end = checkpoint_tensors(run, 0), checkpoint_tensors(run, 10)
    teacher = [key for key in start if key.startswith("method.teacher.")]
    assert teacher and all(torch.equal(start[key], end[key]) for key in teacher)
    model = opendino.load(run)
    assert model.description["networks"] == ["student"] and model.backbone.name == "conv4"
    assert model.backbone.state_dict().keys() == load_file(run / "backbone.safetensors").keys()
    assert not (run / "backbone_student.safetensors").exists()
    assert model.embed(Image.new("RGB", (40, 40))).shape == (1, 48)
    with pytest.raises(UserError, match="holds no teacher"):
        opendino.load(run, which="teacher")
    assert list(result.knn) == ["student", "teacher", "untrained", "pixels"]
    judged = [json.loads(line)["knn"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"knn"' in line]
    assert len({each["teacher"] for each in judged}) == 1, "weighed once"


def test_mean_teacher_reports_its_classifiers_and_leaves_the_teachers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = {"backbone": "conv4", "backbone_options": {"width": 4}}
    result = opendino.train(dino_run(run, method=mean_teacher.Config(), labels="25%", **options))
    assert list(result.accuracy) == ["teacher", "student", "baseline"]
    assert all(0 <= value <= 100 for value in result.accuracy.values())
    model = opendino.load(run, classifier=True)
    saved = checkpoint_tensors(run, 10)["method.teacher.classifier.weight"]
    assert torch.equal(model.classifier.weight, saved) and len(model.classes) == 10
    assert main(["predict", str(run), "toy:textures?n=12&size=32", "--json"]) == 0
    # Its teacher can be distilled from, labels included.
    method = distill.Config(teacher=str(run), objective="logits", label_weight=0.5)
    told = opendino.train(dino_run(tmp_path / "small", method=method, **options))
    assert list(told.accuracy) == ["student", "teacher"]
    assert told.accuracy["teacher"] == pytest.approx(result.accuracy["teacher"])
    assert opendino.load(tmp_path / "small", classifier=True).classes == model.classes
