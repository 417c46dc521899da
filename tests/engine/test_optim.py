"""Groups, updates, skipped steps, clipping and the schedules of the optimizers."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from opendino.core.errors import UsageError
from opendino.core.types import Clock, Facts
from opendino.engine import learning_rate, optim, optimizers
from opendino.methods import dino
from opendino.models import build

NAMES = ("adamw", "muon", "sgd", "lars")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3, bias=False)).double()


def ready(name: str, steps: int = 0, **settings: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network and its optimizer after some good steps, with the rates of the middle of a run."""
    model = network()
    config = optim.ResolvedConfig(name=name, lr=0.1, lr_warmup="0", **settings)
    optimizer = optim.build(config, model)
    learning_rate.set_lr_and_weight_decay(optimizer, config, Clock(5, 10, 1), batch=256)
    for _ in range(steps):
        give_gradients(model)
        optim.step(optimizer, torch.tensor(True))
    return model, optimizer


def give_gradients(model: nn.Module, value: float | None = None) -> None:
    for p in model.parameters():
        p.grad = torch.randn_like(p) if value is None else torch.full_like(p, value)


def moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for index, state in optimizer.state_dict()["state"].items():
        yield from ((f"{index}.{key}", value) for key, value in state.items() if isinstance(value, Tensor))


# ---- groups


def test_weights_are_decayed_biases_and_norms_are_not() -> None:
    model = network()
    decayed, plain = optim.param_groups(model)
    assert decayed["params"] == [model[0].weight, model[2].weight]
    assert plain["params"] == [model[0].bias, model[1].weight, model[1].bias]
    assert (decayed["decayed"], plain["decayed"], plain["weight_decay"]) == (True, False, 0.0)


@pytest.mark.parametrize("backbone", ["vit/4", "resnet18/3x3", "conv4"])
def test_every_trainable_parameter_of_the_student_is_there_once_and_nothing_else(backbone: str) -> None:
    options = {
        "vit/4": {"embed_dim": 8, "depth": 1, "num_heads": 2, "num_registers": 1},
        "resnet18/3x3": {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)},
        "conv4": {"width": 4},
    }[backbone]
    config = dino.Config(out_dim=16, hidden_dim=8, bottleneck_dim=4, head_batch_norm=True)
    method = dino.build(config, lambda role: build.backbone(backbone, image_px=16, **options))
    held = [p for group in optim.build(optim.Config(), method.student).param_groups for p in group["params"]]
    assert len({id(p) for p in held}) == len(held)
    assert {id(p) for p in held} == {id(p) for p in method.student.parameters() if p.requires_grad}
    assert not {id(p) for p in held} & {id(p) for p in method.teacher.parameters()}
    assert id(method.student["head"].last_layer.weight_g) not in {id(p) for p in held}, "its length is fixed"
    one_dimensional = [p for p in method.student.parameters() if p.requires_grad and p.ndim == 1]
    assert optim.param_groups(method.student)[1]["params"] == one_dimensional


# ---- updates


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_void_step_leaves_weights_and_moments_bit_equal(name: str, value: float | None, steps: int) -> None:
    model, optimizer = ready(name, steps)
    before, moments_before = copy.deepcopy(model.state_dict()), copy.deepcopy(dict(moments(optimizer)))
    give_gradients(model, value)
    optim.step(optimizer, torch.tensor(False))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert moments_before
    assert all(torch.equal(v, moments_before[k]) for k, v in moments(optimizer))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, 1])
def test_steps_after_a_void_one_are_those_of_a_run_without_it(name: str, steps: int) -> None:
    (a, optimizer_a), (b, optimizer_b) = ready(name, steps), ready(name, steps)
    b.load_state_dict(a.state_dict())
    optimizer_b.load_state_dict(copy.deepcopy(optimizer_a.state_dict()))
    give_gradients(b, math.nan)
    optim.step(optimizer_b, torch.tensor(False))
    for _ in range(2):
        give_gradients(a)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            q.grad = p.grad.clone()
        optim.step(optimizer_a, torch.tensor(True)), optim.step(optimizer_b, torch.tensor(True))
    assert all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_good_step_moves_every_weight_that_has_a_gradient_and_no_other(name: str) -> None:
    model, optimizer = ready(name, steps=1)
    before = copy.deepcopy(model.state_dict())
    give_gradients(model)
    model[2].weight.grad = None  # as of frozen prototypes: not even decayed
    optim.step(optimizer, torch.tensor(True))
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == before.keys() - {"2.weight"}


