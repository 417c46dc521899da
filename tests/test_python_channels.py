"""Datasets given in Python: gray of 16 bits, and images of any number of channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import FAST, SMALL_DINO

import opendino
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.data import readers
from opendino.data.readers.decoded_image import numbered
from opendino.data.sources import python


def test_gray_images_of_16_bits_are_images(tmp_path: Path) -> None:
    from opendino.data.decode import decode

    values = np.arange(40 * 36, dtype=np.uint16).reshape(40, 36) * 45
    for item in (values, Image.fromarray(values), torch.from_numpy(values)):
        read = python.PythonSource([item]).read(0)
        assert isinstance(read, bytes)
        pixels = decode(read)
        assert pixels.shape == (40, 36, 3) and pixels[-1, -1, 0] > 245 and pixels[0, 0, 0] == 0


class Bands(torch.utils.data.Dataset[Any]):
    """Images of C channels up to 3000, the last of which tells two classes apart."""

    def __init__(self, num_channels: int, kind: str = "array", dtype: Any = np.uint16) -> None:
        self.num_channels, self.kind, self.dtype = num_channels, kind, dtype

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = np.random.default_rng(index).integers(0, 1500, (33, 34, self.num_channels))
        pixels[..., -1] += 1500 * (index % 2)
        pixels = (pixels if self.dtype == np.uint16 else pixels // 12).astype(self.dtype)
        image = {
            "array": lambda: pixels,
            "channels first": lambda: np.ascontiguousarray(pixels.transpose(2, 0, 1)),
            "tensor": lambda: torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        }[self.kind]()
        return image, index % 2


class NamedBands(Bands):
    channels = ("DAPI", "GFP", "Cy3", "Cy5", "phase / contrast")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_of_any_channels_are_the_same_in_every_form_and_as_files(dtype: Any) -> None:
    for kind in ("array", "channels first", "tensor"):
        for channels in (2, 5, 12):
            made = readers.read(python.PythonSource(Bands(channels, kind, dtype)).read(3))
            assert np.array_equal(made.pixels, Bands(channels, "array", dtype)[3][0]) and made.pixels.dtype == dtype
            assert made.channels == numbered(channels)
        named = python.PythonSource(torch.utils.data.Subset(NamedBands(5, kind, dtype), [2, 3]))
        assert readers.read(named.read(1)).channels == NamedBands.channels
        assert np.array_equal(readers.read(named.read(1)).pixels, Bands(5, "array", dtype)[3][0])


def test_named_channels_decide_which_axis_is_theirs() -> None:
    class Small(list):
        channels = tuple(f"band {number}" for number in range(12))

    pixels = np.random.default_rng(0).integers(0, 9, (8, 8, 12), np.uint16)
    for image in (pixels, pixels.transpose(2, 0, 1)):
        assert np.array_equal(readers.read(python.PythonSource(Small([image])).read(0)).pixels, pixels)
    with pytest.raises(BadImage, match=r"\[12, 8, 12\] of uint8.* with 12 channels, band 0"):
        python.PythonSource(Small([np.zeros((12, 8, 12), np.uint8)])).read(0)
    Small.channels = "DAPI", "DAPI"
    with pytest.raises(UsageError, match="channels are 'DAPI', 'DAPI'"):
        python.PythonSource(Small([pixels]))


@pytest.mark.parametrize("channels", [1, 2, 5, 12])
def test_a_dataset_of_any_channels_trains_and_embeds(channels: int, tmp_path: Path) -> None:
    kind = "array" if channels == 2 else "tensor"
    dataset = (NamedBands if channels == 5 else Bands)(channels, kind, np.uint8 if channels == 12 else np.uint16)
    given = FAST | {"backbone": "conv4", "backbone_options": {"width": 2}, "drop_path": 0.0, "method": SMALL_DINO}
    result = opendino.train(dataset, out=tmp_path / "run", val=dataset, **given | {"steps": 2})
    model = opendino.load(result.run)
    assert model.backbone.in_chans == channels and len(model.preprocessing["mean"]) == channels
    assert model.reading.names == (NamedBands.channels if channels == 5 else numbered(channels))
    assert model.reading.bits == (8 if channels == 12 else 16)
    if channels != 12:
        low, high = model.reading.intensity[::2], model.reading.intensity[1::2]
        assert max(low) < 200 and high[-1] > 2800, "the range of the whole set"
    features = model.embed(dataset[3][0])
    assert features.shape == (1, 24) and features.isfinite().all()
    assert not torch.equal(features, model.embed(dataset[2][0]))


def test_a_dataset_without_a_clear_axis_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"8 of 8 images .* an array \[9, 9, 9\] of uint16: which axis"):
        opendino.train([np.zeros((9, 9, 9), np.uint16)] * 8, out=tmp_path / "run", **FAST)
    assert not (tmp_path / "run").exists()
