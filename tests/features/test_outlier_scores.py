"""Outliers: against scikit-learn, with copies, and what the two measures find."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from opendino.features.outlier_scores import other_neighbors, outlier_scores, usual_limit


@pytest.mark.parametrize("k", [1, 5, 39])
def test_scores_are_those_of_scikit_learn(k: int) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    vectors = normalize(torch.randn(40, 4, dtype=torch.float64), dim=1)
    distance, factor = outlier_scores(vectors, k)
    theirs = neighbors.LocalOutlierFactor(k, algorithm="brute").fit(vectors.numpy())
    assert torch.allclose(factor, -torch.from_numpy(theirs.negative_outlier_factor_), atol=1e-6)
    apart = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values
    assert torch.allclose(distance, apart[:, k], atol=1e-7)


def test_an_image_is_not_its_own_neighbor_among_copies() -> None:
    vectors = torch.eye(3).repeat_interleave(5, 0)
    distances, rows = other_neighbors(vectors, 4)
    assert (rows != torch.arange(15)[:, None]).all() and (distances == 0).all()
    assert other_neighbors(vectors, 2)[1].shape == (15, 2)
    assert outlier_scores(vectors, 3)[1].isfinite().all()


def test_distance_finds_the_far_one_and_the_factor_the_one_beside_a_tight_cluster() -> None:
    angles = torch.cat([torch.linspace(0, 0.01, 30), torch.linspace(1, 2, 30), torch.tensor([0.06, 4.0])]).double()
    distance, factor = outlier_scores(torch.stack([angles.cos(), angles.sin()], 1), 5)
    assert int(distance.argmax()) == 61
    assert distance[60] < distance[30:60].max() and factor[60] > 5 > factor[:60].max()


def test_the_usual_limit_of_a_log_normal_measure_and_of_equal_values() -> None:
    scores = (0.3 * torch.randn(200_000) - 2).exp()
    assert float((scores > usual_limit(scores)).double().mean()) == pytest.approx(1 / 4300, rel=0.5)
    scores[:20_000] = 50.0  # a tenth of odd ones moves it little
    assert usual_limit(scores) < 2 and int((scores > usual_limit(scores)).sum()) >= 20_000
    assert usual_limit(torch.full((9,), 0.5)) == pytest.approx(0.5) and usual_limit(torch.zeros(9)) < 1e-11
