"""The place of the true class, and accuracies."""

from __future__ import annotations

import math

import pytest
import torch

from opendino.features.classification_metrics import accuracy, true_class_rank


def test_the_place_counts_larger_scores_and_lower_classes_with_the_same() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.5, 0.2]] * 4)
    assert true_class_rank(scores, torch.tensor([0, 1, 2, 3])).tolist() == [3, 0, 1, 2]


def test_a_class_that_cannot_be_found_comes_last() -> None:
    assert true_class_rank(torch.zeros(2, 3), torch.tensor([-1, 3])).tolist() == [3, 3]


def test_scores_that_are_not_numbers_are_never_right() -> None:
    scores = torch.tensor([[math.nan, 1.0], [math.nan, math.nan]])
    assert true_class_rank(scores, torch.tensor([1, 0])).tolist() == [2, 2]


@pytest.mark.parametrize("num_classes", [1, 2, 3, 5, 6, 9])
def test_top_five_is_none_where_every_answer_would_be_right(num_classes: int) -> None:
    found = accuracy(torch.randn(40, num_classes), torch.arange(40) % num_classes)
    assert (found.top5 is None) == (num_classes <= 5)
    if found.top5 is not None:
        assert found.top1 <= found.top5 < 100


def test_always_the_same_answer_reaches_the_majority_and_a_balanced_share_of_one_class() -> None:
    truth = torch.tensor([0] * 90 + [1] * 10)[torch.randperm(100)]
    found = accuracy(torch.tensor([[1.0, 0.0]]).expand(100, -1), truth)
    assert (found.top1, found.majority, found.balanced_accuracy, found.num_queries) == (90, 90, 50, 100)
    assert found.standard_error == pytest.approx(3.0)


def test_accuracy_is_scikit_learns_and_an_unknown_class_counts_as_wrong() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, truth = torch.randn(307, 7), torch.cat([torch.arange(7), torch.randint(0, 7, (300,)) ** 2 % 7])
    found, guess = accuracy(scores, truth), scores.argmax(1)
    assert found.top1 == pytest.approx(100 * metrics.accuracy_score(truth, guess))
    assert found.balanced_accuracy == pytest.approx(100 * metrics.balanced_accuracy_score(truth, guess))
    assert accuracy(torch.tensor([[3.0, 2.0, 1.0]] * 4), torch.tensor([0, 1, 2, 3])).top1 == 25


def test_nothing_to_classify_has_no_accuracy() -> None:
    found = accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert math.isnan(found.top1) and math.isnan(found.standard_error) and found.num_queries == 0
