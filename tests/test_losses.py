"""Functions that methods share: Sinkhorn-Knopp, KoLeo. The cross-entropy: tests/methods/test_dino.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from opendino.losses import koleo, sinkhorn_knopp

EXACT = {"rtol": 0, "atol": 1e-10}


def oracle(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """Algorithm 1 of SwAV, number by number, on one view `[B K]`."""
    num_images, num_prototypes = scores.shape
    q = [[float(scores[b, k].div(temperature).exp()) for k in range(num_prototypes)] for b in range(num_images)]
    for _ in range(iterations):
        for k in range(num_prototypes):
            total = sum(row[k] for row in q) * num_prototypes
            for row in q:
                row[k] /= total
        for row in q:
            total = sum(row) * num_images
            row[:] = [value / total for value in row]
    return torch.tensor(q, dtype=torch.float64) * num_images


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_it_is_the_algorithm_of_the_paper(iterations: int) -> None:
    scores = torch.rand(2, 7, 5, dtype=torch.float64) * 2 - 1
    codes = sinkhorn_knopp(scores, 0.05, iterations)
    for view in range(2):
        torch.testing.assert_close(codes[view], oracle(scores[view], 0.05, iterations), **EXACT)
    torch.testing.assert_close(codes.sum(-1), torch.ones(2, 7, dtype=torch.float64), **EXACT)


def test_in_the_end_every_prototype_gets_equally_many_images() -> None:
    scores = torch.randn(12, 4, dtype=torch.float64)
    scores[:, 0] += 5  # the prototype that every image prefers
    torch.testing.assert_close(
        sinkhorn_knopp(scores, 0.5, 1000).sum(0), torch.full((4,), 3.0, dtype=torch.float64), **EXACT
    )


def test_scores_of_any_size_give_finite_codes() -> None:
    codes = sinkhorn_knopp(torch.randn(8, 6) * 1000, 0.05)
    assert bool(codes.isfinite().all())
    torch.testing.assert_close(codes.sum(-1), torch.ones(8))


def test_equal_images_get_uniform_codes_and_halves_become_float32() -> None:
    codes = sinkhorn_knopp(torch.randn(1, 6, dtype=torch.bfloat16).expand(8, 6), 0.05)
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes, torch.full((8, 6), 1 / 6))


def test_koleo_and_its_gradient_are_the_definition() -> None:
    features = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    terms = []
    for i in range(7):
        unit = [row / row.square().sum().sqrt() for row in features]
        nearest = min((j for j in range(7) if j != i), key=lambda j: (unit[i] - unit[j]).square().sum().item())
        terms.append(-((unit[i] - unit[nearest] + 1e-8).square().sum().sqrt() + 1e-8).log())
    expected = sum(terms) / 7
    found = koleo(features)
    torch.testing.assert_close(found, expected, **EXACT)
    for ours, theirs in zip(torch.autograd.grad(found, features), torch.autograd.grad(expected, features), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_koleo_is_low_for_spread_features_and_finite_for_equal_ones() -> None:
    opposite = torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    assert float(koleo(opposite)) == pytest.approx(-math.log(2), abs=1e-6)
    equal = torch.ones(5, 3, requires_grad=True)
    value = koleo(equal)
    value.backward()
    assert 10 < float(value) < 40 and bool(equal.grad.isfinite().all())
    assert bool(koleo(torch.ones(1, 3)).isfinite()), "one image has no other"
    with torch.autocast("cpu", torch.bfloat16):
        assert koleo(torch.randn(5, 3).bfloat16()).dtype == torch.float32
