"""Accuracies: standard errors, formatting, interpretation."""

from __future__ import annotations

import math

import pytest

from opendino.core.accuracy import (
    Accuracy,
    baseline_text,
    chance_of_difference,
    format_accuracies,
    interval,
    standard_error,
)


@pytest.mark.parametrize(("percent", "num", "points"), [(50, 50, 7.07), (72, 50, 6.35), (90, 1000, 0.949)])
def test_standard_error_of_a_proportion(percent: float, num: int, points: float) -> None:
    assert standard_error(percent, num) == pytest.approx(points, abs=0.005)


@pytest.mark.parametrize("percent", [0, 100])
@pytest.mark.parametrize("num", [1, 5, 50, 5000])
def test_standard_error_at_0_and_100_percent_is_not_zero(percent: float, num: int) -> None:
    assert 50 / num > standard_error(percent, num) * 0.5 > 0
    assert standard_error(percent, num) == pytest.approx(standard_error(100 * (num + 1) / (num + 2), num))


@pytest.mark.parametrize(
    ("percent", "num", "low", "high"),
    [(70, 10, 39.7, 89.2), (75.6, 50, 62.1, 85.4), (100, 10, 72.2, 100), (0, 0, 0, 100)],
)
def test_an_interval_is_wilsons(percent: float, num: int, low: float, high: float) -> None:
    assert interval(percent, num) == pytest.approx((low, high), abs=0.25)


def test_a_sentence_has_all_that_is_needed_to_judge() -> None:
    sentence = Accuracy(70.0, None, 55.0, 62.8, 10).sentence
    assert all(part in sentence for part in ("70.0% on 10 images", "39.7 to 89.2%", "balanced 55.0%", "62.8%"))


def test_a_difference_of_two_is_noisier_than_either() -> None:
    assert chance_of_difference(70, 70, 50) == pytest.approx(2 * math.sqrt(2) * standard_error(70, 50))
    assert chance_of_difference(70, 90, 0) == 0


def test_a_row_is_formatted_with_the_available_numbers() -> None:
    row = {"knn": {"teacher": 72.0, "pixels": 30.0}, "balanced_accuracy": {"teacher": 61.0}, "num_queries": 50}
    assert format_accuracies(row) == {"teacher": "72.0% ± 6.3, balanced 61.0%", "pixels": "30.0% ± 6.5"}
    assert format_accuracies({"knn": {"teacher": 72.0}}) == {"teacher": "72.0%"}, "of an earlier version"
    assert format_accuracies({}) == format_accuracies({"knn": None}) == {}
    assert format_accuracies(row | {"accuracy": {"teacher": 80.0}}, "accuracy") == {"teacher": "80.0% ± 5.7"}
    told = baseline_text(row | {"majority": 44.0})
    assert "not confirmed" in baseline_text(row | {"majority": 44.0, "judged_on": {"confirmed": 0}})
    assert "not confirmed" not in told
    assert "50 queries" in told and "44.0%" in told and "standard error" in told


def test_fields_have_every_number() -> None:
    fields = Accuracy(50.0, None, 40.0, 44.0, 50).fields
    assert fields.keys() == {"top1", "top5", "balanced_accuracy", "majority", "num_queries", "standard_error"}
    assert fields["top5"] is None and fields["standard_error"] == pytest.approx(7.07, abs=0.01)
