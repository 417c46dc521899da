"""The rows of a run's metrics.jsonl, as far as they can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

_CHUNK_BYTES = 8 * 2**20
_PIECE_BYTES = 2**16


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


def columns(
    path: Path, names: Sequence[str], smooth: Sequence[str] = (), pieces: int | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Some numbers of a run over steps: what `rows` holds, fast and lean for runs of a million lines.

    Args:
        path: A run's metrics.jsonl.
        names: Of numbers, or of tables of numbers such as "knn", whose parts become "knn.teacher" and so on.
        smooth: Those of them that hardly change from row to row: every 16th is taken where the file is long.
        pieces: Read but so many pieces of 64 kB of a longer file, evenly spaced from its beginning to its end.

    Returns:
        Name → steps int64 `[T]`, values float64 `[T]`, wherever it was measured and finite; absent where never.

    Raises:
        OSError: There is no such file.
    """
    kind = msgspec.defstruct("Row", [("step", int), *((name, Number | None, None) for name in names)], gc=False)
    decoder = msgspec.json.Decoder(kind)
    stride = 16 if path.stat().st_size > _CHUNK_BYTES else 1
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for chunk in _chunks(path) if pieces is None else _sample(path, pieces):
        read = _decoded(decoder, chunk)
        steps = np.array([row.step for row in read], np.int64)
        for name in names:
            if f'"{name}"'.encode() in chunk:
                part = slice(None, None, stride if name in smooth else 1)
                for column, measured in _column(read[part], steps[part], name):
                    found.setdefault(column, []).append(measured)
    joined = {name: [np.concatenate(part) for part in zip(*parts, strict=True)] for name, parts in found.items()}
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


def _sample(path: Path, pieces: int) -> Iterator[bytes]:
    """The whole lines of some pieces of a file, or all of it where it is not longer."""
    size = path.stat().st_size
    if size <= pieces * _PIECE_BYTES:
        yield from _chunks(path)
        return
    with open(path, "rb") as file:
        for start in np.linspace(0, size - _PIECE_BYTES, pieces).astype(int).tolist():
            file.seek(start)
            piece = file.read(_PIECE_BYTES)
            first = piece.find(b"\n") + 1 if start else 0
            yield piece[first : piece.rfind(b"\n") + 1]


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


def _column(rows: list[Any], steps: np.ndarray, name: str) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """The finite values of a column with their steps; of a table, each of its own columns."""
    values = [getattr(row, name) for row in rows]
    try:
        columns = {name: np.array(values, np.float64)}  # None becomes NaN
    except TypeError:  # a table
        tables = [value if isinstance(value, dict) else {} for value in values]
        keys = dict.fromkeys(key for table in tables for key in table)
        columns = {f"{name}.{key}": np.array([table.get(key) for table in tables], np.float64) for key in keys}
    for column, array in columns.items():
        known = np.isfinite(array)
        yield column, (steps[known], array[known])
