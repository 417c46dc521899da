"""Sampling of view parameters: every random choice of the augmentations of a batch, without pixels.

Each random number is a function of (seed, epoch, sample index, group name, position of the view in its group, name of
the augmentation, position of the number in the augmentation) only. So views do not depend on the batch, its order or
the number of workers. Adding local views does not change the global views, appending a view to a group does not change
the others, and adding or removing an augmentation does not change what any other does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from opendino.core.types import ViewGroup, ViewSpec
from opendino.views import patch_masks
from opendino.views.counter_rng import Numbers, augmentation_streams, image_streams, view_streams
from opendino.views.settings import AUGMENTATIONS, active


class ViewParameters(dict[str, dict[str, Tensor]]):
    """Sampled parameters of one group of views of a batch.

    Name of an augmentation → name of a parameter → tensor `[V B ...]`, in the order in which they are applied; the
    parameters are documented at the augmentation's `sample`. Augmentations that no view of the group has are absent.
    "mask" is there if the group has masks of patches: "where", bool `[V B N]`, from `patch_masks.sample`.
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> ViewParameters:
        """Apply a function to every tensor."""
        return ViewParameters({name: {k: function(x) for k, x in each.items()} for name, each in self.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewParameters:
        """Copy to a device."""
        return self.map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ViewParameters:
        """Copy to page-locked memory; a DataLoader with `pin_memory=True` calls this automatically."""
        return self.map(lambda x: x.pin_memory())


def sample_views(
    spec: ViewSpec, seed: int, epoch: int | Iterable[int], indices: Iterable[int], sizes: ArrayLike
) -> dict[str, ViewParameters]:
    """Sample the parameters of every view of a batch.

    Args:
        spec: The views to sample.
        seed: Seed of the run, 0 … 2^64 - 1.
        epoch: Completed passes over the data, 0 … 2^64 - 1; one number, or one per image.
        indices: Positions of the B images in their source, each 0 … 2^64 - 1.
        sizes: int `[B 2]`, (height, width) of each image without the padding of its canvas, both ≥ 1.

    Returns:
        Group name → sampled parameters on the CPU; groups without views are absent.
    """
    indices = [int(index) for index in indices]
    epochs = [epoch] * len(indices) if isinstance(epoch, int) else [int(each) for each in epoch]
    image_px = np.asarray(sizes, dtype=np.int64).reshape(len(indices), 2)
    images, channels = image_streams(seed, epochs, indices), len(spec.mean)
    found = {group.name: _sample_group(group, images, image_px, channels) for group in spec.groups if group.views}
    for group in spec.groups:
        if group.masks and group.views:
            streams = augmentation_streams(view_streams(images, group.name, range(len(group.views))), "mask")
            where = patch_masks.sample(
                group.masks, Numbers(streams, image_px, group.view_px, channels), spec.grid(group)
            )
            found[group.name]["mask"] = {"where": torch.from_numpy(where)}
    return found


def _sample_group(
    group: ViewGroup, images: NDArray[np.uint64], image_px: NDArray[np.int64], channels: int
) -> ViewParameters:
    names = [name for name in AUGMENTATIONS if any(active(view, name) for view in group.views)]
    views = list(enumerate(group.views))
    found: list[dict[str, dict[str, NDArray[np.generic]]]] = []
    for settings, same in itertools.groupby(views, key=lambda item: item[1]):  # neighbors of equal settings at once
        numbered = [v for v, _ in same]
        streams = view_streams(images, group.name, range(numbered[0], numbered[-1] + 1))
        found.append({})
        for name in names:
            numbers = Numbers(augmentation_streams(streams, name), image_px, group.view_px, channels)
            found[-1][name] = AUGMENTATIONS[name].sample(getattr(settings, name), numbers)
    joined = {
        name: {k: torch.from_numpy(np.concatenate([part[name][k] for part in found])) for k in found[0][name]}
        for name in names
    }
    return ViewParameters(joined)
