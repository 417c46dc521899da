"""Read metrics.jsonl, skipping invalid lines, with memory that does not grow with the length of the run."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

_CHUNK_BYTES = 2**20
_LINE_BYTES = 2000  # about the length of a line, at most
_BUCKETS = 2000
"""A column is downsampled to this many buckets when it reaches twice as many."""


class Column(NamedTuple):
    """One metric over steps. For a long run it is downsampled: mean, minimum and maximum of each bucket of rows.

    The newest value is never averaged, so that the last entry is the last measurement.

    Attributes:
        steps: int64 `[T]`.
        values, low, high: float64 `[T]`, mean, minimum and maximum per bucket; equal without downsampling.
    """

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def rows(path: Path) -> list[dict[str, Any]]:
    """All rows with an integer `step`, in order; invalid lines, such as one that is still being written, are skipped.

    Raises:
        OSError: There is no such file.
    """
    return [row for line in _lines(path) if (row := _row(line))]


def sampled(path: Path, most: int = 10_000, tail: int = 1_000) -> list[dict[str, Any]]:
    """A subset of `rows` for a long file: every n-th line, the last lines, and every n-th evaluation.

    Evaluations are the rows without a loss; the first and the last of them are always included.

    Args:
        path: A run's metrics.jsonl.
        most: Maximum number of lines of each kind (with and without a loss).
        tail: Number of last lines that are all included.

    Raises:
        OSError: There is no such file.
    """
    steps, evaluations, last = _EveryNth(most), _EveryNth(most), deque[tuple[int, bytes]](maxlen=tail)
    evaluation = None
    for place, line in enumerate(_lines(path)):
        if b'"loss"' in line:
            steps.add(place, line)
        else:
            evaluation = place, line
            evaluations.add(*evaluation)
        last.append((place, line))
    kept = {**steps.kept, **evaluations.kept, **dict(last), **dict([evaluation] if evaluation else [])}
    return [row for place in sorted(kept) if (row := _row(kept[place]))]


def columns(path: Path, names: Sequence[str], others: bool = False) -> dict[str, Column]:
    """Metrics of a run over steps, downsampled: the content of `rows`, read faster. See `Course`.

    Raises:
        OSError: There is no such file.
    """
    course = Course(path, names, others)
    course.read()
    return course.columns()


class Course:
    """Metrics of a run over steps, read incrementally as the file grows.

    Args:
        path: A run's metrics.jsonl.
        names: Metric names. A metric that is a dict, such as "knn", becomes the columns "knn.teacher" etc.
        others: Whether to read also every other metric that is a number in every step, such as a method's own.

    Attributes:
        changes: A counter that increases whenever the result of `columns` may have changed.
    """

    def __init__(self, path: Path, names: Sequence[str], others: bool = False) -> None:
        self._path, self._names, self._others, self.changes = path, list(names), others, 0
        self._decoder = _row_decoder(self._names)
        self._reset(None)

    def read(self, limit: int | None = None) -> int:
        """Read the lines added since the last call, at most `limit` bytes; returns the number of bytes left.

        A file that was replaced or truncated, as by resuming a run, is read again from its start.

        Raises:
            OSError: There is no such file.
        """
        with open(self._path, "rb") as file:
            status = self._path.stat()
            if self._inode != status.st_ino or status.st_size < self._offset:
                self._reset(status.st_ino)
            end = status.st_size if limit is None else min(status.st_size, self._offset + limit)
            file.seek(self._offset)
            while self._offset < end:
                chunk = file.read(_CHUNK_BYTES)
                complete = chunk.rfind(b"\n") + 1  # bytes up to the end of the last complete line
                if not complete and len(chunk) < _CHUNK_BYTES:
                    break  # a line that is still being written
                self._add_lines(chunk[:complete])
                self._offset += complete or len(chunk)  # skip a line longer than a chunk: no row is that long
                file.seek(self._offset)
        return status.st_size - self._offset

    def columns(self) -> dict[str, Column]:
        """Name → its finite measurements; a name without any is absent."""
        return {name: column.result() for name, column in self._found.items()}

    def _reset(self, inode: int | None) -> None:
        self._inode, self._offset = inode, 0
        self.changes += 1
        self._found: dict[str, _Downsampled] = {}

    def _add_lines(self, lines: bytes) -> None:
        self.changes += 1
        if self._others and (unknown := _numbers(lines) - {"step", *self._names}):
            self._names += sorted(unknown)
            self._decoder = _row_decoder(self._names)
        read = _decoded(self._decoder, lines)
        steps = np.array([row.step for row in read], np.int64)
        for place, name in enumerate(self._names):
            if f'"{name}"'.encode() in lines:
                for column, measured in _column(name, [getattr(row, f"metric_{place}") for row in read], steps):
                    if len(measured[0]):
                        self._found.setdefault(column, _Downsampled()).add(*measured)


class _EveryNth:
    """Keep every n-th line, starting with the first; n doubles whenever more than `most` lines are kept."""

    def __init__(self, most: int) -> None:
        self.kept: dict[int, bytes] = {}
        self._most, self._stride, self._seen = most, 1, 0

    def add(self, place: int, line: bytes) -> None:
        if self._seen % self._stride == 0:
            self.kept[place] = line
            if len(self.kept) > self._most:
                self.kept = dict(list(self.kept.items())[::2])
                self._stride *= 2
        self._seen += 1


class _Downsampled:
    """A column in buckets of `_stride` values. At `2 * _BUCKETS` buckets, pairs of buckets are merged.

    The result does not depend on how the values are split over calls of `add`.
    """

    def __init__(self) -> None:
        self._stride = 1
        self._buckets = np.empty((5, 0))  # [5, buckets]: first step, last step, mean, min, max
        self._steps, self._values = np.empty(0, np.int64), np.empty(0)  # not in a bucket yet; the newest is among them

    def add(self, steps: np.ndarray, values: np.ndarray) -> None:
        self._steps = np.concatenate([self._steps, steps])
        self._values = np.concatenate([self._values, values])
        while full := min((len(self._values) - 1) // self._stride, 2 * _BUCKETS - self._buckets.shape[1]):
            number = full * self._stride
            self._buckets = np.concatenate([self._buckets, self._buckets_of(number, self._stride)], axis=1)
            self._steps, self._values = self._steps[number:], self._values[number:]
            if self._buckets.shape[1] == 2 * _BUCKETS:
                one, other = self._buckets[:, ::2], self._buckets[:, 1::2]
                low, high = np.minimum(one[3], other[3]), np.maximum(one[4], other[4])
                self._buckets = np.stack([one[0], other[1], (one[2] + other[2]) / 2, low, high])
                self._stride *= 2

    def result(self) -> Column:
        rest = len(self._values) - 1
        parts = [self._buckets, *([self._buckets_of(rest, rest)] if rest else []), self._newest()]
        first, last, mean, low, high = np.concatenate(parts, axis=1)
        return Column(((first + last) // 2).astype(np.int64), mean, low, high)

    def _buckets_of(self, number: int, stride: int) -> np.ndarray:
        steps, values = (each[:number].reshape(-1, stride) for each in (self._steps, self._values))
        return np.stack([steps[:, 0], steps[:, -1], values.mean(1), values.min(1), values.max(1)])

    def _newest(self) -> np.ndarray:
        return np.array([[self._steps[-1]] * 2 + [self._values[-1]] * 3], float).T


Number = float | dict[str, float | None]


def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while line := file.readline(_CHUNK_BYTES):
            yield line


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _row_decoder(names: Sequence[str]) -> msgspec.json.Decoder[Any]:
    """Decodes a line to an object with `step` and `metric_0`, `metric_1`, ... in the order of the names."""
    fields = [(f"metric_{n}", Number | None, msgspec.field(name=name, default=None)) for n, name in enumerate(names)]
    return msgspec.json.Decoder(msgspec.defstruct("Row", [("step", int), *fields], gc=False))


def _numbers(lines: bytes) -> set[str]:
    """Names of the metrics that are numbers in the first or last ten lines; those of a method are in every step."""
    ends = [*lines[: 10 * _LINE_BYTES].split(b"\n", 10)[:10], *lines[-10 * _LINE_BYTES :].split(b"\n")[-11:]]
    rows = [row for line in ends if (row := _row(line))]
    return {name for row in rows for name, value in row.items() if type(value) in (int, float)}


def _decoded(decoder: msgspec.json.Decoder[Any], lines: bytes) -> list[Any]:
    try:
        return decoder.decode_lines(lines)
    except (msgspec.DecodeError, UnicodeDecodeError):  # some lines are incomplete or invalid: decode one by one
        found = []
        for line in lines.splitlines():
            try:
                found.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
        return found


def _column(name: str, values: list[Any], steps: np.ndarray) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """The finite values of a metric: (column name, (steps, values)), with one column per key of a dict."""
    try:
        columns = {name: np.array(values, np.float64)}  # None becomes NaN
    except TypeError:  # a dict of numbers
        tables = [value if isinstance(value, dict) else {} for value in values]
        keys = dict.fromkeys(key for table in tables for key in table)
        columns = {f"{name}.{key}": np.array([table.get(key) for table in tables], np.float64) for key in keys}
    for column, array in columns.items():
        known = np.isfinite(array)
        yield column, (steps[known], array[known])
