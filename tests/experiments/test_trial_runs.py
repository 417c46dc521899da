"""Runs of an experiment are kept for as long as they are of the same settings, images and version."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.factories import plain_image

from opendino.config import Config
from opendino.core.errors import UserError
from opendino.experiments import _trial_runs
from opendino.experiments._trial_runs import TrialRun, run


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Verbs of the processes that were started; each leaves a finished run."""
    verbs: list[str] = []

    def finish(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        verbs.append(command[3])
        out = Path(command[4] if command[3] == "resume" else command[command.index("--out") + 1])
        out.mkdir(exist_ok=True)
        (out / "metrics.jsonl").write_text(json.dumps({"step": 10, "effective_rank": 1.0 + len(verbs)}) + "\n")
        (out / "config.yaml").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(_trial_runs.subprocess, "run", finish)
    return verbs


def images(folder: Path, value: int) -> str:
    folder.mkdir(exist_ok=True)
    for number in range(3):
        plain_image(value + number).save(folder / f"{number}.png")
    return str(folder)


def test_a_run_counts_as_finished_only_for_what_it_was_run_with(
    tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(_trial_runs.log, "warn", said.append)
    data = images(tmp_path / "images", 0)

    def once(seed: int = 0, batch: int = 8, folder: Path = tmp_path / "lab") -> float:
        trial = TrialRun("as it is", Config(data, steps=10, seed=seed, batch=batch))
        return run([trial], folder, 1)[0][-1]["effective_rank"]

    assert once() == once() == 2 and started == ["train"]
    (tmp_path / "lab").rename(tmp_path / "moved")
    assert once(folder=tmp_path / "moved") == 2, "a folder that was moved is what it was"
    assert once(seed=1) == 3 and not said
    assert once(seed=1, batch=4) == 4 and "lab/runs/as-it-is-seed1 was run with other settings" in said[0]
    assert once(seed=1, batch=4) == 4
    images(tmp_path / "images", 50)
    assert once(seed=1, batch=4) == 5
    monkeypatch.setattr(_trial_runs, "version", lambda _: "0.0.9")
    assert once(seed=1, batch=4) == 6
    assert started == ["train"] * 5 and len(said) == 3


def test_an_unfinished_run_of_the_same_settings_goes_on(tmp_path: Path, started: list[str]) -> None:
    trial = TrialRun("as it is", Config(images(tmp_path / "images", 0), steps=10, batch=8))
    run([trial], tmp_path / "lab", 1)
    (tmp_path / "lab/runs/as-it-is-seed0/metrics.jsonl").unlink()
    run([trial], tmp_path / "lab", 1)
    assert started == ["train", "resume"]


def test_what_is_done_and_what_came_of_it_is_said(
    tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(_trial_runs.log, "say", said.append)
    data = images(tmp_path / "images", 0)
    run([TrialRun("as it is", Config(data, steps=10, seed=seed, batch=8)) for seed in (0, 1)], tmp_path / "lab", 1)
    assert said[0].startswith("2 runs of 20 steps in all, 1 at a time")
    assert sorted(said[1:]) == [f"as-it-is-seed{n}: step 10; effective rank {m}.0" for n, m in ((0, 2), (1, 3))]


def test_a_run_that_fails_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command[3])
        return subprocess.CompletedProcess(command, 1, "", "out of memory")

    monkeypatch.setattr(_trial_runs.subprocess, "run", fail)
    data = images(tmp_path / "images", 0)
    with pytest.raises(UserError, match=r"failed: .*out of memory"):
        run([TrialRun("s", Config(data, steps=10, seed=seed, batch=8)) for seed in range(9)], tmp_path / "lab", 1)
    assert len(calls) <= 2
