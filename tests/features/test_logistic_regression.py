"""Logistic regression for few labels: the optimum, a fair cross-validation, calibrated probabilities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opendino.features import logistic_regression
from opendino.features.logistic_regression import STRENGTHS, cross_validated, fit, folds, group_folds


def blobs(num: int, num_classes: int, width: int, distance: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(99))
    y = torch.arange(num) % num_classes
    return distance * centers[y] + torch.randn(num, width, generator=chance), y


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("strength", [0.01, 0.3, 30.0])
@pytest.mark.parametrize("width", [3, 60])
def test_the_optimum_is_scikit_learns(num_classes: int, strength: float, width: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = blobs(40, num_classes, width, 0.5)
    x = (x - x.mean(0)).double()
    theirs = linear_model.LogisticRegression(C=strength, max_iter=10_000, tol=1e-9).fit(x.numpy(), y.numpy())
    weight, bias = fit(x, y, num_classes, strength / (2 if num_classes == 2 else 1))
    torch.testing.assert_close(
        (x @ weight.T + bias).softmax(1), torch.from_numpy(theirs.predict_proba(x.numpy())), rtol=0, atol=1e-3
    )


def test_the_classifier_takes_features_as_they_are() -> None:
    # A column in other units, one that is constant, and one in half precision change nothing.
    x, y = blobs(60, 3, 5, 1.0)
    plain = cross_validated(x, y, 3)
    odd = torch.cat([1e4 * x[:, :2] + 1e5, x[:, 2:], torch.full((60, 1), 7.0)], 1)
    found = cross_validated(odd, y, 3)
    torch.testing.assert_close(
        (odd.double() @ found.weight.double().T + found.bias).softmax(1),
        (x.double() @ plain.weight.double().T + plain.bias).softmax(1),
        rtol=0, atol=0.02,
    )  # fmt: skip
    assert found.weight.dtype == torch.float32 and found.strength == plain.strength
    assert cross_validated(x.half(), y, 3).strength == plain.strength


@pytest.mark.parametrize(("distance", "width"), [(0.15, 40), (0.6, 40), (0.0, 40)])
def test_the_cross_validated_accuracy_is_that_of_new_images(distance: float, width: int) -> None:
    claimed, true = 0.0, 0.0
    for seed in range(6):
        x, y = blobs(60, 3, width, distance, seed)
        found = cross_validated(x, y, 3, seed=seed)
        claimed += float((found.scores.argmax(1) == y).double().mean()) / 6
        new, truth = blobs(900, 3, width, distance, seed + 100)
        true += float(((new @ found.weight.T + found.bias).argmax(1) == truth).double().mean()) / 6
    assert claimed == pytest.approx(true, abs=0.08)  # two standard errors of 360 labels: 0.05


def test_what_can_be_separated_is_separated_with_confidence() -> None:
    x, y = blobs(60, 3, 10, 5.0)
    found = cross_validated(x, y, 3)
    assert (found.scores.argmax(1) == y).all() and found.scores.softmax(1).amax(1).min() > 0.9


def test_features_that_say_nothing_give_the_shares_of_the_classes() -> None:
    y = (torch.arange(100) >= 70).long()  # 70 % of class 0
    x = torch.randn(100, 300, generator=torch.Generator().manual_seed(1))
    found = cross_validated(x, y, 2)
    new = torch.randn(500, 300, generator=torch.Generator().manual_seed(2))
    probabilities = (new @ found.weight.T + found.bias).softmax(1)
    assert (probabilities.argmax(1) == 0).double().mean() > 0.97, "not below the majority"
    assert float(probabilities[:, 0].mean()) == pytest.approx(0.7, abs=0.08)


def test_probabilities_are_calibrated() -> None:
    x, y = blobs(90, 3, 60, 0.2)
    found = cross_validated(x, y, 3)
    new, truth = blobs(2000, 3, 60, 0.2, 7)
    probabilities = (new @ found.weight.T + found.bias).softmax(1)
    right = float((probabilities.argmax(1) == truth).double().mean())
    assert float(probabilities.amax(1).mean()) == pytest.approx(right, abs=0.1)
    overfitted = cross_validated(x, y, 3, [STRENGTHS[-1]])  # calibration mends what too weak a penalty spoils
    probabilities = (new @ overfitted.weight.T + overfitted.bias).softmax(1)
    right = float((probabilities.argmax(1) == truth).double().mean())
    assert float(probabilities.amax(1).mean()) == pytest.approx(right, abs=0.15)


def test_folds_hold_every_class_evenly() -> None:
    labels = torch.tensor([0] * 50 + [1] * 23 + [2] * 3)
    fold, num = folds(labels)
    assert num == 10 and fold.min() == 0 and fold.max() == 9
    for label in range(3):
        counts = fold[labels == label].bincount(minlength=num)
        assert counts.max() - counts.min() <= 1
    assert folds(torch.zeros(1001, dtype=torch.int64))[1] == 5
    assert folds(torch.tensor([0, 1, 1]))[1] == 3
    assert not torch.equal(folds(labels, 1)[0], fold)


def test_a_class_with_one_label_counts_as_wrong_and_one_without_is_never_predicted() -> None:
    x, y = blobs(41, 4, 6, 4.0)
    y[y == 3] = 0
    y[0] = 3
    found = cross_validated(x, y, 5)
    assert found.scores[0].argmax() != 3 and found.scores.isneginf().any(1).sum() == len(y)
    assert torch.isneginf(found.bias[4]) and found.bias[:4].isfinite().all() and found.loss < 2
    assert (x @ found.weight.T + found.bias).argmax(1).max() <= 3


def test_two_labels_are_enough_to_train() -> None:
    found = cross_validated(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 1]), 2)
    assert found.weight.isfinite().all() and found.folds == 2


def test_a_penalty_other_than_one_needs_more_than_luck() -> None:
    strengths = (0.01, 0.1, 1.0, 10.0)
    noise = torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise -= noise.mean(1, keepdim=True)
    means = torch.tensor([1.2, 0.97, 1.0, 1.05], dtype=torch.float64)[:, None]
    assert logistic_regression._choose(means + noise, strengths) == 2  # 0.03 less with an error of 0.2
    assert logistic_regression._choose(means + 0.01 * noise, strengths) == 1


def test_rows_of_a_group_are_held_out_together() -> None:
    groups = torch.randint(0, 7, (200,))
    fold, num = group_folds(groups * 3 - 5)
    assert num == 5 and set(fold.tolist()) == set(range(5))
    assert all(len(fold[groups == group].unique()) == 1 for group in groups.unique())
    # Groups of equal rows with random labels: known from another row of the group, unknown from the other groups.
    centers, labels = torch.randn(40, 60), torch.arange(40) % 2
    x, y, groups = (each.repeat_interleave(10, 0) for each in (centers, labels, torch.arange(40)))
    by_row, by_group = (cross_validated(x, y, 2, groups=each) for each in (None, groups))
    right = [(each.scores.argmax(1) == y).double().mean() for each in (by_row, by_group)]
    assert right[0] > 0.99 and right[1] < 0.75
    assert by_group.strength < by_row.strength
