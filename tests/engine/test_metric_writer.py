"""Every step's numbers in metrics.jsonl and TensorBoard, cut to the checkpoint when a run is resumed."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from opendino.engine.metric_writer import MetricWriter


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def add(meters: MetricWriter, *steps: int) -> None:
    for step in steps:
        meters.add(step, {"loss": torch.tensor(step / 2), "ok": torch.tensor(True)}, {"lr": 0.1})


def test_rows_wait_for_the_flush_then_hold_everything(tmp_path: Path) -> None:
    with contextlib.closing(MetricWriter(tmp_path)) as meters:
        add(meters, 1, 2)
        assert rows(tmp_path) == []
        flushed = meters.flush()
        assert flushed == rows(tmp_path) == [{"step": n, "loss": n / 2, "ok": 1.0, "lr": 0.1} for n in (1, 2)]
        assert meters.flush() == []
        meters.write(2, {"knn": {"teacher": 50.0}, "effective_rank": 3.5})
        assert rows(tmp_path)[2:] == [{"step": 2, "knn": {"teacher": 50.0}, "effective_rank": 3.5}]
        add(meters, 3)
    assert rows(tmp_path)[3:] == [{"step": 3, "loss": 1.5, "ok": 1.0, "lr": 0.1}]  # closing writes what waits


def test_numbers_keep_all_the_bits_of_float32(tmp_path: Path) -> None:
    values = torch.rand(50)
    with contextlib.closing(MetricWriter(tmp_path)) as meters:
        meters.add(1, {str(n): value for n, value in enumerate(values)}, {})
    assert [torch.tensor(rows(tmp_path)[0][str(n)]) for n in range(50)] == list(values)


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    with contextlib.closing(MetricWriter(tmp_path)) as meters:
        meters.add(1, {"loss": torch.tensor(math.nan)}, {"knn": {"teacher": math.inf}})
    assert rows(tmp_path) == [{"step": 1, "loss": None, "knn": {"teacher": None}}]


@pytest.mark.parametrize("torn", ["", '{"step": 5, "lo', "12", '{"loss": 3}', "null", '"x"', "\x00\x00", "\ufffd"])
def test_a_run_that_goes_on_drops_what_came_after_and_a_torn_last_line(tmp_path: Path, torn: str) -> None:
    with contextlib.closing(MetricWriter(tmp_path)) as meters:
        add(meters, 1, 2, 3, 4)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + torn)
    with contextlib.closing(MetricWriter(tmp_path, step=2)) as meters:
        add(meters, 3)
    assert path.read_text().splitlines() == whole.splitlines()[:3]


def test_a_new_run_starts_empty(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    MetricWriter(tmp_path).close()
    assert rows(tmp_path) == []


def test_tensorboard_gets_the_same_numbers_flat(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with contextlib.closing(MetricWriter(tmp_path)) as meters:
        add(meters, 1, 2)
        meters.write(2, {"knn": {"teacher": 50.0}})
    board = EventAccumulator(str(tmp_path)).Reload()
    assert set(board.Tags()["scalars"]) == {"loss", "ok", "lr", "knn/teacher"}
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 0.5), (2, 1.0)]
    assert [event.value for event in board.Scalars("knn/teacher")] == [50.0]
