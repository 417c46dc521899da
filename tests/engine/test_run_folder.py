"""One run per folder at a time, and only a run's own folder is deleted."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from opendino.core.errors import UserError
from opendino.engine.run_folder import RunDirLock


def claim(folder: Path, resuming: bool, started: object, stop: object) -> None:
    with RunDirLock(folder, leader=True, resuming=resuming):
        started.set()
        stop.wait(60)


@pytest.mark.parametrize("resuming", [False, True])
def test_a_folder_in_use_is_refused_until_its_process_is_gone(tmp_path: Path, resuming: bool) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    fork = multiprocessing.get_context("fork")
    started, stop = fork.Event(), fork.Event()
    other = fork.Process(target=claim, args=(folder, resuming, started, stop))
    other.start()
    assert started.wait(60)
    with (
        pytest.raises(UserError, match="is in use by another run"),
        RunDirLock(folder, leader=True, resuming=resuming),
    ):
        pytest.fail("entered")
    assert folder.is_dir(), "the other's folder stays"
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with RunDirLock(folder, leader=True, resuming=resuming):
        pass


def test_a_run_that_came_and_went_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    mine = RunDirLock(tmp_path, leader=True)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="was just used by another run"), mine:
        pytest.fail("entered")
    assert (tmp_path / "config.yaml").exists()


def test_a_failed_start_gives_back_what_it_made_and_a_run_that_goes_on_nothing(tmp_path: Path) -> None:
    for resuming in (False, True):
        folder = tmp_path / "new" / "run"
        if resuming:
            folder.mkdir(parents=True)
        with pytest.raises(RuntimeError), RunDirLock(folder, leader=True, resuming=resuming):
            (folder / "half").touch()
            raise RuntimeError
        assert (tmp_path / "new").exists() == resuming


def test_other_ranks_touch_nothing(tmp_path: Path) -> None:
    with RunDirLock(tmp_path / "run", leader=False):
        assert not (tmp_path / "run").exists()
