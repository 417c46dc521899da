"""A draw applied to pixels: pure functions of tensors on any device, without a host wait or a shape that depends on
data, so that they compile. Nothing here is random.

Crops come out as uint8; every later stage takes and returns float32 values in [0, 1], channels R, G, B.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from opendino.core.compilation import compiled

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode "L"


def crop_resize(canvas: Tensor, box: Tensor, flip: Tensor, size_px: int) -> Tensor:
    """Cut boxes and resize them to squares with the antialiased bicubic filter, as Pillow's `crop().resize()` does.

    Per view the two matrix products `A_y · (canvas · A_xᵀ)`; like Pillow the result of the first is rounded and
    clipped to 8 bits before the second. The agreement is within 1/255: only a value within float32 rounding of a half
    may round the other way. On a GPU the weights have 11 bits, and of noise all black and white a value in twelve does.
    (Pillow 13 takes some tall images by columns first; earlier ones, with which DINO was trained, and we always take
    the rows first.)

    Args:
        canvas: uint8 `[B C Sy Sx]`.
        box: int32 `[V B 4]`, (top, left, height, width) in pixels, within the canvas, height and width ≥ 1.
        flip: bool `[V B]`, mirror the crop left to right.
        size_px: Side of the crops.

    Returns:
        uint8 `[V B C size_px size_px]`.
    """
    batch, channels, height, width = canvas.shape
    top, left, box_height, box_width = box.unbind(-1)
    dtype = _factors(canvas.device)
    across = _filters(left, box_width, flip, size_px, width, dtype)
    down = _filters(top, box_height, torch.zeros_like(flip), size_px, height, dtype)
    # Rows of all channels side by side, so that one product serves the channels and the next needs no transposition.
    rows = canvas.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format).view(batch, height * channels, width)
    crops = rows.new_empty(len(box), batch, size_px, channels * size_px)
    for a_x, a_y, crop in zip(across.unbind(), down.unbind(), crops.unbind(), strict=True):  # by view: less at a time
        narrow = _to_8_bits(_product(rows, a_x.mT)).view(batch, height, channels * size_px)
        _product(a_y, narrow, out=crop)
    return _to_pixels(crops.view(-1, batch, size_px, channels, size_px))


def jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, each sample in its own order.

    As torchvision's functional on float tensors, with Pillow's gray weights (0.299, not 0.2989). The first three are
    blends with black, the mean gray and the gray image. What is dear has few places: hue one, and contrast, whose mean
    wants the whole image first, one before that and one after it; brightness and saturation two in each stretch
    between these. A sample passes unchanged (factor 1) through the places that are not its own.

    Args:
        x: float32 `[... 3 H W]` in [0, 1].
        factors: float32 `[... 4]`: brightness, contrast, saturation ≥ 0, hue shift in turns; (1, 1, 1, 0) changes
            no bit.
        order: int64 `[... 4]`, a permutation of 0 … 3: the column of `factors` to apply first, second, ...
    """
    is_contrast, is_hue = order == 1, order == 3
    stretch = _before(is_contrast) + 2 * _before(is_hue)  # 0 … 3; a sample skips the second or the third
    again = torch.nn.functional.pad((stretch[..., 1:] == stretch[..., :-1]).long(), (1, 0))
    # 0 … 7: brightness and saturation, two a stretch; 8 and 9: contrast; 10: hue.
    place = torch.where(is_contrast, 8 + stretch // 2, 2 * stretch + again).masked_fill(is_hue, 10)
    own = factors.gather(-1, order)
    factor = own.new_ones(*order.shape[:-1], 11).scatter(-1, place, own)
    grayed = own.new_zeros(*order.shape[:-1], 11).scatter(-1, place, (1 - own).where(order == 2, 0.0))
    planes = x.unbind(-3)
    for each in range(4):
        for at in (2 * each, 2 * each + 1):
            planes = _blend(planes, factor[..., at], _per_plane(grayed[..., at]) * _luma(*planes))
        if each in (0, 2):
            contrast, mean = factor[..., 8 + each // 2], _luma(*planes).mean((-2, -1), keepdim=True)
            planes = _blend(planes, contrast, _per_plane(1 - contrast) * mean)
        elif each == 1:
            planes = _hue(planes, factors[..., 3])
    return torch.stack(planes, dim=-3)


def gray(x: Tensor, mask: Tensor) -> Tensor:
    """Replace R, G and B by 0.299 R + 0.587 G + 0.114 B where `mask` bool `[...]` says so; x is `[... 3 H W]`."""
    return torch.where(_per_image(mask), _luma(*x.split(1, dim=-3)), x)


def blur(x: Tensor, sigma: Tensor, reach_px: int = 10) -> Tensor:
    """Gaussian blur `G_y · x · G_xᵀ`, edge pixels repeated beyond the edge.

    Pillow's is nearly the same away from the edges (three box filters for a Gaussian) but not near them: there it
    repeats the edge anew before each of the three.

    Args:
        x: float32 `[... C H W]`.
        sigma: float32 `[...]` in pixels; 0 changes no bit.
        reach_px: Where the Gaussian is cut. From 5 sigma on the cut is below float32 rounding (10 for DINO's sigma
            of at most 2).
    """
    g_x = _gaussian(sigma, x.shape[-1], reach_px)
    g_y = _gaussian(sigma, x.shape[-2], reach_px)
    dtype = _factors(x.device)
    g_x, g_y = g_x.to(dtype), g_y.to(dtype)
    blurred = _product(g_y[..., None, :, :], _product(x.to(dtype).flatten(-3, -2), g_x.mT).view_as(x))
    return torch.where(_per_image(sigma) > 0, blurred.to(x.dtype), x)


def solarize(x: Tensor, mask: Tensor) -> Tensor:
    """Invert the values of at least 128/255 where `mask` bool `[...]` says so; x is `[... C H W]` (Pillow's 128)."""
    return torch.where(_per_image(mask) & (x >= 128 / 255), 1 - x, x)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """`(x - mean) / std` by channel; x is `[... C H W]`."""
    return (x - _column(mean, x)) / _column(std, x)


@partial(compiled, any_shape=True)
def _filters(start: Tensor, length: Tensor, flip: Tensor, size: int, side: int, dtype: torch.dtype) -> Tensor:
    """Resampling matrices of one axis, `[V B size side]`; row i holds the weights of output pixel i.

    Bicubic with a = -1/2 (Keys 1981), widened by the scale where it shrinks. A weight is a function of the distance
    from the center of the input pixel to that of the output pixel, `x + 1/2` and `(i + 1/2) · length / size` in the
    box. Times `2 · size` both are whole numbers, so the distance is exact to the last bit. Weights outside the box are
    0, each row sums to 1. Only the few pixels within the support are computed, then written into zeros.

    Args:
        start: int32 `[V B]`, first pixel of the box along this axis.
        length: int32 `[V B]`, its pixels.
        flip: bool `[V B]`, reverse the rows.
        size: Output pixels.
        side: Pixels of the canvas along this axis.
        dtype: To round them to, in the end.
    """
    start, length, flip = start[..., None, None], length[..., None, None], flip[..., None, None]
    i = torch.arange(size, device=start.device, dtype=torch.int32)[:, None]
    i = torch.where(flip, size - 1 - i, i)
    center = (2 * i + 1) * length  # [V B size 1]
    stretch = length.clamp(min=size)  # size · max(scale, 1)
    num_taps = min(side, -(-4 * max(side, size) // size))  # pixels that a support of 4 · max(scale, 1) can hold
    first = start + torch.div(center - 4 * stretch + size, 2 * size, rounding_mode="floor")
    pixel = first.clamp(0, side - num_taps) + torch.arange(num_taps, device=start.device, dtype=torch.int32)
    distance = ((2 * (pixel - start) + 1) * size - center).float() / (2 * stretch)
    inside = (pixel >= start) & (pixel < start + length)
    weight = _cubic(distance.abs()) * inside
    weight = (weight / weight.sum(-1, keepdim=True)).to(dtype)
    return weight.new_zeros(*weight.shape[:-1], side).scatter_(-1, pixel.long(), weight)


def _cubic(t: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2 at t ≥ 0."""
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.0))


def _rounded(x: Tensor) -> Tensor:
    """Round halves up and clip, in place: Pillow's order of rounding, which `torch.round` does not follow."""
    return x.add_(0.5).floor_().clamp_(0, 255)


_to_8_bits = compiled(_rounded, any_shape=True)


@partial(compiled, any_shape=True)
def _to_pixels(crops: Tensor) -> Tensor:
    """uint8 `[V B C H W]` from `[V B H C W]`."""
    return _rounded(crops).to(torch.uint8).transpose(2, 3).contiguous()


def _before(flag: Tensor) -> Tensor:
    """How many are set before each, `[... 4]`."""
    return flag.cumsum(-1) - flag.long()


def _blend(planes: Iterable[Tensor], factor: Tensor, rest: Tensor) -> tuple[Tensor, ...]:
    """`clamp(factor · x + rest)` of each channel; `factor` `[...]`, `rest` as a channel or one value of it."""
    return tuple(torch.addcmul(rest, _per_plane(factor), x).clamp_(0, 1) for x in planes)


def _hue(planes: Sequence[Tensor], turns: Tensor) -> tuple[Tensor, ...]:
    """Turn the hue of HSV, keeping saturation and value; `turns` `[...]`.

    With value v = max, chroma c = max - min and hue h, a channel whose own hue is p (0, 1/3, 2/3 for R, G, B) is
    `v - c · clamp(6 · |h - p| - 1, 0, 1)`, |.| being the distance round the circle: HSV to RGB without a case.
    """
    r, g, b = planes
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    is_r, is_g = value == r, value == g
    difference = torch.where(is_r, g - b, torch.where(is_g, b - r, r - g))
    own = torch.where(is_r, 0.0, torch.where(is_g, 1 / 3, 2 / 3))
    hue = torch.addcdiv(own, difference, 6 * chroma.clamp(min=1e-12)).add_(_per_plane(turns))
    turned = []
    for x, p in zip(planes, (0, 1 / 3, 2 / 3), strict=True):
        away = hue - p
        away = away.sub_(away.round()).abs_()
        away = value - away.mul_(6).sub_(1).clamp_(0, 1).mul_(chroma)
        turned.append(torch.where(_per_plane(turns) == 0, x, away))
    return tuple(turned)


def _luma(r: Tensor, g: Tensor, b: Tensor) -> Tensor:
    """The gray of three channels."""
    return (LUMA[0] * r).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2])


def _gaussian(sigma: Tensor, side: int, reach: int) -> Tensor:
    """Blurring matrices `[... side side]`: row i is the Gaussian around i, tails beyond an edge added to the edge."""
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    variance = sigma.clamp(min=1e-3).square()[..., None, None]
    weight = torch.exp(offset.square() / (-2 * variance))  # [... 1 taps]
    weight = (weight / weight.sum(-1, keepdim=True)).expand(*sigma.shape, side, -1)
    place = (torch.arange(side, device=sigma.device)[:, None] + reach + offset).expand_as(weight)
    padded = weight.new_zeros(*sigma.shape, side, side + 2 * reach).scatter(-1, place, weight)
    before, inside, beyond = padded.split((reach, side, reach), dim=-1)
    inside = inside.contiguous()
    inside[..., :1] += before.sum(-1, keepdim=True)
    inside[..., -1:] += beyond.sum(-1, keepdim=True)
    return inside


def _factors(device: torch.device) -> torch.dtype:
    """Of the products: on a GPU float16, which holds 8-bit values exactly and weights to 11 bits.

    Float32 products run there without tensor cores, a tenth as fast.
    """
    return torch.float16 if device.type == "cuda" else torch.float32


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`a @ b` in their own precision, also under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return torch.matmul(a, b, out=out)


def _per_image(values: Tensor) -> Tensor:
    """`[...]` → `[... 1 1 1]`."""
    return values[..., None, None, None]


def _per_plane(values: Tensor) -> Tensor:
    """`[...]` → `[... 1 1]`."""
    return values[..., None, None]


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Constants as `[C 1 1]`, made on the device: a copy from the host would wait for it."""
    return torch.stack([like.new_full((1, 1), value) for value in values])
