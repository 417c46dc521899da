"""The rows of a run's metrics.jsonl, as far as they can be read, in memory that does not grow with the run."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

_CHUNK_BYTES = 2**20
_BUCKETS = 2000
"""A column has up to twice as many before it is thinned."""


class Column(NamedTuple):
    """A number of a run over steps; of a long run the mean, the smallest and the largest value of short stretches.

    The newest value always stands alone, so that the last entry is what the run measured last.

    Attributes:
        steps: int64 `[T]`.
        values, low, high: float64 `[T]`; the same where nothing was thinned.
    """

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects with a whole `step`, in order; a line that is none, such as one being written, is passed over.

    Raises:
        OSError: There is no such file.
    """
    return [row for line in _lines(path) if (row := _row(line))]


def sampled(path: Path, most: int = 10_000, tail: int = 1_000) -> list[dict[str, Any]]:
    """As `rows`, but of a long file few: every n-th line, the last ones, and every n-th of those without a loss.

    Rows without a loss are evaluations; the first and the last of them are always there.

    Args:
        path: A run's metrics.jsonl.
        most: Lines of each kind at most.
        tail: How many of the last lines are all there.

    Raises:
        OSError: There is no such file.
    """
    steps, evaluations, last = _Every(most), _Every(most), deque[tuple[int, bytes]](maxlen=tail)
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


def columns(path: Path, names: Sequence[str]) -> dict[str, Column]:
    """Some numbers of a run over steps: what `rows` holds, fast and thinned, see `Course`.

    Raises:
        OSError: There is no such file.
    """
    course = Course(path, names)
    course.read()
    return course.columns()


class Course:
    """Some numbers of a run over steps, read on as the file grows.

    Args:
        path: A run's metrics.jsonl.
        names: Of numbers, or of tables of numbers such as "knn", whose parts become "knn.teacher" and so on.

    Attributes:
        changes: Grows whenever `columns` may give something else than before.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._names, self.changes = path, names, 0
        kind = msgspec.defstruct("Row", [("step", int), *((name, Number | None, None) for name in names)], gc=False)
        self._decoder = msgspec.json.Decoder(kind)
        self._begin(None)

    def read(self, limit: int | None = None) -> int:
        """Read what is new, or so many bytes of it; how many bytes are left.

        A file that was replaced or cut, as when a run is resumed, is read from its beginning.

        Raises:
            OSError: There is no such file.
        """
        with open(self._path, "rb") as file:
            status = self._path.stat()
            if self._inode != status.st_ino or status.st_size < self._offset:
                self._begin(status.st_ino)
            end = status.st_size if limit is None else min(status.st_size, self._offset + limit)
            file.seek(self._offset)
            while self._offset < end:
                piece = file.read(_CHUNK_BYTES)
                whole = piece.rfind(b"\n") + 1
                if not whole and len(piece) < _CHUNK_BYTES:
                    break  # a line that is being written
                self._take(piece[:whole])
                self._offset += whole or len(piece)  # a line longer than a piece is none of ours
                file.seek(self._offset)
        return status.st_size - self._offset

    def columns(self) -> dict[str, Column]:
        """Name → where it was measured and finite; absent where never."""
        return {name: column.made() for name, column in self._found.items()}

    def _begin(self, inode: int | None) -> None:
        self._inode, self._offset = inode, 0
        self.changes += 1
        self._found: dict[str, _Thinned] = {}

    def _take(self, lines: bytes) -> None:
        self.changes += 1
        read = _decoded(self._decoder, lines)
        steps = np.array([row.step for row in read], np.int64)
        for name in self._names:
            if f'"{name}"'.encode() in lines:
                for column, measured in _column(read, steps, name):
                    if len(measured[0]):
                        self._found.setdefault(column, _Thinned()).add(*measured)


class _Every:
    """Every n-th of many lines, the first among them; n doubles whenever there are too many."""

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


class _Thinned:
    """A column in stretches of as many values each, however the values arrive; at `2 * _BUCKETS` pairs become one."""

    def __init__(self) -> None:
        self._stride = 1
        self._buckets = np.empty((5, 0))  # first step, last step, mean, smallest, largest
        self._steps, self._values = np.empty(0, np.int64), np.empty(0)  # not in a stretch yet, the newest among them

    def add(self, steps: np.ndarray, values: np.ndarray) -> None:
        self._steps = np.concatenate([self._steps, steps])
        self._values = np.concatenate([self._values, values])
        while full := min((len(self._values) - 1) // self._stride, 2 * _BUCKETS - self._buckets.shape[1]):
            number = full * self._stride
            self._buckets = np.concatenate([self._buckets, self._stretches(number, self._stride)], axis=1)
            self._steps, self._values = self._steps[number:], self._values[number:]
            if self._buckets.shape[1] == 2 * _BUCKETS:
                one, other = self._buckets[:, ::2], self._buckets[:, 1::2]
                low, high = np.minimum(one[3], other[3]), np.maximum(one[4], other[4])
                self._buckets = np.stack([one[0], other[1], (one[2] + other[2]) / 2, low, high])
                self._stride *= 2

    def made(self) -> Column:
        begun = len(self._values) - 1
        parts = [self._buckets, *([self._stretches(begun, begun)] if begun else []), self._newest()]
        first, last, mean, low, high = np.concatenate(parts, axis=1)
        return Column(((first + last) // 2).astype(np.int64), mean, low, high)

    def _stretches(self, number: int, stride: int) -> np.ndarray:
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