def orthogonal(matrix: Tensor) -> Tensor:
    """U f(S) Vᵀ of a matrix U S Vᵀ of norm 1: five times f(s) = as + bs³ + cs⁵."""
    u, s, vh = torch.linalg.svd(matrix / (matrix.norm() + 1e-7), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ vh


def test_muon_follows_its_formula_for_matrices_and_is_adamw_for_the_rest() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.kernel = nn.Linear(7, 5), nn.Conv2d(2, 19, 3, bias=False)
            self.other, self.prototypes = nn.Linear(7, 5, bias=False), nn.Parameter(torch.randn(4, 3))

    model = Network().double()
    config = optim.ResolvedConfig(name="muon", lr=0.1, lr_warmup="0", weight_decay=0.3)
    optimizer = optim.build(config, model)
    learning_rate.set_lr_and_weight_decay(optimizer, config, Clock(5, 10, 1), batch=256)
    lr, decay = (optimizer.param_groups[0][name] for name in ("lr", "weight_decay"))
    rest = [nn.Parameter(p.detach().clone()) for p in (model.prototypes, model.wide.bias)]
    adamw = torch.optim.AdamW(
        [{"params": rest[:1], "weight_decay": decay}, {"params": rest[1:], "weight_decay": 0}], lr
    )
    matrices = {name: p.detach().clone() for name, p in model.named_parameters() if "weight" in name}
    speeds = {name: torch.zeros_like(p) for name, p in matrices.items()}
    assert len(matrices) == 3
    for _ in range(3):
        give_gradients(model)
        for p, q in zip(rest, (model.prototypes, model.wide.bias), strict=True):
            p.grad = q.grad.clone()
        for name, weight in matrices.items():
            g = model.get_parameter(name).grad
            speeds[name] = 0.95 * speeds[name] + 0.05 * g
            update = orthogonal((0.95 * speeds[name] + 0.05 * g).flatten(1))
            size = max(len(weight), weight[0].numel()) ** 0.5
            matrices[name] = weight - lr * (decay * weight + 0.6 * size * update.view_as(weight))
        optim.step(optimizer, torch.tensor(True))
        adamw.step()
        for name, weight in matrices.items():
            torch.testing.assert_close(model.get_parameter(name).detach(), weight, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close([model.prototypes, model.wide.bias], rest, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (3, 50), (50, 3)])
def test_newton_schulz_keeps_directions_and_makes_their_sizes_alike(shape: tuple[int, int], dtype: torch.dtype) -> None:
    made = optimizers.newton_schulz(torch.randn(6, *shape, dtype=dtype) * torch.logspace(-6, 6, 6)[:, None, None])
    assert made.dtype == dtype
    sizes = torch.linalg.svdvals(made)
    assert float(sizes.median()) > 0.3 and float(sizes.max()) < 1.3
    assert torch.equal(
        optimizers.newton_schulz(torch.zeros(2, *shape, dtype=dtype)), torch.zeros(2, *shape, dtype=dtype)
    )


def test_lars_follows_its_formula() -> None:
    model, optimizer = ready("lars")
    lr, momentum, eta = optimizer.param_groups[0]["lr"], 0.9, 0.001
    weight_decay = optimizer.param_groups[0]["weight_decay"]
    assert weight_decay > 0 and lr > 0
    with torch.no_grad():
        model[2].weight.zero_()  # a norm of 0: no ratio
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    speeds = {name: torch.zeros_like(p) for name, p in weights.items()}
    for number in range(4):
        give_gradients(model)
        if number == 2:
            model[0].weight.grad.zero_()
        for name, p in model.named_parameters():
            g = p.grad.clone()
            if p.ndim > 1:
                g += weight_decay * weights[name]
                p_norm, g_norm = (float(x.square().sum() ** 0.5) for x in (weights[name], g))
                g *= eta * p_norm / g_norm if p_norm > 0 and g_norm > 0 else 1.0
            speeds[name] = momentum * speeds[name] + g
            weights[name] = weights[name] - lr * speeds[name]
        optim.step(optimizer, torch.tensor(True))
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), weights[name], rtol=1e-13, atol=1e-13)  # float64, a few roundings


