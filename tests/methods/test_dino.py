"""DINO: the loss, the views of each network, and the updates of a step. Golden: tests/story/test_golden.py."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from opendino.core.contracts import Backbone, Method
from opendino.core.errors import UsageError
from opendino.core.types import Clock, Views
from opendino.engine import optim
from opendino.engine.collapse_detection import diagnose
from opendino.methods import dino
from opendino.models import build as models
from opendino.training import step
from opendino.views.settings import changed

B, K = 4, 16
CLOCK = Clock(0, 20, 5)
SMALL = dino.Config(out_dim=K, hidden_dim=8, bottleneck_dim=4, freeze_last_layer="0", momentum=0.9)


def vit(drop_path: float = 0.0) -> Backbone:
    return models.backbone("vit/4", image_px=16, embed_dim=12, depth=1, num_heads=2, drop_path=drop_path)


def resnet() -> Backbone:
    return models.backbone("resnet18/3x3", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))


def method(make: Callable[[], Backbone] = vit, **changes: object) -> Method:
    return dino.build(replace(SMALL, **changes), lambda role: make()).double()


def views(num_local: int = 3, order: Sequence[int] = range(B), seed: int = 0) -> Views:
    torch.manual_seed(seed)
    crops = {"global": torch.randn(2, B, 3, 16, 16, dtype=torch.float64)}
    if num_local:
        crops["local"] = torch.randn(num_local, B, 3, 8, 8, dtype=torch.float64)
    return Views({name: x[:, list(order)] for name, x in crops.items()}, torch.full((B,), -1), torch.tensor(order))


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(module.state_dict()))


def learnt(module: nn.Module) -> dict[str, Tensor]:
    """The state without BatchNorm's count of batches."""
    return {key: value for key, value in state(module).items() if value.is_floating_point()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@torch.no_grad()
def constant(network: nn.ModuleDict) -> None:
    """Make the backbone constant: every image has the same feature."""
    network["backbone"].norm.weight.zero_()
    network["backbone"].norm.bias.fill_(1)


def train(made: Method, steps: int = 1, batch: Views | None = None, **settings: object) -> Tensor:
    """Run optimizer steps; returns whether the last one was not skipped."""
    config = optim.ResolvedConfig(lr=0.1, lr_warmup="0", **settings)
    optimizer = optim.build(config, made.student)
    for number in range(steps):
        tensors, _ = step(made, optimizer, config, 256, replace(CLOCK, step=number), [batch or views()])
    return tensors["ok"]


# ---- student and teacher


@pytest.mark.parametrize("make", [vit, resnet])
def test_the_teacher_starts_equal_to_the_student_including_buffers(make: Callable[[], Backbone]) -> None:
    made = method(make, head_batch_norm=True)
    assert equal(state(made.student), state(made.teacher))
    assert any("running_mean" in key for key in state(made.teacher))
    shared = {p.data_ptr() for p in made.student.parameters()} & {p.data_ptr() for p in made.teacher.parameters()}
    assert not shared


@pytest.mark.parametrize("make", [vit, resnet])
def test_the_teacher_never_gets_a_gradient_and_the_student_everywhere(make: Callable[[], Backbone]) -> None:
    made = method(make)
    made.train()
    made(views(), CLOCK).loss.backward()
    assert not any(p.requires_grad or p.grad is not None for p in made.teacher.parameters())
    for name, p in made.student.named_parameters():
        assert not p.requires_grad or (p.grad is not None and bool(p.grad.isfinite().all())), name
    train(made, 2)
    assert not any(p.requires_grad or p.grad is not None for p in made.teacher.parameters())


@pytest.mark.parametrize("momentum", [0.1, 0.9, 1.0])
def test_after_a_step_the_teacher_is_the_average_of_itself_and_the_new_student(momentum: float) -> None:
    made = method(momentum=momentum)
    before = state(made.teacher)
    assert train(made)
    for key, p in made.teacher.named_parameters():
        s = made.student.get_parameter(key).detach()
        expected = momentum * before[key] + (1 - momentum) * s
        bound = 4 * torch.finfo(torch.float64).eps * torch.maximum(before[key].abs(), s.abs())
        assert bool(((p - expected).abs() <= bound).all()), key
    assert not equal(state(made.student), before)
    assert not equal(state(made.teacher), state(made.student))
    assert equal(state(made.teacher), before) == (momentum == 1)


def test_momentum_follows_a_half_cosine() -> None:
    made = method(momentum=0.9, momentum_end=1.0)
    clock, moved = Clock(10, 20, 5), torch.ones(12, dtype=torch.float64)
    made(views(), clock)
    with torch.no_grad():
        for p, q in zip(made.student.parameters(), made.teacher.parameters(), strict=True):
            p.fill_(1), q.fill_(0)
    made.after_step(clock, torch.tensor(True))
    # Half way: 0.95. One product and one sum of float64 away.
    torch.testing.assert_close(made.teacher["backbone"].norm.weight.data, 0.05 * moved, rtol=1e-14, atol=1e-15)


def test_a_forward_pass_changes_no_weight_and_not_the_center() -> None:
    made = method()
    before = state(made)
    made(views(), CLOCK)
    assert equal(state(made), before)


@pytest.mark.parametrize("how", ["loss is nan", "another rank failed"])
@pytest.mark.parametrize("make", [vit, resnet])
def test_a_skipped_step_changes_nothing(
    make: Callable[[], Backbone], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    made = method(make).train()
    train(made)
    before = learnt(made)
    if how == "loss is nan":
        batch = views()
        batch.crops["global"][0, 0, 0, 0, 0] = math.nan  # both networks see it
        assert not train(made, batch=batch)
    else:
        monkeypatch.setattr("opendino.core.distributed.all_true", torch.zeros_like)
        assert not train(made)
    assert equal(learnt(made), before)
    monkeypatch.undo()
    assert train(made)  # and nothing of it is left for the next
    assert all(bool(value.isfinite().all()) for value in state(made).values())


# ---- views


@pytest.mark.parametrize(("student_views", "seen"), [("all", [2, 3]), ("local", [3])])
def test_the_teacher_sees_global_views_and_the_student_those_it_may(student_views: str, seen: list[int]) -> None:
    made, looked = method(student_views=student_views), {"student": [], "teacher": []}
    for who, shapes in looked.items():
        network = getattr(made, who)["backbone"]
        network.register_forward_pre_hook(lambda _, args, shapes=shapes: shapes.extend(x.shape for x in args[0]))
    made(views(), CLOCK)
    assert looked["teacher"] == [(2 * B, 3, 16, 16)]
    sizes = {2: 16, 3: 8}
    assert looked["student"] == [(n * B, 3, sizes[n], sizes[n]) for n in seen]


def test_without_local_crops_each_global_view_learns_from_the_other() -> None:
    made, batch = method(), views(0)
    loss = made(batch, CLOCK).loss
    with torch.no_grad():
        logits = made.student["head"](made.student["backbone"]([batch.crops["global"].flatten(0, 1)])[0]).unflatten(
            0, (2, B)
        )
        targets = (logits / 0.04).softmax(-1)  # the teacher is the student, its center 0
        terms = [-(targets[1 - i] * (logits[i] / 0.1).log_softmax(-1)).sum(-1).mean() for i in (0, 1)]
    torch.testing.assert_close(loss.detach(), sum(terms) / 2, rtol=1e-12, atol=1e-12)
    assert train(made, batch=batch)


def test_views_are_two_global_and_several_local_ones() -> None:
    spec = dino.views(SMALL, changed(dino.VIEWS, {"global.size": 16, "local.size": 8, "local.number": 5}))
    first, second = spec.groups[0].views
    assert [(group.name, group.size_px, len(group.views)) for group in spec.groups] == [
        ("global", 16, 2),
        ("local", 8, 5),
    ]
    assert [(v.blur.p, v.solarize.p, v.crop.scale) for v in (first, second)] == [
        (1.0, 0.0, (0.25, 1.0)),
        (0.1, 0.2, (0.25, 1.0)),
    ]
    assert {(v.blur.p, v.solarize.p, v.crop.scale) for v in spec.groups[1].views} == {(0.5, 0.0, (0.05, 0.25))}
    for view in (first, second, spec.groups[1].views[0]):
        assert (view.flip.p, view.gray.p) == (0.5, 0.2)
        assert dataclasses.astuple(view.color_jitter) == (0.8, 0.4, 0.4, 0.2, 0.1)


def test_a_student_of_local_views_needs_some() -> None:
    with pytest.raises(UsageError, match="without views"):
        dino.views(replace(SMALL, student_views="local"), changed(dino.VIEWS, {"local.number": 0}))


# ---- loss


@pytest.mark.parametrize("rows_at_once", [1, 2 * B, 100])
@pytest.mark.parametrize("same_views", [True, False])
@pytest.mark.parametrize("num_student", [2, 5])
def test_the_loss_is_the_mean_over_pairs_of_different_views(
    num_student: int, same_views: bool, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.randn(num_student, B, 6, dtype=torch.float64, requires_grad=True)
    prototypes = torch.randn(K, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(2, B, K, dtype=torch.float64).softmax(-1) * torch.rand(2, B, 1, dtype=torch.float64)
    monkeypatch.setattr("opendino.losses._ROWS_AT_ONCE", rows_at_once)
    ours = 3 * dino.cross_entropy(rows, prototypes, targets, 0.3, same_views=same_views)
    our_gradients = torch.autograd.grad(ours, (rows, prototypes))
    student = rows @ prototypes.mT / 0.3
    terms = [
        -(targets[t] * student[s].log_softmax(-1)).sum(-1).mean()
        for t in range(2)
        for s in range(num_student)
        if not (same_views and s == t)
    ]
    naive = 3 * sum(terms) / len(terms)
    gradients = torch.autograd.grad(naive, (rows, prototypes))
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)
    for our_gradient, gradient in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(our_gradient, gradient, rtol=1e-12, atol=1e-12)


def test_the_loss_stores_a_third_of_plain_autograd_and_no_logits() -> None:
    # 32 images in 2 + 8 views against 65,536 prototypes: what autograd holds between forward and backward.
    views, batch, num, width = 10, 32, 65536, 8
    rows = nn.functional.normalize(torch.randn(views, batch, width), dim=-1).requires_grad_()
    prototypes = torch.randn(num, width, requires_grad=True)
    targets = torch.randn(2, batch, num).softmax(-1)

    def kept(loss: Callable[[], Tensor]) -> int:
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            result = loss()
        assert result.requires_grad
        return sum(storages.values())

    def textbook() -> Tensor:
        student = (rows @ prototypes.mT / 0.1).unbind()
        terms = [
            (-targets[t] * torch.log_softmax(student[s], -1)).sum(-1).mean()
            for t in range(2) for s in range(views) if s != t
        ]  # fmt: skip
        return sum(terms) / len(terms)

    ours = kept(lambda: dino.cross_entropy(rows, prototypes, targets, 0.1, same_views=True))
    assert ours == rows.nbytes + prototypes.nbytes
    assert ours < kept(textbook) / 3


def test_the_loss_in_half_precision_is_that_of_logits_in_half_precision() -> None:
    rows = nn.functional.normalize(torch.randn(4, B, 6), dim=-1).requires_grad_()
    prototypes = nn.functional.normalize(torch.randn(K, 6), dim=-1).requires_grad_()
    targets = torch.randn(2, B, K).softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        ours = dino.cross_entropy(rows, prototypes, targets, 0.1, same_views=True)
        student = nn.functional.linear(rows, prototypes).float() / 0.1
        assert ours.dtype == torch.float32 and (student * 0.1).bfloat16().float().equal(student * 0.1)
    pairs = [(t, s) for t in range(2) for s in range(4) if s != t]
    naive = sum(-(targets[t] * student[s].log_softmax(-1)).sum(-1).mean() for t, s in pairs) / len(pairs)
    torch.testing.assert_close(ours, naive, rtol=1e-6, atol=1e-6)  # the same logits; float32 sums in another order
    for mine, theirs in zip(*(torch.autograd.grad(x, (rows, prototypes)) for x in (ours, naive)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-2 * float(theirs.abs().max()))  # bfloat16: 2^-8 a term


@pytest.mark.parametrize("student_views", ["all", "local"])
def test_the_order_of_images_does_not_matter(student_views: str) -> None:
    made = method(student_views=student_views)
    one, other = (made(views(order=order), CLOCK) for order in (range(B), [2, 0, 3, 1]))
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-12, atol=1e-12)  # float64, sums in another order
    for name, value in one.metrics.items():
        torch.testing.assert_close(value, other.metrics[name], rtol=1e-10, atol=1e-10)


def test_the_loss_of_equal_views_is_the_teacher_entropy() -> None:
    made = method(sharpening=False)
    constant(made.student), constant(made.teacher)
    metrics = made(views(), CLOCK).metrics
    assert float(metrics["kl"]) == pytest.approx(0, abs=1e-12)
    assert 0 < float(metrics["teacher_entropy"]) < math.log(K)


# ---- center and temperature


def test_the_center_is_updated_after_use() -> None:
    made, batch = method(center_momentum=0.75), views()
    start = torch.randn(1, K, dtype=torch.float64)
    made.get_buffer("center").copy_(start)
    made(batch, CLOCK)
    with torch.no_grad():
        said = made.teacher["head"](made.teacher["backbone"]([batch.crops["global"].flatten(0, 1)])[0])
    made.after_step(CLOCK, torch.tensor(True))
    torch.testing.assert_close(made.get_buffer("center"), 0.75 * start + 0.25 * said.mean(0), rtol=1e-13, atol=1e-14)


def test_without_centering_the_center_is_not_used() -> None:
    losses = {}
    for centering in ("mean", "sinkhorn", "none"):
        torch.manual_seed(0)
        made = method(centering=centering)
        for shift in (0.0, 1.0):
            made.get_buffer("center")[0, 0] = shift
            losses[centering, shift] = made(views(), CLOCK).loss.item()
    assert losses["none", 0.0] == losses["none", 1.0] == losses["mean", 0.0]
    assert losses["mean", 1.0] != losses["mean", 0.0]
    assert losses["sinkhorn", 0.0] == losses["sinkhorn", 1.0] != losses["none", 0.0]


def test_sinkhorn_gives_every_prototype_an_equal_share() -> None:
    logits = 0.1 * torch.randn(2, 40, K, dtype=torch.float64)
    logits[..., 0] += 0.2  # one that leads everywhere
    found = method(centering="sinkhorn").targets(logits, 0.05)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 40, dtype=torch.float64))
    assert found.mean((0, 1)).max() < 1.2 / K < 3 / K < method(centering="none").targets(logits, 0.05).mean((0, 1))[0]


def test_the_teacher_temperature_changes_per_epoch_or_per_step() -> None:
    def path(**changes: object) -> list[float]:
        made = method(teacher_temp_start=0.04, teacher_temp=0.07, **changes)
        return [made.temperature(replace(CLOCK, step=n)) for n in range(20)]

    assert path(teacher_temp_warmup="4ep") == pytest.approx([0.04] * 5 + [0.05] * 5 + [0.06] * 5 + [0.07] * 5)
    assert path(teacher_temp_warmup="4") == pytest.approx([0.04, 0.05, 0.06] + [0.07] * 17)
    assert path(teacher_temp_warmup="0ep") == path(teacher_temp_warmup="0") == [0.07] * 20
    assert path(sharpening=False) == [SMALL.student_temp] * 20


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd", "lars"])
@pytest.mark.parametrize(("duration", "frozen"), [("0", 0), ("2", 2), ("1ep", 5), ("10%", 2)])
def test_the_prototypes_are_frozen_for_the_given_steps(duration: str, frozen: int, optimizer: str) -> None:
    made = method(freeze_last_layer=duration, norm_last_layer=False)
    last = made.student["head"].last_layer
    config = optim.ResolvedConfig(name=optimizer, lr=0.1, lr_warmup="0", weight_decay=0.1)
    optimizer = optim.build(config, made.student)
    moved = []
    for number in range(6):
        before = state(last)
        step(made, optimizer, config, 256, replace(CLOCK, step=number), [views(seed=number)])
        now = state(last)
        assert torch.equal(before["weight_v"], now["weight_v"]) == torch.equal(before["weight_g"], now["weight_g"])
        moved.append(not torch.equal(before["weight_v"], now["weight_v"]))
    assert moved == [False] * frozen + [True] * (6 - frozen)


# ---- collapse


@pytest.mark.parametrize("name", ["uniform", "one-hot", "dead", None])
def test_a_collapsed_teacher_shows_in_the_metrics(name: str | None) -> None:
    made = method(sharpening=name != "dead")  # of a blind teacher a low temperature may make a one-hot one
    with torch.no_grad():
        for network in (made.student, made.teacher):
            if name == "uniform":
                network["head"].last_layer.weight_v.copy_(torch.ones(K, 4))  # every prototype is the same
            if name == "dead":
                constant(network)
        made.get_buffer("center")[0, 3] = -100.0 if name == "one-hot" else 0.0
    metrics = {key: float(value) for key, value in made(views(), CLOCK).metrics.items()}
    collapse = diagnose(metrics)
    assert (collapse.name if collapse else None) == name
    if name == "uniform":
        assert metrics["teacher_entropy"] == pytest.approx(math.log(K), rel=1e-12)
        assert metrics["kl"] == pytest.approx(0, abs=1e-12)


# ---- settings


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"student_temp": 0.0}, "student_temp is 0.0"), ({"teacher_temp": -0.1}, "teacher_temp is -0.1"),
        ({"teacher_temp_start": 0.0}, "teacher_temp_start is 0.0"), ({"momentum": 1.1}, "momentum is 1.1"),
        ({"momentum_end": -0.1}, "momentum_end is -0.1"), ({"center_momentum": 2.0}, "center_momentum is 2.0"),
        ({"out_dim": 1}, "out_dim is 1"),
    ],
)  # fmt: skip
def test_impossible_settings_are_rejected(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        dino.Config(**wrong)
    assert caught.value.hint and "\n" not in str(caught.value)
