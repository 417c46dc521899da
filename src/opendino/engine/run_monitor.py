"""Monitors a run: writes its metrics, warns of collapses, and stops it on too many skipped steps or bad images."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opendino.core import accuracy, atomic_write, distributed, log
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.source_files import cell
from opendino.engine import checkpoint
from opendino.engine.collapse_detection import Collapse, Monitor
from opendino.engine.metric_writer import MetricWriter
from opendino.engine.throughput import Throughput

_MIN_TRIES = 32  # read attempts below which the fraction of failed ones says nothing


@dataclass(frozen=True)
class Limits:
    """Size of a run, and what stops it early.

    Attributes:
        batch: Images per step over all ranks.
        total_steps: Length of the run.
        max_bad_frac: Largest allowed fraction of unreadable images.
        max_nonfinite: Skipped steps in a row after which the run stops.
    """

    batch: int
    total_steps: int
    max_bad_frac: float
    max_nonfinite: int


class RunMonitor:
    """Collects the steps since the last `flush` and the state of the run.

    Args:
        folder: The run's folder.
        metric_writer: Writes the metrics; None on ranks that write nothing.
        source: Names the images of a skipped step.
        bad_images: key → reason of unreadable images; changed in place, part of the run's state.
        limits: Size of the run, and what stops it early.
        throughput: Measures the speed of the run.
        cures: Of the method, see `MethodConfig.cures`.

    Attributes:
        collapse: The current collapse, or None.
        quality: The last evaluation, shown in `line`.
        rates: The newest `Throughput.row`; None at first and on ranks that write nothing.
    """

    def __init__(
        self, folder: Path, metric_writer: MetricWriter | None, source: Source, bad_images: dict[str, str],
        limits: Limits, throughput: Throughput, cures: Mapping[str, str],
    ) -> None:  # fmt: skip
        self._folder, self._metric_writer, self._source = folder, metric_writer, source
        self._bad_images, self._limits, self._throughput = bad_images, limits, throughput
        self._steps: list[tuple[int, dict[str, Tensor], dict[str, float], list[Tensor]]] = []
        self._skipped_in_a_row = self._num_read = self._num_failed = self._known_bad = 0
        self._last: dict[str, Any] = {}
        self._monitor = Monitor(limits.total_steps, cures)
        self.collapse: Collapse | None = None
        for row in (
            row for row in (metric_writer.recent if metric_writer else ()) if "loss" in row
        ):  # of a resumed run
            self.collapse = self._monitor.watch(row)
        self._last_flush, self._flush_every = time.monotonic(), 1
        self.rates: dict[str, Any] | None = None
        self.quality: dict[str, Any] = {}
        self._evaluated_at = 0

    def step(self, done: int, tensors: dict[str, Tensor], numbers: dict[str, float], indices: list[Tensor]) -> None:
        """Queue a step's metrics; nothing is copied from the device.

        Args:
            done: Steps done so far, including this one.
            tensors: Scalars on the device; "ok" is False if the step was skipped.
            numbers: Scalars on the host.
            indices: Indices of this rank's images, one tensor per micro-batch.
        """
        self._steps.append((done, tensors, numbers, indices))
        self._num_read += self._limits.batch
        self._throughput.step()

    def record_bad_images(self, tries: list[tuple[str, str]]) -> None:
        """Record the unreadable images of all ranks since the last call: (key, reason) for each failed attempt."""
        self._num_failed += len(tries)
        self._bad_images.update(tries)

    def due(self) -> bool:
        """Whether to call `flush` now: about every second, and at least every ten steps.

        With several ranks a number of steps that takes about a second, so that all ranks decide alike. A scheduler that
        sends SIGTERM may wait for only half a minute, and the run checks for it only here.
        """
        if distributed.is_distributed():
            return len(self._steps) >= self._flush_every
        return len(self._steps) >= 10 or time.monotonic() - self._last_flush > 1

    def flush(self) -> list[dict[str, Any]]:
        """Copy the queued steps from the device, write and check them.

        Returns:
            Their rows; none on ranks that write nothing.

        Raises:
            UserError: Too many skipped steps in a row, or too many unreadable images.
        """
        rows: list[dict[str, Any]] = []
        if self._metric_writer is not None:
            for done, tensors, numbers, _ in self._steps:
                self._metric_writer.add(done, tensors, numbers)
            rows = self._metric_writer.flush()
            for row, (_, _, _, indices) in zip(rows, self._steps, strict=True):
                self._check_finite(row, indices)
                self._check_collapse(row)
            self._last = rows[-1] if rows else self._last
            if self._steps and (rates := self._throughput.row()):
                self.rates = rates
                self._metric_writer.write(self._steps[-1][0], rates)
        if distributed.is_distributed():
            seconds_per_step = (time.monotonic() - self._last_flush) / max(1, len(self._steps))
            self._flush_every = distributed.broadcast_object(max(1, min(10, int(1 / seconds_per_step))))
        self._steps.clear()
        self._last_flush = time.monotonic()
        self._check_bad()
        return rows

    def record_evaluation(self, done: int, quality: dict[str, Any]) -> None:
        """Write an evaluation."""
        self.quality, self._evaluated_at = quality, done
        if self._metric_writer is not None:
            self._metric_writer.write(done, quality)

    def line(self) -> str:
        """One line of the main metrics, for the progress display."""
        shown = [f"loss {self._last['loss']:.3f}"] if "loss" in self._last else []
        if "teacher_entropy" in self._last:
            shown.append(f"teacher entropy {self._last['entropy_frac']:.0%} of its maximum")
        quality = self.quality if self._evaluated_at else {}  # before the first step it is of the untrained network
        if accuracy.folders_confirmed(quality):  # of dates or batches nobody wants a high accuracy
            for kind, title in (("knn", "k-NN"), ("accuracy", "accuracy")):
                shown += [f"{title} {text}" for text in [*accuracy.format_accuracies(quality, kind).values()][:1]]
            if "majority" in quality:
                shown.append(f"(most frequent class {quality['majority']:.1f}%)")
        if "effective_rank" in quality:
            shown.append(f"effective rank {quality['effective_rank']:.0f}")
        rates = self.rates or self._throughput.summary()
        shown += [f"{rates['images_per_second']:.3g} images/s", f"wait {rates['data_wait']:.0%}"]
        return "  ".join(
            [*shown, f"{rates['mfu']:.0%} of peak FLOP/s", f"{rates['peak_memory_bytes'] / 2**30:.1f} GiB"]
        )

    def _check_finite(self, row: dict[str, Any], indices: list[Tensor]) -> None:
        self._skipped_in_a_row = 0 if row["ok"] else self._skipped_in_a_row + 1
        if self._skipped_in_a_row:
            keys = [self._source.key(int(i)) for i in torch.cat(indices)]
            log.warn(f"step {row['step']} was skipped, its loss is not finite; its images: {', '.join(keys)}")
        if self._skipped_in_a_row >= self._limits.max_nonfinite:
            raise UserError(
                f"The loss was not finite for {self._skipped_in_a_row} steps in a row; "
                f"last good checkpoint: {checkpoint.newest(self._folder)}",
                "Start a new run with a lower --optim.lr or --optim.clip, or with --precision float32",
            )

    def _check_collapse(self, row: dict[str, Any]) -> None:
        before, self.collapse = self.collapse, self._monitor.watch(row)
        now = self.collapse
        if now is not None and (before is None or before.name != now.name):
            log.warn(f"step {row['step']}: {now.name} collapse: {now.evidence}. {now.cure}")
        if now is None and before is not None:
            log.say(f"step {row['step']}: no longer {before.name}")

    def _check_bad(self) -> None:
        bad_images, table = self._bad_images, self._folder / "bad_files.csv"
        if len(bad_images) > self._known_bad and self._metric_writer is not None:
            self._known_bad = len(bad_images)
            text = io.StringIO()
            listed = ((cell(key), cell(reason)) for key, reason in sorted(bad_images.items()))
            csv.writer(text).writerows([("file", "reason"), *listed])
            atomic_write.write(table, text.getvalue())
            log.warn(f"{len(bad_images)} unusable images so far, see {table}")
        # The loader replaces an unreadable image by another one, so every batch is full, and failed attempts divided by
        # all attempts of this process approximate the fraction of bad images. (`bad_images` may hold names from
        # before a resume, so its length does not.)
        tries = self._num_read + self._num_failed
        if self._num_failed > self._limits.max_bad_frac * max(tries, _MIN_TRIES):
            key, reason = next(reversed(bad_images.items()))
            raise UserError(
                f"{self._num_failed} of {tries} images read so far cannot be used, more than "
                f"{self._limits.max_bad_frac:.0%}, e.g. {key}: {reason}",
                f"Remove or convert the images listed in {table}, or raise --max-bad-frac",
            )
