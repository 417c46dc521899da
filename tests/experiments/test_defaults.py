"""One setting at a time around the demo's run: what is planned, and the table of a small experiment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.factories import plain_folder

from opendino.cli import main
from opendino.core.errors import UsageError, UserError
from opendino.experiments import defaults


def test_every_run_sees_as_many_images_and_differs_in_what_its_factor_says() -> None:
    planned = {trial.name: trial.config for trial in defaults.trials(defaults.Config(seeds=2))}
    assert len(planned) == 2 * sum(map(len, defaults.FACTORS.values()))
    base = planned["as-it-is---seed0"]
    for name, config in planned.items():
        assert config.steps and isinstance(config.batch, int) and isinstance(base.batch, int) and base.steps
        times = defaults.LONG if name.startswith("momentum-long") else 1
        assert config.steps * config.batch == times * base.steps * base.batch, name
    assert planned["momentum-0.95-seed1"].method.momentum == 0.95
    assert planned["momentum-0.95-seed1"].method.momentum_end == 1.0
    assert planned["K-4096-seed0"].method.out_dim == 4096
    assert planned["batch-16-seed0"].batch == 16


def test_images_without_classes_are_refused_before_the_runs(tmp_path: Path) -> None:
    plain_folder(tmp_path, "1.png", "2.png")
    with pytest.raises(UserError, match="has no classes"):
        defaults.conduct(defaults.Config(data=str(tmp_path), out=str(tmp_path / "out")))


@pytest.mark.slow
def test_the_table_compares_seed_by_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, in_this_process: list[str]
) -> None:
    monkeypatch.setattr(defaults, "FACTORS", {"as it is": {"-": {}}, "local crops": {"0": {"local.number": 0}}})
    words = ["experiment", "defaults", "--out", str(tmp_path), "--seeds", "1", "--steps", "10", "--jobs", "1", "--json"]
    words += ["--data", "toy:textures?n=200&size=32", "--val", "toy:textures?n=100&size=32&split=val"]
    assert main(words) == 0 and in_this_process == ["train", "train"]
    settings = json.loads(capsys.readouterr().out)["settings"]
    base, without = (each["runs"][0]["knn"]["teacher"] for each in settings)
    table = (tmp_path / "table.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| local crops | 0 |"))
    assert f"| {without:.1f} %, balanced " in row and f"| {without - base:+.1f} |" in row
    assert [line.partition(":")[0] for line in table.splitlines()[-3:]] == ["untrained", "pixels", "k-NN of each run"]


def test_unknown_factors_are_refused() -> None:
    with pytest.raises(UsageError, match="Did you mean momentum"):
        defaults.Config(only=("momentun",))
