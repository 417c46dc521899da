"""Vectors as points of a map: a projection to two dimensions, and clusters to color them by."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from opendino.core.errors import UserError

Projection = Literal["pca", "umap"]
_CHUNK = 2**15
_ITERATIONS = 50


@torch.no_grad()
def project(vectors: Tensor, how: Projection = "pca", seed: int = 0) -> Tensor:
    """Place vectors on a square map.

    PCA keeps large distances and takes seconds for a million vectors. UMAP (McInnes et al. 2018) keeps neighbors
    together, takes minutes, and distances between its islands mean little.

    Args:
        vectors: float `[M D]`, M ≥ 1.
        how: pca, or umap (needs the package umap-learn).
        seed: Seed of UMAP; PCA has none.

    Returns:
        float32 `[M 2]` in [0, 1] on the CPU, on each axis from the first to the last vector.

    Raises:
        UserError: umap-learn is not installed.
    """
    points = _umap(vectors, seed) if how == "umap" and len(vectors) > 3 else _pca(vectors)
    low, high = points.amin(0), points.amax(0)
    return ((points - low) / (high - low).clamp_min(1e-30)).float().cpu()


def _pca(vectors: Tensor) -> Tensor:
    """The first two principal components, float64 `[M 2]`; the largest loading of each is positive."""
    mean = vectors.mean(0, dtype=torch.float64)
    covariance = sum(
        ((part.double() - mean).T @ (part.double() - mean) for part in vectors.split(_CHUNK)), torch.zeros(())
    )
    directions = torch.linalg.eigh(covariance)[1].flip(1)[:, :2]  # [D 2], eigh sorts ascending
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * largest.sign()
    points = torch.cat([(part.double() - mean) @ directions for part in vectors.split(_CHUNK)])
    return points if points.shape[1] == 2 else torch.nn.functional.pad(points, (0, 1))  # D = 1


def _umap(vectors: Tensor, seed: int) -> Tensor:
    try:
        from umap import UMAP  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("UMAP needs umap-learn", 'pip install "opendino[umap]", or use pca') from None
    neighbors = min(15, len(vectors) - 1)
    mapped = UMAP(metric="cosine", n_neighbors=neighbors, random_state=seed, n_jobs=1).fit_transform(
        vectors.cpu().numpy()
    )
    return torch.as_tensor(mapped).double()


@torch.no_grad()
def clusters(vectors: Tensor, number: int = 8, seed: int = 0) -> Tensor:
    """Assign vectors to clusters: spherical k-means (Dhillon & Modha 2001), started with k-means++.

    Args:
        vectors: float `[M D]`, L2-normalized.
        number: Number of clusters, fewer if there are fewer different vectors.
        seed: Seed of the first centers.

    Returns:
        int64 `[M]` on the CPU: 0 for the largest cluster, then by size.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [int(torch.randint(len(vectors), (), generator=generator))]
    nearest = vectors @ vectors[rows[0]]  # [M], cosine to the nearest center
    while len(rows) < number:
        distances = (1 - nearest).clamp_min(0).double().cpu()
        if float(distances.max()) < 1e-6:
            break
        rows.append(int(torch.multinomial(distances, 1, generator=generator)))
        torch.maximum(nearest, vectors @ vectors[rows[-1]], out=nearest)
    centers = vectors[rows]  # [k D]
    found = (vectors @ centers.T).argmax(1)
    for _ in range(_ITERATIONS):
        sums = torch.zeros_like(centers).index_add_(0, found, vectors)
        moved = torch.where(sums.norm(dim=1, keepdim=True) > 0, torch.nn.functional.normalize(sums, dim=1), centers)
        before, found = found, (vectors @ moved.T).argmax(1)
        centers = moved
        if torch.equal(found, before):
            break
    sizes = found.bincount(minlength=len(centers))
    rank = torch.empty_like(sizes)
    rank[sizes.argsort(descending=True, stable=True)] = torch.arange(len(sizes), device=sizes.device)
    return rank[found].cpu()
