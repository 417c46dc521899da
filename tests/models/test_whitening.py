"""PCA whitening: what it does to a covariance, and what it does where there is too little to learn from."""

from __future__ import annotations

import pytest
import torch

from opendino.core.errors import UserError
from opendino.models.whitening import fit


def test_the_covariance_becomes_the_identity_and_the_mean_zero() -> None:
    features = torch.randn(500, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 3
    white = fit(features)(features)
    assert torch.allclose(white.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(white.T @ white / 500, torch.eye(6, dtype=torch.float64), atol=1e-10)


def test_about_the_origin_the_second_moment_becomes_the_identity_and_the_mean_is_subtracted_all_the_same() -> None:
    features = torch.randn(500, 4, dtype=torch.float64) + 2
    whitening = fit(features, centered=False)
    moment = (features @ whitening.matrix.T).T @ (features @ whitening.matrix.T) / 500
    assert torch.allclose(moment, torch.eye(4, dtype=torch.float64), atol=1e-10)
    assert torch.equal(whitening.mean, features.mean(0))
    assert torch.allclose(whitening(features).mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fewer_features_than_dimensions_span_one_direction_less(dtype: torch.dtype) -> None:
    features = torch.randn(5, 30, dtype=dtype)
    whitening = fit(features)
    white = whitening(features)
    assert white.shape == (5, 4) and white.dtype == dtype
    assert torch.allclose(white.T @ white / 5, torch.eye(4, dtype=dtype), atol=1e-5)
    assert whitening(torch.randn(2, 3, 30, dtype=dtype)).shape == (2, 3, 4)  # any leading dimensions


def test_small_variances_are_raised_to_eps_of_the_largest() -> None:
    features = torch.randn(1000, 2, dtype=torch.float64) * torch.tensor([1.0, 1e-4], dtype=torch.float64)
    variance = fit(features, eps=1e-2)(features).var(0, unbiased=False)
    assert variance[0] == pytest.approx(1, rel=1e-9)
    assert variance[1] == pytest.approx(1e-6, rel=0.2)  # 1e-8 of variance over the 1e-2 it is taken for


@pytest.mark.parametrize("features", [torch.randn(1, 4), torch.ones(10, 4), torch.zeros(10, 4)])
def test_nothing_to_learn_from_is_one_clear_line(features: torch.Tensor) -> None:
    with pytest.raises(UserError, match="Whitening cannot be learned"):
        fit(features)
