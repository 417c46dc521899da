"""The fixed images on which a run is judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opendino.core.contracts import Source
from opendino.core.errors import BadImage
from opendino.data.cache import DecodedImages
from opendino.features.eval_crops import content_warning, make


class Plain(Source):
    """Image i is full of i; even ones are of the first class, odd ones of the second. Some cannot be read."""

    def __init__(self, num: int, classes: tuple[str, ...] = ("cat", "dog"), bad: tuple[int, ...] = ()) -> None:
        self.num, self.classes, self.bad = num, classes, bad

    def __len__(self) -> int:
        return self.num

    def key(self, index: int) -> str:
        return str(index)

    def label(self, index: int) -> int:
        return index % 2 if self.classes else -1

    def read(self, index: int) -> np.ndarray:
        if index in self.bad:
            raise BadImage("torn")
        return np.full((16, 24, 3), index, np.uint8)


def images(*args: object, **options: object) -> DecodedImages:
    return DecodedImages(Plain(*args, **options), 10_000)


def numbers(crops: torch.Tensor) -> list[int]:
    return crops[:, 0, 0, 0].tolist()


def test_a_fifth_is_held_out_and_the_rest_is_the_bank() -> None:
    made = make(images(50), None, 30, 8)
    assert (made.bank.shape, made.queries.shape) == ((24, 3, 8, 8), (6, 3, 8, 8))
    assert made.labeled
    assert made.origin == "a fifth of these images, against the others"
    bank, queries = numbers(made.bank), numbers(made.queries)
    assert len(set(bank + queries)) == 30
    assert made.bank_labels.tolist() == [i % 2 for i in bank]
    assert made.query_labels.tolist() == [i % 2 for i in queries]


def test_it_is_the_same_every_time_and_a_smaller_one_is_part_of_it() -> None:
    one, other, small = (make(images(50), images(40), num, 8) for num in (30, 30, 12))
    assert torch.equal(one.bank, other.bank) and torch.equal(one.queries, other.queries)
    assert numbers(small.bank) == numbers(one.bank)[:12]


def test_more_than_there_are_is_all_there_are() -> None:
    made = make(images(10), None, 1000, 8)
    assert sorted(numbers(made.bank) + numbers(made.queries)) == list(range(10))


def test_queries_of_another_set_go_by_the_names_of_classes() -> None:
    made = make(images(20), images(20, classes=("bird", "cat")), 20, 8)
    assert made.origin == "held-out images"
    assert (len(made.bank), len(made.queries)) == (20, 5)
    # "cat" is 1 there and 0 here; "bird" is no class of the bank and must match none of it.
    assert all((label == 0) == (i % 2 == 1) for i, label in zip(numbers(made.queries), made.query_labels, strict=True))
    assert {int(label) for label in made.query_labels} - {0} == {2}


@pytest.mark.parametrize(("classes", "val"), [((), None), ((), ("a", "b")), (("a", "b"), ())])
def test_without_names_on_both_sides_all_images_are_bank(classes: tuple[str, ...], val: tuple[str, ...] | None) -> None:
    made = make(images(10, classes=classes), None if val is None else images(10, classes=val), 10, 8)
    assert not made.labeled
    assert (len(made.bank), len(made.queries), len(made.query_labels)) == (10, 0, 0)
    assert set(made.bank_labels.tolist()) == {-1}


def test_unreadable_images_are_left_out_with_their_labels() -> None:
    made = make(images(20, bad=(1, 2, 3)), None, 20, 8)
    bank, queries = numbers(made.bank), numbers(made.queries)
    assert sorted(bank + queries) == sorted(set(range(20)) - {1, 2, 3})
    assert made.bank_labels.tolist() == [i % 2 for i in bank]
    assert make(images(4, bad=(0, 1, 2, 3)), None, 4, 8).bank.shape == (0, 3, 8, 8)


def test_crops_are_the_middle_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[2:30, 18:46] = 200  # 7/8 of the shorter side, in the middle
    monkeypatch.setattr(Plain, "read", lambda self, index: picture)
    made = make(images(2, classes=()), None, 2, 28)
    assert bool((made.bank == 200).all())
    picture[1, 17] = 255  # just outside
    assert torch.equal(make(images(2, classes=()), None, 2, 28).bank, made.bank)


class Odd(Plain):
    """The first `distinct` images are of noise, or of one color each; the others are copies of the first."""

    def __init__(self, num: int, distinct: int, flat: bool) -> None:
        super().__init__(num)
        self.distinct, self.flat = distinct, flat

    def read(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index if index < self.distinct else 0)
        return np.broadcast_to(rng.integers(0, 256, (1, 1, 3) if self.flat else (16, 24, 3), np.uint8), (16, 24, 3))


@pytest.mark.parametrize(
    ("distinct", "flat", "told"),
    [
        (40, False, None), (1, True, "single color"), (40, True, "single color"), (1, False, "only 1 of 40"),
        (39, False, None), (20, False, "only 20 of 40"),
    ],
)  # fmt: skip
def test_copies_and_images_with_nothing_in_them_are_counted(distinct: int, flat: bool, told: str | None) -> None:
    made = make(DecodedImages(Odd(40, distinct, flat), 10_000), None, 40, 16)
    counts = made.content_counts()
    assert counts["images"] == 40 and counts["distinct"] == distinct and counts["flat"] == 40 * flat
    bank = {crop.numpy().tobytes() for crop in made.bank}
    assert counts["copy"] == sum(crop.numpy().tobytes() in bank for crop in made.queries)
    said = content_warning(counts)
    assert told in said if told else ("exact copies of labeled" in said) == (counts["copy"] > 0)


def test_one_class_is_no_labels_worth_the_name() -> None:
    class One(Plain):
        def label(self, index: int) -> int:
            return 0

    made = make(DecodedImages(One(20), 10_000), None, 20, 8)
    assert made.one_class and not made.labeled
    assert not make(images(20), None, 20, 8).one_class and not make(images(20, classes=()), None, 20, 8).one_class


class Half(Plain):
    """Every other image is of no known class."""

    def label(self, index: int) -> int:
        return index // 2 % 2 if index % 2 else -1


def test_images_of_unknown_class_are_neither_bank_nor_query() -> None:
    half = DecodedImages(Half(24), 10_000)
    for val in (None, half):
        made = make(half, val, 24, 16)
        for crops, labels in ((made.bank, made.bank_labels), (made.queries, made.query_labels)):
            assert len(labels) and [number // 2 % 2 for number in numbers(crops)] == labels.tolist()
            assert all(number % 2 for number in numbers(crops))
