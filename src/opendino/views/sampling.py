"""Sampling of view parameters: every random choice of the augmentations of a batch, without pixels.

Each random number is a function of (seed, epoch, sample index, group name, position of the view in its group, position
of the number in its view) only. So views do not depend on the batch, its order or the number of workers. Adding local
views does not change the global views, and appending a view to a group does not change the others.
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

TRIES = 10  # attempts per crop, as in torchvision's RandomResizedCrop
_NUM_RANDOM = {
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
}  # random numbers per view, in this order; any change here changes every view of every run
_COLUMN_ENDS = dict(zip(_NUM_RANDOM, np.cumsum(list(_NUM_RANDOM.values())), strict=True))  # name → end of its columns


@dataclass(frozen=True)
class ViewParameters:
    """Sampled parameters of one group of views of a batch.

    Attributes:
        box: int32 `[V B 4]`, the crop as (top, left, height, width) in pixels of the canvas, inside the true image.
        flip: bool `[V B]`, horizontal flip.
        factors: float32 `[V B 4]`: brightness, contrast, saturation, each ≥ 0, and hue shift in [-0.5, 0.5] turns;
            (1, 1, 1, 0) for views without color jitter.
        order: int64 `[V B 4]`, a permutation of 0 … 3: which column of `factors` is applied first, second, ...
        gray: bool `[V B]`, conversion to grayscale.
        sigma: float32 `[V B]`, sigma of the Gaussian blur in pixels of the crop; 0 for none.
        solarize: bool `[V B]`, solarization.
    """

    box: Tensor
    flip: Tensor
    factors: Tensor
    order: Tensor
    gray: Tensor
    sigma: Tensor
    solarize: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewParameters:
        """Copy to a device."""
        fields = (f.name for f in dataclasses.fields(self))
        return ViewParameters(**{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in fields})

    def pin_memory(self) -> ViewParameters:
        """Copy to page-locked memory; a DataLoader with `pin_memory=True` calls this automatically."""
        return ViewParameters(**{f.name: getattr(self, f.name).pin_memory() for f in dataclasses.fields(self)})


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
    sizes = np.asarray(sizes, dtype=np.int64).reshape(len(indices), 2)
    return {group.name: _sample_group(group, seed, epochs, indices, sizes) for group in spec.groups if group.views}


def _sample_group(
    group: ViewGroup, seed: int, epochs: list[int], indices: list[int], sizes: NDArray[np.int64]
) -> ViewParameters:
    uniforms = _uniforms(group, seed, epochs, indices)

    def numbers(name: str) -> NDArray[np.float64]:  # [V B n], or [V B] for a single number
        columns = uniforms[..., _COLUMN_ENDS[name] - _NUM_RANDOM[name] : _COLUMN_ENDS[name]]
        return columns[..., 0] if _NUM_RANDOM[name] == 1 else columns

    def table(*attributes: str) -> NDArray[np.float64]:  # [V 1 n] or, for one attribute, [V 1]: broadcasts over B
        rows = np.array([[getattr(view, a) for a in attributes] for view in group.views], dtype=np.float64)
        return rows[:, None, :] if len(attributes) > 1 else rows

    strength = table("brightness", "contrast", "saturation", "hue")
    center = np.array([1.0, 1.0, 1.0, 0.0])
    low = np.maximum(center - strength, [0.0, 0.0, 0.0, -0.5])
    factors = low + numbers("factors") * (center + strength - low)
    jitter = numbers("jitter") < table("jitter")
    sigma_low, sigma_high = np.array([view.sigma_px for view in group.views], dtype=np.float64).T[..., None]
    sigma = sigma_low + numbers("sigma") * (sigma_high - sigma_low)
    return ViewParameters(
        box=torch.from_numpy(_boxes(group.views, numbers("area"), numbers("aspect"), numbers("position"), sizes)),
        flip=torch.from_numpy(numbers("flip") < table("flip")),
        factors=torch.from_numpy(np.where(jitter[..., None], factors, center).astype(np.float32)),
        order=torch.from_numpy(np.argsort(numbers("order"), axis=-1, kind="stable").astype(np.int64)),
        gray=torch.from_numpy(numbers("gray") < table("gray")),
        sigma=torch.from_numpy(np.where(numbers("blur") < table("blur"), sigma, 0.0).astype(np.float32)),
        solarize=torch.from_numpy(numbers("solarize") < table("solarize")),
    )


def _uniforms(group: ViewGroup, seed: int, epochs: list[int], indices: list[int]) -> NDArray[np.float64]:
    """Uniform random numbers in [0, 1), `[V B n]`, from the counter-based generator Philox 4x64 (Salmon et al., 2011).

    The key is (seed, epoch), the counter (0, group, index, 0): every sample and group has its own segment of the
    stream, 2^64 blocks from the next. The group is identified by the CRC-32 of its name, not by its position, so that
    other groups have no influence on it.
    """
    num_views, width, group_id = len(group.views), sum(_NUM_RANDOM.values()), zlib.crc32(group.name.encode())
    uniforms = np.empty((num_views, len(indices), width))
    for b, (epoch, index) in enumerate(zip(epochs, indices, strict=True)):
        key, counter = np.array([seed, epoch], np.uint64), np.array([0, group_id, index, 0], np.uint64)
        bits = np.random.Philox(key=key, counter=counter)
        uniforms[:, b] = np.random.Generator(bits).random((num_views, width))
    return uniforms


def _boxes(
    views: tuple[Augment, ...],
    area: NDArray[np.float64],
    aspect: NDArray[np.float64],
    position: NDArray[np.float64],
    sizes: NDArray[np.int64],
) -> NDArray[np.int32]:
    """Crop boxes `[V B 4]` by the algorithm of torchvision's RandomResizedCrop, all ten attempts at once.

    Each attempt has an area uniform in `scale` (times the image area) and an aspect ratio log-uniform in `ratio`. The
    first attempt that fits into the image is used, at a uniform position. If none fits, the box is the largest centered
    crop with an aspect ratio in `ratio`.
    """
    height, width = sizes.T  # [B]
    scale_low, scale_high = np.array([view.scale for view in views], dtype=np.float64).T[..., None, None]  # [V 1 1]
    ratio_low, ratio_high = np.array([sorted(view.ratio) for view in views], dtype=np.float64).T[..., None]  # [V 1]

    pixels = (height * width)[:, None] * (scale_low + area * (scale_high - scale_low))  # [V B attempts]
    log_low, log_high = np.log(ratio_low)[..., None], np.log(ratio_high)[..., None]
    root = np.exp((log_low + aspect * (log_high - log_low)) / 2)
    side = np.sqrt(pixels)
    w, h = np.rint(side * root).astype(np.int64), np.rint(side / root).astype(np.int64)
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = fits.argmax(-1)[..., None]  # [V B 1], index of the first attempt that fits
    w, h = np.take_along_axis(w, first, -1)[..., 0], np.take_along_axis(h, first, -1)[..., 0]  # [V B]
    top = np.floor(position[..., 0] * (height - h + 1))
    left = np.floor(position[..., 1] * (width - w + 1))

    # Fallback, a center crop: a side is cut only if the image's aspect ratio is outside the range.
    full_w = np.minimum(width, np.maximum(1, np.rint(height * ratio_high)))
    full_h = np.minimum(height, np.maximum(1, np.rint(width / ratio_low)))
    centered = np.stack([(height - full_h) // 2, (width - full_w) // 2, full_h, full_w], axis=-1)
    return np.where(fits.any(-1)[..., None], np.stack([top, left, h, w], axis=-1), centered).astype(np.int32)
