"""Workers that die while they read images cost time and nothing else."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data import decode, workers
from opendino.data.cache import DecodedImages
from opendino.data.readers import limits, photograph
from opendino.data.workers import InFlightTracker, each, stream


class Hostile(Source):
    """Image i is filled with i. Reading 3 takes forever, 5 ends the process, 6 is unreadable."""

    def __init__(self, hangs: tuple[int, ...] = (3,), crashes: tuple[int, ...] = (5,)) -> None:
        self.hangs, self.crashes = hangs, crashes

    def __len__(self) -> int:
        return 40

    def key(self, index: int) -> str:
        return str(index)

    def label(self, index: int) -> int:
        return -1

    def read(self, index: int) -> np.ndarray:
        if index in self.hangs:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            while True:
                time.sleep(100)
        if index in self.crashes:
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(100)
        if index == 6:
            raise BadImage("torn")
        return np.full((4, 4, 3), index, np.uint8)


@pytest.fixture(autouse=True)
def deaths_are_seen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks every five seconds whether a loader process has died."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    photograph._formats()  # here, not within the time of each process's first image
    monkeypatch.setattr(limits, "MAX_SECONDS", 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_images_that_hang_or_crash_their_decoder_are_set_aside() -> None:
    images = DecodedImages(Hostile(hangs=(3, 4), crashes=(2, 5)), 100)  # four in one item: no reason to give up

    def look(index: int) -> int | str:
        try:
            return int(images.read(index)[0, 0, 0])
        except BadImage as error:
            return str(error)

    found = list(each(look, range(10), images.in_flight, workers=2))
    slow, crashed = "not decoded within 1 s", "its decoder crashed (SIGSEGV)"
    assert found == [0, 1, crashed, slow, slow, crashed, "torn", 7, 8, 9]
    assert images.in_flight.fatal == {2: crashed, 3: slow, 4: slow, 5: crashed}
    assert look(3) == slow, "known in this process too, which never tries"


class Killed(Dataset):
    """Item n is n; a process that reads one of `deadly` kills itself, the first time or always."""

    def __init__(self, folder: Path, deadly: tuple[int, ...], always: bool = False) -> None:
        self.folder, self.deadly, self.always = folder, deadly, always

    def __getitem__(self, n: int) -> torch.Tensor:
        if n in self.deadly and get_worker_info() is not None:
            first = not (self.folder / str(n)).exists()
            (self.folder / str(n)).touch()
            if first or self.always:
                os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((3, 50), n)


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    items = stream(Killed(tmp_path, (4, 10)), InFlightTracker(), 2, 20, workers=2)
    assert [int(item[0, 0]) for item in items] == list(range(2, 20))
    assert signal.getsignal(signal.SIGCHLD) == before, "torch's handler would interrupt a step"


@pytest.mark.slow
def test_processes_that_die_again_and_again_end_the_run_in_one_line(tmp_path: Path) -> None:
    items = stream(Killed(tmp_path, (1,), always=True), InFlightTracker(), 0, 20, 1)
    with pytest.raises(UserError, match=r"die: SIGKILL, 3 times in a row\. .*fewer --workers"):
        list(items)


class Wrong(Dataset):
    def __getitem__(self, n: int) -> int:
        raise RuntimeError("our own mistake")


def test_other_errors_are_not_taken_for_deaths() -> None:
    with pytest.raises(RuntimeError, match="our own mistake"):
        next(stream(Wrong(), InFlightTracker(), 0, 2, 1))


@pytest.mark.slow
def test_python_ends_though_something_holds_on_to_the_processes() -> None:
    script = (
        "import builtins; from tests.data.test_workers import *; "
        "builtins.held = stream(Right(), InFlightTracker(), 0, 9, 1)"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{script}; print(next(builtins.held))"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.stdout == "0\n", ended.stderr
    assert ended.returncode == 0


class Right(Dataset):
    def __getitem__(self, n: int) -> int:
        return n


def test_without_processes_there_is_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.001)
    with InFlightTracker().on(0):
        time.sleep(0.01)
    assert signal.getitimer(signal.ITIMER_REAL)[0] in (0, pytest.approx(600, abs=600)), "pytest's own, if any"


def test_a_slow_decoder_that_reads_on_is_cut_off_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", -1.0)
    with pytest.raises(BadImage, match="not decoded within"):
        decode.decode(b"\x89PNG\r\n\x1a\n" + bytes(100))


def test_a_run_begun_on_a_larger_machine_takes_fewer_workers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "MOST_PROCESSES", 2)
    assert list(stream(Right(), InFlightTracker(), 0, 4, 64)) == list(range(4))
    assert "Using 2 workers instead of 64: this machine has" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's loader, made by half
def test_processes_that_were_started_before_one_could_not_be_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    start = multiprocessing.process.BaseProcess.start

    def third_fails(process: Any) -> None:
        if len(started) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        start(process)
        started.append(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", third_fails)
    with pytest.raises(OSError, match="Too many open files"):
        next(stream(Right(), InFlightTracker(), 0, 4, 4))
    for process in started:
        process.join(10)
    assert [process.exitcode for process in started] == [-signal.SIGKILL] * 2
