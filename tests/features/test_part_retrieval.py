"""Parts of images that find each other."""

from __future__ import annotations

import numpy as np
import torch
from tests.factories import noise_folder

from opendino.data.open_source import open_source
from opendino.features.part_retrieval import Quadrants, found_frac


def test_parts_of_one_image_find_each_other_and_of_no_image_by_chance() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(50, 1, 16, generator=rng)
    assert (found_frac(images + 0.01 * torch.randn(50, 4, 16, generator=rng)) == 1).all()
    assert found_frac(torch.randn(50, 4, 16, generator=rng)).mean() < 0.1
    one_lost = (images + torch.zeros(50, 4, 1)).clone()
    one_lost[7, 3] = -images[7, 0]
    found = found_frac(one_lost)
    assert found[7] == 0.5 and (found[torch.arange(50) != 7] == 1).all()  # six of twelve pairs have the lost part


def test_quarters_are_disjoint_and_complete(tmp_path) -> None:
    source = open_source(noise_folder(tmp_path, 2, width=40, height=31))
    parts = Quadrants(source)
    from opendino.data.decode import decode

    pixels = decode(source.read(1)).mean(2)
    corners = [pixels[:15, :20], pixels[:15, 20:], pixels[-15:, :20], pixels[-15:, 20:]]
    for number, corner in enumerate(corners):
        found = parts.read(4 + number)
        assert found.shape == (15, 20, 3) and (found == found[..., :1]).all()  # gray
        assert np.corrcoef(found[..., 0].ravel(), corner.ravel())[0, 1] > 0.95
        assert abs(found.mean() / corner.mean() - 1) > 0.01 and (found == parts.read(4 + number)).all()
    assert len(parts) == 8 and parts.key(7) == source.key(1)
