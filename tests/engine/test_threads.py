"""Threads: as configured, from OMP_NUM_THREADS, or the fastest measured number; and when to measure again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from opendino.core.errors import UsageError
from opendino.engine import threads

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threads, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before, "measuring leaves things as they were"


def taking(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> list[int]:
    """Let a piece of work take that long with so many threads; returns the numbers that were tried."""
    tried: list[int] = []

    def measured(work: Callable[[], object], number: int) -> float:
        tried.append(number)
        return seconds(number)

    monkeypatch.setattr(threads, "_seconds", measured)
    return tried


def idle() -> None:
    pass


def test_a_number_that_was_asked_for_is_taken_or_refused() -> None:
    assert threads.choose(3, CPU, 1, idle) == (3, "as configured")
    with pytest.raises(UsageError, match="--threads is 9, and this process may use 8 cores"):
        threads.choose(9, CPU, 1, idle)


def test_the_environment_is_respected_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tried = taking(monkeypatch, lambda n: 1 / n)
    number, why = threads.choose("auto", CPU, 1, idle)
    assert (number, tried) == (torch.get_num_threads(), []) and "OMP_NUM_THREADS is 1" in why
    assert not threads.may_change(CPU)


@pytest.mark.parametrize(
    ("seconds", "workers", "best", "tried"),
    [
        (lambda n: 1 / n, 2, 6, [1, 2, 4, 6]),  # two cores are the loader's
        (lambda n: 1 / n, 0, 8, [1, 2, 4, 8]),
        (lambda n: 1.0 if n == 1 else 7.0, 2, 1, [1, 2]),  # a busy machine
        (lambda n: 1 / min(n, 2), 2, 2, [1, 2, 4]),  # a container of two cores on a machine of eight
        (lambda n: 1 / n**0.1, 2, 1, [1, 2]),  # hardly faster is not worth another core
        (lambda n: 1 / n, 7, 1, []),
    ],
)
def test_the_fewest_that_are_fast_are_taken(
    monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float], workers: int, best: int, tried: list[int]
) -> None:
    asked = taking(monkeypatch, seconds)
    assert threads.choose("auto", CPU, workers, idle)[0] == best
    assert asked == tried


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    tried = taking(monkeypatch, lambda n: 1 / n)
    assert threads.choose("auto", CPU, 0, idle)[0] == 2 and tried == [1, 2]
    assert threads.choose("auto", GPU, 0, idle)[0] == torch.get_num_threads() and tried == [1, 2]


def test_work_is_done_with_each_number_of_threads() -> None:
    seen: list[int] = []

    def work() -> None:
        seen.append(torch.get_num_threads())
        time.sleep(0.1 / torch.get_num_threads())

    number, why = threads.choose("auto", CPU, 6, work)
    assert (number, set(seen)) == (2, {1, 2}) and "ms with 2" in why


def test_half_the_speed_for_a_while_is_a_reason_to_measure_again() -> None:
    slow = threads.Slowdown()
    assert not slow(None)

    def rates(speed: float, wait: float = 0.0) -> dict[str, float]:
        return {"images_per_second": speed, "data_wait": wait}

    assert not any(slow(each) for each in (rates(90), rates(100), rates(40), rates(40), rates(60), rates(40)))
    repeated = rates(40)
    assert [slow(each) for each in (repeated, repeated, rates(40))] == [False, False, True]
    assert not any(slow(rates(40)) for _ in range(5)), "the new speed is what there is to compare with"
    assert not any(slow(rates(4, 0.9)) for _ in range(5)), "waiting for images is not the threads' fault"


def test_the_command_line_waits_passively_unless_told_otherwise() -> None:
    code = (
        "import os, sys; from opendino.cli import main; main(['--version']);"
        "assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    )
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert out.stdout.split()[-1] == expected
