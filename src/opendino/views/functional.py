"""Deterministic batched image operations with given parameters: crop, jitter, gray, blur, solarize, normalize.

Pure functions of tensors on any device. They never wait for the device and have no data-dependent shapes, so that
`torch.compile` works. Crops are uint8 or uint16; every later operation takes and returns float32 in [0, 1]. `jitter`
and `gray` need the channels R, G, B.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from opendino.core.compilation import compiled

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode "L"
_STEPS = 257  # 65535 / 255: values of uint16 for each of uint8


def crop_resize(
    canvas: Tensor, box: Tensor, flip: Tensor, size_px: int | tuple[int, int], flip_rows: Tensor | None = None
) -> Tensor:
    """Crop boxes and resize them with an antialiased bicubic filter, like Pillow's `crop().resize()`.

    Each view is two matrix products, `A_y · (canvas · A_xᵀ)`. As in Pillow, the result of the first is rounded and
    clipped to 8 bits before the second. Results agree with Pillow to 1/255: only values within float32 rounding of a
    half are rounded differently. On a GPU the weights have 11 bits; on black-and-white noise, the worst case, one value
    in twelve differs. (Pillow 13 resizes the columns of some tall images first. Earlier versions, which DINO was
    trained with, always resize the rows first, and so does this function.) 16-bit images are rounded only at the end,
    and on a GPU have 11 significant bits, as the weights.

    Args:
        canvas: uint8 or uint16 `[B C Sy Sx]`.
        box: int32 `[V B 4]`, (top, left, height, width) in pixels, inside the canvas, height and width ≥ 1.
        flip: bool `[V B]`, horizontal flip of the crop.
        size_px: Height and width of the crops, or the side of squares.
        flip_rows: bool `[V B]`, vertical flip of the crop; None for none.

    Returns:
        `[V B C H W]`, of the type of the canvas.
    """
    batch, channels, height, width = canvas.shape
    out_height, out_width = (size_px, size_px) if isinstance(size_px, int) else size_px
    top, left, box_height, box_width = box.unbind(-1)
    dtype = _matmul_dtype(canvas.device)
    flip_rows = torch.zeros_like(flip) if flip_rows is None else flip_rows
    a_xs = _resize_matrices(left, box_width, flip, out_width, width, dtype)
    a_ys = _resize_matrices(top, box_height, flip_rows, out_height, height, dtype)
    # Fold the channels into the rows, so that one product does all channels and the second needs no transpose.
    rows = _to_255(canvas.transpose(1, 2), dtype).view(batch, height * channels, width)
    crops = rows.new_empty(len(box), batch, out_height, channels * out_width)  # [V, B, H, C * W]
    for a_x, a_y, crop in zip(a_xs.unbind(), a_ys.unbind(), crops.unbind(), strict=True):  # per view: less memory
        narrow = _matmul(rows, a_x.mT)
        narrow = _to_8_bits(narrow) if canvas.dtype == torch.uint8 else narrow.clamp_(0, 255)
        _matmul(a_y, narrow.view(batch, height, channels * out_width), out=crop)  # narrow: [B, Sy, C * W]
    crops = crops.view(-1, batch, out_height, channels, out_width)
    return _to_uint8(crops) if canvas.dtype == torch.uint8 else _to_uint16(crops)


def to_float(x: Tensor) -> Tensor:
    """uint8 or uint16 to float32 in [0, 1]."""
    return x / (255 if x.dtype == torch.uint8 else 65535)


def jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Color jitter: brightness, contrast, saturation and hue, in a different order for each sample.

    Computes the same as torchvision's functional on float tensors, but with Pillow's gray weights (0.299, not 0.2989).
    The first three operations are blends with black, with the mean gray and with the gray image.

    To compute all 24 orders without branches, every sample passes through one fixed sequence of 11 slots: four groups
    of two slots for brightness and saturation, with contrast, hue, contrast between the groups. Expensive operations
    get few slots: hue one, contrast (which needs the mean of the whole image) one before and one after hue. In slots
    that a sample does not use, its factor is 1, which changes nothing.

    Args:
        x: float32 `[... 3 H W]` in [0, 1].
        factors: float32 `[... 4]`: brightness, contrast, saturation ≥ 0, hue shift in turns; (1, 1, 1, 0) changes
            no bit of the image.
        order: int64 `[... 4]`, a permutation of 0 … 3: the column of `factors` to apply first, second, ...
    """
    is_contrast, is_hue = order == 1, order == 3
    group = _count_before(is_contrast) + 2 * _count_before(is_hue)  # 0 … 3; a sample skips group 1 or group 2
    is_second = torch.nn.functional.pad((group[..., 1:] == group[..., :-1]).long(), (1, 0))
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
            planes = _hue(planes, factors[..., 3])
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
    g_x = _blur_matrices(sigma, x.shape[-1], reach_px)
    g_y = _blur_matrices(sigma, x.shape[-2], reach_px)
    dtype = _matmul_dtype(x.device)
    g_x, g_y = g_x.to(dtype), g_y.to(dtype)
    blurred = _matmul(g_y[..., None, :, :], _matmul(x.to(dtype).flatten(-3, -2), g_x.mT).view_as(x))
    return torch.where(_per_image(sigma) > 0, blurred.to(x.dtype), x)


