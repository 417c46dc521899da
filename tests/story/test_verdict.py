"""One whole run for each verdict, and the same words wherever it is read."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.factories import dino_run

import opendino
from opendino import report
from opendino.app import curves_tab
from opendino.cli import main, train_command
from opendino.engine.run_result import Result
from opendino.methods import dino, mean_teacher

SMALL = {"out_dim": 32, "hidden_dim": 16, "bottleneck_dim": 8}
CONV: dict[str, Any] = {"backbone": "conv4", "backbone_options": {"width": 8}, "drop_path": 0.0, "batch": 32}
RUNS: dict[str, dict[str, Any]] = {
    "learned": {**CONV, "method": mean_teacher.Config(), "steps": 40, "labels": "folders", "eval_images": 800},
    "not shown to learn": {**CONV, "steps": 12},
    "collapsed (one-hot)": {**CONV, "steps": 80, "method": dino.Config(**SMALL, centering="none", teacher_temp=0.02)},
}


def tinted(folder: Path, seed: int) -> str:
    """Two classes of noise, a little red or a little blue, of any brightness: a network learns them, if told."""
    rng = np.random.default_rng(seed)
    for number in range(200):
        tint = (6, 0, 0) if number % 2 else (0, 0, 6)
        image = rng.integers(20, 200) + rng.integers(-40, 41, (32, 32, 3)) + np.array(tint)
        path = folder / ("blue", "red")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    return str(folder)


@pytest.fixture(scope="module", params=list(RUNS))
def finished(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[str, Result]:
    home, changes = tmp_path_factory.mktemp("runs"), RUNS[request.param]
    if request.param == "learned":
        changes = changes | {"data": tinted(home / "train", 0), "val": tinted(home / "val", 1)}
    config = dino_run(home / "run", **changes)
    rate = 1e-9 if request.param == "not shown to learn" else config.optim.lr
    return request.param, opendino.train(replace(config, optim=replace(config.optim, lr=rate)))


def test_the_words_are_the_same_everywhere(finished: tuple[str, Result], capsys: pytest.CaptureFixture[str]) -> None:
    name, result = finished
    assert result.verdict == name, result.evidence
    assert (result.collapse is not None) == name.startswith("collapsed")
    sentence = f"{result.verdict}: {result.evidence}"
    outcome = train_command.report(result)
    assert sentence in outcome.text
    assert outcome.fields["verdict"] == result.verdict and outcome.fields["evidence"] == result.evidence
    assert main(["doctor", result.run]) == 0
    assert capsys.readouterr().out.startswith(sentence)
    assert main(["doctor", result.run, "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert (fields["verdict"], fields["evidence"], fields["collapse"]) == (name, result.evidence, result.collapse)
    page = html.unescape(report.write(result.run).read_text(encoding="utf-8"))
    assert f"<b>{name}</b>: {result.evidence}</p>" in page
    folder = {"run": Path(result.run)}
    assert name in curves_tab.table(folder, {"run": curves_tab.Reader().columns(folder["run"])}, curves_tab.Reader())
