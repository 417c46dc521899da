"""Every kind of backbone keeps the contract of `core.contracts.Backbone`: ours, and those of timm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.factories import model_folder, model_of
from torch import Tensor

from opendino.core.contracts import Backbone
from opendino.core.errors import UsageError
from opendino.models.build import backbone
from opendino.models.load import load

SMALL_RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
KINDS = {
    "our ViT": ("vit/8", {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_registers": 1}),
    "conv4": ("conv4", {"width": 4}),
    "timm CNN": ("test_convnext", {}),
    "timm ViT": ("test_vit", {}),
    "3x3 stem": ("resnet18/3x3", SMALL_RESNET),
}
WITH_ATTENTION = {"our ViT", "timm ViT"}
SIDE = 32


def build(kind: str) -> Backbone:
    name, options = KINDS[kind]
    torch.manual_seed(0)
    return backbone(name, image_px=SIDE, **options).eval()


def images(count: int = 2, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_forward_gives_the_cls_feature_of_each_batch_at_its_own_size(kind: str) -> None:
    network, batches = build(kind), [images(2), images(3, SIDE, 2 * SIDE), images(1, 2 * SIDE, SIDE)]
    found = network(batches)
    assert [tuple(each.shape) for each in found] == [(count, network.embed_dim) for count in (2, 3, 1)]
    for batch, features in zip(batches, found, strict=True):
        assert features.dtype == torch.float32 and bool(features.isfinite().all())
        torch.testing.assert_close(features, network.features(batch).cls, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_tokens_of_one_width_on_a_grid(kind: str) -> None:
    network = build(kind)
    square, wide = (network.features(images(2, SIDE, width)) for width in (SIDE, 2 * SIDE))
    for found in (square, wide):
        assert found.cls.shape == (2, network.embed_dim)
        assert found.patches.ndim == 3 and found.patches.shape[:2] == (2, found.grid[0] * found.grid[1])
        assert found.registers.shape[::2] == found.patches.shape[::2]
    assert wide.grid == (square.grid[0], 2 * square.grid[1])
    assert wide.registers.shape == square.registers.shape


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_network_and_the_same_images_the_same_bits(kind: str) -> None:
    one, other = build(kind), build(kind)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
    assert torch.equal(one([images()])[0], other([images()])[0])
    alone = one([images()[1:]])[0]
    torch.testing.assert_close(one([images()])[0][1:], alone, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_name_and_kwargs_as_json_rebuild_it(kind: str) -> None:
    network = build(kind)
    name, kwargs = json.loads(json.dumps([network.name, network.kwargs]))
    again = backbone(name, **kwargs).eval()
    again.load_state_dict(network.state_dict())
    assert (again.name, again.embed_dim) == (network.name, network.embed_dim)
    assert torch.equal(again([images()])[0], network([images()])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_folder_gives_it_back_in_every_bit(kind: str, tmp_path: Path) -> None:
    network = build(kind)
    loaded = load(model_folder(tmp_path / "model", network, SIDE))
    assert torch.equal(loaded.embed(images()), model_of(network, SIDE).embed(images()))


@pytest.mark.parametrize("kind", KINDS)
def test_stages_hold_every_parameter_once(kind: str) -> None:
    network = build(kind)
    names = [name for stage in network.stages() for name in stage]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    assert all(network.stages())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_finite_gradient_from_the_cls_features(kind: str) -> None:
    network = build(kind).train()
    sum(features.square().sum() for features in network([images(4), images(2, 2 * SIDE, 2 * SIDE)])).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_a_distribution_over_all_tokens_or_is_refused_by_name(kind: str) -> None:
    network = build(kind)
    modules = list(network.modules())
    assert all(any(block is module for module in modules) for block in network.transformer_blocks())
    if kind not in WITH_ATTENTION:
        with pytest.raises(NotImplementedError, match=network.name):
            network.attention(images())
        return
    assert network.transformer_blocks()
    maps, found = network.attention(images()), network.features(images())
    tokens = 1 + found.registers.shape[1] + found.patches.shape[1]
    assert maps.shape == (2, maps.shape[1], tokens, tokens)
    assert bool((maps >= 0).all())
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_option_is_wrong_usage_in_one_line(kind: str) -> None:
    name, options = KINDS[kind]
    with pytest.raises(UsageError, match="nonsense") as caught:
        backbone(name, image_px=SIDE, **options, nonsense=1)
    assert "\n" not in str(caught.value)
