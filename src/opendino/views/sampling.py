"""Chance, and nothing else: every random choice behind a batch of views, as numbers.

A number depends on (seed, epoch, sample index, group name, place of the view in its group, place of the number in its
view) and on nothing more. Hence views do not depend on the batch, its order or the number of workers; adding local
views leaves the global ones as they were, and adding a view at the end of a group leaves the others as they were.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from opendino.core.types import Augment, ViewGroup, ViewSpec

TRIES = 10  # as torchvision's RandomResizedCrop
_WIDTHS = {
    "area": TRIES,
    "aspect": TRIES,
    "position": 2,
    "flip": 1,
    "jitter": 1,
    "factors": 4,
    "order": 4,
    "gray": 1,
    "blur": 1,
    "sigma": 1,
    "solarize": 1,
}  # the uniform numbers of one view, in the order they are drawn; changing this changes every view of every run
_FIELDS = dict(zip(_WIDTHS, np.cumsum(list(_WIDTHS.values())), strict=True))  # name → end of its columns


@dataclass(frozen=True)
class ViewParameters:
    """The choices for one group of views of a batch.

    Attributes:
        box: int32 `[V B 4]`, the crop as (top, left, height, width) in pixels of the canvas; inside the true image.
        flip: bool `[V B]`, mirrored left to right.
        factors: float32 `[V B 4]`: brightness, contrast, saturation, each ≥ 0, and hue shift in [-0.5, 0.5] turns;
            (1, 1, 1, 0) where the view is not jittered.
        order: int64 `[V B 4]`, a permutation of 0 … 3: which column of `factors` is applied first, second, ...
        gray: bool `[V B]`.
        sigma: float32 `[V B]`, of the Gaussian blur in pixels of the crop; 0 for none.
        solarize: bool `[V B]`.
    """

    box: Tensor
    flip: Tensor
    factors: Tensor
    order: Tensor
    gray: Tensor
    sigma: Tensor
    solarize: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewParameters:
        """The same choices on a device."""
        fields = (f.name for f in dataclasses.fields(self))
        return ViewParameters(**{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in fields})

    def pin_memory(self) -> ViewParameters:
        """The same choices in page-locked memory; a DataLoader with `pin_memory=True` calls this by itself."""
        return ViewParameters(**{f.name: getattr(self, f.name).pin_memory() for f in dataclasses.fields(self)})


def sample_views(
    spec: ViewSpec, seed: int, epoch: int | Iterable[int], indices: Iterable[int], sizes: ArrayLike
) -> dict[str, ViewParameters]:
    """Draw every view of a batch.

    Args:
        spec: The views asked for.
        seed: The run's, 0 … 2^64 - 1.
        epoch: Passes over the data so far, 0 … 2^64 - 1; one number, or one an image.
        indices: Positions of the B images in their source, each 0 … 2^64 - 1.
        sizes: int `[B 2]`, true (height, width) of each image on its canvas, both ≥ 1.

    Returns:
        Group name → its choices, on the CPU; groups without views are absent.
    """
    indices = [int(index) for index in indices]
    epochs = [epoch] * len(indices) if isinstance(epoch, int) else [int(each) for each in epoch]
    sizes = np.asarray(sizes, dtype=np.int64).reshape(len(indices), 2)
    return {group.name: _sample_group(group, seed, epochs, indices, sizes) for group in spec.groups if group.views}


def _sample_group(
    group: ViewGroup, seed: int, epochs: list[int], indices: list[int], sizes: NDArray[np.int64]
) -> ViewParameters:
    chance = _uniforms(group, seed, epochs, indices)

    def part(name: str) -> NDArray[np.float64]:  # [V B n], or [V B] for a single number
        columns = chance[..., _FIELDS[name] - _WIDTHS[name] : _FIELDS[name]]
        return columns[..., 0] if _WIDTHS[name] == 1 else columns

    def table(*attributes: str) -> NDArray[np.float64]:  # [V 1 n] or, for one attribute, [V 1]: broadcasts over B
        rows = np.array([[getattr(view, a) for a in attributes] for view in group.views], dtype=np.float64)
        return rows[:, None, :] if len(attributes) > 1 else rows

    spread = table("brightness", "contrast", "saturation", "hue")
    center = np.array([1.0, 1.0, 1.0, 0.0])
    low = np.maximum(center - spread, [0.0, 0.0, 0.0, -0.5])
    factors = low + part("factors") * (center + spread - low)
    jitter = part("jitter") < table("jitter")
    sigma_low, sigma_high = np.array([view.sigma_px for view in group.views], dtype=np.float64).T[..., None]
    sigma = sigma_low + part("sigma") * (sigma_high - sigma_low)
    return ViewParameters(
        box=torch.from_numpy(_boxes(group.views, part("area"), part("aspect"), part("position"), sizes)),
        flip=torch.from_numpy(part("flip") < table("flip")),
        factors=torch.from_numpy(np.where(jitter[..., None], factors, center).astype(np.float32)),
        order=torch.from_numpy(np.argsort(part("order"), axis=-1, kind="stable").astype(np.int64)),
        gray=torch.from_numpy(part("gray") < table("gray")),
        sigma=torch.from_numpy(np.where(part("blur") < table("blur"), sigma, 0.0).astype(np.float32)),
        solarize=torch.from_numpy(part("solarize") < table("solarize")),
    )


def _uniforms(group: ViewGroup, seed: int, epochs: list[int], indices: list[int]) -> NDArray[np.float64]:
    """Numbers uniform in [0, 1), `[V B n]`, from the counter-based Philox 4x64 (Salmon et al., 2011).

    Key (seed, epoch) and counter (0, group, index, 0): distinct samples and groups are distinct stretches of one
    stream, 2^64 blocks apart. The group enters by its name, so that other groups do not move it.
    """
    num_views, width, stretch = len(group.views), sum(_WIDTHS.values()), zlib.crc32(group.name.encode())
    chance = np.empty((num_views, len(indices), width))
    for b, (epoch, index) in enumerate(zip(epochs, indices, strict=True)):
        key, counter = np.array([seed, epoch], np.uint64), np.array([0, stretch, index, 0], np.uint64)
        bits = np.random.Philox(key=key, counter=counter)
        chance[:, b] = np.random.Generator(bits).random((num_views, width))
    return chance


def _boxes(
    views: tuple[Augment, ...],
    area: NDArray[np.float64],
    aspect: NDArray[np.float64],
    position: NDArray[np.float64],
    sizes: NDArray[np.int64],
) -> NDArray[np.int32]:
    """Boxes `[V B 4]` by the rule of torchvision's RandomResizedCrop, all ten tries of all views at once.

    A try has an area uniform in `scale` (times the image's) and an aspect log-uniform in `ratio`; the first that fits
    the image is taken, its position uniform. If none fits: the largest centered crop whose aspect is within `ratio`.
    """
    height, width = sizes.T  # [B]
    scale_low, scale_high = np.array([view.scale for view in views], dtype=np.float64).T[..., None, None]  # [V 1 1]
    ratio_low, ratio_high = np.array([sorted(view.ratio) for view in views], dtype=np.float64).T[..., None]  # [V 1]

    pixels = (height * width)[:, None] * (scale_low + area * (scale_high - scale_low))  # [V B tries]
    log_low, log_high = np.log(ratio_low)[..., None], np.log(ratio_high)[..., None]
    root = np.exp((log_low + aspect * (log_high - log_low)) / 2)
    side = np.sqrt(pixels)
    w, h = np.rint(side * root).astype(np.int64), np.rint(side / root).astype(np.int64)
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = fits.argmax(-1)[..., None]
    w, h = np.take_along_axis(w, first, -1)[..., 0], np.take_along_axis(h, first, -1)[..., 0]  # [V B]
    top = np.floor(position[..., 0] * (height - h + 1))
    left = np.floor(position[..., 1] * (width - w + 1))

    # The center crop: a side stays whole unless the image is too long (or too short) for the range of aspects.
    whole_w = np.minimum(width, np.maximum(1, np.rint(height * ratio_high)))
    whole_h = np.minimum(height, np.maximum(1, np.rint(width / ratio_low)))
    centered = np.stack([(height - whole_h) // 2, (width - whole_w) // 2, whole_h, whole_w], axis=-1)
    return np.where(fits.any(-1)[..., None], np.stack([top, left, h, w], axis=-1), centered).astype(np.int32)
