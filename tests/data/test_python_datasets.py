"""Datasets given in Python that raise, and what their labels are."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.core.errors import BadImage
from opendino.data.sources import python


class Broken(torch.utils.data.Dataset):
    """Five gray images; the second is cut short and opened lazily, the third raises, the last is not there."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index == 2:
            raise KeyError("gone")
        if index == 5:
            raise IndexError(index)
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (64, 64), np.uint8)).save(file, "PNG")
        return Image.open(io.BytesIO(file.getvalue()[: 300 if index == 1 else None])), index % 2


def test_items_that_raise_are_bad_images_and_have_no_label() -> None:
    source = python.PythonSource(Broken())
    for index, reason in ((1, "OSError"), (2, "KeyError: 'gone'"), (5, "IndexError")):
        with pytest.raises(BadImage, match=reason):
            source.read(index)
    assert source.read(0).shape == (64, 64, 3) and [source.label(n) for n in range(6)] == [0, 1, -1, 1, 0, -1]


@pytest.mark.parametrize(
    ("given", "classes", "labels"),
    [
        (["cat", "ant", None], ("ant", "cat"), [1, 0, -1]),
        ([0.2, 0.9, 1.7], (), [-1, -1, -1]),
        ([[0, 1], [1, 1], [0, 0]], (), [-1, -1, -1]),
        ([np.int64(1), True, torch.tensor(0)], ("0", "1"), [1, 1, 0]),
    ],
)
def test_labels_are_classes_or_not_used(given: list[Any], classes: tuple[str, ...], labels: list[int]) -> None:
    class WithTargets(list):
        targets = given

    source = python.PythonSource(WithTargets([np.zeros((4, 4), np.uint8)] * 3))
    assert source.classes == classes and [source.label(n) for n in range(3)] == labels
