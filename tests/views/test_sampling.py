"""Sampled view parameters: what they depend on, and their distributions. Seeds are fixed, so no test is flaky."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from opendino.core.types import ViewGroup, ViewSpec
from opendino.views.sampling import ViewParameters, sample_views
from opendino.views.settings import AUGMENTATIONS, View, view

GLOBAL = (
    view({"crop.scale": (0.4, 1.0), "blur.p": 1.0}),
    view({"crop.scale": (0.4, 1.0), "blur.p": 0.1, "solarize.p": 0.2}),
)
LOCAL = view({"crop.scale": (0.05, 0.4), "blur.p": 0.5})
P = ("flip", "color_jitter", "gray", "blur", "solarize")
MANY = 4000


def make_spec(num_local: int = 3) -> ViewSpec:
    return ViewSpec((ViewGroup("global", 224, GLOBAL), ViewGroup("local", 96, (LOCAL,) * num_local)))


def with_p(*p: float, **settings: object) -> View:
    """A view with probabilities for `P`, and settings by name with __ for the dot."""
    given = {f"{name}.p": value for name, value in zip(P, p, strict=True)}
    return view({"crop.scale": (0.4, 1.0)} | given | {name.replace("__", "."): x for name, x in settings.items()})


def one(view: View, count: int = MANY, size: tuple[int, int] = (240, 320), seed: int = 0) -> ViewParameters:
    """`count` samples of one view."""
    return sample_views(ViewSpec((ViewGroup("g", 8, (view,)),)), seed, 0, range(count), [size] * count)["g"]


def flat(d: ViewParameters) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": x for name, values in d.items() for key, x in values.items()}


def same(a: ViewParameters, b: ViewParameters) -> bool:
    one, other = flat(a), flat(b)
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


def at(d: ViewParameters, views: slice, images: list[int] | slice = slice(None)) -> ViewParameters:
    return d.map(lambda x: x[views][:, images])


def test_shapes_and_dtypes():
    draws = sample_views(make_spec(), 0, 0, range(5), torch.full((5, 2), 64))
    assert list(draws) == ["global", "local"]
    for name, num_views in (("global", 2), ("local", 3)):
        expected = {
            "crop.box": (torch.int32, (num_views, 5, 4)),
            "flip.flip": (torch.bool, (num_views, 5)),
            "color_jitter.factors": (torch.float32, (num_views, 5, 4)),
            "color_jitter.order": (torch.int64, (num_views, 5, 4)),
            "gray.gray": (torch.bool, (num_views, 5)),
            "blur.sigma": (torch.float32, (num_views, 5)),
            "solarize.solarize": (torch.bool, (num_views, 5)),
        }
        if name == "local":  # its probability is 0: not even sampled
            del expected["solarize.solarize"]
        assert {key: (x.dtype, tuple(x.shape)) for key, x in flat(draws[name]).items()} == expected
        assert list(draws[name]) == [each for each in AUGMENTATIONS if each in draws[name]], "in order of application"


def test_depends_on_the_image_and_not_on_the_batch():
    indices, sizes = [7, 0, 2**63 - 1, 2**63, 12], [(40, 60), (64, 64), (1, 9), (300, 200), (50, 50)]
    full = sample_views(make_spec(), 2**63, 2**63 - 1, indices, sizes)
    chosen = [3, 0, 4]
    part = sample_views(make_spec(), 2**63, 2**63 - 1, [indices[i] for i in chosen], [sizes[i] for i in chosen])
    for name in full:
        assert same(at(full[name], slice(None), chosen), part[name])


def test_local_views_do_not_move_global_ones():
    sizes = [(64, 80)] * 6
    ten, three, none = (sample_views(make_spec(n), 1, 2, range(6), sizes) for n in (10, 3, 0))
    assert same(ten["global"], three["global"])
    assert same(ten["global"], none["global"])
    assert same(at(ten["local"], slice(3)), three["local"])
    assert "local" not in none
    swapped = sample_views(ViewSpec(make_spec().groups[::-1]), 1, 2, range(6), sizes)
    assert same(swapped["global"], three["global"])
    assert same(swapped["local"], three["local"])


def test_seeds_epochs_images_groups_and_views_differ():
    jittered = view({"crop.scale": (0.1, 1.0), "color_jitter.p": 1.0})
    spec = ViewSpec((ViewGroup("a", 8, (jittered,) * 3), ViewGroup("b", 8, (jittered,) * 3)))
    factors = [
        d["color_jitter"]["factors"].flatten(0, 1)
        for seed, epoch in itertools.product(range(4), range(4))
        for d in sample_views(spec, seed, epoch, range(50), [(64, 64)] * 50).values()
    ]
    hues = torch.cat(factors)[:, 3].double()
    # 4800 hues among the ~2^21 float32 numbers in [-0.1, 0.1] that a rounded uniform can well reach collide about
    # 4800² / 2 / 2^21 ≈ 5 times by chance; one repeated stream would collide at least 150 times.
    assert len(hues) == 4800
    assert 4800 - len(hues.unique()) < 50


def test_neighboring_streams_are_uncorrelated():
    jittered = view({"crop.scale": (0.1, 1.0), "color_jitter.p": 1.0})
    spec = ViewSpec((ViewGroup("a", 8, (jittered, jittered)), ViewGroup("b", 8, (jittered,))))
    a, b = (
        each["color_jitter"]["factors"] for each in sample_views(spec, 0, 0, range(MANY), [(64, 64)] * MANY).values()
    )
    later = sample_views(spec, 0, 1, range(MANY), [(64, 64)] * MANY)["a"]["color_jitter"]["factors"]
    x = a[0]
    others = (a[1], b[0], later[0], x.roll(1, 0), x.roll(1, 1))
    for other in others:  # a correlation of n independent pairs has standard deviation 1/√n
        for column in range(4):
            r = np.corrcoef(x[:, column].numpy(), other[:, column].numpy())[0, 1]
            assert abs(r) < 5 / math.sqrt(MANY)


CHANGES = {
    "crop.scale": (0.01, 0.02), "crop.ratio": (3.0, 3.1), "crop.fixed": True, "flip.p": 1.0, "vertical_flip.p": 0.9,
    "quarter_turns.p": 0.9, "rotation.p": 0.9, "rotation.degrees": 20.0, "color_jitter.p": 1.0,
    "color_jitter.brightness": 0.05, "color_jitter.contrast": 0.05, "color_jitter.saturation": 0.05,
    "color_jitter.hue": 0.05, "channel_jitter.p": 0.9, "channel_jitter.brightness": 0.05,
    "channel_jitter.contrast": 0.05,
    "channel_drop.p": 0.9, "gamma.p": 0.9, "gamma.exponent": (0.5, 0.6), "gray.p": 1.0, "blur.p": 1.0,
    "blur.sigma_px": (3.0, 4.0), "noise.p": 0.9, "noise.std": (0.2, 0.3), "solarize.p": 1.0, "jpeg.p": 0.9,
    "jpeg.quality": (10, 20), "erase.p": 0.9, "erase.scale": (0.4, 0.5), "erase.ratio": (1.0, 1.1),
}  # fmt: skip
OPTIONAL = [name for name in AUGMENTATIONS if name != "crop"]
ALL_ON = view({f"{name}.p": 0.5 for name in OPTIONAL} | {"crop.scale": (0.3, 0.9)})


def test_every_setting_is_listed():
    configs = ((name, module.Config()) for name, module in AUGMENTATIONS.items())
    assert set(CHANGES) == {f"{name}.{f.name}" for name, config in configs for f in dataclasses.fields(config)}


@pytest.mark.parametrize("setting", CHANGES)
def test_every_setting_changes_its_own_view_and_its_own_augmentation(setting: str):
    name, key = setting.split(".")
    part = dataclasses.replace(getattr(ALL_ON, name), **{key: CHANGES[setting]})
    other, sizes = dataclasses.replace(ALL_ON, **{name: part}), [(90, 90)] * 40
    before = sample_views(ViewSpec((ViewGroup("g", 8, (ALL_ON,) * 3),)), 0, 0, range(40), sizes)["g"]
    for place in range(3):
        views = [ALL_ON] * 3
        views[place] = other
        after = sample_views(ViewSpec((ViewGroup("g", 8, tuple(views)),)), 0, 0, range(40), sizes)["g"]
        assert list(after) == list(AUGMENTATIONS)
        for augmentation in AUGMENTATIONS:
            for v in range(3):
                changed = any(not torch.equal(x[v], after[augmentation][k][v]) for k, x in before[augmentation].items())
                assert changed == (v == place and augmentation == name), (augmentation, v)


@pytest.mark.parametrize(("one", "two"), list(itertools.combinations(OPTIONAL, 2)))
def test_an_augmentation_added_or_removed_changes_no_number_of_another(one: str, two: str):
    """For every pair: alone, together with the other, and among all."""
    nothing = view({f"{name}.p": 0.0 for name in OPTIONAL})

    def sampled(*names: str) -> ViewParameters:
        on = {name: getattr(ALL_ON, name) for name in names}
        spec = ViewSpec((ViewGroup("g", 8, (dataclasses.replace(nothing, crop=ALL_ON.crop, **on),) * 2),))
        return sample_views(spec, 5, 3, range(20), [(60, 80)] * 20)["g"]

    both, every = sampled(one, two), sampled(*OPTIONAL)
    assert list(both) == [name for name in AUGMENTATIONS if name in ("crop", one, two)]
    for d in (sampled(one), sampled(two), both):
        for name, values in d.items():
            assert same(ViewParameters({name: values}), ViewParameters({name: every[name]}))


def test_probability_zero_is_never_and_one_is_always():
    # Beside a view that has them all, so that they are sampled.
    never, always = with_p(0, 0, 0, 0, 0), with_p(1, 1, 1, 1, 1)
    spec = ViewSpec((ViewGroup("g", 8, (never, always)),))
    d = flat(sample_views(spec, 0, 0, range(MANY), [(240, 320)] * MANY)["g"])
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0])
    for name in ("flip.flip", "gray.gray", "solarize.solarize"):
        assert not d[name][0].any() and d[name][1].all()
    assert not d["blur.sigma"][0].any() and (d["blur.sigma"][1] >= 0.1).all()
    assert torch.equal(d["color_jitter.factors"][0], neutral.expand(MANY, 4))
    assert (d["color_jitter.factors"][1] != neutral).any(-1).all()
    assert list(one(never)) == ["crop"], "what never happens costs nothing"


def test_probabilities():
    p = {"flip": 0.5, "jitter": 0.8, "gray": 0.2, "blur": 0.1, "solarize": 0.3}
    d = flat(one(with_p(*p.values())))
    happened = {"flip": d["flip.flip"], "jitter": d["color_jitter.factors"][..., 3] != 0, "gray": d["gray.gray"]}
    happened |= {"blur": d["blur.sigma"] > 0, "solarize": d["solarize.solarize"]}
    for name, share in p.items():  # five standard deviations of a binomial
        assert abs(happened[name].sum().item() - MANY * share) < 5 * math.sqrt(MANY * share * (1 - share)), name
    for a, b in itertools.combinations(p, 2):  # the choices are independent of each other
        both = (happened[a] & happened[b]).sum().item()
        share = p[a] * p[b]
        assert abs(both - MANY * share) < 5 * math.sqrt(MANY * share * (1 - share)), (a, b)


def test_factors_and_sigma_are_uniform():
    d = flat(one(with_p(0, 1, 0, 1, 0, color_jitter__brightness=1.2, color_jitter__contrast=1.5)))
    ranges = {0: (0.0, 2.2), 1: (0.0, 2.5), 2: (0.8, 1.2), 3: (-0.1, 0.1)}  # a factor is never below 0
    columns = [(d["color_jitter.factors"][0, :, c], *ranges[c]) for c in ranges] + [(d["blur.sigma"][0], 0.1, 2.0)]
    for values, low, high in columns:
        assert stats.kstest(values.numpy(), "uniform", args=(low, high - low)).pvalue > 1e-3


def test_order_is_a_uniform_permutation():
    order = one(LOCAL)["color_jitter"]["order"][0].numpy()
    _, counts = np.unique(order @ [64, 16, 4, 1], return_counts=True)
    assert (np.sort(order) == np.arange(4)).all()
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 30000), (30000, 1), (1, 2), (3, 500), (37, 53)])
@pytest.mark.parametrize("scale", [(0.05, 0.4), (0.4, 1.0), (1.0, 1.0)])
def test_boxes_are_inside_the_image(size: tuple[int, int], scale: tuple[float, float]):
    top, left, height, width = one(view({"crop.scale": scale}), 500, size)["crop"]["box"][0].unbind(-1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()


def square(area: float) -> View:
    return view({"crop.scale": (area, area), "crop.ratio": (1.0, 1.0)})


def test_whole_image_is_reached():
    box = one(square(1.0), 100, (48, 48))["crop"]["box"][0]
    assert torch.equal(box, torch.tensor([0, 0, 48, 48], dtype=torch.int32).expand(100, 4))


def test_position_reaches_both_ends():
    # A 1×1 box in a 3×3 image: nine equally likely places.
    box = one(square(1 / 9), MANY, (3, 3))["crop"]["box"][0]
    counts = np.bincount((box[:, 0] * 3 + box[:, 1]).numpy(), minlength=9)
    assert (box[:, 2:] == 1).all()
    assert stats.chisquare(counts).pvalue > 1e-3


def test_moves_between_devices_and_processes():
    d = one(LOCAL, 4)
    assert same(pickle.loads(pickle.dumps(d)), d)  # from a worker
    assert same(d.to("cpu", non_blocking=True), d)
    assert d.to("meta")["blur"]["sigma"].is_meta
    assert d.to("meta")["crop"]["box"].is_meta


@pytest.mark.gpu
def test_pinned_by_the_loader():
    spec = make_spec()
    loader = torch.utils.data.DataLoader(
        range(4), batch_size=2, pin_memory=True, collate_fn=lambda i: sample_views(spec, 0, 0, i, [(64, 64)] * len(i))
    )
    for batch in loader:
        assert batch["global"]["crop"]["box"].is_pinned()
        assert batch["local"]["blur"]["sigma"].is_pinned()
