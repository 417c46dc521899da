"""Trainings from the page: one per session, few at a time, nothing left behind."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from opendino.app import training_jobs
from opendino.app.training_jobs import TrainingJobs
from opendino.core.errors import UserError

# A fake Python: makes a run folder and runs until it gets SIGTERM; fails for data called "toy:bad".
TRAINER = """#!/bin/sh
test "$4" = toy:bad && { echo 'opendino: Unknown kind bad' >&2; exit 2; }
for out; do :; done
mkdir -p "$out"; echo '{}' > "$out/backbone.json"; echo '{"step": 1}' > "$out/metrics.jsonl"
trap 'exit 130' TERM
while :; do sleep 0.05; done
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    trainer = tmp_path / "trainer"
    trainer.write_text(TRAINER)
    trainer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(trainer))
    return tmp_path / "runs"


@pytest.fixture
def jobs(folder: Path) -> Iterator[TrainingJobs]:
    jobs = TrainingJobs(folder, False, folder, 2)
    yield jobs
    jobs.close_all()


def wait_for_model(jobs: TrainingJobs, session: str) -> None:
    until = time.monotonic() + 30
    while not jobs.models(session):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_one_a_session_and_few_in_all(jobs: TrainingJobs) -> None:
    jobs.start("one", "toy:x", [])
    with pytest.raises(UserError, match="is running already"):
        jobs.start("one", "toy:x", [])
    jobs.start("two", "toy:x", [])
    with pytest.raises(UserError, match="Other users are training"):
        jobs.start("three", "toy:x", [])


def test_a_session_sees_its_own_runs_alone(jobs: TrainingJobs) -> None:
    jobs.start("one", "toy:x", [])
    wait_for_model(jobs, "one")
    assert list(jobs.runs("one")) == ["trained here (1)"]
    assert jobs.runs("two") == {} and jobs.latest("two") is None


def test_stopping_waits_for_the_training_to_save(jobs: TrainingJobs) -> None:
    training = jobs.start("one", "toy:x", [])
    wait_for_model(jobs, "one")
    assert training.running
    training.ask_to_stop()
    training.end()
    assert not training.running and training.stopped and not training.failed


def test_what_a_failed_training_said_is_told(jobs: TrainingJobs) -> None:
    training = jobs.start("one", "toy:bad", [])
    training._process.wait()
    assert training.failed == "Unknown kind bad"


def test_a_training_that_does_not_listen_is_ended(jobs: TrainingJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_jobs, "_GRACE_SECONDS", 0.1)
    training = jobs.start("one", "toy:x", [])
    training.end()  # nobody asked it
    assert not training.running


@pytest.mark.parametrize("keep", [False, True])
def test_a_session_takes_its_uploads_and_its_runs_along(folder: Path, tmp_path: Path, keep: bool) -> None:
    jobs = TrainingJobs(folder, keep, folder, 2)
    (tmp_path / "images.zip").write_bytes(b"PK")
    jobs.start("one", tmp_path / "images.zip", [])
    wait_for_model(jobs, "one")
    jobs.close("one")
    left = sorted(path.suffix or "run" for path in folder.iterdir())
    assert left == (["run"] if keep else [])
    assert jobs.runs("one") == {}


def test_a_training_on_images_of_the_server_is_everybodys_and_outlives_a_session(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_jobs, "_GRACE_SECONDS", 0.0)
    jobs = TrainingJobs(folder, False, folder.with_name("server"), 2)
    training = jobs.start_on_server_images("one", "/images/cells", ["--labels", "none"])
    assert jobs.latest("one") is training and jobs.latest("two") is training
    until = time.monotonic() + 30
    while not (training.out / "metrics.jsonl").is_file():
        assert time.monotonic() < until, training.said
        time.sleep(0.02)
    with pytest.raises(UserError, match="is running already"):
        jobs.start_on_server_images("one", "/images/cells", [])
    jobs.close("one")
    assert training.running and training.out.name.startswith("cells-")
    jobs.close_all()
    assert not training.running and jobs.latest("one") is None
    assert (training.out / "backbone.json").is_file()  # its run is kept
    assert training._process.returncode != -signal.SIGKILL, "it had the time that it needed"
