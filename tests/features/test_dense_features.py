"""Windows over images: they cover, they agree with one pass, and labels follow the features."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import model_of, noise_image, small_vit
from torch import Tensor

from opendino.features.dense_features import DenseEncoder, Span, patch_encoder, pixel_encoder, spans
from opendino.models.build import backbone


@pytest.mark.parametrize("cell", [1, 4, 14])
def test_spans_cover_an_axis_once_by_whole_windows(cell: int) -> None:
    window = 9 * cell
    for cells in range(1, 60):
        found = spans(cells * cell, window, cell)
        assert (found[0].begin, found[-1].end) == (0, cells * cell)
        assert all(one.end == other.begin and one.end > one.begin for one, other in pairwise(found))
        for span in found:
            assert span.start % cell == 0 and span.start <= span.begin < span.end <= span.start + window
            assert span.start + window <= cells * cell or len(found) == 1
    assert spans(window, window, cell) == [Span(0, 0, window)]


def brightness(pixels: np.ndarray) -> Tensor:
    """Mean of each cell of 4 px and one: features that do not depend on the window."""
    rows, columns = pixels.shape[0] // 4, pixels.shape[1] // 4
    means = torch.from_numpy(pixels.mean(2)).float().unflatten(1, (columns, 4)).unflatten(0, (rows, 4)).mean((1, 3))
    return torch.stack([means, torch.ones_like(means)], 2)


def score(features: Tensor) -> Tensor:
    return torch.stack([features[:, 0], 128 * features[:, 1]], 1)


def test_windows_of_local_features_equal_one_pass() -> None:
    pixels = np.array(noise_image(61, 47).resize((10, 8)).resize((61, 47), Image.Resampling.BICUBIC))
    whole, parts = DenseEncoder(brightness, 4, 64), DenseEncoder(brightness, 4, 40)
    one, many = (encoder.label_maps(pixels, [score, lambda own: -score(own)]) for encoder in (whole, parts))
    assert one.shape == (2, 47, 61) and one.dtype == torch.uint8 and 0.2 < float(one[0].double().mean()) < 0.8
    torch.testing.assert_close(one, many, rtol=0, atol=0)
    places = torch.stack([torch.randint(0, 47, (50,)), torch.randint(0, 61, (50,))], 1)
    torch.testing.assert_close(whole.at(pixels, places), parts.at(pixels, places))
    assert (one[1] == 1 - one[0]).double().mean() > 0.99


def test_features_at_pixels_have_the_scores_of_the_label_map() -> None:
    pixels = np.array(noise_image(30, 21))
    encoder = patch_encoder(model_of(small_vit("vit/4", depth=2)), 2)
    weight = torch.randn(3, 48)
    places = torch.cartesian_prod(torch.arange(21), torch.arange(30))
    labels = (encoder.at(pixels, places) @ weight.T).argmax(1).view(21, 30)
    found = encoder.label_maps(pixels, [lambda features: features @ weight.T])[0]
    assert len(found.unique()) == 3 and (labels == found).double().mean() > 0.995  # ties up to rounding


def test_one_window_is_the_direct_pass() -> None:
    model = model_of(small_vit("vit/4", depth=2))  # trained at 16 px: windows are of 32 px
    pixels = np.array(noise_image(32, 24))
    direct = model.backbone.intermediate(model.normalize(pixels)[None], 2)
    weight = torch.randn(3, 48)
    grid = torch.cat([layer.patches[0] for layer in direct], 1) @ weight.T  # [48 3]
    scores = torch.nn.functional.interpolate(grid.T.view(1, 3, 6, 8), (24, 32), mode="bilinear")[0]
    found = patch_encoder(model, 2).label_maps(pixels, [lambda features: features @ weight.T])[0]
    assert torch.equal(found, scores.argmax(0).to(torch.uint8))


def test_any_size_and_any_number_of_channels() -> None:
    networks = {"vit/4": small_vit("vit/4", in_chans=5), "conv4": backbone("conv4", width=4, in_chans=5)}
    for name, network in networks.items():
        model = model_of(network)
        model.preprocessing.update(mean=[0.5] * 5, std=[0.5] * 5)
        model.preprocessing["images"] = {"names": ["a", "b", "c", "d", "e"]}
        for encoder in (patch_encoder(model, 1), pixel_encoder(model)):
            for height, width in ((1, 1), (33, 32), (7, 130)):
                pixels = np.random.default_rng(0).integers(0, 65536, (height, width, 5), np.uint16)
                found = encoder.label_maps(pixels, [lambda features: features[:, :2]])
                assert found.shape == (1, height, width), name
                assert encoder.at(pixels, torch.tensor([[height - 1, width - 1]])).isfinite().all()


def test_a_network_of_one_size_gets_windows_of_it() -> None:
    network = backbone("test_vit", image_px=32, class_token=False, global_pool="avg")
    model = model_of(network, 32)
    seen = []
    original = model.backbone.intermediate
    model.backbone.intermediate = lambda images, n: seen.append(images.shape[2:]) or original(images, n)  # type: ignore[method-assign]
    encoder = patch_encoder(model, 1)
    assert encoder.label_maps(np.array(noise_image(20, 50)), [lambda features: features[:, :2]]).shape == (1, 50, 20)
    assert set(seen) <= {(32, 32), (64, 32), (50, 20)} and seen
