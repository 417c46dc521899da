"""Batches are a pure function of their number: images, rank, micro-batch and view parameters."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.factories import plain_folder, plain_image

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.core.types import ViewGroup, ViewSpec
from opendino.data.cache import DecodedImages
from opendino.data.loader import Batch, Batches, batches, pad_to_batch
from opendino.data.open_source import open_source
from opendino.data.sampler import permutation
from opendino.views.sampling import sample_views
from opendino.views.settings import view

SPEC = ViewSpec(
    (ViewGroup("global", 16, (view({"crop.scale": (0.4, 1.0), "blur.p": 0.5}),) * 2), ViewGroup("local", 8, ()))
)
SEED = 3


class Plain(Source):
    """Image i is 4 + i px high and filled with i; some are unreadable."""

    def __init__(self, num: int, bad: tuple[int, ...] = ()) -> None:
        self.num, self.bad = num, bad

    def __len__(self) -> int:
        return self.num

    def key(self, index: int) -> str:
        return f"image {index}"

    def label(self, index: int) -> int:
        return index % 3

    def read(self, index: int) -> np.ndarray:
        if index in self.bad:
            raise BadImage("torn")
        return np.full((4 + index, 9, 3), index, np.uint8)


class Sharded(Plain):
    """The same images in shards of three."""

    def __init__(self, num: int, bad: tuple[int, ...] = ()) -> None:
        super().__init__(num, bad)
        self.shard_sizes = np.array([3] * (num // 3) + [num % 3])
        self.hints: list[np.ndarray] = []

    def prefetch(self, indices: np.ndarray) -> None:
        self.hints.append(indices)


def dataset(num: int = 13, batch: int = 4, bad: tuple[int, ...] = (), **options: int) -> Batches:
    return Batches(DecodedImages(Plain(num, bad), 10_000), SPEC, SEED, batch, **options)


def assert_equal(one: Batch, other: Batch) -> None:
    for name in ("canvas", "sizes", "labels", "indices"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.bad == other.bad
    assert one.draws.keys() == other.draws.keys()
    for name, group in one.draws.items():
        assert group.keys() == other.draws[name].keys()
        for augmentation, values in group.items():
            for key, value in values.items():
                assert torch.equal(value, other.draws[name][augmentation][key]), (augmentation, key)


def test_workers_change_nothing(tmp_path: Path) -> None:
    plain_folder(tmp_path, *[f"{number}.png" for number in range(9)])
    plain_image(7, 28, 30).save(tmp_path / "7.png")
    (tmp_path / "5.png").write_bytes(b"no image")
    data = Batches(DecodedImages(open_source(tmp_path), 400), SPEC, SEED, 4)
    alone, helped = (list(batches(data, 0, 5, workers, pin=False)) for workers in (0, 2))
    assert len(alone) == len(helped) == 5
    for one, other in zip(alone, helped, strict=True):
        assert_equal(one, other)
    assert any(batch.bad for batch in alone)


def test_a_stream_that_starts_late_is_the_end_of_the_whole_stream() -> None:
    whole, late = list(batches(dataset(), 0, 9, 0, pin=False)), list(batches(dataset(), 4, 9, 0, pin=False))
    for one, other in zip(whole[4:], late, strict=True):
        assert_equal(one, other)


def test_a_stream_leaves_global_chance_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(batches(dataset(), 0, 3, 0, pin=False))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_an_epoch_is_the_beginning_of_a_permutation_and_drops_the_rest() -> None:
    data = dataset(num=13, batch=4)
    assert data.steps_per_epoch == 3
    for epoch in range(3):
        seen = torch.cat([data[3 * epoch + step].indices for step in range(3)]).tolist()
        assert seen == permutation(13, SEED, epoch)[:12].tolist()
    orders = {tuple(permutation(13, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(13)) for order in orders)


@pytest.mark.parametrize(("world", "micro_batches"), [(2, 1), (1, 2), (3, 1), (1, 3), (2, 3), (3, 2)])
def test_ranks_and_micro_batches_split_the_images_of_a_step(world: int, micro_batches: int) -> None:
    whole = dataset(num=26, batch=12)
    shares = [
        dataset(num=26, batch=12, rank=rank, world_size=world, micro_batches=micro_batches) for rank in range(world)
    ]
    for step in range(3):  # one beyond the first epoch
        pieces = [share[step * micro_batches + part] for share in shares for part in range(micro_batches)]
        assert {len(piece.indices) for piece in pieces} == {12 // (world * micro_batches)}
        assert torch.equal(torch.cat([p.indices for p in pieces]).sort()[0], whole[step].indices.sort()[0])
        boxes = {int(i): whole[step].draws["global"]["crop"]["box"][:, n] for n, i in enumerate(whole[step].indices)}
        for piece in pieces:  # the crops of an image do not depend on the rank
            for n, index in enumerate(piece.indices.tolist()):
                assert torch.equal(piece.draws["global"]["crop"]["box"][:, n], boxes[index])


def test_a_batch_holds_the_pixels_sizes_and_labels_of_its_images() -> None:
    batch = dataset()[1]
    for n, index in enumerate(batch.indices.tolist()):
        assert batch.sizes[n].tolist() == [4 + index, 9]
        assert batch.labels[n] == index % 3
        assert bool((batch.canvas[n, :, : 4 + index, :9] == index).all())
        assert int(batch.canvas[n].sum()) == 3 * (4 + index) * 9 * index  # black beyond the image


def test_a_canvas_is_as_large_as_its_largest_image_in_multiples_of_32() -> None:
    canvas, sizes = pad_to_batch([np.ones((33, 5, 3), np.uint8), np.ones((2, 64, 3), np.uint8)])
    assert canvas.shape == (2, 3, 64, 64)
    assert sizes.tolist() == [[33, 5], [2, 64]]


def test_an_unreadable_image_is_replaced_by_the_next_of_the_epoch_and_reported() -> None:
    bad = (4, 5, 12)
    data = dataset(bad=bad)
    for step in range(6):
        order = permutation(13, SEED, step // 3).tolist()
        found, reports = [], []
        for place in range(4 * (step % 3), 4 * (step % 3) + 4):
            while order[place % 13] in bad:
                reports.append((f"image {order[place % 13]}", "torn"))
                place += 1
            found.append(order[place % 13])
        assert data[step].indices.tolist() == found
        assert data[step].bad == tuple(reports)
        assert_equal(data[step], data[step])


def test_a_stand_in_is_drawn_by_the_number_of_the_image_asked_for() -> None:
    data = dataset(bad=(4,))
    step = next(step for step in range(3) if 4 in permutation(13, SEED, 0)[4 * step :][:4])
    asked, batch = permutation(13, SEED, 0)[4 * step :][:4], data[step]
    expected = sample_views(SPEC, SEED, 0, asked, batch.sizes.numpy())["global"]
    assert torch.equal(batch.draws["global"]["crop"]["box"], expected["crop"]["box"])
    own = sample_views(SPEC, SEED, 0, batch.indices, batch.sizes.numpy())["global"]
    assert not torch.equal(batch.draws["global"]["color_jitter"]["factors"], own["color_jitter"]["factors"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_without_a_readable_image_stops_in_one_line(tmp_path: Path, workers: int) -> None:
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"torn")
    data = Batches(DecodedImages(open_source(tmp_path), 400), SPEC, SEED, 4)
    with pytest.raises(UserError, match=r"8 images in a row cannot be read, last \d\.png: ") as caught:
        next(batches(data, 0, 2, workers, pin=False))
    assert "\n" not in str(caught.value) and caught.value.hint


# --- blocks


def sharded(num: int = 48, batch: int = 12, bad: tuple[int, ...] = (), **options: int) -> Batches:
    return Batches(DecodedImages(Sharded(num, bad), 10_000), SPEC, SEED, batch, **options)


def test_blocks_an_epoch_sees_every_image_once_whatever_the_world() -> None:
    steps: list[list[int]] = []
    for world, micro_batches in ((1, 1), (2, 1), (3, 2), (4, 3)):
        shares = [sharded(rank=rank, world_size=world, micro_batches=micro_batches) for rank in range(world)]
        for step in range(8):
            pieces = [share[step * micro_batches + part] for share in shares for part in range(micro_batches)]
            assert {len(piece.indices) for piece in pieces} == {12 // (world * micro_batches)}
            steps.append(sorted(torch.cat([piece.indices for piece in pieces]).tolist()))
    assert steps[:8] == steps[8:16] == steps[16:24] == steps[24:]
    for epoch in range(2):
        assert sorted(itertools.chain(*steps[4 * epoch : 4 * epoch + 4])) == list(range(48))


def test_blocks_a_rank_reads_neighbors_and_says_so_before() -> None:
    whole, shares = sharded()[0], [sharded(rank=rank, world_size=2) for rank in range(2)]
    halves = [share[0].indices for share in shares]
    assert torch.cat(halves).equal(whole.indices.sort()[0])
    for share in shares:
        for step in range(4):
            share[step]
        hints = share.images.source.hints
        assert len(hints) == len({tuple(hint) for hint in hints}) > 1
        assert all(np.array_equal(hint, np.sort(hint)) for hint in hints)


def test_blocks_labeled_images_stay_first_in_every_part() -> None:
    spec = ViewSpec(SPEC.groups, labeled_frac=0.5)
    source = Sharded(48)
    source.label = lambda index: index % 3 if index < 12 else -1
    for rank in range(2):
        data = Batches(DecodedImages(source, 10_000), spec, SEED, 12, micro_batches=2, rank=rank, world_size=2)
        for n in range(12):
            assert bool((data[n].labels[: spec.num_labeled(3)] >= 0).all())


def test_blocks_unreadable_images_are_replaced() -> None:
    data = sharded(bad=(4, 5, 40))
    seen = torch.cat([data[step].indices for step in range(4)])
    assert not {4, 5, 40} & set(seen.tolist())
    assert {key for step in range(4) for key, _ in data[step].bad} == {"image 4", "image 5", "image 40"}


def test_blocks_a_stream_that_starts_late_is_the_end_of_the_whole_stream() -> None:
    whole, late = list(batches(sharded(), 0, 9, 0, pin=False)), list(batches(sharded(), 5, 9, 2, pin=False))
    for one, other in zip(whole[5:], late, strict=True):
        assert_equal(one, other)
