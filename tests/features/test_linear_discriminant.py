"""Linear discriminant: the directions of scikit-learn, and equal priors."""

from __future__ import annotations

import pytest
import torch

from opendino.features.linear_discriminant import linear_discriminant


def test_the_differences_of_the_weights_are_those_of_scikit_learn() -> None:
    analysis = pytest.importorskip("sklearn.discriminant_analysis").LinearDiscriminantAnalysis
    x = torch.randn(300, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    labels = torch.arange(300) % 3
    x[:, 0] += labels
    x = (x - x.mean(0)) / x.std(0, correction=0)  # scikit-learn shrinks without standardizing
    weight, bias = linear_discriminant(x, labels, 3, shrinkage=0.2)
    theirs = analysis(solver="lsqr", shrinkage=0.2).fit(x.numpy(), labels.numpy())  # classes of equal size
    coefficients = torch.from_numpy(theirs.coef_).T
    assert torch.allclose(weight - weight[:, :1], coefficients - coefficients[:, :1], atol=1e-9)
    intercepts = torch.from_numpy(theirs.intercept_)
    assert torch.allclose(bias - bias[0], intercepts - intercepts[0], atol=1e-9)


def test_scale_shift_and_class_sizes_do_not_matter() -> None:
    x = torch.randn(210, 4, dtype=torch.float64)
    labels = (torch.arange(210) >= 200).long()
    x[labels == 1] += 1.0
    weight, bias = linear_discriminant(x, labels, 2)
    middle = (x[labels == 0].mean(0) + x[labels == 1].mean(0)) / 2
    assert float(middle @ weight[:, 1] + bias[1]) == pytest.approx(float(middle @ weight[:, 0] + bias[0]), abs=1e-9)
    moved = x * torch.tensor([1e4, 1e-3, 1, 7]) + torch.tensor([5.0, -3, 0, 1e3])
    other, other_bias = linear_discriminant(moved, labels, 2)
    assert torch.equal((x @ weight + bias).argmax(1), (moved @ other + other_bias).argmax(1))


def test_constant_features_few_images_and_absent_classes() -> None:
    x = torch.cat([torch.eye(4, 50), torch.ones(4, 1)], 1)
    weight, bias = linear_discriminant(x, torch.tensor([0, 0, 2, 2]), 4)
    assert weight.isfinite().all() and bias[[1, 3]].eq(-torch.inf).all()
    assert (x.double() @ weight + bias).argmax(1).tolist() == [0, 0, 2, 2]
