"""Measures a run: images per second, time waiting for data, MFU (model FLOPs utilization) and peak memory."""

from __future__ import annotations

import contextlib
import functools
import resource
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from opendino.core.compilation import compiling

_EVERY_SECONDS = 10.0


class _Thread(threading.local):
    apart = False


_thread = _Thread()


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Context manager for work of this thread that `FlopCounter` leaves out."""
    _thread.apart = True
    try:
        yield
    finally:
        _thread.apart = False


class FlopCounter(TorchDispatchMode):
    """Context manager that counts the FLOP of matrix products, convolutions and attention.

    The formulas and the total are those of `torch.utils.flop_counter.FlopCounterMode`, which also assigns them to
    modules, and imports torch's compiler for that: two seconds at the start of every run.

    Attributes:
        total: FLOP so far; a multiplication and an addition count as two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True imports the compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and add what it costs."""
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None and not _thread.apart:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


class Throughput:
    """Throughput of a run.

    Args:
        batch: Images per step over all ranks.
        local_batch: Images per step of this rank.
        device: Device to train on.
        dtype: Autocast dtype, for the peak FLOP/s.
        flops: FLOP per image of a training step, if a checkpoint has it; 0 to count it in the first step.

    Attributes:
        flops: The same, once it is counted.
    """

    def __init__(
        self, batch: int, local_batch: int, device: torch.device, dtype: torch.dtype, flops: float = 0.0
    ) -> None:
        self._batch, self._local_batch, self._device = batch, local_batch, device
        self._peak, self.flops = peak_flops(device, dtype), flops
        self._num_images = 0
        self._wait_seconds = self._pause_seconds = 0.0
        self._start = self._row_start = time.monotonic()
        self._row_counts = (0, 0.0, 0.0)

    def step(self) -> None:
        """Count a finished step."""
        self._num_images += self._batch

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Context manager around every step: counts the FLOP of a run's first step, but not of its views.

        The counted step runs without compilation, because the counter does not see compiled code. A resumed run
        takes the count from its checkpoint, so that its steps stay bit-identical to those of an uninterrupted run.
        """
        if self.flops:
            yield
            return
        with FlopCounter() as counter, compiling(False):
            yield
        self.flops = counter.total / self._local_batch

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context manager around waiting for the loader."""
        began = time.monotonic()
        yield
        self._wait_seconds += time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager around evaluations and checkpoints, whose time is left out of all rates."""
        began = time.monotonic()
        yield
        self._pause_seconds += time.monotonic() - began

    def summary(self) -> dict[str, Any]:
        """Rates since this process started to train.

        Returns:
            "images_per_second" over all ranks; "data_wait", the fraction of time spent waiting for images; "mfu" (model
            FLOPs utilization), this rank's FLOP/s divided by those of one large matrix product measured at the start,
            0 to 1; "peak_memory_bytes", see `peak_memory_bytes`.
        """
        return self._rates(self._start, (0, 0.0, 0.0))

    def row(self) -> dict[str, Any] | None:
        """As `summary`, since the last row; None if that was less than ten seconds ago."""
        if time.monotonic() - self._row_start < _EVERY_SECONDS:
            return None
        rates = self._rates(self._row_start, self._row_counts)
        self._row_start, self._row_counts = (
            time.monotonic(),
            (self._num_images, self._wait_seconds, self._pause_seconds),
        )
        return rates

    def _rates(self, since: float, then: tuple[int, float, float]) -> dict[str, Any]:
        seen, waited, rested = (
            n - m for n, m in zip((self._num_images, self._wait_seconds, self._pause_seconds), then, strict=True)
        )
        trained = max(1e-9, time.monotonic() - since - rested)
        mfu = seen / self._batch * self._local_batch * self.flops / trained / self._peak
        return {
            "images_per_second": seen / trained,
            "data_wait": waited / trained,
            "mfu": mfu,
            "peak_memory_bytes": peak_memory_bytes(self._device),
        }


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product, best of five (a multiplication and an addition count as two)."""
    side = 8192 if device.type == "cuda" else 1024
    # Measured once a process: a later run there must draw the same random numbers as the first.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(5):
        synchronize(device)
        began = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on the GPU, or else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