def solarize(x: Tensor, mask: Tensor) -> Tensor:
    """Invert values ≥ 128/255 (Pillow's threshold 128) where `mask` bool `[...]` is True; x is `[... C H W]`."""
    return torch.where(_per_image(mask) & (x >= 128 / 255), 1 - x, x)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """`(x - mean) / std` per channel; x is `[... C H W]`."""
    return (x - _channel_values(mean, x)) / _channel_values(std, x)


@partial(compiled, any_shape=True)
def _resize_matrices(start: Tensor, length: Tensor, flip: Tensor, size: int, side: int, dtype: torch.dtype) -> Tensor:
    """Resampling matrices for one axis, `[V B size side]`; row i has the weights of output pixel i.

    The kernel is bicubic with a = -1/2 (Keys 1981), widened by the scale factor when downsampling. A weight is a
    function of the distance between the centers of the input and the output pixel, `x + 1/2` and
    `(i + 1/2) · length / size` in box coordinates. Multiplied by `2 · size` both are integers: the distance is exact.
    Weights outside the box are 0, and each row sums to 1. Only the pixels inside the support are computed; they are
    scattered into zeros.

    Args:
        start: int32 `[V B]`, first pixel of the box along this axis.
        length: int32 `[V B]`, number of pixels of the box.
        flip: bool `[V B]`, reverse the order of the output pixels.
        size: Number of output pixels.
        side: Number of pixels of the canvas along this axis.
        dtype: Data type of the result.
    """
    start, length, flip = start[..., None, None], length[..., None, None], flip[..., None, None]
    i = torch.arange(size, device=start.device, dtype=torch.int32)[:, None]
    i = torch.where(flip, size - 1 - i, i)
    center = (2 * i + 1) * length  # [V B size 1]
    support = length.clamp(min=size)  # size · max(scale, 1)
    num_taps = min(side, -(-4 * max(side, size) // size))  # most pixels in a support of width 4 · max(scale, 1)
    first = start + torch.div(center - 4 * support + size, 2 * size, rounding_mode="floor")
    pixel = first.clamp(0, side - num_taps) + torch.arange(num_taps, device=start.device, dtype=torch.int32)
    # [V, B, size, num_taps]
    distance = ((2 * (pixel - start) + 1) * size - center).float() / (2 * support)
    inside = (pixel >= start) & (pixel < start + length)
    weight = _cubic(distance.abs()) * inside
    weight = (weight / weight.sum(-1, keepdim=True)).to(dtype)
    return weight.new_zeros(*weight.shape[:-1], side).scatter_(-1, pixel.long(), weight)


def _cubic(t: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2 at t ≥ 0."""
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.0))


def _round_(x: Tensor) -> Tensor:
    """Round half up and clip to 0 … 255, in place, as Pillow does; `torch.round` rounds half to even."""
    return x.add_(0.5).floor_().clamp_(0, 255)


_to_8_bits = compiled(_round_, any_shape=True)


@partial(compiled, any_shape=True)
def _to_uint8(crops: Tensor) -> Tensor:
    """Round `[V B H C W]` to uint8 `[V B C H W]`."""
    return _round_(crops).to(torch.uint8).transpose(2, 3).contiguous()


def _to_255(x: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 or uint16 to 0 … 255 in `dtype`, contiguous."""
    if x.dtype == torch.uint8:
        return x.to(dtype, memory_format=torch.contiguous_format)
    return torch.div(x, _STEPS, out=torch.empty(x.shape, dtype=dtype, device=x.device))  # out: no copy as float32


def _to_uint16(crops: Tensor) -> Tensor:
    """Round `[V B H C W]` of 0 … 255 to uint16 `[V B C H W]`."""
    rounded = torch.empty(
        *crops.shape[:2], crops.shape[3], crops.shape[2], crops.shape[4], dtype=torch.uint16, device=crops.device
    )
    for crop, result in zip(crops.unbind(), rounded.unbind(), strict=True):  # per view: less memory
        result.copy_(crop.float().mul_(_STEPS).add_(0.5).floor_().clamp_(0, 65535).transpose(1, 2))
    return rounded


def _count_before(flag: Tensor) -> Tensor:
    """Number of True values before each position, `[... 4]`."""
    return flag.cumsum(-1) - flag.long()


def _blend(planes: Iterable[Tensor], factor: Tensor, rest: Tensor) -> tuple[Tensor, ...]:
    """`clamp(factor · x + rest, 0, 1)` per channel; `factor` is `[...]`, `rest` is `[... H W]` or `[... 1 1]`."""
    return tuple(torch.addcmul(rest, _per_plane(factor), x).clamp_(0, 1) for x in planes)


def _hue(planes: Sequence[Tensor], turns: Tensor) -> tuple[Tensor, ...]:
    """Shift the hue in HSV by `turns` `[...]`, keeping saturation and value.

    With value v = max, chroma c = max - min and hue h, the channel with primary hue p (0, 1/3, 2/3 for R, G, B) is
    `v - c · clamp(6 · |h - p| - 1, 0, 1)`, where |.| is the distance on the circle: HSV to RGB without branches.
    """
    r, g, b = planes
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    is_r, is_g = value == r, value == g
    difference = torch.where(is_r, g - b, torch.where(is_g, b - r, r - g))
    primary = torch.where(is_r, 0.0, torch.where(is_g, 1 / 3, 2 / 3))  # hue of the largest channel
    hue = torch.addcdiv(primary, difference, 6 * chroma.clamp(min=1e-12)).add_(_per_plane(turns))
    shifted = []
    for x, p in zip(planes, (0, 1 / 3, 2 / 3), strict=True):
        distance = hue - p
        distance = distance.sub_(distance.round()).abs_()
        channel = value - distance.mul_(6).sub_(1).clamp_(0, 1).mul_(chroma)
        shifted.append(torch.where(_per_plane(turns) == 0, x, channel))
    return tuple(shifted)


def _luma(r: Tensor, g: Tensor, b: Tensor) -> Tensor:
    """Luma (BT.601) of the three channels."""
    return (LUMA[0] * r).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2])


def _blur_matrices(sigma: Tensor, side: int, reach: int) -> Tensor:
    """Blur matrices `[... side side]`: row i is the Gaussian around i; weights beyond an edge are added to the edge."""
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    variance = sigma.clamp(min=1e-3).square()[..., None, None]
    weight = torch.exp(offset.square() / (-2 * variance))  # [... 1 taps]
    weight = (weight / weight.sum(-1, keepdim=True)).expand(*sigma.shape, side, -1)
    column = (torch.arange(side, device=sigma.device)[:, None] + reach + offset).expand_as(weight)
    padded = weight.new_zeros(*sigma.shape, side, side + 2 * reach).scatter(-1, column, weight)
    before, inside, after = padded.split((reach, side, reach), dim=-1)
    inside = inside.contiguous()
    inside[..., :1] += before.sum(-1, keepdim=True)
    inside[..., -1:] += after.sum(-1, keepdim=True)
    return inside


def _matmul_dtype(device: torch.device) -> torch.dtype:
    """Data type of the matrix products: float16 on a GPU, exact for 8-bit values, with 11-bit weights; else float32.

    Without tensor cores, float32 products on a GPU are ten times slower.
    """
    return torch.float16 if device.type == "cuda" else torch.float32


def _matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`a @ b` in the precision of the inputs, also inside autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return torch.matmul(a, b, out=out)


def _per_image(values: Tensor) -> Tensor:
    """Broadcast per-image values over C, H, W: `[...]` → `[... 1 1 1]`."""
    return values[..., None, None, None]


def _per_plane(values: Tensor) -> Tensor:
    """Broadcast per-image values over H, W: `[...]` → `[... 1 1]`."""
    return values[..., None, None]


def _channel_values(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Constants as `[C 1 1]`, created on the device: a copy from the host would wait for the device."""
    return torch.stack([like.new_full((1, 1), value) for value in values])
