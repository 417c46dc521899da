"""Deterministic batched color operations with given parameters: jitter, gray, blur, solarize, normalize.

Functions of tensors on any device, of float32 in [0, 1]; pure, but for names that end in an underscore. They never wait
for a device, and have data-dependent shapes only on a CPU (see `kernels`), so that `torch.compile` works. `jitter` and
`gray` need the channels R, G, B.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from opendino.views import kernels

NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # factors of `jitter` that change nothing
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode "L"
_BLOCK_PX = 32  # pixels that one small product of `blur` makes in a row


def to_float(x: Tensor) -> Tensor:
    """uint8 or uint16 to float32 in [0, 1]."""
    return x / (255 if x.dtype == torch.uint8 else 65535)


def jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Color jitter: brightness, contrast, saturation and hue, in a different order for each sample.

    Computes the same as torchvision's functional on float tensors, but with Pillow's gray weights (0.299, not 0.2989).
    The first three operations are blends with black, with the mean gray and with the gray image.

    Args:
        x: float32 `[... 3 H W]` in [0, 1].
        factors: float32 `[... 4]`: brightness, contrast, saturation ≥ 0, hue shift in turns; (1, 1, 1, 0) changes
            no bit of the image.
        order: int64 `[... 4]`, a permutation of 0 … 3: the column of `factors` to apply first, second, ...
    """
    return jitter_(x.clone(memory_format=torch.contiguous_format), factors, order)


