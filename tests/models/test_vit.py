"""Our vision transformer: shapes, several sizes at once, stochastic depth, names."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from opendino.core.errors import UsageError, UserError
from opendino.models import build, vit_layers
from opendino.models.build import backbone, backbone_names
from opendino.models.vit import VisionTransformer
from opendino.models.vit_layers import DropPath

SMALL = {"image_px": 16, "embed_dim": 24, "depth": 3, "num_heads": 3}
CLOSE = {"rtol": 0.0, "atol": 1e-12}  # float64, values of order 1, sums of at most some hundred terms in another order


def small(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    built = backbone("vit/4", **{**SMALL, **options}).double().eval()
    assert isinstance(built, VisionTransformer)
    for parameter in built.parameters():  # initial values are so small that attention would be uniform
        torch.nn.init.normal_(parameter, std=0.3)
    return built


def images(*sizes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(b, 3, h, w, generator=generator, dtype=torch.float64) for b, h, w in sizes]


@pytest.mark.parametrize(
    ("name", "count"), [("vit_tiny", 5_524_416), ("vit_small", 21_665_664), ("vit_base", 85_798_656)]
)
def test_sizes_of_the_paper(name: str, count: int) -> None:
    with torch.device("meta"):
        built = backbone(f"{name}/16")
    assert sum(p.numel() for p in built.parameters()) == count
    assert len(built.state_dict()) == 150


def test_initial_values() -> None:
    torch.manual_seed(0)
    state = backbone("vit_tiny/16", num_registers=4).state_dict()
    for key in ("pos_embed", "cls_token", "blocks.3.attn.qkv.weight", "blocks.0.mlp.fc2.weight"):
        count = state[key].numel()
        assert abs(state[key].std().item() / 0.02 - 1) < 5 / (2 * count) ** 0.5, key  # five standard errors
    assert state["reg_token"].abs().max() < 1e-5
    assert not state["blocks.0.attn.qkv.bias"].any()
    assert bool((state["norm.weight"] == 1).all())
    bound = 1 / (3 * 16 * 16) ** 0.5
    assert 0.99 * bound < state["patch_embed.proj.weight"].abs().max() <= bound


def test_several_sizes_in_one_pass_equal_one_by_one() -> None:
    model, batches = small(num_registers=2), images((2, 16, 16), (3, 8, 8), (1, 24, 12))
    together = model(batches)
    for batch, cls in zip(batches, together, strict=True):
        assert cls.shape == (len(batch), 24)
        torch.testing.assert_close(cls, model([batch])[0], **CLOSE)
        torch.testing.assert_close(cls, model.features(batch).cls, **CLOSE)
        torch.testing.assert_close(cls[:1], model([batch[:1]])[0], **CLOSE)  # samples do not see each other


def test_gradients_of_one_pass_equal_the_sum_of_separate_ones() -> None:
    model, batches = small(num_registers=2), images((2, 16, 16), (3, 8, 8))
    names, parameters = zip(*model.named_parameters(), strict=True)
    together = torch.autograd.grad(sum(cls.square().sum() for cls in model(batches)), parameters)
    apart = torch.autograd.grad(sum(model.features(batch).cls.square().sum() for batch in batches), parameters)
    for name, one, other in zip(names, together, apart, strict=True):
        assert one.abs().max() > 0, name
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11, msg=name)


def test_features_and_attention_have_the_promised_shapes() -> None:
    model, (batch,) = small(num_registers=2), images((2, 12, 20))
    found = model.features(batch)
    assert found.grid == (3, 5)
    assert (found.cls.shape, found.registers.shape, found.patches.shape) == ((2, 24), (2, 2, 24), (2, 15, 24))
    attention = model.attention(batch)
    assert attention.shape == (2, 3, 18, 18)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 18, dtype=torch.float64), **CLOSE)


def test_attention_is_what_the_last_block_mixes_with() -> None:
    model, (batch,) = small(depth=1), images((2, 16, 16))
    block, tokens = model.blocks[0], model._tokens(batch)
    values = block.attn.qkv(block.norm1(tokens))[..., 48:].unflatten(-1, (3, 8)).transpose(1, 2)
    mixed = (model.attention(batch) @ values).transpose(1, 2).flatten(2)
    tokens = tokens + block.attn.proj(mixed)
    tokens = model.norm(tokens + block.mlp(block.norm2(tokens)))
    torch.testing.assert_close(tokens[:, 1:], model.features(batch).patches, **CLOSE)


def test_intermediate_ends_with_features_and_starts_as_a_shallower_network() -> None:
    model, (batch,) = small(), images((2, 16, 16))
    first, second, third = model.intermediate(batch, 3)
    assert torch.equal(third.patches, model.features(batch).patches)
    assert torch.equal(model.intermediate(batch, 1)[0].cls, third.cls)
    shallow = small(depth=2)
    shallow.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("blocks.2")})
    torch.testing.assert_close(shallow.features(batch).patches, second.patches, **CLOSE)
    assert not torch.allclose(first.cls, second.cls)


def test_position_embeddings_are_trained_through_resampling() -> None:
    model = small()
    model([images((1, 8, 8))[0]])[0].sum().backward()
    gradient = model.pos_embed.grad
    assert gradient is not None
    assert gradient[0, 0].abs().max() > 0
    assert gradient[0, 1:].abs().max() > 0


def test_drop_path_drops_whole_samples_and_preserves_the_mean() -> None:
    torch.manual_seed(0)
    drop, shapes = DropPath(0.3).train(), [(4096, 2), (4096, 3)]
    out = drop(torch.ones(4096 * 5, 1, dtype=torch.float64), shapes)
    assert isinstance(out, Tensor)
    pairs, triples = out[:8192].view(4096, 2), out[8192:].view(4096, 3)
    assert bool((pairs == pairs[:, :1]).all())
    assert bool((triples == triples[:, :1]).all())
    assert set(out.unique().tolist()) == {0.0, 1 / 0.7}
    standard_error = (0.3 / 0.7 / 8192) ** 0.5  # variance of a draw: (1 - keep) / keep
    assert abs(torch.cat([pairs[:, 0], triples[:, 0]]).mean().item() - 1) < 5 * standard_error
    assert (pairs[:, 0] == triples[:, 0]).double().mean() < 0.7  # batches are drawn independently


@pytest.mark.parametrize("num_queries", [None, 1])
def test_drop_path_on_a_subset_adds_each_branch_to_a_fixed_number_of_samples(num_queries: int | None) -> None:
    block = small(drop_path=0.5).train().blocks[1]  # of rate 1/4
    vit_layers.drop_on_subset(block)
    shapes = [(8, 5), (4, 3)]
    tokens = torch.randn(8 * 5 + 4 * 3, 24, dtype=torch.float64)
    torch.manual_seed(1)
    found = block(tokens, shapes, num_queries=num_queries)

    torch.manual_seed(1)
    expected, out_shapes = vit_layers.leading(tokens, shapes, num_queries) if num_queries else (tokens, shapes)
    masks = []
    for _ in ("attention", "mlp"):
        mask = [torch.zeros(samples, dtype=torch.float64) for samples, _ in out_shapes]
        for each in mask:
            each[torch.rand(len(each)).argsort()[: len(each) * 3 // 4]] = 4 / 3
        repeated = [each.repeat_interleave(length) for each, (_, length) in zip(mask, out_shapes, strict=True)]
        masks.append(torch.cat(repeated).unsqueeze(1))
    expected = expected + block.attn(block.norm1(tokens), shapes, num_queries) * masks[0]
    expected = expected + block.mlp(block.norm2(expected)) * masks[1]
    torch.testing.assert_close(found, expected, **CLOSE)


def test_drop_path_on_a_subset_saves_the_work_of_what_it_drops() -> None:
    model, batches = small(drop_path=0.5, depth=8).train(), images((8, 16, 16), (8, 8, 8))
    work = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            torch.cat(model(batches)).sum().backward()
        work.append(counter.get_total_flops())
        vit_layers.drop_on_subset(model)
    assert 0.7 < work[1] / work[0] < 0.8  # a quarter on average; a little less, since patches are embedded in any case


def test_drop_path_on_a_subset_sleeps_in_eval_and_is_refused_where_it_cannot_be() -> None:
    model, (batch,) = small(drop_path=0.4), images((8, 16, 16))
    plain = model.eval()([batch])[0]
    vit_layers.drop_on_subset(model)
    assert torch.equal(model([batch])[0], plain)
    assert not torch.equal(model.train()([batch])[0], plain)
    with pytest.raises(UserError, match="for a subset of the samples"):
        vit_layers.drop_on_subset(build.backbone("conv4"))


def test_drop_path_rises_linearly_and_sleeps_in_eval() -> None:
    model, (batch,) = small(drop_path=0.4), images((8, 16, 16))
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.2, 0.4]
    assert torch.equal(model([batch])[0], model([batch])[0])
    torch.testing.assert_close(model([batch])[0], _same_weights(model, drop_path=0.0)([batch])[0], rtol=0, atol=0)
    model.train()
    assert not torch.equal(model([batch])[0], model([batch])[0])


def test_drop_path_of_one_sample_leaves_the_others_alone() -> None:
    model, (batch,) = small(drop_path=0.5).train(), images((6, 16, 16))
    plain = model.eval()([batch])[0]
    branches = model.blocks[:-1]
    for block in branches:
        block.drop_path.rate = 0.0
    model.blocks[-1].drop_path.rate = 0.5
    model.train()
    torch.manual_seed(3)
    outcomes = {tuple(round(x, 9) for x in row[:2].tolist()) for _ in range(40) for row in model([batch])[0][:1]}
    assert len(outcomes) == 4  # attention and MLP are kept or dropped independently
    assert tuple(round(x, 9) for x in plain[0, :2].tolist()) not in outcomes  # kept branches are scaled by 2


def test_autocast_gives_finite_features_and_gradients_for_all_parameters() -> None:
    model = small(num_registers=1).float()
    batches = [batch.float() for batch in images((2, 16, 16), (3, 8, 8))]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batches)
    sum(output.float().sum() for output in outputs).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    for output, exact in zip(outputs, model(batches), strict=True):
        assert (output - exact).abs().max() < 0.1 * exact.abs().max()  # 8 bits through 3 blocks


def test_rebuilds_from_name_and_kwargs_and_copies() -> None:
    model, (batch,) = small(num_registers=2, drop_path=0.1), images((2, 16, 16))
    twin = backbone(model.name, **model.kwargs).double().eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin([batch])[0], model([batch])[0])
    assert torch.equal(copy.deepcopy(model)([batch])[0], model([batch])[0])
    direct = VisionTransformer(patch_px=4, image_px=16, embed_dim=24, depth=3, num_heads=3, in_chans=1)
    assert backbone(direct.name, **direct.kwargs).state_dict().keys() == direct.state_dict().keys()
    assert backbone("vit_base/14", depth=1).kwargs == {
        "depth": 1,
        "image_px": 224,
        "drop_path": 0.0,
        "num_registers": 0,
    }


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vit_tiny", {}, "vit_tiny/16"),
        ("vit_tiny/x", {}, "vit_tiny/16"),
        ("vit_tiny/0", {}, "vit_tiny/16"),
        ("vit_tiny/16", {"dept": 3}, "Did you mean depth"),
        ("vit_tiny/16", {"patch_px": 8}, "Unknown option"),
        ("vit_tiny/16", {"image_px": 100}, "96×96"),
        ("vit/8", {"embed_dim": 10, "num_heads": 3}, "embed_dim 10"),
    ],
)
def test_wrong_names_and_sizes_say_what_to_do(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        backbone(name, **options)


@pytest.mark.parametrize("name", ["vit/8", "conv4"])
def test_an_option_of_another_type_is_wrong_usage(name: str) -> None:
    option = "depth" if name == "vit/8" else "width"
    for value in ((1,), "two", 2.5):
        with pytest.raises(UsageError, match=rf"backbone_options\.{option} is .*Use a whole number"):
            backbone(name, **{option: value})


def test_unknown_option_is_wrong_usage() -> None:
    with pytest.raises(UsageError) as caught:
        backbone("vit_tiny/16", nonsense=1)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("size", [(17, 16), (16, 2), (0, 4)])
def test_a_side_that_is_no_multiple_of_the_patch_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="multiple of 4"):
        small()(images((1, *size)))


def test_our_backbones_never_import_timm() -> None:
    assert "vit_small/16" in backbone_names()
    code = "import sys, opendino.models.load; from opendino.models.build import backbone as build; build('vit_tiny/16')"
    code += "; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def _same_weights(model: VisionTransformer, **options: object) -> VisionTransformer:
    twin = small(**options)
    twin.load_state_dict(model.state_dict())
    return twin


def test_attention_in_16_bits_is_attention() -> None:
    """On a CPU it is written out; both are good to bfloat16's 8 bits."""
    inputs = torch.randn(3, 2, 3, 40, 8, dtype=torch.float64)
    expected, found = (
        [each.clone().to(dtype).requires_grad_() for each in inputs] for dtype in (torch.float64, torch.bfloat16)
    )
    towards = torch.randn(2, 3, 40, 8, dtype=torch.float64)
    outputs = [vit_layers.attention(*expected), vit_layers.attention(*found)]
    torch.testing.assert_close(outputs[1].double(), outputs[0], rtol=0, atol=0.02)
    for output in outputs:
        (output.double() * towards).sum().backward()
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.grad - theirs.grad).norm() < 0.02 * theirs.grad.norm()
    assert "flash" not in str(outputs[1].grad_fn).lower()
