"""Collapses are detected, with evidence and a fix; a healthy run gets no warning."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from opendino.engine.collapse_detection import COLLAPSES, NOT_SHOWN, PATIENCE, Monitor, diagnose, examine, outcome

HEALTHY = {"entropy_frac": 0.6, "marginal_frac": 0.9, "feature_spread": 0.5}


def row(probabilities: Tensor, features: Tensor) -> dict[str, float]:
    """The three numbers of a teacher's outputs `[B K]` and features `[B D]`, from their definitions."""
    most = math.log(probabilities.shape[1])

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.clamp_min(1e-300).log()).sum(-1)

    return {
        "entropy_frac": float(entropy(probabilities).mean()) / most,
        "marginal_frac": float(entropy(probabilities.mean(0))) / most,
        "feature_spread": float(torch.nn.functional.normalize(features, dim=1).std(0).norm()),
    }


def outputs(kind: str, k: int) -> Tensor:
    logits = torch.randn(64, k, dtype=torch.float64)
    if kind == "uniform":
        logits.zero_()
    if kind == "one-hot":
        logits[:, 3] += 100
    return (logits / (1 if kind == "uniform" else 0.3)).softmax(1)


@pytest.mark.parametrize("k", [2, 64, 4096])
@pytest.mark.parametrize("kind", ["healthy", "uniform", "one-hot"])
def test_what_a_teacher_says_is_told_apart(kind: str, k: int) -> None:
    if k == 2 and kind == "one-hot":
        k = 4
    numbers = row(outputs(kind, k), torch.randn(64, 16))
    if kind == "uniform":
        assert numbers["entropy_frac"] == pytest.approx(1.0, abs=1e-12)  # ln K over ln K
    verdict = diagnose(numbers)
    assert (verdict.name if verdict else "healthy") == kind


def test_equal_features_are_dead_though_the_head_makes_something_of_them() -> None:
    assert diagnose(row(outputs("healthy", 64), torch.ones(64, 16))).name == "dead"


@pytest.mark.parametrize(
    ("sick", "name", "said"),
    [
        ({"entropy_frac": 0.999}, "uniform", "99.9% of ln K"),
        ({"marginal_frac": 0.01}, "one-hot", "1.0% of ln K"),
        ({"feature_spread": 0.001}, "dead", "0.0010"),
    ],
)
def test_a_verdict_gives_evidence_and_cure(sick: dict[str, float], name: str, said: str) -> None:
    verdict = diagnose(HEALTHY | sick)
    assert verdict is not None and verdict.name == name
    assert said in verdict.evidence and verdict.cure
    assert "\n" not in verdict.evidence + verdict.cure


def test_a_healthy_row_and_one_without_the_numbers_are_silent() -> None:
    assert diagnose(HEALTHY) is None
    assert diagnose({"loss": 3.0}) is None
    assert diagnose(dict.fromkeys(HEALTHY, math.nan)) is None


