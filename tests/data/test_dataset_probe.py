"""The sample that is decoded before training."""

from __future__ import annotations

import numpy as np
import pytest

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.dataset_probe import probe_dataset


class Plain(Source):
    """Image i is (10 + i) × 50 px; some are unreadable."""

    def __init__(self, num: int, bad: range = range(0)) -> None:
        self.num, self.bad, self.seen = num, bad, []

    def __len__(self) -> int:
        return self.num

    def key(self, index: int) -> str:
        return f"image {index}"

    def label(self, index: int) -> int:
        return -1

    def read(self, index: int) -> np.ndarray:
        self.seen.append(index)
        if index in self.bad:
            raise BadImage("torn")
        return np.zeros((10 + index, 50, 3), np.uint8)


def test_median_of_the_shorter_side_and_mean_area() -> None:
    looked = probe_dataset(Plain(5), 0.5)
    assert (looked.short_side_px, looked.area_px) == (12, 12 * 50)


def test_a_large_set_is_sampled_evenly_from_its_first_to_its_last() -> None:
    source = Plain(1000)
    probe_dataset(source, 0.5, num=5)
    assert sorted(source.seen) == [0, 250, 500, 749, 999]  # 749.25 rounds down


def test_each_image_of_a_small_set_is_probed_once() -> None:
    source = Plain(3)
    probe_dataset(source, 0.5)
    assert sorted(source.seen) == [0, 1, 2]


def test_up_to_the_share_bad_images_are_left_out() -> None:
    looked = probe_dataset(Plain(10, bad=range(5)), 0.5)
    assert looked.short_side_px == 17  # of 15 … 19
    with pytest.raises(UserError, match=r"6 of 10 images looked at cannot be read, e\.g\. image 0: torn") as caught:
        probe_dataset(Plain(10, bad=range(6)), 0.5)
    assert caught.value.hint


def test_a_set_without_one_readable_image_is_refused_whatever_the_share() -> None:
    with pytest.raises(UserError, match="3 of 3 images looked at cannot be read"):
        probe_dataset(Plain(3, bad=range(3)), 1.0)


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_images_are_refused(num: int) -> None:
    with pytest.raises(UserError, match=f"The set has {num} image") as caught:
        probe_dataset(Plain(num), 0.5)
    assert caught.value.hint


@pytest.mark.parametrize("num", [99, 100])
def test_fewer_than_100_images_are_a_warning(num: int, capsys: pytest.CaptureFixture[str]) -> None:
    probe_dataset(Plain(num), 0.5)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == (num < 100)
    assert all("99 images are too few" in line and "--tiles" in line and "--init" in line for line in told)
