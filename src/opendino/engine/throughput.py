"""How fast a run is, what it waits for, and how that compares with what the device can do."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from opendino.core.compilation import compiling

_EVERY_SECONDS = 10.0


class Throughput:
    """The clock of a run.

    Args:
        batch: Images per step over all ranks.
        share: Images per step of this rank.
        device: What trains.
        dtype: Of the networks' matrix products.
        flops: A step's arithmetic for one image, in FLOP, where a checkpoint knows it; 0 to count it.

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
        """A step was done."""
        self._num_images += self._batch

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Entered around the first step of a run, counts its matrix products and convolutions, crops included.

        That step is not compiled: what is cannot be counted. A run that goes on counts nothing, so that it does what
        it would have done.
        """
        if self.flops:
            yield
            return
        with FlopCounterMode(display=False) as counter, compiling(False):
            yield
        self.flops = counter.get_total_flops() / self._local_batch

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Entered while waiting for images."""
        began = time.monotonic()
        yield
        self._wait_seconds += time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Entered while evaluating or saving, which is not training."""
        began = time.monotonic()
        yield
        self._pause_seconds += time.monotonic() - began

    def summary(self) -> dict[str, Any]:
        """Over this call's training: images_per_second over all ranks, data_wait, mfu and peak_memory_bytes.

        data_wait is the share of time spent waiting for images. mfu (model FLOPs utilization) is the rate at which this
        rank does the networks' arithmetic over that of one large matrix product, measured at the start: 1 means that
        nothing else took any time.
        """
        return self._rates(self._start, (0, 0.0, 0.0))

    def row(self) -> dict[str, Any] | None:
        """The same since the last row, every ten seconds; None in between."""
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


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """What one large matrix product reaches, in FLOP/s (a multiplication and an addition count as two)."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(5):
        _synchronize(device)
        began = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
