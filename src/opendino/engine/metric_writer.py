"""Writes the metrics of every step to metrics.jsonl and TensorBoard.

Values stay on the device until `flush`, which copies all of them to the host at once.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opendino.core import atomic_write


class MetricWriter:
    """Metric files of a run folder.

    Args:
        folder: The run's folder.
        step: Steps already done. Rows of later steps (written after the last checkpoint) are deleted; -1 deletes all.

    Attributes:
        recent: Up to 200 rows before `step`, the newest last.
    """

    def __init__(self, folder: Path, step: int = -1) -> None:
        from torch.utils.tensorboard import SummaryWriter  # the import takes a second, so only when a run starts

        path = folder / "metrics.jsonl"
        recent = deque[str](maxlen=200)
        with atomic_write.replace_file(path) as partial, open(partial, "w", encoding="utf-8") as output:
            for line in _rows_until(path, step) if path.exists() else ():
                output.write(line + "\n")
                recent.append(line)
        self.recent = [json.loads(line) for line in recent]
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115, open as long as the run
        # TensorBoard's thread raises an OSError in the next call, so do not also print it from the thread.
        self._excepthook, threading.excepthook = threading.excepthook, self._ignore_os_error
        self._tensorboard = SummaryWriter(str(folder), purge_step=step + 1 if step >= 0 else None)
        self._pending: list[tuple[int, dict[str, Tensor], dict[str, float]]] = []

    def add(self, step: int, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
        """Queue the scalars of a step; nothing is copied from the device yet."""
        self._pending.append((step, tensors, numbers))

    def flush(self) -> list[dict[str, Any]]:
        """Copy the queued scalars from the device, write them, and return them as rows."""
        if not self._pending:
            return []
        # One stacked tensor, so that the host waits for the device once.
        scalars = [value.float() for _, tensors, _ in self._pending for value in tensors.values()]
        values = iter(torch.stack(scalars).tolist())
        rows = [
            {"step": step, **{name: next(values) for name in tensors}, **numbers}
            for step, tensors, numbers in self._pending
        ]
        self._pending.clear()
        for row in rows:
            self._write(row)
        self._file.flush()
        return rows

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write a separate row immediately, e.g. an evaluation."""
        self._write({"step": step, **values})
        self._file.flush()

    def sync(self) -> None:
        """Write queued rows and sync the file to disk (fsync)."""
        self.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write queued rows and close the files."""
        try:
            self.flush()
            self._file.close()
            self._tensorboard.close()
        finally:
            threading.excepthook = self._excepthook

    def _ignore_os_error(self, args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            self._excepthook(args)

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(_nan_to_null(row), allow_nan=False) + "\n")
        for name, value in _flatten(row):
            self._tensorboard.add_scalar(name, value, row["step"])


def _nan_to_null(value: Any) -> Any:
    """Replace NaN and infinity by None: JSON has neither."""
    if isinstance(value, dict):
        return {name: _nan_to_null(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flatten(row: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs = []
    for name, value in row.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            pairs.append((prefix + name, float(value)))
    return pairs


def _rows_until(path: Path, step: int) -> Iterator[str]:
    """Lines up to a step. A line cut off by a crash is not JSON and is left out."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                if json.loads(line)["step"] <= step:
                    yield line.rstrip("\n")
            except (ValueError, KeyError, TypeError):
                continue
