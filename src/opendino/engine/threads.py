"""How many threads compute on a CPU, measured: beside any other load two can be fifty times as slow as one.

Sums are split among threads, so their number can change the last digits of a result: it is part of a run's state and
changes only where the log says so. docs/decisions/0016-threads.md says why.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from opendino.core.errors import UsageError
from opendino.core.ranges import cores

_MIN_GAIN = 1.1  # what twice the threads must gain: a smaller gain is lost as soon as another program runs
_SECONDS = 0.25  # of each timing
_SLOW_ROWS = 3  # of ten seconds each, at less than half of the best speed, before the threads are timed again


def choose(wanted: int | str, device: torch.device, workers: int, workload: Callable[[], object]) -> tuple[int, str]:
    """The number of threads of this process, and why.

    Args:
        wanted: That many, or "auto": OMP_NUM_THREADS where it is set, else measured.
        device: What trains; on a GPU nothing is measured.
        workers: Loader processes: each keeps a core.
        work: A piece of the training, run again and again to measure.

    Raises:
        UsageError: More than the machine has cores.
    """
    if isinstance(wanted, int):
        if wanted > cores():
            raise UsageError(f"--threads is {wanted}, and this process may use {cores()} cores", "Use --threads auto")
        return wanted, "as configured"
    if given := os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads(), f"OMP_NUM_THREADS is {given}"
    if device.type != "cpu":
        return torch.get_num_threads(), f"PyTorch's own number; the {device.type} device computes"
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    most = max(1, cores() // local_processes - workers)
    if most == 1:
        return (
            1,
            f"{cores()} cores for {local_processes} process{'es' * (local_processes > 1)} and {workers * local_processes} that read images",
        )
    before, best, timings = torch.get_num_threads(), 1, {}
    try:
        for number in _candidates(most):
            timings[number] = _seconds(workload, number)
            if number > 1 and timings[best] < _MIN_GAIN * timings[number]:
                break
            best = number
    finally:
        torch.set_num_threads(before)
    shown = ", ".join(f"{1000 * seconds:.3g} ms with {number}" for number, seconds in timings.items())
    return best, f"measured {shown}"


def may_change(device: torch.device) -> bool:
    """Whether the number may change while a run trains: it matters, and nobody has fixed it."""
    return device.type == "cpu" and not os.environ.get("OMP_NUM_THREADS")


def to_state(number: int) -> dict[str, Any]:
    """What a checkpoint keeps of a measured number of threads, see `plan.resumed_threads`."""
    return {"number": number, "machine": machine()}


def machine() -> str:
    """Names the processor and the cores: on another machine the number of threads is chosen again."""
    return f"{_processor()}, {cores()} cores"


class Slowdown:
    """Notices that a run has become slower by half, for a while. Waiting for images does not count."""

    def __init__(self) -> None:
        self._best = 0.0
        self._slow = 0
        self._last: dict[str, Any] | None = None

    def __call__(self, rates: dict[str, Any] | None) -> bool:
        """Whether it is time to choose the threads again.

        Args:
            rates: The newest of `Speed.row`, may be the same object as before.
        """
        if rates is None or rates is self._last:
            return False
        self._last = rates
        speed = rates["images_per_second"] / max(1e-3, 1 - rates["data_wait"])
        self._best = max(self._best, speed)
        self._slow = self._slow + 1 if speed < self._best / 2 else 0
        if self._slow < _SLOW_ROWS:
            return False
        self._best, self._slow = 0.0, 0  # what is reached from now on is what to compare with
        return True


def _candidates(most: int) -> list[int]:
    powers = [2**n for n in range(most.bit_length()) if 2**n < most]
    return [*powers, most]


def _seconds(workload: Callable[[], object], number: int) -> float:
    """Mean time of one piece of work: a thread that others keep from running is seen in the mean, not in the best."""
    torch.set_num_threads(number)
    workload()
    began, times = time.perf_counter(), 0
    while times < 2 or time.perf_counter() - began < _SECONDS:
        workload()
        times += 1
    return (time.perf_counter() - began) / times


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