def test_lars_is_the_same_with_and_without_the_flag_for_void_steps() -> None:
    (a, optimizer_a), (b, optimizer_b) = ready("lars"), ready("lars")
    b.load_state_dict(a.state_dict())
    for _ in range(3):
        give_gradients(a)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            q.grad = p.grad.clone()
        optim.step(optimizer_a, torch.tensor(True))
        assert optimizer_b.step(lambda: 7.0) == 7.0
    for key, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[key], value, rtol=1e-14, atol=1e-15)  # one fused multiply-add


@pytest.mark.parametrize(("name", "reference"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_steps_are_those_of_torchs_plain_loop(name: str, reference: type[torch.optim.Optimizer]) -> None:
    model, optimizer = ready(name)
    other = copy.deepcopy(model)
    options = {"momentum": 0.9} if name == "sgd" else {}
    groups = [
        {"params": [other[0].weight, other[2].weight], "weight_decay": optimizer.param_groups[0]["weight_decay"]},
        {"params": [other[0].bias, other[1].weight, other[1].bias], "weight_decay": 0.0},
    ]
    plain = reference(groups, lr=optimizer.param_groups[0]["lr"], foreach=False, fused=False, **options)
    for _ in range(4):
        give_gradients(model)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            q.grad = p.grad.clone()
        optim.step(optimizer, torch.tensor(True))
        plain.step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key], rtol=1e-13, atol=1e-13)


# ---- clipping


@pytest.mark.parametrize("max_norm", [0.5, 5.0, 1e6])
def test_global_clipping_is_torchs(max_norm: float) -> None:
    model = network()
    give_gradients(model)
    other = copy.deepcopy(model)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        q.grad = p.grad.clone()
    norm, expected = optim.clip(model, max_norm, "global"), nn.utils.clip_grad_norm_(other.parameters(), max_norm)
    torch.testing.assert_close(norm, expected, rtol=1e-14, atol=0)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-14, atol=0)  # float64, the order of one sum


def test_clipping_by_tensor_is_a_loop_over_tensors() -> None:
    model = network()
    give_gradients(model)
    model[1].bias.grad.mul_(1e-3)  # small: stays as it is
    model[0].bias.grad = None
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    norm = optim.clip(model, 0.5, "tensor")
    torch.testing.assert_close(norm, sum(g.square().sum() for g in before.values()) ** 0.5, rtol=1e-14, atol=0)
    for name, g in before.items():
        share = 0.5 / (float(g.norm()) + 1e-6)
        torch.testing.assert_close(model.get_parameter(name).grad, g * min(1.0, share), rtol=1e-14, atol=0)
    assert torch.equal(model[1].bias.grad, before["1.bias"])
    assert model[0].bias.grad is None


def test_no_clipping_changes_no_bit_and_still_measures() -> None:
    model = network()
    give_gradients(model)
    before = [p.grad.clone() for p in model.parameters()]
    assert optim.clip(model, 0.0, "tensor") > 0
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_a_gradient_that_is_not_finite_shows_in_the_norm() -> None:
    model = network()
    give_gradients(model)
    model[0].bias.grad[0] = math.inf
    assert not optim.clip(model, 3.0, "tensor").isfinite()


# ---- schedules


