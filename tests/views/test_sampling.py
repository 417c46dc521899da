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

from opendino.core.types import Augment, ViewGroup, ViewSpec
from opendino.views.sampling import ViewParameters, sample_views

GLOBAL = (Augment((0.4, 1.0), blur=1.0), Augment((0.4, 1.0), blur=0.1, solarize=0.2))
LOCAL = Augment((0.05, 0.4), blur=0.5)
MANY = 4000


def make_spec(num_local: int = 3) -> ViewSpec:
    return ViewSpec((ViewGroup("global", 224, GLOBAL), ViewGroup("local", 96, (LOCAL,) * num_local)))


def one(view: Augment, count: int = MANY, size: tuple[int, int] = (240, 320), seed: int = 0) -> ViewParameters:
    """`count` samples of one view."""
    return sample_views(ViewSpec((ViewGroup("g", 8, (view,)),)), seed, 0, range(count), [size] * count)["g"]


def same(a: ViewParameters, b: ViewParameters) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(ViewParameters))


def at(d: ViewParameters, views: slice, images: list[int] | slice = slice(None)) -> ViewParameters:
    return ViewParameters(**{f.name: getattr(d, f.name)[views][:, images] for f in dataclasses.fields(ViewParameters)})


def test_shapes_and_dtypes():
    draws = sample_views(make_spec(), 0, 0, range(5), torch.full((5, 2), 64))
    assert list(draws) == ["global", "local"]
    for name, num_views in (("global", 2), ("local", 3)):
        d = draws[name]
        assert {f.name: (getattr(d, f.name).dtype, tuple(getattr(d, f.name).shape)) for f in dataclasses.fields(d)} == {
            "box": (torch.int32, (num_views, 5, 4)),
            "flip": (torch.bool, (num_views, 5)),
            "factors": (torch.float32, (num_views, 5, 4)),
            "order": (torch.int64, (num_views, 5, 4)),
            "gray": (torch.bool, (num_views, 5)),
            "sigma": (torch.float32, (num_views, 5)),
            "solarize": (torch.bool, (num_views, 5)),
        }


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
    view = Augment((0.1, 1.0), jitter=1.0)
    spec = ViewSpec((ViewGroup("a", 8, (view,) * 3), ViewGroup("b", 8, (view,) * 3)))
    factors = [
        d.factors.flatten(0, 1)
        for seed, epoch in itertools.product(range(4), range(4))
        for d in sample_views(spec, seed, epoch, range(50), [(64, 64)] * 50).values()
    ]
    hues = torch.cat(factors)[:, 3].double()
    # 4800 hues among the ~2^21 float32 numbers in [-0.1, 0.1] that a rounded uniform can well reach collide about
    # 4800² / 2 / 2^21 ≈ 5 times by chance; one repeated stream would collide at least 150 times.
    assert len(hues) == 4800
    assert 4800 - len(hues.unique()) < 50


def test_neighboring_streams_are_uncorrelated():
    view = Augment((0.1, 1.0), jitter=1.0)
    spec = ViewSpec((ViewGroup("a", 8, (view, view)), ViewGroup("b", 8, (view,))))
    a, b = sample_views(spec, 0, 0, range(MANY), [(64, 64)] * MANY).values()
    later = sample_views(spec, 0, 1, range(MANY), [(64, 64)] * MANY)["a"]
    x = a.factors[0]
    others = (a.factors[1], b.factors[0], later.factors[0], x.roll(1, 0), x.roll(1, 1))
    for other in others:  # a correlation of n independent pairs has standard deviation 1/√n
        for column in range(4):
            r = np.corrcoef(x[:, column].numpy(), other[:, column].numpy())[0, 1]
            assert abs(r) < 5 / math.sqrt(MANY)


CHANGES = {
    "scale": (0.01, 0.02),
    "ratio": (3.0, 3.1),
    "flip": 1.0,
    "jitter": 1.0,
    "brightness": 0.05,
    "contrast": 0.05,
    "saturation": 0.05,
    "hue": 0.05,
    "gray": 1.0,
    "blur": 1.0,
    "sigma_px": (3.0, 4.0),
    "solarize": 1.0,
}
AFFECTS = {"scale": "box", "ratio": "box", "flip": "flip", "gray": "gray", "solarize": "solarize"}
AFFECTS |= dict.fromkeys(("jitter", "brightness", "contrast", "saturation", "hue"), "factors")
AFFECTS |= dict.fromkeys(("blur", "sigma_px"), "sigma")


def test_every_field_is_listed():
    assert set(CHANGES) == set(AFFECTS) == {f.name for f in dataclasses.fields(Augment)}


