"""Looks after a run: writes its numbers, keeps its time, names what goes wrong and stops what cannot go well."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opendino.core import accuracy, atomic_write, distributed, log
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data.source_files import cell
from opendino.engine import checkpoint
from opendino.engine.collapse_detection import Monitor, Verdict
from opendino.engine.metric_writer import MetricWriter
from opendino.engine.throughput import Throughput

_MIN_TRIES = 32  # tries to read an image before a share of failed ones means anything


class RunMonitor:
    """The steps since the last look, and what is known of the run.

    Args:
        folder: The run's folder.
        meters: Where numbers go; None on ranks that write nothing.
        source: Names the images of a failed step.
        batch: Images per step.
        total_steps: Length of the run.
        bad: key → reason of unreadable images, part of the run's state.
        max_bad_frac: Largest share of them.
        max_nonfinite: Void steps in a row before the run stops.
        speed: Its clock.

    Attributes:
        verdict: A collapse that stands, or None.
        quality: The last evaluation, shown in `line`.
        rates: The newest of `Speed.row`; None at first, and on ranks that write nothing.
    """

    def __init__(
        self, folder: Path, metric_writer: MetricWriter | None, source: Source, batch: int, total_steps: int,
        bad_images: dict[str, str], max_bad_frac: float, max_nonfinite: int, throughput: Throughput,
    ) -> None:  # fmt: skip
        self._folder, self._metric_writer, self._source, self._batch, self._bad_images = (
            folder,
            metric_writer,
            source,
            batch,
            bad_images,
        )
        self._max_bad_frac, self._max_nonfinite, self._throughput = max_bad_frac, max_nonfinite, throughput
        self._steps: list[tuple[int, dict[str, Tensor], dict[str, float], list[Tensor]]] = []
        self._skipped_in_a_row = self._num_read = self._num_failed = self._known_bad = 0
        self._last: dict[str, Any] = {}
        self._monitor = Monitor(total_steps)
        self.verdict: Verdict | None = None
        for row in (
            row for row in (metric_writer.recent if metric_writer else ()) if "loss" in row
        ):  # of a run that goes on
            self.verdict = self._monitor.watch(row)
        self._last_flush, self._flush_every = time.monotonic(), 1
        self.rates: dict[str, Any] | None = None
        self.quality: dict[str, Any] = {}
        self._evaluated_at = 0

    def step(self, done: int, tensors: dict[str, Tensor], numbers: dict[str, float], indices: list[Tensor]) -> None:
        """Remember a step; nothing is fetched from the device.

        Args:
            done: Steps done so far, this one included.
            tensors: Scalars on the device; "ok" says whether the step counted.
            numbers: Scalars of the host.
            indices: The images it used.
        """
        self._steps.append((done, tensors, numbers, indices))
        self._num_read += self._batch
        self._throughput.step()

    def record_bad_images(self, tries: list[tuple[str, str]]) -> None:
        """Remember what could not be read for the steps so far, of all ranks: (key, reason), once for each try."""
        self._num_failed += len(tries)
        self._bad_images.update(tries)

    def due(self) -> bool:
        """Whether it is time to look: every second, or as many steps as the ranks agreed take that long; ten at most.

        A scheduler that asks a run to stop may wait for no more than half a minute.
        """
        if distributed.is_distributed():
            return len(self._steps) >= self._flush_every
        return len(self._steps) >= 10 or time.monotonic() - self._last_flush > 1

    def flush(self) -> None:
        """Fetch and write the steps since the last look.

        Raises:
            UserError: Too many void steps in a row, or too many unreadable images.
        """
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

    def record_evaluation(self, done: int, quality: dict[str, Any]) -> None:
        """Write an evaluation."""
        self.quality, self._evaluated_at = quality, done
        if self._metric_writer is not None:
            self._metric_writer.write(done, quality)

    def line(self) -> str:
        """The figures a person watches."""
        shown = [f"loss {self._last['loss']:.3f}"] if "loss" in self._last else []
        if "teacher_entropy" in self._last:
            shown.append(f"entropy {self._last['teacher_entropy']:.2f} ({self._last['entropy_frac']:.0%} of ln K)")
        quality = (
            self.quality if self._evaluated_at else {}
        )  # from before the first step it says nothing of the training
        for kind, title in (("knn", "k-NN"), ("accuracy", "accuracy")):
            shown += [f"{title} {told}" for told in [*accuracy.shown(quality, kind).values()][:1]]
        if "majority" in quality:
            shown.append(f"(most frequent class {quality['majority']:.1f}%)")
        if "effective_rank" in quality:
            shown.append(f"rank {quality['effective_rank']:.0f}")
        rates = self.rates or self._throughput.summary()
        shown += [f"{rates['images_per_second']:.3g} images/s", f"wait {rates['data_wait']:.0%}"]
        return "  ".join([*shown, f"MFU {rates['mfu']:.0%}", f"{rates['peak_memory_bytes'] / 2**30:.1f} GiB"])

    def _check_finite(self, row: dict[str, Any], indices: list[Tensor]) -> None:
        self._skipped_in_a_row = 0 if row["ok"] else self._skipped_in_a_row + 1
        if self._skipped_in_a_row:
            keys = [self._source.key(int(i)) for i in torch.cat(indices)]
            log.warn(f"step {row['step']} was skipped, its loss is not finite; its images: {', '.join(keys)}")
        if self._skipped_in_a_row >= self._max_nonfinite:
            raise UserError(
                f"The loss was not finite for {self._skipped_in_a_row} steps in a row; "
                f"last good checkpoint: {checkpoint.newest(self._folder)}",
                "Lower --optim.lr or --optim.clip, or take --precision float32, and start anew",
            )

    def _check_collapse(self, row: dict[str, Any]) -> None:
        before, self.verdict = self.verdict, self._monitor.watch(row)
        now = self.verdict
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
            log.warn(f"{len(bad_images)} unreadable images so far, see {table}")
        # A place in a batch is filled in the end, if need be by a neighbor: so the share of failed tries since this
        # process began is that of bad images, by and large. (Of those known by name many may be from before.)
        tries = self._num_read + self._num_failed
        if self._num_failed > self._max_bad_frac * max(tries, _MIN_TRIES):
            key, reason = next(reversed(bad_images.items()))
            raise UserError(
                f"{self._num_failed} of {tries} images looked at cannot be read, more than {self._max_bad_frac:.0%}, "
                f"e.g. {key}: {reason}",
                f"See {table}; remove or convert them, or raise --max-bad-frac",
            )
