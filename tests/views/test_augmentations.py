"""Each augmentation against an independent definition of it, for RGB and other channels."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from opendino.core import registry
from opendino.core.errors import UsageError
from opendino.core.types import ViewGroup, ViewSpec
from opendino.views.multi_crop import multi_crop
from opendino.views.sampling import ViewParameters, sample_views
from opendino.views.settings import AUGMENTATIONS, View, view

OFF = {f"{name}.p": 0.0 for name in AUGMENTATIONS if name != "crop"} | {"crop.scale": (1.0, 1.0)}
NEUTRAL_C = {"color_jitter.saturation": 0.0, "color_jitter.hue": 0.0}
RGB_ONLY = ("color_jitter", "gray", "solarize")
SIDE = 32


def alone(values: dict[str, object]) -> View:
    return view(OFF | values)


def pixels(channels: int = 3, images: int = 6, smooth: bool = True) -> torch.Tensor:
    """uint8 `[B C 32 32]`."""
    generator = torch.Generator().manual_seed(0)
    if not smooth:
        return torch.randint(0, 256, (images, channels, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    coarse = torch.rand(images, channels, 5, 5, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 255).to(torch.uint8)


def made(
    canvas: torch.Tensor, values: dict[str, object], views: int = 2, size: int | tuple[int, int] = SIDE, seed: int = 0
) -> tuple[torch.Tensor, ViewParameters]:
    """The views of the images `[V B C H W]` in [0, 1], and their parameters."""
    channels = canvas.shape[1]
    spec = ViewSpec((ViewGroup("g", size, (alone(values),) * views),), (0.0,) * channels, (1.0,) * channels)
    draws = sample_views(spec, seed, 0, range(len(canvas)), [tuple(canvas.shape[-2:])] * len(canvas))
    return multi_crop(canvas, draws, spec)["g"], draws["g"]


def test_every_augmentation_keeps_the_contract() -> None:
    for name, module in AUGMENTATIONS.items():
        assert module.Config.__dataclass_params__.frozen and isinstance(module.ORDER, int)
        if name != "crop":
            assert hasattr(module, "place") != hasattr(module, "apply"), "moves pixels, or changes them"
            assert callable(module.title) and hasattr(module.Config(), "p")
    assert next(iter(AUGMENTATIONS)) == "crop"
    assert set(AUGMENTATIONS) == set(registry.names("opendino.views.augmentations"))
    orders = [module.ORDER for module in AUGMENTATIONS.values()]
    assert len(set(orders)) == len(orders)


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "crop"])
def test_a_view_without_it_keeps_every_bit_beside_one_that_has_it(name: str) -> None:
    canvas = pixels(smooth=False)
    spec = ViewSpec((ViewGroup("g", SIDE, (alone({}), alone({f"{name}.p": 1.0}))),), (0.0,) * 3, (1.0,) * 3)
    draws = sample_views(spec, 0, 0, range(6), [(SIDE, SIDE)] * 6)
    plain, other = multi_crop(canvas, draws, spec)["g"]
    assert torch.equal(plain, canvas / 255)
    assert (other != plain).flatten(1).any(-1).sum() >= 4  # a turn by 0 degrees is one of four
    titles = [
        AUGMENTATIONS[name].title({key: x[v, b] for key, x in draws["g"][name].items()})
        for v, b in itertools.product(range(2), range(6))
    ]
    assert titles[:6] == [None] * 6 and sum(title is not None for title in titles[6:]) >= 4
    if hasattr(AUGMENTATIONS[name], "drawn"):
        changed = AUGMENTATIONS[name].drawn(draws["g"][name])
        assert changed.flatten().tolist() == [title is not None for title in titles]


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "crop"])
def test_it_works_for_any_number_of_channels_or_says_why_not(name: str, channels: int) -> None:
    canvas = pixels(channels)
    if name in RGB_ONLY:
        with pytest.raises(UsageError, match=rf"{channels} channels") as caught:
            made(canvas, {f"{name}.p": 1.0})
        assert "--views.all." in caught.value.hint
        if name != "color_jitter":
            return
    out, _ = made(canvas, {f"{name}.p": 1.0} | (NEUTRAL_C if name == "color_jitter" else {}))
    assert out.shape == (2, 6, channels, SIDE, SIDE) and out.dtype == torch.float32
    assert out.min() >= 0 and out.max() <= 1 + 1e-6
    assert torch.equal(out[0], canvas / 255) == (name == "channel_drop" and channels == 1)


def test_brightness_and_contrast_of_other_channels_are_those_of_rgb_but_for_the_mean() -> None:
    values = {"color_jitter.p": 1.0, "color_jitter.brightness": 0.8, "color_jitter.contrast": 0.8} | NEUTRAL_C
    one = pixels(1)
    gray, _ = made(one.expand(-1, 3, -1, -1), values)  # the luma of gray is the value itself
    other, _ = made(one.expand(-1, 5, -1, -1), values)
    torch.testing.assert_close(other[:, :, :3], gray, atol=1e-5, rtol=0)


def test_flips_and_turns_are_exact() -> None:
    canvas = pixels(smooth=False)
    out, p = made(canvas, {"flip.p": 0.5, "vertical_flip.p": 0.5, "quarter_turns.p": 1.0}, views=12)
    turns = p["quarter_turns"]["turns"]
    assert set(turns.flatten().tolist()) == {0, 1, 2, 3}
    for v, b in itertools.product(range(12), range(6)):
        expected = canvas[b] / 255
        expected = expected.flip(-1) if p["flip"]["flip"][v, b] else expected
        expected = expected.flip(-2) if p["vertical_flip"]["flip"][v, b] else expected
        assert torch.equal(out[v, b], torch.rot90(expected, int(turns[v, b]), (-2, -1)))


def test_turns_are_equally_likely_and_need_square_views() -> None:
    _, p = made(pixels(images=500), {"quarter_turns.p": 1.0}, views=4)
    assert stats.chisquare(np.bincount(p["quarter_turns"]["turns"].flatten())).pvalue > 1e-3
    with pytest.raises(UsageError, match="square views, and these have 16 × 32"):
        made(pixels(), {"quarter_turns.p": 1.0}, size=(16, 32))


def test_a_rotation_by_a_right_angle_is_a_turn_and_every_angle_reaches_the_range() -> None:
    module, x = AUGMENTATIONS["rotation"], pixels() / 255
    angle = torch.tensor([[0.0, math.pi / 2, -math.pi / 2, math.pi, 1e-7, 0.3]])
    out = module.apply(x[None], {"angle": angle}, ())[0]
    assert torch.equal(out[0], x[0])
    for b, turns in ((1, 1), (2, -1), (3, 2)):
        torch.testing.assert_close(out[b], torch.rot90(x[b], turns, (-2, -1)), atol=1e-4, rtol=0)
    torch.testing.assert_close(out[4], x[4], atol=1e-4, rtol=0)
    _, p = made(pixels(images=2000), {"rotation.p": 1.0, "rotation.degrees": 20.0}, views=1)
    degrees = np.degrees(p["rotation"]["angle"][0].numpy())
    assert stats.kstest(degrees, "uniform", args=(-20, 40)).pvalue > 1e-3


def test_a_rotated_wide_view_keeps_its_circles_round() -> None:
    y, x = torch.meshgrid(torch.arange(24) - 11.5, torch.arange(48) - 23.5, indexing="ij")
    disk = ((x**2 + y**2).sqrt() < 5).float().expand(1, 1, 1, -1, -1)
    turned = AUGMENTATIONS["rotation"].apply(disk, {"angle": torch.tensor([[0.7]])}, ())
    assert (turned - disk).abs().mean() < 0.01


def test_gamma_and_channel_jitter_are_their_formulas() -> None:
    canvas = pixels()
    out, p = made(canvas, {"gamma.p": 1.0, "gamma.exponent": (0.5, 2.0)})
    exponent = p["gamma"]["exponent"]
    torch.testing.assert_close(out, (canvas / 255) ** exponent[..., None, None, None], atol=1e-6, rtol=0)
    assert exponent.min() < 1 < exponent.max()
    out, p = made(canvas, {"channel_jitter.p": 1.0})
    factors = p["channel_jitter"]["factors"]
    assert factors.shape == (2, 6, 2, 3) and (factors - 1).abs().max() <= 0.2
    for v, b, c in itertools.product(range(2), range(6), range(3)):
        bright = (canvas[b, c] / 255 * factors[v, b, 0, c]).clamp(0, 1)
        expected = (bright.mean() + (bright - bright.mean()) * factors[v, b, 1, c]).clamp(0, 1)
        torch.testing.assert_close(out[v, b, c], expected, atol=1e-6, rtol=0)


def test_noise_is_normal_and_a_function_of_its_key() -> None:
    canvas = torch.full((40, 3, SIDE, SIDE), 128, dtype=torch.uint8)
    values: dict[str, object] = {"noise.p": 1.0, "noise.std": (0.05, 0.05)}
    out, p = made(canvas, values)
    noise = (out - 128 / 255) / 0.05
    assert stats.kstest(noise.flatten().numpy()[:50_000], "norm").pvalue > 1e-3
    assert abs(float(noise.mean())) < 5 / math.sqrt(noise.numel()) and abs(float(noise.std()) - 1) < 0.01
    flat = noise.flatten(2).flatten(0, 1)  # [V * B, C * H * W]
    for other in (flat.roll(1, 0), flat.roll(1, 1), flat.roll(SIDE, 1), flat.roll(SIDE**2, 1)):
        r = float((flat * other).mean())
        assert abs(r) < 5 / math.sqrt(flat.numel())
    again, _ = made(canvas[:3], values)
    assert torch.equal(again, out[:, :3]), "the rest of the batch does not matter"
    assert len(p["noise"]["key"].unique()) == 80


@pytest.mark.parametrize("quality", [10, 30, 75, 95])
def test_jpeg_is_that_of_pillow_without_subsampling(quality: int) -> None:
    canvas = pixels()[:, :, :24, :29].contiguous()  # not a multiple of 8
    spec = ViewSpec(
        (ViewGroup("g", (24, 29), (alone({"jpeg.p": 1.0, "jpeg.quality": (quality, quality), "crop.fixed": True}),)),),
        (0.0,) * 3, (1.0,) * 3,
    )  # fmt: skip
    out = multi_crop(canvas, sample_views(spec, 0, 0, range(6), [(24, 29)] * 6), spec)["g"][0] * 255
    for image, ours in zip(canvas, out, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality, subsampling=0)
        theirs = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        difference = (ours - theirs).abs()
        # libjpeg computes in integers, and a coefficient near a half can fall on its other side.
        assert difference.mean() < 0.6 and difference.max() < 30
        assert (ours - image).abs().mean() > difference.mean() or quality == 95


def test_erased_rectangles_have_their_area_and_the_mean_color() -> None:
    canvas = pixels(images=300)
    out, p = made(canvas, {"erase.p": 1.0, "erase.scale": (0.1, 0.2)}, views=1)
    top, left, bottom, right = p["erase"]["box"][0].unbind(-1)
    area = (bottom - top) * (right - left)
    assert area.min() > 0.0999 and area.max() < 0.2001
    assert top.min() >= 0 and left.min() >= 0 and bottom.max() <= 1 and right.max() <= 1
    for b in range(5):
        mean = (canvas[b] / 255).mean((-2, -1))[:, None, None]
        inside = (out[0, b] != canvas[b] / 255).any(0)
        assert abs(inside.float().mean() - area[b]) < 0.06
        torch.testing.assert_close(out[0, b][:, inside], mean[..., 0].expand(-1, int(inside.sum())))


def test_fixed_crops_copy_pixels_and_stay_inside() -> None:
    canvas = pixels(smooth=False)
    out, p = made(canvas, {"crop.fixed": True}, size=(8, 16), views=20)
    box = p["crop"]["box"]
    assert (box[..., 2:] == torch.tensor([8, 16])).all()
    assert set(box[..., 0].flatten().tolist()) <= set(range(25)) and len(box[..., 1].unique()) > 10
    for v, b in itertools.product(range(3), range(6)):
        top, left = box[v, b, :2].tolist()
        assert torch.equal(out[v, b], canvas[b, :, top : top + 8, left : left + 16] / 255)
    wide, p = made(canvas, {"crop.fixed": True}, size=(8, 64))
    assert (p["crop"]["box"][..., 2:] == torch.tensor([8, SIDE])).all(), "an image that is smaller is used whole"


@pytest.mark.parametrize("size", [(16, 48), (48, 16)])
def test_a_rectangle_keeps_the_proportions_of_the_image(size: tuple[int, int]) -> None:
    spec = ViewSpec((ViewGroup("g", size, (alone({"crop.scale": (0.1, 0.15), "crop.ratio": (0.8, 1.25)}),)),))
    sizes = [(400, 600)] * 3000
    _, _, height, width = sample_views(spec, 0, 0, range(3000), sizes)["g"]["crop"]["box"][0].double().unbind(-1)
    stretch = (width / height) / (size[1] / size[0])
    assert stretch.min() > 0.75 and stretch.max() < 1.35
    inside = (width < 600) & (height < 400)
    assert (
        stats.kstest(np.log(stretch[inside].numpy()), "uniform", args=(math.log(0.8), 2 * math.log(1.25))).pvalue > 1e-4
    )
    out, _ = made(pixels(), {}, size=size)
    assert out.shape == (2, 6, 3, *size)


@pytest.mark.usefixtures("dense_kernels")
def test_everything_together_is_one_graph() -> None:
    on = {f"{name}.p": 0.7 for name in AUGMENTATIONS if name != "crop"} | {"crop.scale": (0.3, 1.0)}
    spec = ViewSpec((ViewGroup("g", 24, (view(on),) * 2),))
    draws = sample_views(spec, 0, 0, range(6), [(SIDE, SIDE)] * 6)
    compiled = torch.compile(multi_crop, fullgraph=True, backend="eager")(pixels(), draws, spec)
    # torch 2.9 rounds differently in a graph.
    torch.testing.assert_close(compiled["g"], multi_crop(pixels(), draws, spec)["g"], rtol=0, atol=2e-6)