@pytest.mark.parametrize("name", NAMES)
def test_rates_at_the_ends_of_a_run(name: str) -> None:
    config = optim.ResolvedConfig(
        name=name, lr=0.1, min_lr=0.001, lr_warmup="2ep", weight_decay=0.04, weight_decay_end=0.4
    )  # fmt: skip
    optimizer = optim.build(config, network())
    clocks = [Clock(step, 50, 5) for step in range(50)]
    found = [learning_rate.set_lr_and_weight_decay(optimizer, config, clock, batch=64) for clock in clocks]
    rates, decays = zip(*found, strict=True)
    assert rates[0] == 0.0
    assert rates[9] == rates[10] == pytest.approx(0.1 * 64 / 256, rel=1e-12)
    assert 0.001 < rates[49] < 0.001 + 0.025 * (math.pi / 40) ** 2 / 4 * 1.01  # 1 - cos x ≈ x²/2, one step from the end
    assert decays[0] == pytest.approx(0.04, rel=1e-12)
    assert 0.4 - 0.36 * (math.pi / 50) ** 2 / 4 * 1.01 < decays[49] < 0.4
    decayed, plain = optimizer.param_groups
    assert (decayed["lr"], plain["lr"]) == (rates[49], rates[49])
    assert (decayed["weight_decay"], plain["weight_decay"]) == (decays[49], 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_the_groups_are_plain_numbers(name: str) -> None:
    _, optimizer = ready(name, steps=1)
    groups = optimizer.state_dict()["param_groups"]
    assert all(type(group[key]) is float for group in groups for key in ("lr", "weight_decay"))
    assert json.loads(json.dumps(groups))[0]["decayed"] is True


def test_a_warm_up_takes_at_most_a_fifth_of_a_run() -> None:
    def facts(total: int) -> Facts:
        return Facts(100, 32, 0, 10, total, 10)

    short, why = optim.Config(lr_warmup="10ep").resolved(facts(100))
    assert short.lr_warmup == "20"
    assert "10ep" in why[0] and "20%" in why[0]
    assert optim.Config(lr_warmup="10ep").resolved(facts(500)) == (optim.Config(lr_warmup="10ep"), [])


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": -1.0}, {"grad_accum_steps": 0}, {"grad_accum_steps": -2}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError, match=f"{name} is {value}") as caught:
        optim.Config(**wrong)
    assert caught.value.hint


# ---- going on from trained weights


@pytest.mark.parametrize(("name", "num_stages"), [("vit/4", 3), ("conv4", 4), ("resnet18/3x3", 9), ("test_vit", 7)])
def test_stages_hold_every_parameter_once(name: str, num_stages: int) -> None:
    options = {"embed_dim": 8, "depth": 2, "num_heads": 2} if name == "vit/4" else {}
    network = build.backbone(name, **options)
    stages = network.stages()
    assert sorted(each for stage in stages for each in stage) == sorted(each for each, _ in network.named_parameters())
    assert len(stages) == num_stages
    assert all(stages)


def test_lower_stages_learn_more_slowly_and_later() -> None:
    options = {"image_px": 16, "embed_dim": 8, "depth": 2, "num_heads": 2}
    method = dino.build(
        dino.Config(out_dim=16, hidden_dim=8, bottleneck_dim=4, momentum=0.9),
        lambda role: build.backbone("vit/4", **options),
    )
    config = optim.ResolvedConfig(lr=1.0, min_lr=1.0, lr_warmup="5", layer_decay=0.5, freeze_backbone="10")
    optimizer = optim.build(config, method.student)
    names = {id(parameter): name for name, parameter in method.student.named_parameters()}

    def rates(step: int) -> dict[str, float]:
        lr, _ = learning_rate.set_lr_and_weight_decay(optimizer, config, Clock(step, 100, 10), batch=256)
        return {names[id(p)]: group["lr"] / lr for group in optimizer.param_groups for p in group["params"]}

    late, frozen, thawing = rates(50), rates(10), rates(12)
    wanted = {"backbone.norm.bias": 1 / 2, "backbone.blocks.0.norm1.bias": 1 / 4, "backbone.pos_embed": 1 / 8}
    assert {name: late[name] for name in wanted} == wanted
    assert late["head.mlp.0.weight"] == frozen["head.mlp.0.weight"] == 1
    assert all(rate == 0 for name, rate in frozen.items() if name.startswith("backbone."))
    assert thawing["backbone.pos_embed"] == pytest.approx(2 / 5 / 8, rel=1e-12)
    assert len(late) == len([p for p in method.student.parameters() if p.requires_grad])


@pytest.mark.parametrize("name", NAMES)
def test_at_a_rate_of_zero_weights_stay_bit_for_bit(name: str) -> None:
    config = optim.ResolvedConfig(name=name, lr_warmup="2", freeze_backbone="3", weight_decay=0.1)
    torch.manual_seed(0)
    backbone = build.backbone("conv4", width=2)
    student = torch.nn.ModuleDict({"backbone": backbone, "head": torch.nn.Linear(backbone.embed_dim, 3)})
    optimizer = optim.build(config, student)
    before = {key: value.clone() for key, value in student.named_parameters()}
    for step in range(5):
        student["head"](backbone([torch.randn(4, 3, 8, 8)])[0]).square().mean().backward()
        learning_rate.set_lr_and_weight_decay(optimizer, config, Clock(step, 20, 5), batch=256)
        optim.step(optimizer, torch.tensor(True))
        optimizer.zero_grad()
        same = {key for key, value in student.named_parameters() if torch.equal(value, before[key])}
        still = {key for key in before if key.startswith("backbone.")} if step <= 3 else set()
        assert same >= still and (step == 0 or "head.weight" not in same)
    assert "backbone.net.0.weight" not in same
