"""Collapses are detected, with evidence and a fix; a healthy run gets no warning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from opendino.engine.collapse_detection import PATIENCE, Monitor, diagnose

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
    collapse = diagnose(numbers)
    assert (collapse.name if collapse else "healthy") == kind


def test_equal_features_are_dead_though_the_head_makes_something_of_them() -> None:
    assert diagnose(row(outputs("healthy", 64), torch.ones(64, 16))).name == "dead"


@pytest.mark.parametrize(
    ("sick", "name", "said"),
    [
        ({"entropy_frac": 0.999}, "uniform", "99.9% of its maximum, ln K"),
        ({"marginal_frac": 0.01}, "one-hot", "1.0% of its maximum, ln K"),
        ({"feature_spread": 0.001}, "dead", "0.0010"),
    ],
)
def test_a_collapse_has_evidence_and_cure(sick: dict[str, float], name: str, said: str) -> None:
    collapse = diagnose(HEALTHY | sick)
    assert collapse is not None and collapse.name == name
    assert said in collapse.evidence and collapse.cure
    assert "\n" not in collapse.evidence + collapse.cure


def test_a_healthy_row_and_one_without_the_numbers_are_silent() -> None:
    assert diagnose(HEALTHY) is None
    assert diagnose({"loss": 3.0}) is None
    assert diagnose(dict.fromkeys(HEALTHY, math.nan)) is None


@pytest.mark.parametrize(("total", "patience"), [(100_000, PATIENCE), (200, 20), (50, 10), (1, 10)])
def test_a_collapse_needs_that_many_rows_and_stands_for_most_of_them(total: int, patience: int) -> None:
    monitor, sick = Monitor(total), HEALTHY | {"entropy_frac": 1.0}
    heard = [monitor.watch(sick) for _ in range(patience + 2)]
    assert [collapse is not None for collapse in heard] == [False] * (patience - 1) + [True] * 3
    healthy = [monitor.watch(HEALTHY) for _ in range(patience)]
    assert healthy[: patience // 2 - 1] == [heard[-1]] * (patience // 2 - 1), "a few better rows change no median"
    assert healthy[patience // 2 :] == [None] * (patience - patience // 2)
    heard = [monitor.watch(sick) for _ in range(patience)]
    assert [collapse is not None for collapse in heard] == [False] * (patience // 2) + [True] * (
        patience - patience // 2
    )


def test_two_kinds_in_turn_are_no_collapse() -> None:
    monitor = Monitor(100)
    sick = (HEALTHY | {"entropy_frac": 1.0}, HEALTHY | {"feature_spread": 0.0})
    assert [monitor.watch(sick[n % 2]) for n in range(40)] == [None] * 40
