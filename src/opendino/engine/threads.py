"""Chooses the number of CPU threads by timing: next to other programs two can be fifty times slower than one.

Sums are split among threads, so the number of threads can change the last digits of a result. It is therefore part of a
run's state, and every change is logged. See docs/decisions/0016-threads.md.
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

from opendino.core import distributed
from opendino.core.errors import UsageError
from opendino.core.ranges import cores

_MIN_GAIN = 1.1  # speedup that twice the threads must give; a smaller one is lost as soon as another program runs
_SECONDS = 0.25  # length of each timing
_SLOW_ROWS = 3  # rows of ten seconds at less than half of the best speed after which threads are timed again


def choose(wanted: int | str, device: torch.device, workers: int, workload: Callable[[], object]) -> tuple[int, str]:
    """Number of threads of this process, and the reason.

    Args:
        wanted: A number, or "auto": OMP_NUM_THREADS if set, else measured.
        device: Device to train on; on a GPU nothing is measured.
        workers: Loader worker processes; one core is left for each.
        workload: A function to time, e.g. a forward and backward pass.

    Raises:
        UsageError: More threads than cores.
    """
    if isinstance(wanted, int):
        if wanted > cores():
            raise UsageError(f"--threads is {wanted}, and this process may use {cores()} cores", "Use --threads auto")
        return wanted, "as configured"
    if given := os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads(), f"OMP_NUM_THREADS is {given}"
    if device.type != "cpu":
        return torch.get_num_threads(), f"PyTorch's default; the {device.type} device computes"
    local_processes = distributed.local_world_size()
    most = max(1, cores() // local_processes - workers)
    if most == 1:
        return (
            1,
            f"{cores()} cores for {local_processes} training and {workers * local_processes} loader processes",
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
    """Whether the number of threads may change during a run: training is on a CPU and OMP_NUM_THREADS is not set."""
    return device.type == "cpu" and not os.environ.get("OMP_NUM_THREADS")


def to_state(number: int) -> dict[str, Any]:
    """What a checkpoint stores about a measured number of threads, see `resolve.resumed_threads`."""
    return {"number": number, "machine": machine()}


def machine() -> str:
    """Processor and number of cores; on another machine the number of threads is measured again."""
    return f"{_processor()}, {cores()} cores"


class Slowdown:
    """Detects that a run has been at less than half its best speed for 30 seconds, without time waiting for images."""

    def __init__(self) -> None:
        self._best = 0.0
        self._slow = 0
        self._last: dict[str, Any] | None = None

    def __call__(self, rates: dict[str, Any] | None) -> bool:
        """Whether to measure the number of threads again.

        Args:
            rates: The newest `Throughput.row`; an object already seen is ignored.
        """
        if rates is None or rates is self._last:
            return False
        self._last = rates
        speed = rates["images_per_second"] / max(1e-3, 1 - rates["data_wait"])
        self._best = max(self._best, speed)
        self._slow = self._slow + 1 if speed < self._best / 2 else 0
        if self._slow < _SLOW_ROWS:
            return False
        self._best, self._slow = 0.0, 0  # from now on compare with the new speed
        return True


def _candidates(most: int) -> list[int]:
    powers = [2**n for n in range(most.bit_length()) if 2**n < most]
    return [*powers, most]


def _seconds(workload: Callable[[], object], number: int) -> float:
    """Mean seconds of one call; the mean and not the best, because it shows threads delayed by other programs."""
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
