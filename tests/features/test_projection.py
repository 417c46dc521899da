"""Points of a map, and clusters."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from opendino.core.errors import UserError
from opendino.features.projection import clusters, project


def blobs(sizes: tuple[int, ...], dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors around orthogonal directions, and the number of their direction."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    noise = 0.05 * torch.randn(len(labels), dim, generator=generator)
    return normalize(torch.eye(dim)[labels] + noise, dim=1), labels


def test_pca_agrees_with_the_singular_vectors_and_fills_the_square() -> None:
    vectors, _ = blobs((30, 20, 10))
    points = project(vectors)
    assert points.shape == (60, 2) and points.dtype == torch.float32
    assert points.amin(0).tolist() == [0, 0] and points.amax(0).tolist() == [1, 1]
    centered = (vectors - vectors.mean(0)).double()
    expected = centered @ torch.linalg.svd(centered, full_matrices=False)[2][:2].T
    for axis in range(2):
        assert abs(torch.corrcoef(torch.stack([points[:, axis].double(), expected[:, axis]]))[0, 1]) > 1 - 1e-6
    assert torch.equal(points, project(vectors))


@pytest.mark.parametrize("vectors", [torch.ones(1, 4), torch.ones(3, 4), torch.rand(5, 1)])
def test_degenerate_sets_have_a_map(vectors: torch.Tensor) -> None:
    points = project(vectors)
    assert points.shape == (len(vectors), 2) and bool(points.isfinite().all())


def test_umap_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "umap":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"opendino\[umap\]"):
        project(torch.rand(10, 4), "umap")


def test_clusters_are_found_and_numbered_by_size() -> None:
    vectors, labels = blobs((5, 40, 20))
    found = clusters(vectors, 3)
    assert torch.equal(found, torch.tensor([2, 0, 1])[labels])
    assert clusters(vectors[:1].repeat(4, 1), 8).tolist() == [0, 0, 0, 0]  # only one different vector
