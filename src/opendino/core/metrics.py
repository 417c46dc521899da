"""The rows of a run's metrics.jsonl, as far as they can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

_CHUNK_BYTES = 8 * 2**20


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects with a whole `step`, in order; a line that is none, such as one being written, is passed over.

    Raises:
        OSError: There is no such file.
    """
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            found.append(row)
    return found


def columns(path: Path, names: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Some numbers of a run over steps: what `rows` holds, fast and lean for runs of a million lines.

    Args:
        path: A run's metrics.jsonl.
        names: Of numbers, or of tables of numbers such as "knn", whose parts become "knn.teacher" and so on.

    Returns:
        Name → steps int64 `[T]`, values float64 `[T]`, as often as it was measured and finite; absent where never.

    Raises:
        OSError: There is no such file.
    """
    kind = msgspec.defstruct("Row", [("step", int), *((name, Number | None, None) for name in names)], gc=False)
    decoder = msgspec.json.Decoder(kind)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for chunk in _chunks(path):
        read = _decoded(decoder, chunk)
        steps = np.array([row.step for row in read], np.int64)
        for name in names:
            values = [getattr(row, name) for row in read]
            if any(isinstance(value, dict) for value in values):
                for key in {key: None for value in values if isinstance(value, dict) for key in value}:
                    part = [value.get(key) if isinstance(value, dict) else None for value in values]
                    found.setdefault(f"{name}.{key}", []).append(_measured(steps, part))
            else:
                found.setdefault(name, []).append(_measured(steps, values))
    joined = {name: tuple(np.concatenate(part) for part in zip(*parts, strict=True)) for name, parts in found.items()}
    return {name: (steps, values) for name, (steps, values) in joined.items() if len(steps)}


Number = float | dict[str, float | None]


def _chunks(path: Path) -> Iterator[bytes]:
    """A file in pieces of whole lines."""
    with open(path, "rb") as file:
        rest = b""
        while piece := file.read(_CHUNK_BYTES):
            whole, newline, rest_of_line = (rest + piece).rpartition(b"\n")
            rest = rest_of_line
            yield whole + newline
        yield rest


def _decoded(decoder: msgspec.json.Decoder[Any], lines: bytes) -> list[Any]:
    try:
        return decoder.decode_lines(lines)
    except (msgspec.DecodeError, UnicodeDecodeError):  # torn or foreign lines among them
        found = []
        for line in lines.splitlines():
            try:
                found.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
        return found


def _measured(steps: np.ndarray, values: list[float | None]) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(values, np.float64)  # None becomes NaN
    known = np.isfinite(array)
    return steps[known], array[known]
