"""The rows of a run are read as far as they are rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opendino.core import metrics


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.5}\n[1]\n{"loss": 1}\n\n{"step": "2"}\n\xff\n{"step": 3}\n{"step": 4, "lo')
    assert metrics.rows(path) == [{"step": 1, "loss": 2.5}, {"step": 3}]


def test_no_file_is_the_callers_to_explain(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        metrics.rows(tmp_path / "metrics.jsonl")


def test_columns_are_the_rows_turned_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 0, "knn": {"teacher": 20.5, "student": 19}, "note": "x"}\n{"step": 1, "loss": 2.5, "lr": 0.1}\n[1]\n'
        b'\xff\n{"step": 2, "loss": null, "lr": 0.2}\n{"step": 3, "loss": 2}\n{"step": 4, "lo'
    )
    found = metrics.columns(path, ["loss", "lr", "knn", "absent"], smooth=["lr"])
    assert {name: (steps.tolist(), values.tolist()) for name, (steps, values) in found.items()} == {
        "loss": ([1, 3], [2.5, 2]),
        "lr": ([1, 2], [0.1, 0.2]),
        "knn.teacher": ([0], [20.5]),
        "knn.student": ([0], [19]),
    }
    with pytest.raises(FileNotFoundError):
        metrics.columns(tmp_path / "none", ["loss"])


def test_long_files_are_read_in_pieces_and_lose_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CHUNK_BYTES", 1000)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {n}, "loss": {n / 7}, "lr": {n / 9}}}\n' for n in range(1, 2001)))
    found = metrics.columns(path, ["loss", "lr"], smooth=["lr"])
    assert found["loss"][0].tolist() == list(range(1, 2001))
    assert found["loss"][1].tolist() == [n / 7 for n in range(1, 2001)]
    steps, values = found["lr"]
    assert 2000 / 16 <= len(steps) < 400 and values.tolist() == [n / 9 for n in steps]


def test_a_sample_holds_the_first_and_the_last_line_and_few_others(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {n}, "loss": {n / 7}}}\n' for n in range(20_000)))
    steps, values = metrics.columns(path, ["loss"], pieces=4)["loss"]
    assert steps[0] == 0 and steps[-1] == 19_999 and len(steps) < 10_000
    assert (np.diff(steps) > 0).all() and values.tolist() == [n / 7 for n in steps.tolist()]
    assert len(metrics.columns(path, ["loss"], pieces=100)["loss"][0]) == 20_000  # a short file is read whole
