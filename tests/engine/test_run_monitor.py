"""Run monitor: skipped steps, unreadable images, collapses, and the progress line."""

from __future__ import annotations

import contextlib
import csv
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from opendino.core import log
from opendino.core.errors import UserError
from opendino.data.sources.toy import ToySource
from opendino.engine.metric_writer import MetricWriter
from opendino.engine.run_monitor import Limits, RunMonitor
from opendino.engine.throughput import Throughput

MakeWatch = Callable[..., RunMonitor]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(log, "say", lambda text, style="": lines.append(text))
    return lines


@pytest.fixture
def make(tmp_path: Path, said: list[str]) -> Iterator[MakeWatch]:
    with contextlib.ExitStack() as closing:

        def new(bad: dict[str, str] | None = None, leader: bool = True, total: int = 20, **limits: float) -> RunMonitor:
            meters = closing.enter_context(contextlib.closing(MetricWriter(tmp_path))) if leader else None
            allowed = {"max_bad_frac": 0.5, "max_nonfinite": 3, **limits}
            speed = Throughput(8, 8, torch.device("cpu"), torch.float32)
            limited = Limits(8, total, **allowed)
            return RunMonitor(tmp_path, meters, ToySource(n=100), {} if bad is None else bad, limited, speed, {})

        yield new


def steps(watch: RunMonitor, *oks: bool, **metrics: float) -> None:
    done = getattr(watch, "done", 0)
    for ok in oks:
        done += 1
        tensors = {name: torch.tensor(value) for name, value in {"loss": 2.0, **metrics}.items()}
        watch.step(done, tensors | {"ok": torch.tensor(ok)}, {"lr": 0.1}, [torch.tensor([3, 4]), torch.tensor([5])])
    watch.done = done


def test_a_step_is_written_at_the_next_look(make: MakeWatch, tmp_path: Path) -> None:
    watch = make()
    steps(watch, True, True)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    watch.flush()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_it_looks_after_ten_steps_at_the_latest(make: MakeWatch) -> None:
    watch = make()
    steps(watch, *[True] * 10)
    assert watch.due()
    watch.flush()
    assert not watch.due()


def test_a_void_step_names_its_images(make: MakeWatch, said: list[str]) -> None:
    watch = make()
    steps(watch, True, False)
    watch.flush()
    (line,) = said
    assert "step 2 was skipped" in line
    assert line.endswith(", ".join(ToySource(n=100).key(index) for index in (3, 4, 5)))


@pytest.mark.parametrize("at_once", [True, False])
def test_so_many_void_steps_in_a_row_end_the_run(make: MakeWatch, at_once: bool) -> None:
    watch = make(max_nonfinite=3)
    for oks in ([False, False, True, False, False],) if at_once else ([False], [False], [True], [False], [False]):
        steps(watch, *oks)
        watch.flush()
    steps(watch, False)
    with pytest.raises(UserError, match="not finite for 3 steps in a row") as caught:
        watch.flush()
    assert "--optim.lr" in caught.value.hint


def test_unreadable_images_are_listed_once_for_each_finding(make: MakeWatch, said: list[str], tmp_path: Path) -> None:
    bad: dict[str, str] = {}
    watch = make(bad)
    watch.flush()
    assert not (tmp_path / "bad_files.csv").exists()
    watch.record_bad_images([("b,1.png", 'says "torn"'), ("a.png", "empty"), ("a.png", "empty")])
    watch.flush(), watch.flush()
    assert len(said) == 1 and said[0].startswith("warning: 2 unusable images")
    with open(tmp_path / "bad_files.csv", newline="") as file:
        assert list(csv.reader(file)) == [["file", "reason"], ["a.png", "empty"], ["b,1.png", 'says "torn"']]
    assert list(bad) == ["b,1.png", "a.png"]


def test_too_large_a_share_of_unreadable_images_ends_the_run(make: MakeWatch) -> None:
    watch = make(max_bad_frac=0.5)
    steps(watch, True)
    watch.record_bad_images([(f"{n}.png", "torn") for n in range(16)])  # of 24 tries, counted as 32: few say nothing
    watch.flush()
    watch.record_bad_images([("one more.png", "torn")])
    with pytest.raises(UserError, match=r"17 of 25 images read so far cannot be used, more than 50%, e\.g\. one more"):
        watch.flush()


