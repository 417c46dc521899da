"""The kernels of a CPU against those of other devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opendino.core.types import ViewGroup, ViewSpec
from opendino.views import functional, kernels
from opendino.views.crop_resize import crop_resize
from opendino.views.multi_crop import multi_crop
from opendino.views.sampling import sample_views
from opendino.views.settings import AUGMENTATIONS, view


def test_both_kernels_resize_alike(monkeypatch: pytest.MonkeyPatch):
    """Sums over taps and matrix products differ by rounding of float32, which moves few values, by one level."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        bits, channels, (height, width) = rng.choice([8, 16]), int(rng.choice([1, 2, 3, 5])), rng.integers(5, 150, 2)
        dtype = np.dtype(f"uint{bits}")
        images = rng.integers(-(2 ** (bits - 1)), 3 * 2 ** (bits - 1), (3, channels, height, width)).clip(
            0, 2**bits - 1
        )
        canvas = torch.from_numpy(images.astype(dtype))
        h, w = (
            rng.integers(1, height + 1, (2, 3)),
            rng.integers(1, width + 1, (2, 3)),
        )  # the rest of the canvas is empty
        box = np.stack([rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w], -1).astype(np.int32)
        flips = torch.from_numpy(rng.random((2, 2, 3)) < 0.5)
        size = tuple(int(side) for side in rng.integers(1, 100, 2))
        found = []
        for by_index in (True, False):
            monkeypatch.setattr(kernels, "by_index", lambda x, answer=by_index: answer)
            found.append(crop_resize(canvas, torch.from_numpy(box), flips[0], size, flips[1]))
        assert found[0].dtype == found[1].dtype == canvas.dtype and found[0].shape == (2, 3, channels, *size)
        away = (found[0].int() - found[1].int()).abs()
        assert away.max() <= 1 and (away > 0).double().mean() < (0.01 if bits == 8 else 0.2)
        monkeypatch.undo()
        again = crop_resize(
            canvas[1:2].clone(), torch.from_numpy(box[:, 1:2]), flips[0, :, 1:2], size, flips[1, :, 1:2]
        )
        assert torch.equal(again[:, 0], found[0][:, 1]), "an image alone is the same image"


def test_both_kernels_augment_alike(monkeypatch: pytest.MonkeyPatch):
    """Every view has its own augmentations, drawn or not; without two that jump at a threshold; whole images."""
    canvas = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8)
    on = {f"{name}.p": 0.5 for name in AUGMENTATIONS if name not in ("crop", "solarize", "jpeg")}
    spec = ViewSpec((ViewGroup("local", 40, (view({"crop.scale": (1.0, 1.0)} | on),) * 6),))
    draws, found = sample_views(spec, 0, 0, range(6), [(40, 40)] * 6), []
    for by_index in (True, False):
        monkeypatch.setattr(kernels, "by_index", lambda x, answer=by_index: answer)
        found.append(multi_crop(canvas, draws, spec))
    for name, x in found[0].items():
        assert (x - found[1][name]).abs().max() < 1e-4
    drawn_frac = AUGMENTATIONS["blur"].drawn(draws["local"]["blur"]).double().mean()
    assert 0.2 < drawn_frac < 0.8


@pytest.mark.parametrize("side", [64, 97])
def test_both_kernels_blur_alike(side: int, monkeypatch: pytest.MonkeyPatch):
    """At sizes where a CPU uses blocks, the edge of the last of which lies outside."""
    x, sigma, found = torch.rand(2, 3, 2, side, side + 5), torch.tensor([[0.0, 0.1, 2.0], [1.0, 0.4, 0.0]]), []
    for by_index in (True, False):
        monkeypatch.setattr(kernels, "by_index", lambda x, answer=by_index: answer)
        found.append(functional.blur(x, sigma))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
    assert torch.equal(found[0][sigma == 0], x[sigma == 0])


def test_images_of_a_kind_are_computed_together_and_the_others_stay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "CHUNK", 8)  # four images of two values
    images, kind, calls = torch.zeros(9, 2), torch.tensor([1, 0, 7, 1, 1, 0, 1, 1, 7]), []

    def function(some: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        calls.append(rows.tolist())
        return some + kind[torch.from_numpy(rows), None]

    kernels.by_kind_(images, kind, function)
    assert calls == [[0, 3, 4, 6], [7], [2, 8]]
    assert torch.equal(images, kind[:, None].expand(9, 2).float())


def test_a_captured_graph_and_tensors_without_data_have_the_dense_kernels():
    assert kernels.by_index(torch.ones(1))
    assert not kernels.by_index(torch.ones(1, device="meta"))
    with torch._subclasses.FakeTensorMode():
        assert not kernels.by_index(torch.ones(1))
    seen = []
    torch.compile(lambda x: seen.append(kernels.by_index(x)) or x + 1, backend="eager")(torch.ones(1))
    assert seen == [False]
