"""Colors."""

from __future__ import annotations

import numpy as np
import torch

from opendino.visualize.drawing.style import COLORS, color, viridis


def test_viridis_goes_from_dark_violet_to_yellow_and_stays_there() -> None:
    drawn = viridis(torch.tensor([[-1.0, 0.0], [1.0, 2.0]]))
    assert drawn.shape == (2, 2, 3) and drawn.dtype == np.uint8
    assert drawn.tolist() == [[[0x44, 0x01, 0x54]] * 2, [[0xFD, 0xE7, 0x25]] * 2]
    gray = viridis(torch.linspace(0, 1, 50)) @ np.array([0.3, 0.6, 0.1])
    assert (np.diff(gray) > 0).all()  # brighter means more


def test_sixteen_colors_differ() -> None:
    assert len({color(number) for number in range(16)}) == 16
    assert color(16) == color(0) == COLORS[0]
