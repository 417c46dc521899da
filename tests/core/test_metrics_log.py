"""Reading metrics.jsonl: invalid lines, long files, growing files."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opendino.core import metrics_log


def test_incomplete_and_invalid_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.5}\n[1]\n{"loss": 1}\n\n{"step": "2"}\n\xff\n{"step": 3}\n{"step": 4, "lo')
    assert metrics_log.rows(path) == [{"step": 1, "loss": 2.5}, {"step": 3}]


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        metrics_log.rows(tmp_path / "metrics.jsonl")


def test_columns_are_the_transposed_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 0, "knn": {"teacher": 20.5, "student": 19}, "note": "x"}\n{"step": 1, "loss": 2.5, "lr": 0.1}\n[1]\n'
        b'\xff\n{"step": 2, "loss": null, "lr": 0.2}\n{"step": 3, "loss": 2}\n{"step": 4, "lo'
    )
    found = metrics_log.columns(path, ["loss", "lr", "knn", "absent"])
    assert {name: (column.steps.tolist(), column.values.tolist()) for name, column in found.items()} == {
        "loss": ([1, 3], [2.5, 2]),
        "lr": ([1, 2], [0.1, 0.2]),
        "knn.teacher": ([0], [20.5]),
        "knn.student": ([0], [19]),
    }
    assert all(
        (column.low == column.values).all() and (column.high == column.values).all() for column in found.values()
    )
    with pytest.raises(FileNotFoundError):
        metrics_log.columns(tmp_path / "none", ["loss"])


def test_long_files_are_read_in_chunks_without_losing_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_log, "_CHUNK_BYTES", 1000)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {n}, "loss": {n / 7}, "lr": {n / 9}}}\n' for n in range(1, 2001)))
    found = metrics_log.columns(path, ["loss", "lr"])
    assert found["loss"].steps.tolist() == list(range(1, 2001))
    assert found["loss"].values.tolist() == [n / 7 for n in range(1, 2001)]
    assert found["lr"].values.tolist() == [n / 9 for n in range(1, 2001)]


def test_a_line_longer_than_a_chunk_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_log, "_CHUNK_BYTES", 1000)
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        f'{{"step": 1, "loss": 1}}\n{{"step": 2, "note": "{"x" * 5000}", "loss": 2}}\n{{"step": 3, "loss": 3}}\n'
    )
    assert metrics_log.columns(path, ["loss"])["loss"].steps.tolist() == [1, 3]
    assert [row["step"] for row in metrics_log.sampled(path)] == [1, 3]


def values(number: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=number)


@pytest.mark.parametrize("number", [3999, 4001, 10_000, 50_001])
def test_downsampling_does_not_depend_on_the_chunks(number: int) -> None:
    steps, noise = np.arange(number) + 7, values(number)
    whole, pieces = metrics_log._Downsampled(), metrics_log._Downsampled()
    whole.add(steps, noise)
    for part in np.array_split(np.arange(number), [1, 5, 1000, number // 3, number - 1]):
        pieces.add(steps[part], noise[part])
    column = whole.result()
    for one, other in zip(column, pieces.result(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    assert len(column.steps) <= 4002
    assert (column.steps[-1], column.values[-1]) == (steps[-1], noise[-1])  # the newest stands alone
    assert (np.diff(column.steps) > 0).all() and column.steps[0] < 7 + 64
    assert column.low.min() == noise.min() and column.high.max() == noise.max()  # no spike is lost
    assert (column.low <= column.values).all() and (column.values <= column.high).all()


def test_a_course_continues_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1}\n{"step": 2, "lo')
    course = metrics_log.Course(path, ["loss"])
    course.read()
    with open(path, "a") as file:
        file.write('ss": 2}\n{"step": 3, "loss": 3}\n')
    assert course.read() == 0
    assert course.columns()["loss"].values.tolist() == [1, 2, 3]
    path.write_text('{"step": 1, "loss": 5}\n')  # cut, as by a resumed run
    course.read()
    assert course.columns()["loss"].values.tolist() == [5]
    other = tmp_path / "other"
    other.write_text("".join(f'{{"step": {n}, "loss": 7}}\n' for n in range(4)))
    other.replace(path)  # longer, but another file
    course.read()
    assert course.columns()["loss"].values.tolist() == [7] * 4


def test_a_course_can_be_read_in_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_log, "_CHUNK_BYTES", 100)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {n}, "loss": {n}}}\n' for n in range(100)))
    course, left = metrics_log.Course(path, ["loss"]), []
    while not left or left[-1]:
        left.append(course.read(limit=500))
    assert len(left) > 3 and left == sorted(left, reverse=True)
    assert course.columns()["loss"].values.tolist() == list(range(100))


def test_a_sample_has_the_ends_and_all_evaluations_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with open(path, "w") as file:
        for n in range(5000):
            file.write(f'{{"step": {n}, "loss": {n / 7}}}\n')
            if n % 100 == 0:
                file.write(f'{{"step": {n}, "knn": {{"teacher": {n / 100}}}}}\n')
    found = metrics_log.sampled(path, most=200, tail=50)
    steps = [row["step"] for row in found if "loss" in row]
    assert steps[0] == 0 and steps[-40:] == list(range(4960, 5000)) and 140 < len(steps) < 260
    assert [row["step"] for row in found if "knn" in row] == list(range(0, 5000, 100))
    assert [row["step"] for row in found] == sorted(row["step"] for row in found)
    assert metrics_log.sampled(path) == metrics_log.rows(path)  # nothing is left out of a short one


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "metrics.jsonl"
    noise = values(200_000).tolist()
    with open(path, "w") as file:
        for step, value in enumerate(noise, 1):
            file.write(
                f'{{"step": {step}, "ok": true, "loss": {5 + value}, "kl": {value}, "lr": 0.001, "momentum": 0.99}}\n'
            )
            if step % 20_000 == 0:
                file.write(f'{{"step": {step}, "knn": {{"teacher": 50.0}}, "effective_rank": 9.0}}\n')
    return path


@pytest.mark.parametrize(
    ("read", "most_mb"),
    [(metrics_log.sampled, 30), (lambda path: metrics_log.columns(path, ["loss", "kl", "lr", "momentum", "knn"]), 15)],
)
def test_memory_does_not_grow_with_the_run(long_run: Path, read: Callable[[Path], Any], most_mb: int) -> None:
    tracemalloc.start()
    try:
        found = read(long_run)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) and peak < most_mb * 2**20, f"{peak / 2**20:.0f} MB"
