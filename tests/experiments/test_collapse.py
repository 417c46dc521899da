"""The collapse experiment end to end, small: runs, verdicts, table, figure; finished runs are not run again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from opendino.cli import main
from opendino.core.errors import UsageError
from opendino.experiments import collapse
from opendino.recipes import demo


def test_runs_table_and_figure_and_a_second_call_that_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, in_this_process: list[str]
) -> None:
    small = replace(demo.config("toy:textures?n=200&size=32"), val="toy:textures?n=100&size=32&split=val")
    monkeypatch.setattr(demo, "config", lambda *_: small)
    words = ["experiment", "collapse", "--out", str(tmp_path), "--seeds", "1", "--steps", "12", "--jobs", "1", "--json"]
    words += ["--only", "sharpening only", "BYOL"]
    assert main(words) == 0
    assert in_this_process == ["train", "train"]
    found = json.loads(capsys.readouterr().out)
    assert [(run["setting"], run["seed"]) for run in found["runs"]] == [("sharpening only", 0), ("BYOL", 0)]
    assert found["detection"]["collapsed"] == found["detection"]["healthy"] == 1
    assert json.loads((tmp_path / "result.json").read_text()) == {k: v for k, v in found.items() if k != "folder"}
    table = (tmp_path / "table.md").read_text()
    assert table.count("\n| ") == 2 and "| sharpening only | one-hot |" in table
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")
    rows = (tmp_path / "runs" / "BYOL-seed0" / "metrics.jsonl").stat()
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == found and len(in_this_process) == 2
    assert (tmp_path / "runs" / "BYOL-seed0" / "metrics.jsonl").stat().st_mtime_ns == rows.st_mtime_ns


def test_every_setting_is_planned_for_every_seed() -> None:
    planned = collapse.trials(collapse.Config(seeds=5))
    assert len(planned) == 5 * len(collapse.SETTINGS | collapse.BYOL) == len({trial.name for trial in planned})
    assert {trial.config.seed for trial in planned} == set(range(5))


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="Did you mean both"):
        collapse.Config(only=("bothh",))