def jitter_(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """The same; may overwrite x."""
    return _jitter_by_order_(x, factors, order) if kernels.by_index(x) else _jitter_at_once(x, factors, order)


def _jitter_by_order_(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """The samples of each order together, and only the operations that change one of them; in place."""
    factors, order = factors.reshape(-1, 4), order.reshape(-1, 4)
    changes = factors != factors.new_tensor(NEUTRAL)  # [n 4]
    kind = changes.any(-1) * (order * order.new_tensor([64, 16, 4, 1])).sum(-1)  # a number for each order
    needed, orders = changes.numpy(), order.numpy()

    def jittered(images: Tensor, rows: NDArray[np.int64]) -> Tensor:
        columns = factors[rows].T[..., None, None, None].unbind()
        for column in orders[rows[0]]:
            if needed[rows, column].any():
                images = _OPERATIONS[column](images, columns[column])
        return images

    kernels.by_kind_(x.view(-1, *x.shape[-3:]), kind, jittered)
    return x


def _brightness_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend `[n 3 H W]` with black, in place; `factor` is `[n 1 1 1]`."""
    return x.mul_(factor).clamp_(0, 1)


def _contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray, in place."""
    mean = _luma(*x.mean((-2, -1), keepdim=True).split(1, dim=1))
    return x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _saturation_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray image, in place."""
    grays = _luma(*x.split(1, dim=1)).mul_(1 - factor)
    return x.mul_(factor).add_(grays).clamp_(0, 1)


def _jitter_at_once(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """All samples together.

    To compute all 24 orders without branches, every sample passes through one fixed sequence of 11 slots: four groups
    of two slots for brightness and saturation, with contrast, hue, contrast between the groups. Expensive operations
    get few slots: hue one, contrast (which needs the mean of the whole image) one before and one after hue. In slots
    that a sample does not use, its factor is 1, which changes nothing.
    """
    is_contrast, is_hue = order == 1, order == 3
    group = _count_before(is_contrast) + 2 * _count_before(is_hue)  # 0 … 3; a sample skips group 1 or group 2
    is_second = pad((group[..., 1:] == group[..., :-1]).long(), (1, 0))
    # Slots 0 … 7: brightness and saturation, two per group; 8 and 9: contrast; 10: hue.
    slot = torch.where(is_contrast, 8 + group // 2, 2 * group + is_second).masked_fill(is_hue, 10)
    ordered = factors.gather(-1, order)  # [..., 4] in order of application
    factor = ordered.new_ones(*order.shape[:-1], 11).scatter(-1, slot, ordered)  # [..., 11]
    # Weight of the gray image in each slot: 1 - factor for saturation, 0 (a blend with black) for brightness.
    gray_weight = ordered.new_zeros(*order.shape[:-1], 11).scatter(-1, slot, (1 - ordered).where(order == 2, 0.0))
    planes = x.unbind(-3)
    for i in range(4):
        for j in (2 * i, 2 * i + 1):
            planes = _blend(planes, factor[..., j], _per_plane(gray_weight[..., j]) * _luma(*planes))
        if i in (0, 2):
            contrast, mean = factor[..., 8 + i // 2], _luma(*planes).mean((-2, -1), keepdim=True)
            planes = _blend(planes, contrast, _per_plane(1 - contrast) * mean)
        elif i == 1:
            turns = _per_image(factors[..., 3])
            pixels = torch.stack(planes, dim=-3)
            planes = torch.where(turns == 0, pixels, _hue(pixels, turns)).unbind(-3)
    return torch.stack(planes, dim=-3)


def jitter_light(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """The brightness and contrast of `jitter`, for images `[... C H W]` of any channels; ignores the other factors.

    Contrast is a blend with the mean over all channels.
    """
    position = order.argsort(-1)  # [..., 4], when each column of `factors` is applied
    contrast_first = position[..., 1] < position[..., 0]
    brightness, contrast = factors[..., 0], factors[..., 1]
    before, after = (torch.where(here, 1.0, brightness) for here in (contrast_first, ~contrast_first))
    x = (_per_image(before) * x).clamp(0, 1)
    x = (_per_image(contrast) * x + _per_image(1 - contrast) * x.mean((-3, -2, -1), keepdim=True)).clamp(0, 1)
    return (_per_image(after) * x).clamp(0, 1)


def gray(x: Tensor, mask: Tensor) -> Tensor:
    """Convert to grayscale, 0.299 R + 0.587 G + 0.114 B, where `mask` bool `[...]` is True; x is `[... 3 H W]`."""
    return torch.where(_per_image(mask), _luma(*x.split(1, dim=-3)), x)


def blur(x: Tensor, sigma: Tensor, reach_px: int = 10) -> Tensor:
    """Gaussian blur `G_y · x · G_xᵀ` with replicated edge pixels.

    Pillow approximates the Gaussian by three box filters. Away from the edges the results nearly agree. Near them they
    differ, since Pillow replicates the edge before each of the three filters.

    Args:
        x: float32 `[... C H W]`.
        sigma: float32 `[...]` in pixels; 0 leaves the image bitwise unchanged.
        reach_px: Radius at which the Gaussian is truncated. At 5 sigma or more the error is below float32 rounding: 10
            is enough for DINO's largest sigma of 2.
    """
    banded = kernels.by_index(x) and min(x.shape[-2:]) > _BLOCK_PX + 2 * reach_px
    blurred = (_blur_by_blocks if banded else _blur_by_products)(x, sigma, reach_px)
    return torch.where(_per_image(sigma) > 0, blurred, x)


def _blur_by_products(x: Tensor, sigma: Tensor, reach_px: int) -> Tensor:
    """Two products with matrices of the sides of the image."""
    g_x = _blur_matrices(sigma, x.shape[-1], reach_px)
    g_y = _blur_matrices(sigma, x.shape[-2], reach_px)
    dtype = kernels.product_dtype(x.device)
    g_x, g_y = g_x.to(dtype), g_y.to(dtype)
    blurred = kernels.product(g_y[..., None, :, :], kernels.product(x.to(dtype).flatten(-3, -2), g_x.mT).view_as(x))
    return blurred.to(x.dtype)


def _blur_by_blocks(x: Tensor, sigma: Tensor, reach_px: int) -> Tensor:
    """Two products of blocks of neighboring pixels with one small matrix: most weights of the large ones are 0."""
    *_, height, width = x.shape
    images = x.reshape(-1, *x.shape[-3:])
    side = _BLOCK_PX + 2 * reach_px
    weight = _gaussian(sigma.reshape(-1), reach_px)  # [n, taps]
    column = torch.arange(_BLOCK_PX)[:, None] + torch.arange(weight.shape[-1])
    column = column.expand(len(images), -1, -1)
    band = x.new_zeros(len(images), _BLOCK_PX, side).scatter_(-1, column, weight[:, None].expand(column.shape))
    right, below = reach_px + -width % _BLOCK_PX, reach_px + -height % _BLOCK_PX
    blocks = pad(images, (reach_px, right, 0, 0), mode="replicate").unfold(-1, side, _BLOCK_PX)
    images = kernels.product(blocks.reshape(len(images), -1, side), band.mT).view(*blocks.shape[:3], -1)
    blocks = pad(images, (0, 0, reach_px, below), mode="replicate").unfold(-2, side, _BLOCK_PX).mT
    images = kernels.product(band[:, None, None], blocks).flatten(2, 3)
    return images[..., :height, :width].reshape(x.shape)


def solarize(x: Tensor, mask: Tensor) -> Tensor:
    """Invert values ≥ 128/255 (Pillow's threshold 128) where `mask` bool `[...]` is True; x is `[... C H W]`."""
    return torch.where(_per_image(mask) & (x >= 128 / 255), 1 - x, x)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """`(x - mean) / std` per channel; x is `[... C H W]`."""
    return normalize_(x.clone(), mean, std)


def normalize_(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The same in place."""
    return x.sub_(_channel_values(mean, x)).div_(_channel_values(std, x))


def _count_before(flag: Tensor) -> Tensor:
    """Number of True values before each position, `[... 4]`."""
    return flag.cumsum(-1) - flag.long()


def _blend(planes: Iterable[Tensor], factor: Tensor, rest: Tensor) -> tuple[Tensor, ...]:
    """`clamp(factor · x + rest, 0, 1)` per channel; `factor` is `[...]`, `rest` is `[... H W]` or `[... 1 1]`."""
    return tuple(torch.addcmul(rest, _per_plane(factor), x).clamp_(0, 1) for x in planes)


def _hue(x: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue of `[... 3 H W]` in HSV by `turns` `[... 1 1 1]`, keeping saturation and value.

    With value v = max, chroma c = max - min and hue h, the channel with primary hue p (0, 1/3, 2/3 for R, G, B) is
    `v - c · clamp(6 · |h - p| - 1, 0, 1)`, where |.| is the distance on the circle: HSV to RGB without branches. The
    hue of a color whose red is largest and whose blue is smallest is `(g - b) / 6c`. Others become such a color by
    exchanging green and blue, then red and green; each exchange is a reflection of the circle (S. Hocevar). They are
    products with a sign: on a CPU, `torch.where` costs more than ten times as much where neighbors differ.
    """
    r, g, b = x.split(1, dim=-3)
    high, low = torch.maximum(g, b), torch.minimum(g, b)
    value, middle = torch.maximum(r, high), torch.minimum(r, high)
    chroma = value - torch.minimum(middle, low)
    by_blue, by_red = (high - g).sign_(), (value - r).sign_()  # 1 where exchanged, else 0
    start = torch.addcmul(by_blue.neg(), by_blue, by_red, value=2).sub_(by_red, alpha=1 / 3)
    six = chroma.clamp(min=1e-12).mul_(6)
    hue = start.addcdiv_(middle.sub_(low), six).abs_().add_(turns)
    distance = hue - _channel_values((0.0, 1 / 3, 2 / 3), x)  # [..., 3, H, W]
    distance = distance.sub_(distance.round()).abs_().clamp_(1 / 6, 1 / 3)
    return (value + chroma).sub(distance.mul_(six)).clamp_(0, 1)


_OPERATIONS = (_brightness_, _contrast_, _saturation_, _hue)
"""The operations by their column in `factors`."""


def _luma(r: Tensor, g: Tensor, b: Tensor) -> Tensor:
    """Luma (BT.601) of the three channels."""
    return (LUMA[0] * r).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2])


def _blur_matrices(sigma: Tensor, side: int, reach: int) -> Tensor:
    """Blur matrices `[... side side]`: row i is the Gaussian around i; weights beyond an edge are added to the edge."""
    weight = _gaussian(sigma, reach)[..., None, :].expand(*sigma.shape, side, -1)
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    column = (torch.arange(side, device=sigma.device)[:, None] + reach + offset).expand_as(weight)
    padded = weight.new_zeros(*sigma.shape, side, side + 2 * reach).scatter(-1, column, weight)
    before, inside, after = padded.split((reach, side, reach), dim=-1)
    inside = inside.contiguous()
    inside[..., :1] += before.sum(-1, keepdim=True)
    inside[..., -1:] += after.sum(-1, keepdim=True)
    return inside


def _gaussian(sigma: Tensor, reach: int) -> Tensor:
    """Weights that sum to 1, `[... 2 * reach + 1]`."""
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    weight = torch.exp(offset.square() / (-2 * sigma.clamp(min=1e-3).square()[..., None]))
    return weight / weight.sum(-1, keepdim=True)


def _per_image(values: Tensor) -> Tensor:
    """Broadcast per-image values over C, H, W: `[...]` → `[... 1 1 1]`."""
    return values[..., None, None, None]


def _per_plane(values: Tensor) -> Tensor:
    """Broadcast per-image values over H, W: `[...]` → `[... 1 1]`."""
    return values[..., None, None]


def _channel_values(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Constants as `[C 1 1]`, created on the device: a copy from the host would wait for the device."""
    return torch.stack([like.new_full((1, 1), value) for value in values])
