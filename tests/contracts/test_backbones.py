"""Every kind of backbone keeps the contract of `core.contracts.Backbone`: ours, timm's, and a plain nn.Module."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.factories import model_folder, model_of
from torch import Tensor

from opendino.core.contracts import Backbone
from opendino.core.errors import UsageError, UserError
from opendino.models.build import backbone
from opendino.models.load import load
from opendino.models.module_backbone import from_factory
from opendino.models.vit import SIZES

SMALL_RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
KINDS = {
    "our ViT": ("vit/8", {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_registers": 1}),
    "conv4": ("conv4", {"width": 4}),
    "timm CNN": ("test_convnext", {}),
    "timm ViT": ("test_vit", {}),
    "3x3 stem": ("resnet18/3x3", SMALL_RESNET),
    "nn.Module": ("python:Plain", {}),
}
BY_NAME = [kind for kind in KINDS if kind != "nn.Module"]
WITH_ATTENTION = {"our ViT", "timm ViT"}
WITH_MASKS = WITH_ATTENTION
SIDE = 32


class Plain(torch.nn.Sequential):
    """A network of somebody else: images to a feature map."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 6, 4, 4), torch.nn.GELU(), torch.nn.Conv2d(6, 8, 2, 2))


def build(kind: str) -> Backbone:
    name, options = KINDS[kind]
    torch.manual_seed(0)
    if kind == "nn.Module":
        return from_factory(name, Plain, options).eval()
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
@pytest.mark.parametrize("kind", BY_NAME)
def test_name_and_kwargs_as_json_rebuild_it(kind: str) -> None:
    network = build(kind)
    name, kwargs = json.loads(json.dumps([network.name, network.kwargs]))
    again = backbone(name, **kwargs).eval()
    again.load_state_dict(network.state_dict())
    assert (again.name, again.embed_dim) == (network.name, network.embed_dim)
    assert torch.equal(again([images()])[0], network([images()])[0])


@pytest.mark.parametrize("kind", BY_NAME)
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


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_with_tokens_forward_gives_the_features_of_each_batch(kind: str) -> None:
    network, batches = build(kind), [images(2), images(1, SIDE, 2 * SIDE)]
    for found, batch in zip(network(batches, tokens=True), batches, strict=True):
        wanted = network.features(batch)
        assert found.grid == wanted.grid and found.patches.shape == wanted.patches.shape
        for name in ("cls", "registers", "patches"):
            torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=1e-5)


def test_a_network_without_tokens_says_so() -> None:
    pooled = torch.nn.Sequential(Plain(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    network = from_factory("python:pooled", lambda: pooled, {})
    assert network([images()])[0].shape == (2, 8)
    with pytest.raises(UserError, match="pooled' gives one feature per image") as caught:
        network([images()], tokens=True)
    assert "vit_small/16" in str(caught.value.hint)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_intermediate_gives_the_last_layers_and_refuses_more_than_there_are(kind: str) -> None:
    network, batch = build(kind), images(2, SIDE, 2 * SIDE)
    number = network.num_layers
    assert (number > 1) == (kind in WITH_ATTENTION)
    layers, last = network.intermediate(batch, number), network.features(batch)
    assert len(layers) == number
    torch.testing.assert_close(layers[-1].cls, last.cls, rtol=0, atol=1e-5)
    for layer in layers:
        assert layer.grid == last.grid
        assert (layer.patches.shape, layer.registers.shape) == (last.patches.shape, last.registers.shape)
    if number > 1:
        assert not torch.allclose(layers[-2].cls, last.cls, atol=1e-3)
        assert torch.equal(network.intermediate(batch, 1)[0].cls, last.cls)
    with pytest.raises(UserError, match=rf"last {number + 1} blocks were asked for and {network.name}"):
        network.intermediate(batch, number + 1)


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(WITH_MASKS))
def test_a_masked_patch_is_not_seen(kind: str) -> None:
    network, batch = build(kind), images(2, SIDE, 2 * SIDE)
    before = network.state_dict().keys()
    network.learn_mask_token()
    assert network.state_dict().keys() == before | {"mask_token"}
    assert torch.equal(network.mask_token, torch.zeros(1, 1, network.embed_dim))
    network.mask_token.normal_()
    rows, columns = network.features(batch).grid
    mask = torch.zeros(2, rows, columns, dtype=torch.bool)
    mask[0, 1:3, 2:5], mask[1, 0] = True, True
    side = SIDE // rows
    pixels = mask.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
    other = torch.where(pixels, batch + 1, batch)
    plain, first, second = (
        network([each], masks=each_mask, tokens=True)[0]
        for each, each_mask in ((batch, [None]), (batch, [mask.flatten(1)]), (other, [mask.flatten(1)]))
    )
    assert torch.equal(first.patches, second.patches) and torch.equal(first.cls, second.cls)
    assert not torch.allclose(first.cls, plain.cls, atol=1e-3)
    assert torch.equal(plain.patches, network.features(batch).patches)
    # Only the first batch has a mask; the CLS features alone are the same.
    both = network([batch, batch], masks=[mask.flatten(1), None])
    for found, wanted in zip(both, (first.cls, plain.cls), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(WITH_MASKS))
def test_the_mask_token_learns(kind: str) -> None:
    network = build(kind).train()
    network.learn_mask_token()
    mask = torch.zeros(2, network.features(images()).patches.shape[1], dtype=torch.bool)
    mask[:, 0] = True
    network([images()], masks=[mask])[0].square().sum().backward()
    assert network.mask_token.grad.abs().sum() > 0
    names = [name for stage in network.stages() for name in stage]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters()) and "mask_token" in names


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - WITH_MASKS))
def test_a_network_without_patches_to_mask_names_those_that_have_them(kind: str) -> None:
    with pytest.raises(UserError, match="none that can be masked") as caught:
        build(kind).learn_mask_token()
    assert all(f"{name}/16" in caught.value.hint for name in SIZES)


@pytest.mark.parametrize("kind", BY_NAME)
def test_an_unknown_option_is_wrong_usage_in_one_line(kind: str) -> None:
    name, options = KINDS[kind]
    with pytest.raises(UsageError, match="nonsense") as caught:
        backbone(name, image_px=SIDE, **options, nonsense=1)
    assert "\n" not in str(caught.value)
