"""A batch filled on the device is equal to one from the loader."""

from __future__ import annotations

import pytest
import torch
from tests.data.test_cache import AREA, Counted

from opendino.data import device_cache
from opendino.data.cache import DecodedImages
from opendino.data.device_cache import DeviceCache
from opendino.data.loader import Batch, Batches
from opendino.methods import dino
from opendino.views.settings import changed

CPU = torch.device("cpu")
SPEC = dino.views(dino.Config(), changed(dino.VIEWS, {"global.size": 16, "local.size": 16, "local.number": 1}))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("chunk", [1, 2**26])
def test_batches_are_the_same_pixels_choices_and_complaints(
    monkeypatch: pytest.MonkeyPatch, workers: int, chunk: int
) -> None:
    monkeypatch.setattr(device_cache, "_CHUNK_BYTES", chunk)
    images = DecodedImages(Counted(11), AREA)
    kept = DeviceCache(images, CPU, workers)
    usual, sizes_alone = (Batches(each, SPEC, 7, 5) for each in (images, kept))
    for n in range(6):  # three epochs
        expected, small = usual[n], sizes_alone[n]
        assert isinstance(expected, Batch) and isinstance(small, Batch)
        assert small.canvas.numel() == 0
        filled = kept.fill(small)
        assert torch.equal(filled.canvas, expected.canvas)
        assert filled.canvas.stride() == expected.canvas.stride()
        assert filled.bad == expected.bad
        for name in ("sizes", "labels", "indices"):
            assert torch.equal(getattr(filled, name), getattr(expected, name))
        for name, one in expected.draws.items():
            assert torch.equal(one["crop"]["box"], filled.draws[name]["crop"]["box"])


@pytest.mark.gpu
def test_a_gpu_keeps_them_and_nothing_waits_for_it() -> None:
    images = DecodedImages(Counted(11), AREA)
    kept = DeviceCache(images, torch.device("cuda"), 0)
    expected, small = (Batches(each, SPEC, 7, 5)[0] for each in (images, kept))
    assert isinstance(expected, Batch) and isinstance(small, Batch)
    small = small.pin_memory().to(torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        filled = kept.fill(small)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(filled.canvas.cpu(), expected.canvas)


def test_every_image_is_read_once() -> None:
    source = Counted(6)
    kept = DeviceCache(DecodedImages(source, AREA), CPU, 0)
    batches = Batches(kept, SPEC, 0, 3)
    for n in range(8):
        assert isinstance(batches[n], Batch)
    assert source.reads == 6


def test_a_set_without_a_readable_image_is_refused_where_it_is_asked_for() -> None:
    kept = DeviceCache(DecodedImages(Counted(4, refuse=True), AREA), CPU, 0)
    assert "4 images in a row cannot be read, last 3: torn" in str(Batches(kept, SPEC, 0, 4)[0])