@pytest.mark.parametrize(("total", "patience"), [(100_000, PATIENCE), (200, 20), (50, 10), (1, 10)])
def test_a_verdict_needs_that_many_rows_and_stands_for_most_of_them(total: int, patience: int) -> None:
    monitor, sick = Monitor(total), HEALTHY | {"entropy_frac": 1.0}
    heard = [monitor.watch(sick) for _ in range(patience + 2)]
    assert [verdict is not None for verdict in heard] == [False] * (patience - 1) + [True] * 3
    healthy = [monitor.watch(HEALTHY) for _ in range(patience)]
    assert healthy[: patience // 2 - 1] == [heard[-1]] * (patience // 2 - 1), "a few better rows change no median"
    assert healthy[patience // 2 :] == [None] * (patience - patience // 2)
    heard = [monitor.watch(sick) for _ in range(patience)]
    assert [verdict is not None for verdict in heard] == [False] * (patience // 2) + [True] * (patience - patience // 2)


def test_two_kinds_in_turn_are_no_verdict() -> None:
    monitor = Monitor(100)
    sick = (HEALTHY | {"entropy_frac": 1.0}, HEALTHY | {"feature_spread": 0.0})
    assert [monitor.watch(sick[n % 2]) for n in range(40)] == [None] * 40


def run(steps: int = 100, course: dict[str, tuple[float, float]] | None = None, **last: Any) -> list[dict[str, Any]]:
    """Rows of healthy steps; `course` from a first to a last value, and two evaluations, the second one with `last`."""
    course = {"loss": (4.0, 3.0), **(course or {})}
    rows = [
        {
            "step": n,
            "ok": 1.0,
            **HEALTHY,
            "marginal_frac": 0.999,
            **{k: a + (b - a) * n / steps for k, (a, b) in course.items()},
        }
        for n in range(1, steps + 1)
    ]
    return [{"step": 0, "effective_rank": 5.0}, *rows, {"step": steps, "effective_rank": 9.0, **last}]


@pytest.mark.parametrize(
    ("change", "learned"),
    [
        ({}, True),
        ({"effective_rank": 4.9}, False),
        ({"course": {"entropy_frac": (0.985, 0.985)}}, False),
        ({"course": {"entropy_frac": (0.989, 0.97)}}, True),
        ({"course": {"loss": (3.0, 4.0)}}, False),
    ],
)
def test_without_labels_signs_speak_against_it(change: dict[str, Any], learned: bool) -> None:
    found = examine(run(**change), 100)
    assert (found.name == "healthy") == learned and outcome(found, None) == ("learned" if learned else NOT_SHOWN)
    assert bool(found.cure) != learned and "signs only" in found.evidence and "\n" not in found.evidence


@pytest.mark.parametrize(
    ("teacher", "untrained", "num", "learned"),
    [(80, 50, 50, True), (60, 50, 50, False), (60, 50, 5000, True), (50, 50, 5000, False), (40, 50, None, False)],
)
@pytest.mark.parametrize("first", ["untrained", "start"])
def test_with_labels_knn_must_gain_more_than_chance(
    teacher: float, untrained: float, num: int | None, learned: bool, first: str
) -> None:
    # The signs, here against it, do not matter where there are labels.
    knn = {"teacher": teacher, "student": 99.0, first: untrained, "pixels": 99.0}
    found = examine(run(effective_rank=2.0, knn=knn, num_queries=num, majority=30.0), 100)
    assert outcome(found, None) == ("learned" if learned else NOT_SHOWN)
    assert f"{teacher:.1f}%" in found.evidence and f"{untrained:.1f}%" in found.evidence
    for part in (f"{num or 0:,} queries", "most frequent class: 30.0%"):
        assert (part in found.evidence) == bool(num)


def test_to_answer_the_most_frequent_class_more_often_is_not_learning() -> None:
    knn = {"knn": {"teacher": 90.0, "untrained": 70.0}, "balanced_accuracy": {"teacher": 50.0, "untrained": 60.0}}
    assert examine(run(**knn, num_queries=1000, majority=90.0), 100).name == NOT_SHOWN


@pytest.mark.parametrize(("teacher", "rank", "learned"), [(90.0, 4.9, False), (10.0, 9.0, True)])
def test_folders_that_nobody_called_classes_do_not_decide(teacher: float, rank: float, learned: bool) -> None:
    knn = {"knn": {"teacher": teacher, "untrained": 50.0}, "num_queries": 1000, "majority": 30.0}
    seen = {"images": 100, "distinct": 100, "flat": 0, "copy": 0}
    found = examine(run(effective_rank=rank, **knn, judged_on=seen | {"confirmed": 0, "color": 94.0}), 100)
    assert outcome(found, None) == ("learned" if learned else NOT_SHOWN)
    assert "signs only" in found.evidence and f"{teacher:.1f}%" in found.evidence
    assert "--labels folders" in found.evidence and "by color alone (94%)" in found.evidence
    confirmed = examine(run(effective_rank=rank, **knn, judged_on=seen | {"confirmed": 1}), 100)
    assert outcome(confirmed, None) == (NOT_SHOWN if learned else "learned"), "with classes k-NN decides"


def test_nothing_measured_shows_nothing_and_an_unfinished_run_is_left_in_peace() -> None:
    rows = [row for row in run() if "loss" in row]
    assert examine(rows, 100).name == NOT_SHOWN
    assert examine(rows, 1000).name == "healthy", "it may still come"
    assert examine(run(knn={"teacher": 40.0, "untrained": 50.0}), 1000).name == "healthy"


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        ({"images": 24, "distinct": 1, "flat": 24, "copy": 0}, "constant images"),
        ({"images": 24, "distinct": 24, "flat": 24, "copy": 0}, "constant images"),
        ({"images": 100, "distinct": 3, "flat": 0, "copy": 0}, "duplicate images"),
        ({"images": 100, "distinct": 60, "flat": 20, "copy": 5}, "healthy"),
    ],
)
@pytest.mark.parametrize("total", [100, 1000])
def test_images_with_nothing_in_them_are_named(seen: dict[str, int], name: str, total: int) -> None:
    found = examine(run(judged_on=seen), total)
    assert found.name == name
    assert name == "healthy" or (f"{seen['images']} " in found.evidence and found.cure)
    assert outcome(found, None) == ("learned" if name == "healthy" else NOT_SHOWN)
    assert outcome(found, "dead") == "collapsed: dead"


@pytest.mark.parametrize("total", [100, 1000])
def test_features_on_one_line_are_a_collapse(total: int) -> None:
    found = examine(run(effective_rank=1.01), total)
    assert found.name == "rank 1" and found.name in COLLAPSES and found.cure
    assert "1.01" in found.evidence and "5.00" in found.evidence
