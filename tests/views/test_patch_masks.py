"""Masks of patches: as many as asked for, in blocks, from numbers that depend on the image alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from opendino.core.types import BlockMasks, ViewGroup, ViewSpec
from opendino.views import patch_masks
from opendino.views.multi_crop import multi_crop
from opendino.views.sampling import sample_views
from opendino.views.settings import View

VIEW = View()
HALF = BlockMasks(1, 0.3)


def spec(masks: BlockMasks | None = HALF, views: int = 2, size: int | tuple[int, int] = 224) -> ViewSpec:
    return ViewSpec((ViewGroup("global", size, (VIEW,) * views, masks), ViewGroup("local", 96, (VIEW,) * 3)))


def masks_of(wanted: ViewSpec, indices: range | list[int], seed: int = 0, epoch: int = 0) -> torch.Tensor:
    return sample_views(wanted, seed, epoch, indices, [(300, 200)] * len(indices))["global"]["mask"]["where"]


@pytest.mark.parametrize(
    ("masks", "views", "size"),
    [(HALF, 2, 224), (BlockMasks(2, 0.6), 3, (32, 160)), (BlockMasks(1, 0.01), 1, 224), (BlockMasks(1, 0.999), 2, 32)],
)
def test_every_image_has_as_many_masked_views_and_patches(
    masks: BlockMasks, views: int, size: int | tuple[int, int]
) -> None:
    wanted = spec(masks, views, size)
    grid = wanted.grid(wanted.groups[0])
    where, count = masks_of(wanted, range(200)), masks.count(grid)
    assert where.shape == (views, 200, grid[0] * grid[1]) and where.dtype == torch.bool
    number = where.sum(2)
    assert set(number.flatten().tolist()) <= {0, count}
    assert bool(((number == count).sum(0) == masks.num_views).all())
    assert 1 <= count < grid[0] * grid[1] and abs(count - masks.frac * grid[0] * grid[1]) <= 1


def test_off_by_default_and_nothing_else_changes() -> None:
    plain, with_masks = (sample_views(spec(m), 3, 1, range(5), [(64, 80)] * 5) for m in (None, HALF))
    assert "mask" not in plain["global"] and "mask" not in plain["local"] and "mask" not in with_masks["local"]
    for group, parameters in plain.items():
        for name, values in parameters.items():
            assert all(torch.equal(value, with_masks[group][name][key]) for key, value in values.items())
    canvas = torch.randint(0, 256, (5, 3, 64, 80), dtype=torch.uint8)
    one, other = multi_crop(canvas, plain, spec(None)), multi_crop(canvas, with_masks, spec())
    assert one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())
    assert patch_masks.of_batch(plain, spec(None)) == {} == patch_masks.placeholders(spec(None), 5, torch.device("cpu"))


def test_masks_depend_on_seed_epoch_and_image_only() -> None:
    where = masks_of(spec(), range(20))
    assert torch.equal(masks_of(spec(), [7, 3, 12]), where[:, [7, 3, 12]])
    without_local = replace(spec(), groups=spec().groups[:1])
    assert torch.equal(masks_of(without_local, range(20)), where)
    for other in (masks_of(spec(), range(20), seed=1), masks_of(spec(), range(20), epoch=1), where.roll(1, 1)):
        assert not (other == where).all(2).all(0).any()


def test_views_and_patches_are_masked_equally_often() -> None:
    where = masks_of(spec(), range(4000)).double()
    per_view = where.any(2).double().mean(1)
    assert float((per_view - 0.5).abs().max()) < 4 * 0.5 / 4000**0.5  # four standard errors of a coin
    often = where.sum((0, 1)).unflatten(0, (14, 14)) / 4000  # of an image's one mask
    assert float(often.mean()) == pytest.approx(59 / 196)
    assert 0.01 < float(often.min()) < float(often.max()) < 0.7, "blocks lie within the view, so corners are rare"
    assert float((often - often.flip(0)).abs().max()) < 0.06 and float((often - often.mT).abs().max()) < 0.06


def test_masked_patches_lie_together() -> None:
    where = masks_of(spec(), range(500)).flatten(0, 1).unflatten(1, (14, 14))
    where = where[where.any(2).any(1)]
    alike = (where[:, 1:] == where[:, :-1]).double().mean() + (where[:, :, 1:] == where[:, :, :-1]).double().mean()
    single = torch.rand(len(where), 14, 14) < 59 / 196
    at_random = (single[:, 1:] == single[:, :-1]).double().mean() * 2
    assert float(alike) / 2 > 0.8 > float(at_random) / 2 + 0.15


@pytest.mark.parametrize("make", ["sampled", "placeholders"])
def test_indices_are_the_masked_patches_in_order(make: str) -> None:
    wanted = spec(BlockMasks(1, 0.3), 2, (64, 96))
    if make == "sampled":
        draws = sample_views(wanted, 0, 0, range(6), [(64, 80)] * 6)
        found = patch_masks.of_batch(draws, wanted)["global"]
    else:
        found = patch_masks.placeholders(wanted, 6, torch.device("cpu"))["global"]
    assert found.where.shape == (2, 6, 24) and len(found.indices) == 6 * 7
    assert torch.equal(found.indices, found.where.flatten().nonzero()[:, 0])


def test_one_block_can_fill_a_mask_and_the_last_one_is_cut() -> None:
    class Given:
        """Numbers that ask for the largest square block at the top left, ten times."""

        shape = (1, 1)

        def uniform(self, *shape: int) -> np.ndarray:
            self.calls = getattr(self, "calls", 0) + 1
            value = {1: 0.0, 2: 0.0, 3: 1 - 1e-9, 4: 0.5, 5: 0.0, 6: 0.0}[self.calls]
            return np.full((1, 1, *shape), value)

    where = patch_masks.sample(BlockMasks(1, 9 / 64), Given(), (8, 8))  # type: ignore[arg-type]
    expected = np.zeros((8, 8), bool)
    expected[:3, :3] = True
    assert np.array_equal(where[0, 0].reshape(8, 8), expected)
    where = patch_masks.sample(BlockMasks(1, 8 / 64), Given(), (8, 8))  # type: ignore[arg-type]
    expected[2, 2] = False
    assert np.array_equal(where[0, 0].reshape(8, 8), expected)
