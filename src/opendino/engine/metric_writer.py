"""What a run measures: every step into metrics.jsonl, and into TensorBoard.

Values stay on the device until `flush`, which fetches all of them at once.
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
    """The measurements of a run folder.

    Args:
        folder: The run's folder.
        step: Steps already done; rows beyond it (of a run that was cut off) are dropped, all of them where it is -1.

    Attributes:
        recent: The last rows that were kept.
    """

    def __init__(self, folder: Path, step: int = -1) -> None:
        from torch.utils.tensorboard import SummaryWriter  # costs a second, so only when a run starts

        path = folder / "metrics.jsonl"
        recent = deque[str](maxlen=200)
        with atomic_write.replace_file(path) as partial, open(partial, "w", encoding="utf-8") as kept:
            for line in _rows_until(path, step) if path.exists() else ():
                kept.write(line + "\n")
                recent.append(line)
        self.recent = [json.loads(line) for line in recent]
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115, lives as long as the run
        # TensorBoard's thread hands an error to the next caller; that it also prints it is once too often.
        self._hook, threading.excepthook = threading.excepthook, self._unless_told
        self._board = SummaryWriter(str(folder), purge_step=step + 1 if step >= 0 else None)
        self._waiting: list[tuple[int, dict[str, Tensor], dict[str, float]]] = []

    def add(self, step: int, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
        """Remember a step's scalars; nothing is fetched yet."""
        self._waiting.append((step, tensors, numbers))

    def flush(self) -> list[dict[str, Any]]:
        """Fetch and write what is waiting; returns it as rows."""
        if not self._waiting:
            return []
        scalars = [value.float() for _, tensors, _ in self._waiting for value in tensors.values()]
        values = iter(torch.stack(scalars).tolist())
        rows = [
            {"step": step, **{name: next(values) for name in tensors}, **numbers}
            for step, tensors, numbers in self._waiting
        ]
        self._waiting.clear()
        for row in rows:
            self._write(row)
        self._file.flush()
        return rows

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write a row of its own at once, e.g. an evaluation."""
        self._write({"step": step, **values})
        self._file.flush()

    def sync(self) -> None:
        """Write what is waiting and force it to disk."""
        self.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what is waiting and close the files."""
        try:
            self.flush()
            self._file.close()
            self._board.close()
        finally:
            threading.excepthook = self._hook

    def _unless_told(self, args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            self._hook(args)

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(_finite(row), allow_nan=False) + "\n")
        for name, value in _flat(row):
            self._board.add_scalar(name, value, row["step"])


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(row: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs = []
    for name, value in row.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            pairs.append((prefix + name, float(value)))
    return pairs


def _rows_until(path: Path, step: int) -> Iterator[str]:
    """The whole lines up to a step; a line torn by a crash is not JSON and goes."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                if json.loads(line)["step"] <= step:
                    yield line.rstrip("\n")
            except (ValueError, KeyError, TypeError):
                continue
