"""Maps of images: which are shown, their colors, boxes drawn on them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from opendino.visualize.drawing import scatter_map, style


def test_shown_images_do_not_cover_each_other() -> None:
    points = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0))
    rows = scatter_map.shown_rows(points)
    assert 40 < len(rows) < 15**2
    apart = (points[rows][:, None] - points[rows][None]).abs().amax(2)
    assert float(apart.fill_diagonal_(9).min()) >= 1 / 15
    assert scatter_map.shown_rows(torch.zeros(5, 2)) == [0]


def test_the_largest_groups_have_colors_and_the_rest_shares_gray() -> None:
    names = [f"group {number}" for number in range(9) for _ in range(20 - number)] + [""] * 3
    found = scatter_map.colors(names)
    assert list(found)[:2] == ["group 0", "group 1"] and len(found) == 8
    assert found["group 0"][1] == 20 and found["others"] == (style.COLORS[7], 13 + 12 + 3)
    assert len({color for color, _ in found.values()}) == 8
    assert scatter_map.colors(["", ""]) == {"images": (style.COLORS[0], 2)}


def test_a_box_on_the_picture_holds_the_points_drawn_in_it() -> None:
    points = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    figure = scatter_map.figure(points, ["a", "b", "c"], {}, legend=False)
    pixels = np.asarray(style.image(figure)).astype(int)
    for row, color in enumerate(style.COLORS[:3]):
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        y, x = np.nonzero(np.abs(pixels - wanted).sum(2) < 130)  # points are slightly transparent
        left, right = x.min() / pixels.shape[1], x.max() / pixels.shape[1]
        top, bottom = y.min() / pixels.shape[0], y.max() / pixels.shape[0]
        assert right - left < 0.05 and bottom - top < 0.05
        assert scatter_map.rows_in_box(points, [left, top, right, bottom]) == [row]
    assert scatter_map.rows_in_box(points, [0, 0, 1, 1]) == [0, 1, 2]


def test_images_and_the_legend_are_drawn() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    plain = scatter_map.figure(points, ["<a>", ""], {})
    assert "&lt;a&gt; (1)" in style.svg(plain) and "others (1)" in style.svg(plain)
    shown = scatter_map.figure(points, ["<a>", ""], {1: Image.new("RGB", (8, 8), "#00ff00")})
    green = (np.asarray(style.image(shown)) == (0, 255, 0)).all(2)
    assert green.sum() > 500 and not (np.asarray(style.image(plain)) == (0, 255, 0)).all(2).any()
