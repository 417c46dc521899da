"""The connected regions of a mask, and their outlines as polygons along the sides of pixels, for GeoJSON."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from opendino.datasets.mask_files import VOID

Ring = list[tuple[int, int]]
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up; the region is on the right hand of a walker


def regions(mask: np.ndarray) -> np.ndarray:
    """Number the regions of a mask: pixels of one class that are connected by their sides.

    Args:
        mask: Integers `[H W]`.

    Returns:
        int64 `[H W]`, numbers from 0 in the order of the first pixels of the regions, row by row.
    """
    starts = np.ones(mask.shape, bool)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    runs = np.cumsum(starts).reshape(mask.shape) - 1  # [H W], number of the horizontal run of a pixel
    same = mask[1:] == mask[:-1]
    pairs = np.unique(np.stack([runs[:-1][same], runs[1:][same]], 1), axis=0)
    parent = list(range(int(runs[-1, -1]) + 1))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    for upper, lower in pairs.tolist():
        one, other = root(upper), root(lower)
        parent[max(one, other)] = min(one, other)
    roots = np.array([root(run) for run in range(len(parent))])
    return np.unique(roots, return_inverse=True)[1].reshape(-1)[runs]


def outlines(numbered: np.ndarray) -> list[list[Ring]]:
    """The rings around each region and around its holes.

    Args:
        numbered: From `regions`.

    Returns:
        For each region its outer ring, then its holes. A ring is a list of corners (x, y) in pixels, x to the right and
        y down from the corner of the image; the last is the first again. Outer rings have a positive area by the
        shoelace formula, holes a negative one. No ring passes a point twice; two may touch in a point.
    """
    found: list[list[Ring]] = [[] for _ in range(int(numbered.max()) + 1)]
    ways = _sides(numbered)
    for key in list(ways):
        while ways.get(key):
            ring = _walk(ways, key)
            # of a region the outer ring is the only one of positive area
            found[key[0]].insert(0 if _area(ring) > 0 else len(found[key[0]]), ring)
    return found


def feature_collection(mask: np.ndarray, probability: np.ndarray, names: Mapping[int, str] = {}) -> dict[str, Any]:
    """A GeoJSON object with a Feature for each region.

    Its properties are "class", "name" if it is known, "mean_probability" (of the class, over the pixels of the region)
    and "pixels". Void pixels are in none.

    Args:
        mask: uint8 `[H W]`, class numbers.
        probability: float `[H W]`, of the class of each pixel.
        names: What classes are called.
    """
    numbered = regions(mask)
    flat = numbered.ravel()
    sizes = np.bincount(flat)
    means = np.bincount(flat, probability.ravel()) / sizes
    classes = mask.ravel()[np.unique(flat, return_index=True)[1]]
    features = [
        {
            "type": "Feature",
            "properties": {
                "class": int(number),
                **({"name": names[int(number)]} if int(number) in names else {}),
                "mean_probability": round(float(mean), 4),
                "pixels": int(size),
            },
            "geometry": {"type": "Polygon", "coordinates": rings},
        }
        for number, mean, size, rings in zip(classes, means, sizes, outlines(numbered), strict=True)
        if number != VOID
    ]
    return {"type": "FeatureCollection", "features": features}


def _sides(numbered: np.ndarray) -> dict[tuple[int, int, int], list[int]]:
    """(region, x, y) → the steps (positions in `_STEPS`) that start there, along sides of pixels of the region."""
    around = np.pad(numbered, 1, constant_values=-1)
    neighbors = (around[:-2, 1:-1], around[1:-1, 2:], around[2:, 1:-1], around[1:-1, :-2])  # above, right, below, left
    ways: dict[tuple[int, int, int], list[int]] = {}
    for step, (neighbor, (dx, dy)) in enumerate(zip(neighbors, ((0, 0), (1, 0), (1, 1), (0, 1)), strict=True)):
        rows, columns = (neighbor != numbered).nonzero()
        for region, x, y in zip(
            numbered[rows, columns].tolist(), (columns + dx).tolist(), (rows + dy).tolist(), strict=True
        ):
            ways.setdefault((region, x, y), []).append(step)
    return ways


def _walk(ways: dict[tuple[int, int, int], list[int]], start: tuple[int, int, int]) -> Ring:
    """One ring from a corner; its sides are removed from `ways`."""
    region, x, y = start
    step, corners = ways[start].pop(), list[tuple[int, int]]()
    first = step
    while True:
        x, y = x + _STEPS[step][0], y + _STEPS[step][1]
        if (region, x, y) == start:
            break
        choices, left = ways[region, x, y], (step - 1) % 4
        # Where two pixels of the region touch in a corner, stay at the same hole: then no ring passes a point twice.
        following = left if left in choices else choices[0]
        choices.remove(following)
        if following != step:
            corners.append((x, y))
        step = following
    if step != first:
        corners.insert(0, start[1:])
    return [*corners, corners[0]]


def _area(ring: Ring) -> float:
    """Signed area by the shoelace formula."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) / 2
