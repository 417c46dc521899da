"""timm's models behind our contract: which feature, which tokens, which names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from opendino.core.contracts import Backbone
from opendino.core.errors import UsageError, UserError
from opendino.models.build import backbone
from opendino.models.timm_backbone import TimmBackbone, published_preprocessing

REGISTERS = {"embed_dim": 48, "depth": 2, "num_heads": 3, "image_px": 56}
MODELS = [  # name, options, D, width of patches, grid at 64 px, registers
    ("resnet18", {}, 512, 512, (2, 2), 0),
    ("resnet18/3x3", {}, 512, 512, (8, 8), 0),
    ("resnet50", {}, 2048, 2048, (2, 2), 0),
    ("convnext_atto", {}, 320, 320, (2, 2), 0),
    ("test_efficientnet", {}, 256, 256, (2, 2), 0),
    ("mobilenetv3_small_050", {}, 1024, 288, (2, 2), 0),
    ("deit_tiny_patch16_224", {"depth": 2}, 192, 192, (4, 4), 0),
    ("vit_tiny_patch16_224", {"depth": 2}, 192, 192, (4, 4), 0),
    ("vit_base_patch14_reg4_dinov2", REGISTERS, 48, 48, (4, 4), 4),
    ("test_vit", {}, 64, 64, (4, 4), 0),
    ("test_vit4", {}, 96, 96, (4, 4), 1),
]


def build(name: str, **options: object) -> TimmBackbone:
    torch.manual_seed(0)
    built = backbone(name, **options).eval()
    assert isinstance(built, TimmBackbone)
    return built


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options", "width", "patch_width", "grid", "registers"), MODELS, ids=[m[0] for m in MODELS]
)
def test_features_have_the_promised_shapes(
    name: str, options: dict[str, int], width: int, patch_width: int, grid: tuple[int, int], registers: int
) -> None:
    model = build(name, **options)
    side = 56 if "patch14" in name else 64
    images = noise(2, 3, side, side)
    found = model.features(images)
    assert model.embed_dim == width
    assert found.cls.shape == (2, width)
    assert found.grid == grid
    assert found.patches.shape == (2, grid[0] * grid[1], patch_width)
    assert found.registers.shape == (2, registers, patch_width)
    assert torch.equal(model([images])[0], found.cls)


@torch.no_grad()
def test_several_sizes() -> None:
    for model in (build("test_resnet"), build("test_vit")):
        large, small, wide = noise(1, 3, 64, 64), noise(3, 3, 32, 32), noise(2, 3, 32, 64)
        outputs = model([large, small, wide])
        assert [tuple(output.shape) for output in outputs] == [(n, model.embed_dim) for n in (1, 3, 2)]
        assert torch.equal(outputs[1], model.features(small).cls)
        rows, columns = model.features(wide).grid
        assert columns == 2 * rows


@torch.no_grad()
def test_feature_of_a_vit_is_its_normed_class_token() -> None:
    model, images = build("vit_tiny_patch16_224", depth=2), noise(2, 3, 32, 32)
    tokens = model.model.forward_features(images)  # after the last norm
    assert torch.equal(model([images])[0], tokens[:, 0])
    assert (tokens[:, 0].mean(-1).abs().max(), (tokens[:, 0].var(-1, correction=0) - 1).abs().max()) < (1e-5, 1e-2)
    assert torch.equal(model.features(images).patches, tokens[:, 1:])


@torch.no_grad()
def test_feature_of_a_network_without_class_token_is_pooled() -> None:
    model, images = build("resnet18"), noise(2, 3, 64, 64)
    found = model.features(images)
    torch.testing.assert_close(found.cls, found.patches.mean(1), rtol=1e-5, atol=1e-6)
    by_column = model.model.forward_features(images)[:, :, 1, 0]
    assert torch.equal(found.patches[:, found.grid[1]], by_column)  # row by row


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_vit4"])
def test_attention_is_what_the_last_block_mixes_with(name: str) -> None:
    model, images, seen = build(name), noise(1, 3, 48, 32), {}
    last = model.model.blocks[-1].attn
    last.register_forward_hook(lambda module, inputs, output: seen.update(tokens=inputs[0], output=output))
    attention = model.attention(images)
    heads = attention.shape[1]
    values = last.qkv(seen["tokens"]).chunk(3, dim=-1)[2].unflatten(-1, (heads, -1)).transpose(1, 2)
    mixed = last.proj(last.norm((attention @ values).transpose(1, 2).flatten(2)))
    torch.testing.assert_close(mixed, seen["output"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:3]))


def test_no_attention_says_so() -> None:
    with pytest.raises(NotImplementedError, match="test_resnet"):
        build("test_resnet").attention(noise(1, 3, 64, 64))


def test_small_stem_keeps_resolution() -> None:
    model = build("resnet18/3x3").model
    assert (model.conv1.kernel_size, model.conv1.stride) == ((3, 3), (1, 1))
    assert model.layer1(model.maxpool(model.conv1(noise(1, 3, 32, 32)))).shape == (1, 64, 32, 32)
    variance = 2 / (9 * 64)  # He initialization by fan-out
    assert abs(model.conv1.weight.var().item() / variance - 1) < 5 * (2 / model.conv1.weight.numel()) ** 0.5


@pytest.mark.parametrize("name", ["convnext_atto/3x3", "resnet18d/3x3", "test_vit/3x3"])
def test_small_stem_only_where_there_is_a_plain_one(name: str) -> None:
    with pytest.raises(UsageError, match="resnet18/3x3"):
        backbone(name)


def test_drop_path_reaches_timm_where_it_can() -> None:
    rates = [getattr(m, "drop_prob", 0.0) for m in build("test_vit", drop_path=0.2).modules()]
    assert max(filter(None, rates)) == pytest.approx(0.2)
    assert build("vgg11_bn", drop_path=0.2, image_px=32).embed_dim == 4096  # knows none of it


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm:test_vit", "test_resnet", "resnet18/3x3"])
def test_rebuilds_from_name_and_kwargs(name: str) -> None:
    model = build(name, image_px=64, in_chans=1, drop_path=0.1)
    twin: Backbone = backbone(model.name, **model.kwargs).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin([noise(2, 1, 64, 64)])[0], model([noise(2, 1, 64, 64)])[0])


def test_batch_norm_is_left_alone() -> None:
    norms = [module for module in build("test_resnet").modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.track_running_stats for norm in norms)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet81", {}, "Did you mean resnet18"),
        ("timm:resnet81", {}, "Did you mean resnet18"),
        ("vit_smal/16", {}, "vit_small/16"),
        ("resnet18", {"foo": 1}, "no option 'foo'"),
        ("resnet18", {"num_registers": 4}, "num_registers 4"),
    ],
)
def test_wrong_names_and_options_say_what_to_do(name: str, options: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        backbone(name, **options)


def test_an_unheard_of_name_does_not_list_a_thousand() -> None:
    with pytest.raises(UsageError) as caught:
        backbone("qqqqqzzzz")
    assert len(str(caught.value)) < 200


def test_a_size_the_model_cannot_take_is_the_users_to_change() -> None:
    model = build("test_vit", image_px=64, dynamic_img_size=False)
    with pytest.raises(UserError, match="96×96"):
        model([noise(1, 3, 96, 96)])


def test_published_preprocessing() -> None:
    found = published_preprocessing("vit_tiny_patch16_224")
    assert (found["image_px"], found["resize_px"], found["interpolation"]) == (224, 248, "bicubic")
    assert found["mean"] == found["std"] == [0.5, 0.5, 0.5]
    assert build("test_vit", image_px=64).kwargs["image_px"] == 64
    assert TimmBackbone("test_vit", image_px=None).kwargs["image_px"] == 160
