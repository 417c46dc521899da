"""Crop and resize a batch of images like Pillow: one set of weights, two kernels."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from opendino.core.compilation import compiled
from opendino.views import kernels

_STEPS = 257  # 65535 / 255: values of uint16 for each of uint8


def crop_resize(
    canvas: Tensor, box: Tensor, flip: Tensor, size_px: int | tuple[int, int], flip_rows: Tensor | None = None
) -> Tensor:
    """Crop boxes and resize them with an antialiased bicubic filter, like Pillow's `crop().resize()`.

    The rows of the image are resized first. As in Pillow, the result is rounded and clipped to 8 bits before the
    columns are. On a CPU each value is a sum over the pixels with a weight; on other devices, and in a captured graph,
    each view is two products with matrices of the same weights.

    Results agree with Pillow to 1/255: only values within float32 rounding of a half are rounded differently, one in
    10,000, and one in millions by 2 because some of its pixels were. On a GPU the weights have 11 bits; on
    black-and-white noise, the worst case, one value in twelve differs. (Pillow 13 resizes the columns of some tall
    images first. Earlier versions, which DINO was trained with, always resize the rows first, and so does this
    function.) 16-bit images are rounded only at the end, and on a GPU have 11 significant bits, as the weights.

    Args:
        canvas: uint8 or uint16 `[B C Sy Sx]`.
        box: int32 `[V B 4]`, (top, left, height, width) in pixels, inside the canvas, height and width ≥ 1.
        flip: bool `[V B]`, horizontal flip of the crop.
        size_px: Height and width of the crops, or the side of squares.
        flip_rows: bool `[V B]`, vertical flip of the crop; None for none.

    Returns:
        `[V B C H W]`, of the type of the canvas.
    """
    size = (size_px, size_px) if isinstance(size_px, int) else size_px
    flip_rows = torch.zeros_like(flip) if flip_rows is None else flip_rows
    resize = _by_taps if kernels.by_index(canvas) else _by_products
    return resize(canvas, box, flip, flip_rows, size)


def _by_taps(canvas: Tensor, box: Tensor, flip: Tensor, flip_rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Sums over the pixels with a weight, a few images at a time."""
    (batch, channels, height, width), (out_height, out_width) = canvas.shape, size
    top, left, box_height, box_width = box.unbind(-1)
    x, a_x = _taps_of(left, box_width, flip, out_width, width)  # [V, B, W, taps]
    y, a_y = _taps_of(top, box_height, flip_rows, out_height, height)
    # Columns of the images as rows of a table, so that a weight multiplies a whole column of pixels. An odd number of
    # cache lines for each row: else the transposition below finds its values in few sets of the cache, three times
    # as slow.
    used = channels * height
    columns = torch.zeros(batch, width, used + (16 - used) % 64)
    columns[..., :used] = canvas.flatten(1, 2).mT
    if canvas.dtype == torch.uint16:
        columns.div_(_STEPS)
    crops = torch.empty(len(box), batch, channels, out_height, out_width, dtype=canvas.dtype)
    num = min(batch, max(1, kernels.CHUNK // (channels * height * out_width)))
    first = torch.arange(num, dtype=torch.int32)[:, None, None]  # number of the image in its chunk
    plane = torch.arange(num * channels, dtype=torch.int32).view(num, channels, 1, 1)
    for start in range(0, batch, num):
        some = slice(start, min(start + num, batch))
        table = columns[some].flatten(0, 1)
        n = some.stop - some.start
        for v in range(len(box)):
            narrow = _sums(table, x[v, some] + first[:n] * width, a_x[v, some])  # [n * W, C * Sy and padding]
            narrow = _round_(narrow) if canvas.dtype == torch.uint8 else narrow.clamp_(0, 255)
            narrow = narrow.view(n, out_width, -1)[..., :used].mT.contiguous().view(-1, out_width)  # [n * C * Sy, W]
            taps = y[v, some, None] + plane[:n] * height  # [n, C, H, taps]
            crop = _sums(narrow, taps, a_y[v, some, None].expand(taps.shape))  # [n * C * H, W]
            if canvas.dtype == torch.uint16:
                crop.mul_(_STEPS)
            # Copying drops the fraction, so this rounds.
            crops[v, some] = crop.add_(0.5).clamp_(0, torch.iinfo(canvas.dtype).max).view_as(crops[v, some])
    return crops


def _sums(table: Tensor, taps: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of a table `[rows D]`: row numbers int32 and weights `[... taps]` → `[... D]`, flat."""
    num_taps = taps.shape[-1]
    return embedding_bag(
        taps.reshape(-1, num_taps), table, mode="sum", per_sample_weights=weights.reshape(-1, num_taps)
    )


def _taps_of(start: Tensor, length: Tensor, flip: Tensor, size: int, side: int) -> tuple[Tensor, Tensor]:
    """The pixels and weights of `_taps` as `[V B size taps]`, with as many taps as the largest box needs."""
    longest = max(length.flatten().tolist(), default=1)
    pixel, weight = _taps(start, length, flip, size, side, _num_taps(longest, size, side))
    # Added one after the other, so that the zeros of a smaller box beside a larger one change no bit.
    weight = weight / weight.cumsum(0)[-1]
    return pixel.movedim(0, -1).contiguous(), weight.movedim(0, -1).contiguous()


def _by_products(canvas: Tensor, box: Tensor, flip: Tensor, flip_rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Two matrix products for each view, `A_y · (canvas · A_xᵀ)`."""
    (batch, channels, height, width), (out_height, out_width) = canvas.shape, size
    top, left, box_height, box_width = box.unbind(-1)
    dtype = kernels.product_dtype(canvas.device)
    a_xs = _resize_matrices(left, box_width, flip, out_width, width, dtype)
    a_ys = _resize_matrices(top, box_height, flip_rows, out_height, height, dtype)
    # Fold the channels into the rows, so that one product does all channels and the second needs no transpose.
    rows = _to_255(canvas.transpose(1, 2), dtype).view(batch, height * channels, width)
    crops = rows.new_empty(len(box), batch, out_height, channels * out_width)  # [V, B, H, C * W]
    for a_x, a_y, crop in zip(a_xs.unbind(), a_ys.unbind(), crops.unbind(), strict=True):  # per view: less memory
        narrow = kernels.product(rows, a_x.mT)
        narrow = _to_8_bits(narrow) if canvas.dtype == torch.uint8 else narrow.clamp_(0, 255)
        kernels.product(a_y, narrow.view(batch, height, channels * out_width), out=crop)  # narrow: [B, Sy, C * W]
    crops = crops.view(-1, batch, out_height, channels, out_width)
    return _to_uint8(crops) if canvas.dtype == torch.uint8 else _to_uint16(crops)


@partial(compiled, any_shape=True)
def _resize_matrices(start: Tensor, length: Tensor, flip: Tensor, size: int, side: int, dtype: torch.dtype) -> Tensor:
    """The weights of `_taps` scattered into zeros: `[V B size side]`; row i has those of output pixel i."""
    pixel, weight = _taps(start, length, flip, size, side, _num_taps(side, size, side))
    weight = (weight / weight.sum(0)).to(dtype).movedim(0, -1)
    return weight.new_zeros(*weight.shape[:-1], side).scatter_(-1, pixel.movedim(0, -1).long(), weight)


def _num_taps(length: int, size: int, side: int) -> int:
    """Most pixels of a box of at most `length` in a support of width 4 · max(scale, 1), resized to `size`."""
    return min(side, -(-4 * max(length, size) // size))


def _taps(start: Tensor, length: Tensor, flip: Tensor, size: int, side: int, num_taps: int) -> tuple[Tensor, Tensor]:
    """Pixels and weights of each output pixel along one axis: int32 and float32 `[taps V B size]`.

    The kernel is bicubic with a = -1/2 (Keys 1981), widened by the scale factor when downsampling. A weight is a
    function of the distance between the centers of the input and the output pixel, `x + 1/2` and
    `(i + 1/2) · length / size` in box coordinates. Multiplied by `2 · size` both are integers: the distance is exact.
    Weights outside the box are 0. Those of an output pixel are still to be divided by their sum.

    Args:
        start: int32 `[V B]`, first pixel of the box along this axis.
        length: int32 `[V B]`, number of pixels of the box.
        flip: bool `[V B]`, reverse the order of the output pixels.
        size: Number of output pixels.
        side: Number of pixels of the canvas along this axis.
        num_taps: Number of pixels, at least those of the support of the longest box.
    """
    start, length, flip = start[..., None], length[..., None], flip[..., None]
    i = torch.arange(size, device=start.device, dtype=torch.int32)
    i = i + flip * (size - 1 - 2 * i)
    center = (2 * i + 1) * length  # [V B size]
    support = length.clamp(min=size)  # size · max(scale, 1)
    first = start + torch.div(center - 4 * support + size, 2 * size, rounding_mode="floor")
    # The taps are the first dimension: a CPU is slow at operations whose last dimension is short.
    tap = torch.arange(num_taps, device=start.device, dtype=torch.int32)[:, None, None, None]
    pixel = first.clamp(0, side - num_taps) + tap  # [taps, V, B, size]
    distance = ((2 * (pixel - start) + 1) * size - center).float() / (2 * support)
    inside = (pixel >= start) & (pixel < start + length)
    weight = _cubic(distance.abs()) * inside
    return pixel, weight


def _cubic(t: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2 at t ≥ 0."""
    far = (2 - t).clamp(min=0).square() * (1 - t) / 2  # for t ≥ 1
    return far + (1 - t).clamp(min=0).square() * (2 * t - 1)


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
