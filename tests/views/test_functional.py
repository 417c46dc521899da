"""Properties of the image operations; tests/reference/test_crops.py compares them with Pillow and torchvision."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from opendino.core.types import ViewGroup, ViewSpec
from opendino.views import functional
from opendino.views.crop_resize import crop_resize
from opendino.views.multi_crop import multi_crop
from opendino.views.sampling import ViewParameters, sample_views
from opendino.views.settings import View, view

pytestmark = pytest.mark.usefixtures("both_kernels")
SIDE = 40
IDENTITY = torch.tensor([1.0, 1.0, 1.0, 0.0])
EVERYTHING = view({"crop.scale": (0.2, 1.0), "color_jitter.p": 1.0, "gray.p": 0.3, "blur.p": 0.7, "solarize.p": 0.5})
SPEC = ViewSpec((ViewGroup("global", 24, (EVERYTHING,) * 2), ViewGroup("local", 12, (EVERYTHING,) * 3)))


@pytest.fixture
def canvas() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def images() -> torch.Tensor:
    """`[V B 3 H W]` with exact zeros, ones and grays among the values."""
    x = torch.rand(2, 3, 3, 11, 13, generator=torch.Generator().manual_seed(1))
    x[..., :2, :] = x[..., :2, :].round()
    x[..., 2:3, :] = x[..., :1, 2:3, :]
    return x


def drawn(spec: ViewSpec, indices: list[int], size: tuple[int, int] = (SIDE, SIDE)) -> dict[str, ViewParameters]:
    return sample_views(spec, 0, 0, indices, [size] * len(indices))


def permutations() -> torch.Tensor:
    return torch.tensor(list(itertools.permutations(range(4))))


def test_views_have_their_shape_and_normalization(canvas: torch.Tensor):
    views = multi_crop(canvas, drawn(SPEC, list(range(6))), SPEC)
    assert views["global"].shape == (2, 6, 3, 24, 24)
    assert views["local"].shape == (3, 6, 3, 12, 12)
    for x in views.values():
        assert x.dtype == torch.float32
        assert x.is_contiguous()
    black = multi_crop(torch.zeros_like(canvas), {k: still(d) for k, d in drawn(SPEC, list(range(6))).items()}, SPEC)
    expected = -torch.tensor(SPEC.mean) / torch.tensor(SPEC.std)
    assert torch.equal(black["local"], expected[:, None, None].expand(3, 6, 3, 12, 12))


def test_a_group_without_views_is_absent(canvas: torch.Tensor):
    spec = ViewSpec((SPEC.groups[0], ViewGroup("local", 12, ())))
    assert list(multi_crop(canvas, drawn(spec, list(range(6))), spec)) == ["global"]


def still(d: ViewParameters) -> ViewParameters:
    """View parameters without any distortion."""
    return ViewParameters({"crop": d["crop"]})


NOTHING = {f"{name}.p": 0.0 for name in ("flip", "gray", "blur", "solarize", "color_jitter")}
WEAK = {f"color_jitter.{name}": 0.0 for name in ("brightness", "contrast", "saturation", "hue")}


def both_groups(one: View) -> ViewSpec:
    return ViewSpec((ViewGroup("global", 24, (one,) * 2), ViewGroup("local", 12, (one,) * 3)))


@pytest.mark.parametrize("values", [NOTHING, NOTHING | WEAK | {"color_jitter.p": 1.0}])
def test_neutral_parameters_give_only_the_crop(canvas: torch.Tensor, values: dict[str, float]):
    spec = both_groups(view({"crop.scale": (0.2, 1.0)} | values))
    draws = drawn(spec, list(range(6)))
    views = multi_crop(canvas, draws, spec)
    for group in spec.groups:
        box = draws[group.name]["crop"]["box"]
        bare = crop_resize(canvas, box, torch.zeros(box.shape[:2], dtype=torch.bool), group.size_px) / 255
        assert torch.equal(views[group.name], functional.normalize(bare, spec.mean, spec.std))


@pytest.mark.parametrize(
    ("setting", "strength"),
    [
        *((f"{name}.p", 1.0) for name in ("flip", "gray", "blur", "solarize")),
        *((f"color_jitter.{name}", 0.4) for name in ("brightness", "contrast", "saturation", "hue")),
    ],
)
def test_every_setting_reaches_every_view(canvas: torch.Tensor, setting: str, strength: float):
    def views(**changed: float) -> dict[str, torch.Tensor]:
        start = {"crop.scale": (0.2, 1.0)} | NOTHING | WEAK | {"color_jitter.p": 1.0}
        spec = both_groups(view(start | changed))
        return multi_crop(canvas, drawn(spec, list(range(6))), spec)

    before, after = views(), views(**{setting: strength})
    for name in before:
        assert (before[name] != after[name]).flatten(2).any(-1).all()  # each view of each image


def test_operations_have_the_order_of_the_paper(canvas: torch.Tensor):
    wide = dataclasses.replace(EVERYTHING, blur=dataclasses.replace(EVERYTHING.blur, sigma_px=(3.0, 4.0)))
    spec = ViewSpec((ViewGroup("global", 24, (wide, EVERYTHING)),))
    d = drawn(spec, list(range(6)))["global"]
    x = crop_resize(canvas, d["crop"]["box"], d["flip"]["flip"], 24) / 255
    x = functional.jitter(x, d["color_jitter"]["factors"], d["color_jitter"]["order"])
    x = functional.blur(functional.gray(x, d["gray"]["gray"]), d["blur"]["sigma"], reach_px=100)
    x = functional.solarize(x, d["solarize"]["solarize"])
    # The tails beyond 5 sigma weigh 6e-7 per axis, over std ≥ 0.22. No value here is that near to 128/255.
    expected = functional.normalize(x, spec.mean, spec.std)
    torch.testing.assert_close(multi_crop(canvas, {"global": d}, spec)["global"], expected, atol=1e-5, rtol=0)


def test_neutral_parameters_change_no_bit(images: torch.Tensor):
    none = torch.zeros(2, 3, dtype=torch.bool)
    for order in permutations():
        assert torch.equal(functional.jitter(images, IDENTITY.expand(2, 3, 4), order.expand(2, 3, 4)), images)
    assert torch.equal(functional.gray(images, none), images)
    assert torch.equal(functional.blur(images, torch.zeros(2, 3)), images)
    assert torch.equal(functional.solarize(images, none), images)


def test_each_image_gets_its_own_parameters(images: torch.Tensor):
    """A batch of different numbers equals the images one by one: nothing leaks between samples."""
    g = torch.Generator().manual_seed(2)
    factors = torch.rand(2, 3, 4, generator=g) * 0.5 + torch.tensor([0.7, 0.7, 0.7, -0.25])
    order = permutations()[torch.randint(24, (2, 3), generator=g)]
    sigma = torch.rand(2, 3, generator=g).mul(2) * torch.tensor([[1, 0, 1], [0, 1, 1]])
    mask = torch.tensor([[True, False, True], [False, False, True]])
    stages = (
        (functional.jitter, (factors, order)),
        (functional.gray, (mask,)),
        (functional.blur, (sigma,)),
        (functional.solarize, (mask,)),
    )
    for stage, numbers in stages:
        together = stage(images, *numbers)
        for v, b in itertools.product(range(2), range(3)):
            alone = stage(images[v, b], *(n[v, b] for n in numbers))
            # Sums may be taken in another order: a few units in the last place of numbers up to 1.
            torch.testing.assert_close(together[v, b], alone, atol=1e-6, rtol=0)


def test_values_stay_in_range(images: torch.Tensor):
    factors = torch.tensor([2.0, 2.0, 2.0, 0.5]).expand(2, 3, 4)
    for order in permutations():
        x = functional.jitter(images, factors, order.expand(2, 3, 4))
        assert x.amin() >= 0
        assert x.amax() <= 1
    assert functional.blur(images, torch.full((2, 3), 2.0)).amax() <= 1 + 1e-6  # weights sum to 1 up to rounding


def test_views_do_not_depend_on_the_batch(canvas: torch.Tensor):
    together = drawn(SPEC, list(range(6)))
    some = [4, 1]
    apart = drawn(SPEC, some)
    for group in SPEC.groups:
        a, b = together[group.name], apart[group.name]
        whole = crop_resize(canvas, a["crop"]["box"], a["flip"]["flip"], group.size_px)
        assert torch.equal(
            whole[:, some], crop_resize(canvas[some], b["crop"]["box"], b["flip"]["flip"], group.size_px)
        )
    full, part = multi_crop(canvas, together, SPEC), multi_crop(canvas[some], apart, SPEC)
    for name in full:
        # Means and products may be summed in another order. Rounding of 1e-6 at most (above), divided by std ≥ 0.22.
        # A value that near 128/255 could be solarized in one and not the other: none is with this seed.
        torch.testing.assert_close(full[name][:, some], part[name], atol=5e-6, rtol=0)


def test_the_rest_of_the_canvas_does_not_matter(canvas: torch.Tensor):
    draws = drawn(SPEC, list(range(6)), size=(25, 31))
    other = torch.full_like(canvas, 255)
    other[..., :25, :31] = canvas[..., :25, :31]
    larger = torch.nn.functional.pad(canvas, (0, 9, 0, 3))
    for group in SPEC.groups:
        d = draws[group.name]
        cropped = crop_resize(canvas, d["crop"]["box"], d["flip"]["flip"], group.size_px)
        assert torch.equal(cropped, crop_resize(other, d["crop"]["box"], d["flip"]["flip"], group.size_px))
        assert torch.equal(cropped, crop_resize(larger, d["crop"]["box"], d["flip"]["flip"], group.size_px))


def test_flip_mirrors(canvas: torch.Tensor):
    box = drawn(SPEC, list(range(6)))["global"]["crop"]["box"]
    flip = torch.tensor([[True, False] * 3, [False, True] * 3])
    plain = crop_resize(canvas, box, flip & False, 24)
    flipped = crop_resize(canvas, box, flip, 24)
    assert torch.equal(flipped, torch.where(flip[..., None, None, None], plain.flip(-1), plain))


def test_a_crop_at_its_own_size_is_a_copy(canvas: torch.Tensor):
    box = torch.tensor([3, 5, 24, 24], dtype=torch.int32).expand(1, 6, 4)
    copied = crop_resize(canvas, box, torch.zeros(1, 6, dtype=torch.bool), 24)
    assert torch.equal(copied[0], canvas[..., 3:27, 5:29].float())


def test_blur_of_a_constant_and_of_one_pixel():
    x = torch.full((2, 3, 9, 9), 0.7)
    torch.testing.assert_close(functional.blur(x, torch.tensor([0.1, 2.0])), x, atol=1e-6, rtol=0)
    pixel = torch.rand(2, 3, 1, 1)
    torch.testing.assert_close(functional.blur(pixel, torch.tensor([0.5, 2.0])), pixel, atol=1e-6, rtol=0)


def test_float32_under_autocast(canvas: torch.Tensor):
    draws = drawn(SPEC, list(range(6)))
    plain = multi_crop(canvas, draws, SPEC)
    with torch.autocast("cpu", torch.bfloat16):
        cast = multi_crop(canvas, draws, SPEC)
    for name in plain:
        assert torch.equal(plain[name], cast[name])