def test_the_share_is_one_of_all_tries_and_of_this_process(make: MakeWatch) -> None:
    watch = make({f"{n}.png": "torn" for n in range(90)})  # known from before the run was gone on with
    for _ in range(20):  # two failed tries for three good ones, pass after pass
        steps(watch, *[True] * 3)
        watch.record_bad_images([(f"{n}.png", "torn") for n in range(16)])
        watch.flush()
    watch.record_bad_images([("0.png", "torn")] * 161)
    with pytest.raises(UserError, match="481 of 961 images"):
        watch.flush()


def test_a_collapse_is_named_once_and_so_is_its_end(make: MakeWatch, said: list[str]) -> None:
    watch = make(total=40)  # patience 10
    steps(watch, *[True] * 12, entropy_frac=1.0, marginal_frac=1.0, feature_spread=0.5)
    watch.flush()
    assert watch.collapse is not None and watch.collapse.name == "uniform"
    assert len(said) == 1 and "step 10: uniform collapse" in said[0] and watch.collapse.cure in said[0]
    steps(watch, *[True] * 4, entropy_frac=0.5, marginal_frac=1.0, feature_spread=0.5)
    watch.flush()
    assert watch.collapse is not None, "four of ten rows move no median"
    steps(watch, True, entropy_frac=0.5, marginal_frac=1.0, feature_spread=0.5)
    watch.flush()
    assert watch.collapse is None
    assert said[1:] == ["step 17: no longer uniform"]


def test_the_line_holds_the_figures_there_are(make: MakeWatch) -> None:
    watch = make()
    assert "loss" not in watch.line()
    steps(watch, True, teacher_entropy=2.5, entropy_frac=0.5)
    watch.flush()
    watch.record_evaluation(0, {"effective_rank": 3.0, "knn": {"teacher": 10.0}})
    assert "k-NN" not in watch.line() and "rank" not in watch.line(), "of the network before it was trained"
    watch.record_evaluation(1, {"effective_rank": 12.4, "knn": {"teacher": 43.21}})
    line = watch.line()
    assert line.startswith("loss 2.000  teacher entropy 50% of its maximum  k-NN 43.2%  effective rank 12  ")
    assert all(word in line for word in ("images/s", "wait", "of peak FLOP/s", "GiB"))
    more = {"balanced_accuracy": {"teacher": 40.0}, "majority": 30.0, "num_queries": 50}
    watch.record_evaluation(2, {"effective_rank": 12.4, "knn": {"teacher": 43.21}} | more)
    assert "k-NN 43.2% ± 7.0, balanced 40.0%  (most frequent class 30.0%)  effective rank 12" in watch.line()
    unconfirmed = {"knn": {"teacher": 43.21}, "majority": 30.0, "judged_on": {"confirmed": 0}}
    watch.record_evaluation(3, {"effective_rank": 12.4} | unconfirmed)
    assert "43.2%" not in watch.line() and "frequent" not in watch.line() and "effective rank 12" in watch.line()


def test_speed_has_rows_of_its_own_every_ten_seconds(
    make: MakeWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, now = make(), time.monotonic()
    monkeypatch.setattr("opendino.engine.throughput.time.monotonic", lambda: now)
    for seconds in (6, 6, 6, 6):
        now += seconds
        steps(watch, True)
        watch.flush()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "images_per_second" in row] == [2, 4]
    assert [row["images_per_second"] for row in rows if "images_per_second" in row] == pytest.approx(
        [16 / 12] * 2, rel=1e-2
    )


def test_a_rank_that_does_not_write_still_counts_unreadable_images(make: MakeWatch, tmp_path: Path) -> None:
    watch = make(leader=False)
    steps(watch, True, False, False, False)
    watch.record_bad_images([(f"{n}.png", "torn") for n in range(40)])
    with pytest.raises(UserError, match="40 of 72 images"):
        watch.flush()
    assert not list(tmp_path.iterdir())
