"""Global image descriptors for images of any size: CLS or GeM-pooled patches, at one scale or several."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.models.load import Model
from opendino.models.patch_inputs import patch_px
from opendino.models.resize import resize, thumbnail

Pool = Literal["cls", "gem", "cls+gem"]
Fit = Literal["inside", "square"]

SCALES = (1.0, 2**-0.5, 0.5)
"""Scales of multi-scale descriptors, as in DINO v1."""


def gem(patches: Tensor, power: float, eps: float = 1e-6) -> Tensor:
    """Generalized-mean (GeM) pooling over patches: (mean xᵖ)^(1/p) (Radenovic et al. 2019).

    Args:
        patches: float `[B N D]`.
        power: p, above 0: 1 is the mean, ∞ the maximum.
        eps: Values are clamped to at least this.

    Returns:
        float `[B D]`.
    """
    return patches.clamp_min(eps).pow(power).mean(1).pow(1 / power)


class Descriptor:
    """Compute the global descriptor of whole images.

    A network that accepts one image size only gets its own preprocessing (resize and center crop) instead.

    Args:
        model: The model, on the device to compute on.
        size_px: Image size in pixels, see `fit`.
        fit: "inside": the longest side becomes at most `size_px`, aspect ratio kept, never enlarged. "square": both
            sides become `size_px`.
        scales: Factors of that size; the descriptor is the mean over scales, as in DINO v1.
        pool: "cls": the image feature `Features.cls`. "gem": GeM over patches. "cls+gem": both, concatenated.
        power: p of GeM.
    """

    def __init__(
        self,
        model: Model,
        size_px: int,
        fit: Fit = "inside",
        scales: tuple[float, ...] = (1.0,),
        pool: Pool = "cls",
        power: float = 3.0,
    ) -> None:
        self._model, self._size_px, self._fit, self._pool, self._power = model, size_px, fit, pool, power
        self._step = side_step(model)
        self._scales = scales if self._step else (1.0,)

    @property
    def protocol(self) -> str:
        """Description of the protocol: pooling, image size and scales."""
        side = f"{self._size_px} px"
        if self._step is None:
            side = f"{self._model.preprocessing['image_px']} px"
            size = f"resized and center-cropped to {side}, the only size this network accepts"
        else:
            size = f"resized to {side} square" if self._fit == "square" else f"shrunk to at most {side} a side"
            if self._step > 1 and (self._fit, self._size_px % self._step) != ("square", 0):
                size += f", cropped at the right and bottom to multiples of {self._step} px"
        scales = ", mean over scales " + " ".join(f"{s:.3g}" for s in self._scales) if len(self._scales) > 1 else ""
        pool = {"cls": "image feature (CLS)", "gem": "GeM of patches", "cls+gem": "CLS and GeM of patches"}[self._pool]
        return f"{pool}{f' (p = {self._power:g})' if 'gem' in self._pool else ''}; images {size}{scales}"

    def open_images(self, data: str) -> Source:
        """Open DATA as the model reads it, see `ImageReading.open_images`."""
        return self._model.reading.open_images(data)

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """Resize and normalize pixels `[H W C]`, decoded as the model reads them → float32 `[C H W]` on the CPU."""
        if self._step is None:
            return self._model.prepare(pixels)
        if self._fit == "square":
            pixels = resize(pixels, (self._size_px, self._size_px), Image.Resampling.BICUBIC)
        else:
            pixels = thumbnail(pixels, self._size_px)
        return self._model.normalize(pixels)

    def __call__(self, images: Tensor) -> Tensor:
        """Prepared images of one size `[B C H W]` → descriptors float32 `[B D]` on the CPU, not L2-normalized.

        Raises:
            UserError: GeM with a network whose features do not form a grid.
        """
        means = torch.stack([self._pooled(self._scaled(images, scale)) for scale in self._scales]).mean(0)
        return means.float().cpu()

    def _scaled(self, images: Tensor, scale: float) -> Tensor:
        if self._step is None:
            return images
        height, width = (int(side * scale) for side in images.shape[2:])
        if min(height, width) < self._step:  # smaller than one patch
            size = max(height, self._step), max(width, self._step)
            images = interpolate(images, size=size, mode="bilinear", align_corners=False)
        elif scale != 1:
            images = interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        rows, columns = (side // self._step * self._step for side in images.shape[2:])
        return images[:, :, :rows, :columns]

    def _pooled(self, images: Tensor) -> Tensor:
        if self._pool == "cls":
            return self._model.embed(images, batch=len(images))
        try:
            features = self._model.features(images)
        except NotImplementedError as error:
            raise UserError(str(error), "Use --pool cls") from error
        pooled = gem(features.patches, self._power)
        return pooled if self._pool == "gem" else torch.cat([features.cls, pooled], dim=1)


def side_step(model: Model) -> int | None:
    """Image sides must be multiples of this, in pixels; found by running the model on different sizes.

    Returns:
        The patch size of a ViT, 1 for a convolutional network, None if the model accepts one image size only.
    """
    side = model.preprocessing["image_px"]

    def accepts(height: int) -> bool:
        try:
            model.embed(torch.zeros(1, model.backbone.in_chans, height, side))
        except UserError:
            return False
        return True

    if accepts(side + 1):
        return 1
    try:
        patch = patch_px(model)
    except UserError:
        return None
    return patch if accepts(side + patch) else None
