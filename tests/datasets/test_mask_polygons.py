"""Regions of masks and their outlines."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw

from opendino.datasets.mask_polygons import feature_collection, outlines, regions


def shoelace(ring: list[tuple[int, int]]) -> float:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) / 2


def filled(rings: list[list[tuple[int, int]]], shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose center is inside a polygon, counted by crossings with a ray."""
    inside = np.zeros(shape, bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in pairwise(ring):
            if x0 == x1:  # a vertical side toggles all pixels to its right
                inside[min(y0, y1) : max(y0, y1), x0:] ^= True
    return inside


def slow_regions(mask: np.ndarray) -> np.ndarray:
    found, number = np.full(mask.shape, -1), 0
    for start in np.ndindex(mask.shape):
        if found[start] >= 0:
            continue
        todo = [start]
        while todo:
            y, x = todo.pop()
            if found[y, x] >= 0:
                continue
            found[y, x] = number
            around = ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1))
            inside = [at for at in around if 0 <= at[0] < mask.shape[0] and 0 <= at[1] < mask.shape[1]]
            todo += [at for at in inside if mask[at] == mask[y, x]]
        number += 1
    return found


@pytest.mark.parametrize("seed", range(5))
def test_polygons_of_any_mask_cover_exactly_the_pixels_of_their_region(seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 2 + seed % 2, (14, 17)).astype(np.uint8)
    numbered = regions(mask)
    assert np.array_equal(numbered, slow_regions(mask))
    for number, rings in enumerate(outlines(numbered)):
        own = numbered == number
        assert np.array_equal(filled(rings, mask.shape), own)
        areas = [shoelace(ring) for ring in rings]
        assert areas[0] > 0 and all(area < 0 for area in areas[1:]) and sum(areas) == own.sum()
        for ring in rings:
            assert ring[0] == ring[-1] and len(set(ring)) == len(ring) - 1, "no point twice"
            turns = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ring)]
            assert all((one[0] == 0) != (other[0] == 0) for one, other in pairwise([*turns, turns[0]])), "corners only"


def test_a_feature_has_class_probability_and_hole() -> None:
    image = Image.new("L", (40, 30))
    ImageDraw.Draw(image).ellipse((5, 5, 30, 25), fill=3, outline=3)
    mask = np.array(image)
    mask[14:16, 15:20] = 0  # a hole
    mask[0, 0] = 255
    probability = np.where(mask == 3, 0.75, 0.5).astype(np.float32)
    found = json.loads(json.dumps(feature_collection(mask, probability)))
    told = [(each["properties"]["class"], each["properties"]["mean_probability"]) for each in found["features"]]
    assert told == [(0, 0.5), (3, 0.75), (0, 0.5)]  # around, the ellipse, in its hole; void has none
    disc = found["features"][1]
    assert disc["properties"]["pixels"] == (mask == 3).sum() and disc["geometry"]["type"] == "Polygon"
    outer, hole = disc["geometry"]["coordinates"]
    assert sorted(map(tuple, hole[:-1])) == [(15, 14), (15, 16), (20, 14), (20, 16)]
    assert shoelace(outer) + shoelace(hole) == (mask == 3).sum()
