"""Views compared with the pipeline of DINO v1: Pillow's resize and filters, torchvision's color operations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from opendino.core.types import ViewGroup, ViewSpec
from opendino.views import functional, kernels
from opendino.views.crop_resize import crop_resize
from opendino.views.sampling import sample_views
from opendino.views.settings import view

EPS = torch.finfo(torch.float32).eps


def noise(*shape: int, seed: int = 0) -> Tensor:
    """8-bit values, half of them black or white: the hardest case for ringing, clipping and rounding."""
    x = np.random.default_rng(seed).integers(-128, 384, shape).clip(0, 255)
    return torch.from_numpy(x.astype(np.uint8))


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pillow(image: Image.Image) -> Tensor:
    x = torch.from_numpy(np.array(image))
    return (x[None] if x.ndim == 2 else x.permute(2, 0, 1)).float()


def random_boxes(views: int, images: int, height: int, width: int) -> Tensor:
    rng = np.random.default_rng(0)
    h, w = rng.integers(1, height + 1, (views, images)), rng.integers(1, width + 1, (views, images))
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    box = np.stack([top, left, h, w], -1)
    box[0, 0] = 0, 0, height, width
    box[0, 1] = height - 1, width - 1, 1, 1
    box[1, 0] = 0, width // 2, height, 1
    box[1, 1] = height // 2, 0, 1, width
    return torch.from_numpy(box.astype(np.int32))


# Crops -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("size_px", [1, 7, 32, 96])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (20, 131), (150, 90)])
@pytest.mark.parametrize("smooth", [False, True])
def test_crop_resize_is_pillows(size_px: int, height: int, width: int, smooth: bool):
    canvas = noise(4, 3, height, width)
    if smooth:
        canvas = tv.gaussian_blur(canvas, [9, 9], [3.0, 3.0])
    box = random_boxes(6, 4, height, width)
    flip = torch.arange(24).reshape(6, 4) % 3 == 0
    ours = crop_resize(canvas, box, flip, size_px)
    assert ours.shape == (6, 4, 3, size_px, size_px)
    assert ours.dtype == torch.uint8
    unequal = 0.0
    for v, b in itertools.product(range(6), range(4)):
        top, left, h, w = box[v, b].tolist()
        theirs = to_pillow(canvas[b]).crop((left, top, left + w, top + h))
        if h > w:  # Pillow < 13 always resizes the rows first, later ones the columns of some tall images
            theirs = theirs.resize((size_px, h), Image.Resampling.BICUBIC)
        theirs = theirs.resize((size_px, size_px), Image.Resampling.BICUBIC)
        theirs = from_pillow(ImageOps.mirror(theirs) if flip[v, b] else theirs)
        assert (ours[v, b] - theirs).abs().max() <= 1
        unequal += (ours[v, b] != theirs).double().mean().item() / 24
    # Pillow's weights are whole multiples of 2^-22, ours are float32. With n ≈ 7 weights that sum (in absolute value)
    # to at most ~1.3, sums of values up to 255 differ by about 255 · √n · (2^-23 / √3 + 1.3 · 2^-24) ≈ 1e-4; a value
    # that near a half rounds the other way: 2e-4 of them. A miss in the first pass is seen by n pixels of the second
    # with a third of its size: 1e-3 in all. The rest is room for exact halves, which some scales are prone to.
    if size_px >= 32:  # else a single miss is a large share
        assert unequal < 5e-3


@pytest.mark.usefixtures("dense_kernels")
@pytest.mark.parametrize("size_px", [32, 96])
def test_with_11_bit_weights_few_values_change_by_one_level(size_px: int, monkeypatch: pytest.MonkeyPatch):
    canvas, box, flip = noise(4, 3, 150, 131), random_boxes(6, 4, 150, 131), torch.zeros(6, 4, dtype=torch.bool)
    exact = crop_resize(canvas, box, flip, size_px)
    monkeypatch.setattr(kernels, "product_dtype", lambda device: torch.float16)
    halves = crop_resize(canvas, box, flip, size_px)
    assert halves.dtype == torch.uint8
    away = (halves.float() - exact.float()).abs()
    # n ≈ 7 weights of up to 1, each rounded by at most 2^-12 of itself, times 255: √n · 255 · 2^-12 / √3 ≈ 0.1 of a
    # level in either pass, so that a tenth round the other way in each; of values all black or white. A step in the
    # first pass may push one over in the second that was to step anyway.
    assert away.max() <= 2
    assert away.mean() < 0.1
    assert (away > 1).double().mean() < 1e-3


@pytest.mark.usefixtures("dense_kernels")
def test_blur_with_11_bit_weights_is_off_by_a_quarter_level(monkeypatch: pytest.MonkeyPatch):
    x, sigma = noise(3, 3, 40, 50).float() / 255, torch.tensor([0.1, 0.7, 2.0])
    exact = functional.blur(x, sigma)
    monkeypatch.setattr(kernels, "product_dtype", lambda device: torch.float16)
    halves = functional.blur(x, sigma)
    assert halves.dtype == torch.float32
    assert (halves - exact).abs().max() < 0.25 / 255


@pytest.mark.gpu
def test_crops_on_a_gpu_agree_up_to_few_levels():
    canvas, box, flip = noise(4, 3, 150, 131), random_boxes(6, 4, 150, 131), torch.arange(24).reshape(6, 4) % 3 == 0
    there = crop_resize(canvas.cuda(), box.cuda(), flip.cuda(), 96).cpu()
    away = (there.float() - crop_resize(canvas, box, flip, 96).float()).abs()
    assert away.max() <= 2
    assert away.mean() < 0.1


@pytest.mark.parametrize("size", [(240, 320), (60, 400), (400, 60)])
@pytest.mark.parametrize("scale", [(0.05, 0.4), (0.4, 1.0)])
def test_boxes_are_distributed_as_random_resized_crops(size: tuple[int, int], scale: tuple[float, float]):
    count = 2000
    image = torch.empty(1, 1, 1).expand(3, *size)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)])
    spec = ViewSpec((ViewGroup("g", 8, (view({"crop.scale": scale}),)),))
    ours = sample_views(spec, 0, 0, range(count), [size] * count)["g"]["crop"]["box"][0].numpy()
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    for of in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0] / (size[0] - b[:, 2] + 1)):
        assert stats.ks_2samp(of(ours), of(theirs)).pvalue > 1e-3


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (1, 30000), (30000, 1), (11, 1000), (1000, 11)])
def test_center_crop_if_no_attempt_fits(size: tuple[int, int]):
    image = torch.empty(1, 1, 1).expand(3, *size)
    theirs = RandomResizedCrop.get_params(image, [0.9, 1.0], [3 / 4, 4 / 3])  # no box of this area fits: no chance
    spec = ViewSpec((ViewGroup("g", 8, (view({"crop.scale": (0.9, 1.0)}),)),))
    assert sample_views(spec, 0, 0, range(3), [size] * 3)["g"]["crop"]["box"][0].tolist() == [list(theirs)] * 3


# Colors ---------------------------------------------------------------------------------------------------------

OPS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
FACTORS = [
    (0.6, 1.4, 1.2, 0.1),
    (1.4, 0.6, 0.8, -0.1),
    (1.1, 1.3, 0.0, 0.5),
    (0.0, 0.5, 2.0, 0.3),
    (0.9, 1.0, 1.7, -0.5),
]


@pytest.fixture
def image() -> Tensor:
    """`[3 H W]` in [0, 1]: noise with runs of gray, black, white and pure colors."""
    x = noise(3, 16, 33) / 255
    x[:, 0] = x[:1, 0]
    x[:, 1, :8] = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3))).T
    return x


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("factors", FACTORS)
def test_jitter_in_every_order_is_torchvisions(image: Tensor, factors: tuple[float, ...], monkeypatch):
    monkeypatch.setattr(functional, "LUMA", (0.2989, 0.587, 0.114))  # torchvision's, so that only rounding is left
    orders = torch.tensor(list(itertools.permutations(range(4))))
    ours = functional.jitter(image.expand(24, -1, -1, -1), torch.tensor(factors).expand(24, 4), orders)
    for order, x in zip(orders.tolist(), ours, strict=True):
        theirs = image
        for op in order:
            theirs = OPS[op](theirs, factors[op])
        # Each op makes a few roundings of numbers up to 2 (say 10 eps) and enlarges earlier ones at most by
        # |f| + |1 - f| ≤ 3 (blends, f ≤ 2) or by 7 (hue: value, chroma and six times the hue all move).
        torch.testing.assert_close(x, theirs, atol=10 * EPS * (1 + 3 + 3 * 3 + 3 * 3 * 7), rtol=0)


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("op", range(4))
@pytest.mark.parametrize("factors", FACTORS)
def test_each_color_op_is_torchvisions(image: Tensor, op: int, factors: tuple[float, ...]):
    only = torch.tensor([1.0, 1.0, 1.0, 0.0])
    only[op] = factors[op]
    theirs = OPS[op](image, factors[op])
    ours = functional.jitter(image, only, torch.arange(4))
    # Our weight of red is 0.299 and theirs 0.2989: grays differ by up to 1e-4, a blend with gray by |1 - f| of that.
    weights = 1e-4 * abs(1 - factors[op]) if op in (1, 2) else 0.0
    torch.testing.assert_close(ours, theirs, atol=weights + 20 * EPS, rtol=0)


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("op", range(3))
@pytest.mark.parametrize("factor", [0.6, 0.85, 1.2, 1.4])
def test_blends_are_pillows(image: Tensor, op: int, factor: float):
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[op]
    theirs = from_pillow(enhance(to_pillow(image.mul(255).round().byte())).enhance(factor))
    only = torch.tensor([1.0, 1.0, 1.0, 0.0])
    only[op] = factor
    ours = functional.jitter(image, only, torch.arange(4)) * 255
    # Pillow drops the fraction (1) and rounds the gray (1/2) and, for contrast, its mean (1/2), by |1 - f| each.
    assert (ours - theirs).abs().max() <= 1 + abs(1 - factor) + 1e-3


@pytest.mark.usefixtures("both_kernels")
def test_gray_is_pillows(image: Tensor):
    theirs = from_pillow(to_pillow(image.mul(255).round().byte()).convert("L"))
    ours = functional.gray(image, torch.tensor(True)) * 255
    # Pillow rounds to whole numbers (1/2), with weights in units of 2^-16 (three halves of one, times 255).
    assert (ours - theirs).abs().max() <= 0.5 + 255 * 1.5 / 2**16 + 1e-4


@pytest.mark.usefixtures("both_kernels")
def test_solarize_is_pillows():
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    theirs = from_pillow(ImageOps.solarize(to_pillow(levels), threshold=128))
    ours = functional.solarize(levels / 255, torch.tensor(True)) * 255
    torch.testing.assert_close(ours, theirs, atol=255 * 2 * EPS, rtol=0)


def test_normalize_is_torchvisions(image: Tensor):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = tv.normalize(image, list(mean), list(std))
    torch.testing.assert_close(functional.normalize(image, mean, std), theirs, atol=4 * EPS, rtol=0)


# Blur ------------------------------------------------------------------------------------------------------------

SIGMAS = (0.1, 0.5, 1.0, 1.7, 2.0)


def gaussian(sigma: float, reach: int) -> np.ndarray:
    weight = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return weight / weight.sum()


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize(("height", "width"), [(24, 31), (3, 40), (1, 5)])
def test_blur_is_a_convolution_with_repeated_edges(height: int, width: int):
    x = noise(len(SIGMAS), 3, height, width) / 255
    ours = functional.blur(x, torch.tensor(SIGMAS))
    for image, blurred, sigma in zip(x.double(), ours, SIGMAS, strict=True):
        kernel = torch.from_numpy(np.outer(gaussian(sigma, 20), gaussian(sigma, 20)))
        padded = torch.nn.functional.pad(image[None], (20, 20, 20, 20), mode="replicate")
        exact = torch.nn.functional.conv2d(padded.transpose(0, 1), kernel[None, None])[:, 0]
        # Cut at 10 px, at least 5 sigma: 6e-7 of the weight per axis. Two sums of up to `side` rounded products.
        torch.testing.assert_close(blurred.double(), exact, atol=1.2e-6 + 10 * EPS, rtol=0)


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("sigma", SIGMAS)
def test_blur_is_torchvisions_away_from_the_edge(sigma: float):
    x = noise(3, 40, 50) / 255
    theirs = tv.gaussian_blur(x, [21, 21], [sigma, sigma])
    ours = functional.blur(x, torch.tensor(sigma))
    torch.testing.assert_close(ours[:, 10:-10, 10:-10], theirs[:, 10:-10, 10:-10], atol=10 * EPS, rtol=0)


def extended_box(sigma: float) -> np.ndarray:
    """Pillow's stand-in for a Gaussian: three passes of a box with fractional ends (Gwosdek et al., 2011)."""
    variance = sigma**2 / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    end = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.array([end, *[1.0] * (2 * whole + 1), end]) / (2 * (whole + end) + 1)
    return np.convolve(np.convolve(box, box), box)


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("sigma", SIGMAS)
def test_blur_is_as_near_to_pillows_as_its_kernel_is_to_a_gaussian(sigma: float):
    kernel = extended_box(sigma)
    reach = len(kernel) // 2
    line = torch.zeros(3, 5, 61, dtype=torch.uint8)
    line[..., 30] = 255
    response = from_pillow(to_pillow(line).filter(ImageFilter.GaussianBlur(sigma)))[0, 2, 30 - reach : 31 + reach]
    assert np.abs(response.numpy() - 255 * kernel).max() <= 1.5 + 1e-3  # three passes rounded to whole numbers

    # Both kernels K sum to 1, so images in [0, 255] come out at most 255 · ‖K - K'‖₁ / 2 apart; Pillow rounds its six
    # passes, and rounding never grows in an average. Away from the edge only: Pillow repeats the edge of each of its
    # three passes, we (and the Gaussian of the paper) the edge of the image.
    wide = np.pad(kernel, 20 - reach)
    distance = np.abs(np.outer(wide, wide) - np.outer(gaussian(sigma, 20), gaussian(sigma, 20))).sum()
    image = noise(3, 30, 41)
    theirs = from_pillow(to_pillow(image).filter(ImageFilter.GaussianBlur(sigma)))
    ours = functional.blur(image / 255, torch.tensor(sigma)) * 255
    within = (..., slice(reach, -reach), slice(reach, -reach))
    assert (ours - theirs)[within].abs().max() <= 255 * distance / 2 + 6 * 0.5
