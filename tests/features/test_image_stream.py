"""One loop from images to features: batches in order, bad images collected, outputs to the bit."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.sources.toy import ToySource
from opendino.features.image_stream import check_finite, encode_images, none_readable, read_ahead, skipped_message
from opendino.models.build import backbone
from opendino.models.load import Model, preprocessing


class Torn(Source):
    """Images of size 4 full of their index; those in `torn` cannot be read. Records what is read."""

    def __init__(self, num: int, torn: tuple[int, ...] = ()) -> None:
        self.num, self.torn, self.read_indices = num, torn, list[int]()

    def __len__(self) -> int:
        return self.num

    def key(self, index: int) -> str:
        return f"{index}.png"

    def label(self, index: int) -> int:
        return -1

    def read(self, index: int) -> np.ndarray:
        self.read_indices.append(index)
        if index in self.torn:
            raise BadImage("torn")
        return np.full((4, 4, 3), index, np.uint8)


def first_value(position: int, pixels: np.ndarray) -> int:
    if position == 4:
        raise BadImage("too thin")
    return int(pixels[0, 0, 0])


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
@pytest.mark.parametrize("workers", [1, 3, None])
def test_images_come_once_in_order_and_bad_ones_apart(batch: int, workers: int | None) -> None:
    source, indices = Torn(20, torn=(8,)), [3, 5, 8, 9, 2, 11]
    found = list(encode_images(source, indices, first_value, sum, batch, workers))
    assert [position for part in found for position in part.positions] == [0, 1, 3, 5]
    assert [image for part in found for image in part.images] == [3, 5, 9, 11]
    assert [part.output for part in found] == [sum(part.images) if part.images else None for part in found]
    assert [pair for part in found for pair in part.bad] == [("8.png", "torn"), ("2.png", "too thin")]
    assert [len(part.images) + len(part.bad) for part in found][:-1] == [batch] * (len(found) - 1)


@pytest.mark.parametrize(("batch", "within"), [(4, 10), (3, 3), (7, 1), (50, 6)])
def test_no_batch_crosses_a_section(batch: int, within: int) -> None:
    found = list(encode_images(Torn(23), range(23), lambda _, pixels: pixels, len, batch, within=within))
    ends = {part.positions[-1] + 1 for part in found}
    assert max(part.output or 0 for part in found) <= batch and ends >= {*range(within, 23, within), 23}


def test_no_images_give_no_batch() -> None:
    assert list(encode_images(Torn(3), [], first_value, sum, 4)) == []


def test_the_next_batch_is_read_while_the_network_runs_and_no_more() -> None:
    source, ready, prepared = Torn(40), threading.Event(), list[int]()

    def prepare(position: int, pixels: np.ndarray) -> int:
        prepared.append(position)
        if len(prepared) == 8:  # the first and the second batch
            ready.set()
        return position

    stream = encode_images(source, range(40), prepare, lambda images: ready.wait(20), 4, workers=2)
    assert next(stream).output, "the second batch is prepared during the first"
    assert sorted(source.read_indices) == list(range(8))
    stream.close()
    assert sorted(source.read_indices) == list(range(8)), "nothing is read after the end"


def test_errors_that_are_not_about_an_image_end_the_loop() -> None:
    def load(number: int) -> int:
        if number == 3:
            raise KeyboardInterrupt
        return number

    stream = read_ahead(load, 10, workers=2)
    assert [next(stream) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(KeyboardInterrupt):
        next(stream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_those_of_a_plain_loop_to_the_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = backbone("vit/8", image_px=16, embed_dim=24, depth=2, num_heads=2).to(dtype)
    model, source = Model(network, preprocessing(16), {}), ToySource(n=11)

    def run(images: list[Tensor]) -> Tensor:
        return model.run(lambda x: model.backbone([x])[0], torch.stack(images))

    stream = encode_images(source, range(11), lambda _, pixels: model.preprocess(pixels), run, 4)
    found = torch.cat([part.output for part in stream if part.output is not None])
    with torch.no_grad():
        images = torch.stack([model.preprocess(source.read(index)) for index in range(11)]).to(dtype)
        plain = torch.cat([model.backbone([part])[0] for part in images.split(4)])
    assert torch.equal(found, plain) and not found.requires_grad


def test_messages() -> None:
    assert skipped_message([("a", "torn"), ("b", "empty")]) == "2 unusable left out, e.g. a: torn"
    assert skipped_message([]) == ""
    assert "None of the 2 images can be read, e.g. a: torn" in str(none_readable(2, [("a", "torn")]))
    assert "None of the 0 images can be read." in str(none_readable(0, []))
    check_finite(torch.ones(3), torch.zeros(0, 4))
    for value in (torch.nan, torch.inf):
        with pytest.raises(UserError, match="NaN or infinite"):
            check_finite(torch.ones(3), torch.full((2, 2), value))
