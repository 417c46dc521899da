"""The counter-based generator: the same numbers everywhere, uniform, and independent between neighboring keys."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from opendino.views.counter_rng import Numbers, augmentation_streams, image_streams, view_streams

MANY = 20_000


def numbers(
    seed: int = 0, epoch: int = 0, images: range = range(3), group: str = "global", name: str = "blur"
) -> Numbers:
    streams = view_streams(image_streams(seed, [epoch] * len(images), images), group, range(2))
    return Numbers(augmentation_streams(streams, name), np.ones((len(images), 2), np.int64), (8, 8), 3)


def test_numbers_are_the_same_in_every_process_and_version() -> None:
    """Recorded once: a change of these changes the views of every run."""
    found = numbers(7, 3).uniform(2)
    assert found.shape == (2, 3, 2)
    assert found.ravel()[:4].tolist() == [0.04527000505880152, 0.596092189996, 0.6585553863546161, 0.8019223776664914]


def test_each_call_gives_the_next_numbers() -> None:
    one, other = numbers(), numbers()
    whole = one.uniform(5)
    assert np.array_equal(whole, np.concatenate([other.uniform(2), other.uniform()[..., None], other.uniform(2)], -1))
    assert one.uniform(2, 3).shape == (2, 3, 2, 3)


def test_seed_epoch_image_group_view_and_name_give_other_numbers() -> None:
    start = numbers().uniform(4)
    others = [
        numbers(seed=1), numbers(epoch=1), numbers(images=range(1, 4)), numbers(group="local"), numbers(name="flip"),
        numbers(seed=2**64 - 1), numbers(epoch=2**63),
    ]  # fmt: skip
    seen = np.concatenate([start.ravel(), *(each.uniform(4).ravel() for each in others)])
    # The images 1 and 2 are in two of them.
    assert len(np.unique(seen)) == len(seen) - 2 * 2 * 4
    assert not np.isin(start, numbers(seed=1).uniform(100)).any(), "no stream is a shifted copy of another"


@pytest.mark.parametrize("key", ["image", "seed", "epoch", "counter"])
def test_numbers_are_uniform_along_every_key(key: str) -> None:
    if key == "image":
        found = numbers(images=range(MANY)).uniform()[0]
    elif key == "counter":
        found = numbers().uniform(MANY)[0, 0]
    else:
        found = np.array([numbers(**{key: value}, images=range(1)).uniform()[0, 0] for value in range(3000)])
    assert found.min() >= 0 and found.max() < 1
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    pairs = np.floor(found[:-1] * 8) * 8 + np.floor(found[1:] * 8)  # successive numbers together
    assert stats.chisquare(np.bincount(pairs.astype(int), minlength=64)).pvalue > 1e-3
    # A correlation of n independent pairs has standard deviation 1/√n.
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / math.sqrt(len(found))


def test_every_bit_of_a_number_is_fair_and_changes_with_every_bit_of_a_key() -> None:
    whole = (numbers(images=range(MANY)).uniform()[0] * 2**53).astype(np.uint64)
    ones = np.array([(whole >> np.uint64(bit) & np.uint64(1)).sum() for bit in range(53)])
    assert (abs(ones - MANY / 2) < 5 * math.sqrt(MANY) / 2).all()
    start = (numbers(images=range(2000)).uniform()[0] * 2**53).astype(np.uint64)
    for bit in (0, 1, 7, 31, 32, 62):
        images = [image ^ (1 << bit) for image in range(2000)]
        streams = view_streams(image_streams(0, [0] * 2000, images), "global", range(1))
        other = Numbers(augmentation_streams(streams, "blur"), np.ones((2000, 2), np.int64), (8, 8), 3).uniform()[0]
        changed = start ^ (other * 2**53).astype(np.uint64)
        flips = np.array([(changed >> np.uint64(b) & np.uint64(1)).mean() for b in range(53)])
        assert (abs(flips - 0.5) < 5 / (2 * math.sqrt(2000))).all(), bit


def test_between_and_happens_follow_their_arguments() -> None:
    rng = numbers(images=range(MANY))
    inside = rng.between(2.0, 5.0)
    assert inside.min() >= 2 and inside.max() < 5 and abs(inside.mean() - 3.5) < 0.05
    assert not rng.happens(0.0).any() and rng.happens(1.0).all()
    assert abs(rng.happens(0.3).mean() - 0.3) < 0.02
