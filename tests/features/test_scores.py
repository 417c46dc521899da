"""The place of the true class, and accuracies."""

from __future__ import annotations

import math

import torch

from opendino.features.scores import accuracy, place


def test_the_place_counts_larger_scores_and_lower_classes_with_the_same() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.5, 0.2]] * 4)
    assert place(scores, torch.tensor([0, 1, 2, 3])).tolist() == [3, 0, 1, 2]


def test_a_class_that_cannot_be_found_comes_last() -> None:
    assert place(torch.zeros(2, 3), torch.tensor([-1, 3])).tolist() == [3, 3]


def test_scores_that_are_not_numbers_are_never_right() -> None:
    assert place(torch.tensor([[math.nan, 1.0], [math.nan, math.nan]]), torch.tensor([1, 0])).tolist() == [2, 2]


def test_accuracy_is_in_percent_and_top_five_of_fewer_classes_needs_a_known_one() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0]] * 4)
    assert accuracy(scores, torch.tensor([0, 1, 2, 3])) == (25.0, 75.0)
    assert math.isnan(accuracy(scores[:0], torch.zeros(0, dtype=torch.int64))[0])