@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("place", range(3))
def test_every_field_moves_its_own_view_and_its_own_number(field: str, place: int):
    base = Augment((0.3, 0.9), flip=0.5, jitter=0.5, gray=0.5, blur=0.5, solarize=0.5)
    views = [base] * 3
    before = sample_views(ViewSpec((ViewGroup("g", 8, tuple(views)),)), 0, 0, range(40), [(90, 90)] * 40)["g"]
    views[place] = dataclasses.replace(base, **{field: CHANGES[field]})
    after = sample_views(ViewSpec((ViewGroup("g", 8, tuple(views)),)), 0, 0, range(40), [(90, 90)] * 40)["g"]
    for f in dataclasses.fields(ViewParameters):
        for view in range(3):
            changed = not torch.equal(getattr(before, f.name)[view], getattr(after, f.name)[view])
            assert changed == (view == place and f.name == AFFECTS[field]), (f.name, view)


def test_probability_zero_is_never_and_one_is_always():
    never = Augment((0.4, 1.0), flip=0, jitter=0, gray=0, blur=0, solarize=0)
    d = one(never)
    assert not d.flip.any()
    assert not d.gray.any()
    assert not d.solarize.any()
    assert not d.sigma.any()
    assert torch.equal(d.factors, torch.tensor([1.0, 1.0, 1.0, 0.0]).expand_as(d.factors))
    d = one(Augment((0.4, 1.0), flip=1, jitter=1, gray=1, blur=1, solarize=1))
    assert d.flip.all()
    assert d.gray.all()
    assert d.solarize.all()
    assert (d.sigma >= 0.1).all()
    assert (d.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(-1).all()


def test_probabilities():
    p = {"flip": 0.5, "jitter": 0.8, "gray": 0.2, "blur": 0.1, "solarize": 0.3}
    d = one(Augment((0.4, 1.0), **p))
    happened = {"flip": d.flip, "jitter": d.factors[..., 3] != 0, "gray": d.gray, "blur": d.sigma > 0}
    happened["solarize"] = d.solarize
    for name, share in p.items():  # five standard deviations of a binomial
        assert abs(happened[name].sum().item() - MANY * share) < 5 * math.sqrt(MANY * share * (1 - share)), name
    for a, b in itertools.combinations(p, 2):  # the choices are independent of each other
        both = (happened[a] & happened[b]).sum().item()
        share = p[a] * p[b]
        assert abs(both - MANY * share) < 5 * math.sqrt(MANY * share * (1 - share)), (a, b)


def test_factors_and_sigma_are_uniform():
    d = one(Augment((0.4, 1.0), jitter=1, brightness=1.2, contrast=1.5, saturation=0.2, hue=0.1, blur=1))
    ranges = {0: (0.0, 2.2), 1: (0.0, 2.5), 2: (0.8, 1.2), 3: (-0.1, 0.1)}  # a factor is never below 0
    columns = [(d.factors[0, :, c], *ranges[c]) for c in ranges] + [(d.sigma[0], 0.1, 2.0)]
    for values, low, high in columns:
        assert stats.kstest(values.numpy(), "uniform", args=(low, high - low)).pvalue > 1e-3


def test_order_is_a_uniform_permutation():
    order = one(Augment((0.4, 1.0))).order[0].numpy()
    _, counts = np.unique(order @ [64, 16, 4, 1], return_counts=True)
    assert (np.sort(order) == np.arange(4)).all()
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 30000), (30000, 1), (1, 2), (3, 500), (37, 53)])
@pytest.mark.parametrize("scale", [(0.05, 0.4), (0.4, 1.0), (1.0, 1.0)])
def test_boxes_are_inside_the_image(size: tuple[int, int], scale: tuple[float, float]):
    top, left, height, width = one(Augment(scale), 500, size).box[0].unbind(-1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()


def test_whole_image_is_reached():
    box = one(Augment((1.0, 1.0), ratio=(1.0, 1.0)), 100, (48, 48)).box[0]
    assert torch.equal(box, torch.tensor([0, 0, 48, 48], dtype=torch.int32).expand(100, 4))


def test_position_reaches_both_ends():
    # A 1×1 box in a 3×3 image: nine equally likely places.
    box = one(Augment((1 / 9, 1 / 9), ratio=(1.0, 1.0)), MANY, (3, 3)).box[0]
    counts = np.bincount((box[:, 0] * 3 + box[:, 1]).numpy(), minlength=9)
    assert (box[:, 2:] == 1).all()
    assert stats.chisquare(counts).pvalue > 1e-3


def test_moves_between_devices_and_processes():
    d = one(LOCAL, 4)
    assert same(pickle.loads(pickle.dumps(d)), d)  # from a worker
    assert same(d.to("cpu", non_blocking=True), d)
    assert d.to("meta").sigma.is_meta
    assert d.to("meta").box.is_meta


@pytest.mark.gpu
def test_pinned_by_the_loader():
    spec = make_spec()
    loader = torch.utils.data.DataLoader(
        range(4), batch_size=2, pin_memory=True, collate_fn=lambda i: sample_views(spec, 0, 0, i, [(64, 64)] * len(i))
    )
    for batch in loader:
        assert batch["global"].box.is_pinned()
        assert batch["local"].solarize.is_pinned()
