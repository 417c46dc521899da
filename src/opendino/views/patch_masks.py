"""Block-wise masks of patches, for masked image modeling (BEiT, Bao et al. 2022; iBOT, Zhou et al. 2022).

iBOT masks each global view with probability 0.5, and there a fraction of the patches drawn from 0.1 to 0.5. Here both
numbers are fixed, so that tensors have the same shape in every step: of each image the same number of views has a mask
(one of two), and each mask the same number of patches. Which views and which blocks of patches is random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.types import BlockMasks, PatchMasks, ViewSpec
from opendino.views.counter_rng import Numbers

_NUM_BLOCKS = 10  # two to four of them fill a mask
_MIN_BLOCK = 4  # patches in a block, as in BEiT
_MAX_ASPECT = 1 / 0.3  # of a block, as in BEiT


def sample(masks: BlockMasks, numbers: Numbers, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Sample the masks of a group of views.

    Blocks of random size, shape and place are masked one after the other; the one that makes the mask too large is cut.

    Args:
        masks: Number of masked views and patches.
        numbers: The random numbers of the masks of this group, for V views of B images.
        grid: (rows, columns) of the patches of a view, N = rows · columns.

    Returns:
        bool `[V B N]`, True for masked patches, row by row.
    """
    (rows, columns), count = grid, masks.count(grid)
    chosen = numbers.uniform().argsort(0)[: masks.num_views]  # [M B], numbers of the views with a mask
    start = (numbers.uniform() * rows * columns).astype(np.int32)  # [V B]
    size, aspect, top, left = (numbers.uniform(_NUM_BLOCKS) for _ in range(4))  # [V B blocks]
    size, aspect, top, left, start = (_of_views(x, chosen) for x in (size, aspect, top, left, start))  # [M B ...]
    least = min(_MIN_BLOCK, count)
    area = least + size * (count - least)
    aspect = np.exp((2 * aspect - 1) * math.log(_MAX_ASPECT))
    height = np.sqrt(area * aspect).round().clip(1, rows)
    width = np.sqrt(area / aspect).round().clip(1, columns)
    in_rows = _within(np.floor(top * (rows - height + 1)), height, rows)  # [M B blocks rows]
    in_columns = _within(np.floor(left * (columns - width + 1)), width, columns)  # [M B blocks columns]
    # The first block of each patch decides, within a block the distance from a random patch; outside all blocks too.
    block = np.full((*chosen.shape, rows, columns), _NUM_BLOCKS, np.int32)
    for number in reversed(range(_NUM_BLOCKS)):
        block[in_rows[:, :, number, :, None] & in_columns[:, :, number, None]] = number
    distance = (np.arange(rows * columns, dtype=np.int32) - start[..., None]) % (rows * columns)
    place = block.reshape(distance.shape) * np.int32(rows * columns) + distance  # [M B N], all different
    masked = place <= np.partition(place, count - 1)[..., count - 1 : count]
    where = np.zeros((*numbers.shape, rows * columns), np.bool_)
    np.put_along_axis(where, chosen[..., None], masked, 0)
    return where


def of_batch(draws: Mapping[str, Mapping[str, Mapping[str, Tensor]]], spec: ViewSpec) -> dict[str, PatchMasks]:
    """The masks of a batch by group, from its view parameters; empty for views without masks."""
    return {
        group.name: _with_indices(draws[group.name]["mask"]["where"], group.masks, spec.grid(group))
        for group in spec.groups
        if group.masks and group.views
    }


def placeholders(spec: ViewSpec, batch: int, device: torch.device) -> dict[str, PatchMasks]:
    """Masks as large as those of a batch: the first patches of the first views."""
    found = {}
    for group in spec.groups:
        if group.masks and group.views:
            grid = spec.grid(group)
            where = torch.zeros(len(group.views), batch, grid[0] * grid[1], dtype=torch.bool, device=device)
            where[: group.masks.num_views, :, : group.masks.count(grid)] = True
            found[group.name] = _with_indices(where, group.masks, grid)
    return found


def _with_indices(where: Tensor, masks: BlockMasks, grid: tuple[int, int]) -> PatchMasks:
    """Add the indices; their number is known without a look at the values, so the host need not wait for the device."""
    number = masks.num_views * where.shape[1] * masks.count(grid)
    return PatchMasks(where, where.flatten().to(torch.uint8).argsort(descending=True, stable=True)[:number])


def _of_views(x: NDArray, chosen: NDArray[np.int64]) -> NDArray:
    """`[V B ...]` → `[M B ...]`, the chosen views of each image."""
    return np.take_along_axis(x, chosen.reshape(*chosen.shape, *[1] * (x.ndim - 2)), 0)


def _within(first: NDArray, length: NDArray, number: int) -> NDArray[np.bool_]:
    """Whether each of `number` positions lies in [first, first + length): `[...]` → `[... number]`."""
    positions, first = np.arange(number), first[..., None]
    return (positions >= first) & (positions < first + length[..., None])
