"""iBOT: the loss against plain loops, masks, both centers, memory and collapses. Its runs: test_ibot_runs.py."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from tests.factories import small_vit
from torch import Tensor

from opendino.core.types import Clock, Views, ViewSpec
from opendino.engine.collapse_detection import Monitor, diagnose
from opendino.engine.verdict import of_rows
from opendino.methods import ibot
from opendino.models.heads import ProjectionHead
from opendino.models.vit import VisionTransformer
from opendino.views import patch_masks
from opendino.views.sampling import sample_views
from opendino.views.settings import changed

B, K, D = 4, 12, 12
EXACT = {"rtol": 0, "atol": 1e-10}
CLOCK = Clock(3, 20, 5)
SMALL = ibot.Config(
    out_dim=K, patch_out_dim=10, hidden_dim=8, bottleneck_dim=6, momentum=0.9, freeze_last_layer="0",
    teacher_temp_warmup="4",
)  # fmt: skip
VIT: dict[str, Any] = {"backbone": "vit/8", "backbone_options": {"embed_dim": 12, "depth": 2, "num_heads": 2}}
OTHER_SETTINGS: dict[str, Any] = {
    "mask_frac": 0.7, "patch_weight": 0.0, "koleo_weight": 0.0, "shared_head": False, "out_dim": 9,
    "hidden_dim": 9, "bottleneck_dim": 5, "head_layers": 2, "norm_last_layer": False, "freeze_last_layer": "10%",
    "center_momentum": 0.1, "student_temp": 0.2, "teacher_temp": 0.09, "teacher_temp_start": 0.02,
    "teacher_temp_warmup": "1", "momentum": 0.5, "momentum_end": 0.95,
}  # fmt: skip
OTHER_SETTINGS = {name: (value, VIT) for name, value in OTHER_SETTINGS.items()}
OTHER_SETTINGS["freeze_last_layer"] = ("10%", VIT | {"steps": 10})
OTHER_SETTINGS["patch_out_dim"] = (9, VIT | {"method": replace(SMALL, shared_head=False)})
"""For tests/contracts/test_settings.py: setting → another value and what else both runs have."""
SPEC = replace(
    ibot.views(SMALL, changed(ibot.VIEWS, {"global.size": 16, "local.size": 8, "local.number": 3})), patch_px=4
)


def method(seed: int = 0, **changes: Any) -> ibot._IBOT:
    """Student and teacher with different weights, mask tokens and centers that are not 0, in float64."""
    config = replace(SMALL, **changes)
    made = cast(ibot._IBOT, ibot.build(config, lambda role: small_vit("vit/4", seed, embed_dim=D)).double())
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in (*made.student.parameters(), *made.teacher.parameters(), *made.buffers()):
            if tensor.shape != made.student["head"].last_layer.weight_g.shape:  # norms stay 1
                tensor.add_(0.3 * torch.randn_like(tensor))
    return made.train()


def views(num_local: int = 3, indices: range = range(B), spec: ViewSpec = SPEC) -> Views:
    """Views of these images out of eight, the same for the same image."""
    draws = torch.Generator().manual_seed(0)
    crops = {
        group.name: torch.randn(number, 8, 3, *group.view_px, dtype=torch.float64, generator=draws)[:, list(indices)]
        for group, number in zip(spec.groups, (2, num_local), strict=True)
        if number
    }
    masks = patch_masks.of_batch(sample_views(spec, 0, 0, indices, [(20, 20)] * len(indices)), spec)
    return Views(crops, torch.full((len(indices),), -1), torch.tensor(indices), masks=masks)


# ---- loss


def tokens_one_by_one(network: VisionTransformer, image: Tensor, mask: list[bool] | None) -> Tensor:
    """CLS and patch tokens of one image `[C H W]`, `[1 + N D]`; masked patches are replaced before the positions."""
    assert network.mask_token is not None
    patches = network.patch_embed(image[None])[0]
    positions = network._positions(network._grid(*image.shape[1:]))[0]
    rows = [network.cls_token[0, 0] + positions[0]]
    for n, patch in enumerate(patches):
        rows.append((network.mask_token[0, 0] if mask and mask[n] else patch) + positions[1 + n])
    tokens = torch.stack(rows)
    for block in network.blocks:
        tokens = block(tokens, [(1, len(rows))])
    return network.norm(tokens)


def logits_one_by_one(head: ProjectionHead, feature: Tensor) -> Tensor:
    hidden = head.mlp(feature[None])[0]
    hidden = hidden / hidden.square().sum().sqrt()
    return torch.stack([(hidden * v).sum() * g[0] / v.square().sum().sqrt()
                        for v, g in zip(head.last_layer.weight_v, head.last_layer.weight_g, strict=True)])  # fmt: skip


def oracle(made: ibot._IBOT, seen: Views, koleo_weight: float, patch_weight: float) -> Tensor:
    """The loss written out: one image, view, pair and patch at a time."""
    student, teacher = made.student, made.teacher
    heads = "head", "head" if "patch_head" not in student else "patch_head"
    temperature = 0.04 + (0.07 - 0.04) * CLOCK.step / 3
    where, crops = seen.masks["global"].where, seen.crops
    local = crops.get("local", crops["global"][:0])
    image_terms, patch_terms, koleo_terms = [], [], []
    cls: dict[int, list[Tensor]] = {0: [], 1: []}
    for b in range(B):
        targets, outputs = [], []
        for v in range(2):
            with torch.no_grad():
                told = tokens_one_by_one(teacher["backbone"], crops["global"][v, b], None)
                said = logits_one_by_one(teacher["head"], told[0]) - made.center[0]
                targets.append((said / temperature).softmax(0))
            found = tokens_one_by_one(student["backbone"], crops["global"][v, b], where[v, b].tolist())
            cls[v].append(found[0])
            outputs.append(logits_one_by_one(student["head"], found[0]))
            for n in range(where.shape[2]):
                if where[v, b, n]:
                    with torch.no_grad():
                        said = logits_one_by_one(teacher[heads[1]], told[1 + n]) - made.patch_center[0]
                        target = (said / temperature).softmax(0)
                    output = logits_one_by_one(student[heads[1]], found[1 + n])
                    patch_terms.append(-(target * (output / 0.1).log_softmax(0)).sum())
        locals_of_it = [tokens_one_by_one(student["backbone"], crop, None)[0] for crop in local[:, b]]
        outputs += [logits_one_by_one(student["head"], feature) for feature in locals_of_it]
        for t, target in enumerate(targets):
            for s, output in enumerate(outputs):
                if s != t:
                    image_terms.append(-(target * (output / 0.1).log_softmax(0)).sum())
    for v in range(2):
        unit = [each / each.square().sum().sqrt() for each in cls[v]]
        for i in range(B):
            distances = [(unit[i] - unit[j] + 1e-8).square().sum().sqrt() for j in range(B) if j != i]
            koleo_terms.append(-(min(distances, key=lambda x: x.item()) + 1e-8).log() / B)
    total = sum(image_terms) / len(image_terms) + patch_weight * sum(patch_terms) / len(patch_terms)
    return total + koleo_weight * sum(koleo_terms)


@pytest.mark.parametrize(("shared", "koleo_weight", "num_local"), [(True, 0.1, 3), (False, 0.0, 3), (False, 0.7, 0)])
def test_loss_and_gradients_are_those_of_plain_loops(shared: bool, koleo_weight: float, num_local: int) -> None:
    made, seen = method(shared_head=shared, koleo_weight=koleo_weight, patch_weight=0.8), views(num_local)
    plain = copy.deepcopy(made)
    expected = oracle(plain, seen, koleo_weight, 0.8)
    output = made(seen, CLOCK)
    torch.testing.assert_close(output.loss, expected, **EXACT)
    output.loss.backward()
    expected.backward()
    for name, parameter in made.student.named_parameters():
        if parameter.requires_grad:
            wanted = plain.student.get_parameter(name).grad
            assert parameter.grad is not None and wanted is not None and wanted.abs().max() > 0, name
            torch.testing.assert_close(parameter.grad, wanted, **EXACT)


def test_the_metrics_are_those_of_images_and_patches() -> None:
    output = method()(views(), CLOCK)
    value = {name: x.item() for name, x in output.metrics.items()}
    assert value["loss"] == pytest.approx(value["image_loss"] + 0.5 * value["patch_loss"] + 0.2 * value["koleo"])
    for prefix, loss in (("", "image_loss"), ("patch_", "patch_loss")):
        assert value[f"{prefix}kl"] == pytest.approx(value[loss] - value[f"{prefix}teacher_entropy"])
        assert value[f"{prefix}entropy_frac"] == pytest.approx(value[f"{prefix}teacher_entropy"] / math.log(K))
        assert value[f"{prefix}entropy_frac"] <= value[f"{prefix}marginal_frac"] <= 1
    assert "koleo" not in method(koleo_weight=0.0)(views(), CLOCK).metrics


# ---- masks, centers, schedules


def test_the_student_sees_masks_and_the_teacher_none() -> None:
    made, seen = method(koleo_weight=0.0), views()
    where = seen.masks["global"].where
    assert where.sum((0, 2)).tolist() == [5] * B and where.any(2).sum(0).tolist() == [1] * B
    asked: dict[str, list[Any]] = {"student": [], "teacher": []}
    for who, calls in asked.items():
        getattr(made, who)["backbone"].register_forward_pre_hook(
            lambda _, args, options, calls=calls: calls.append((len(args[0]), args[1:], options)), with_kwargs=True
        )
    made(seen, CLOCK)
    assert asked["teacher"] == [(1, (), {"tokens": True})]
    (_, (masks,), options), local = asked["student"]
    assert torch.equal(masks[0], where.flatten(0, 1)) and options == {"tokens": True} and local == (1, (), {})


def test_each_center_follows_its_own_mean_after_use() -> None:
    made, seen = method(center_momentum=0.75, shared_head=False), views()
    before = {name: made.get_buffer(name).clone() for name in ("center", "patch_center")}
    where = seen.masks["global"].where.flatten(0, 1)
    with torch.no_grad():
        tokens = made.teacher["backbone"]([seen.crops["global"].flatten(0, 1)], tokens=True)[0]
        said = {
            "center": made.teacher["head"](tokens.cls).mean(0),
            "patch_center": made.teacher["patch_head"](tokens.patches[where]).mean(0),
        }
    for ok in (False, True):
        made(seen, CLOCK)
        made.after_step(CLOCK, torch.tensor(ok))
        for name, mean in said.items():
            expected = 0.75 * before[name] + 0.25 * mean if ok else before[name]
            torch.testing.assert_close(made.get_buffer(name), expected, **EXACT)


def test_the_prototypes_of_both_heads_are_frozen_at_the_start_alone() -> None:
    made = method(shared_head=False, freeze_last_layer="3")
    for number, frozen in ((2, True), (3, False)):
        made(views(), CLOCK).loss.backward()
        made.before_step(replace(CLOCK, step=number))
        for head in ("head", "patch_head"):
            assert (made.student[head].last_layer.weight_v.grad is None) == frozen


def test_a_shared_head_has_no_other() -> None:
    assert list(method().student) == list(method().teacher) == ["backbone", "head"]
    apart = method(shared_head=False)
    assert list(apart.student) == ["backbone", "head", "patch_head"]
    assert apart.get_buffer("patch_center").shape == (1, 10)


# ---- memory


def test_the_estimate_of_memory_counts_the_patches_in_the_head() -> None:
    made = ibot.build(replace(SMALL, hidden_dim=256, out_dim=4096), lambda role: small_vit("vit/4", embed_dim=D))
    head, rows = cast(ProjectionHead, made.student["head"]), 5  # of an image: 0.3 of 16 patches in one view
    kept = {p.untyped_storage().data_ptr(): 0 for p in head.parameters()}

    def note(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    patches = torch.randn(100 * rows, D)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = head.bottleneck(patches)
    assert made.head_bytes(SPEC) == pytest.approx(sum(kept.values()) / 100 + 5 * 4 * rows * 4096, rel=0.02)
    assert logits.requires_grad


# ---- collapse


@pytest.mark.parametrize("prefix", ["", "patch_"])
@pytest.mark.parametrize("name", ["uniform", "one-hot"])
def test_its_collapses_have_names(name: str, prefix: str) -> None:
    def metrics(made: ibot._IBOT) -> dict[str, float]:
        return {key: float(x) for key, x in made(views(), CLOCK).metrics.items()}

    def made(temperature: float) -> ibot._IBOT:
        return method(shared_head=False, teacher_temp=temperature, teacher_temp_warmup="0")

    healthy, collapsed = metrics(made(0.3)), made(1e4 if name == "uniform" else 0.3)
    assert diagnose(healthy) is None
    if name == "one-hot":
        collapsed.get_buffer(f"{prefix}center")[0, 0] = -100.0
    others = {key: x for key, x in healthy.items() if key.startswith("patch_") != bool(prefix)}
    found = diagnose(metrics(collapsed) | others)
    assert found is not None and found.name == name
    assert found.evidence.startswith("of the patches, ") == bool(prefix)


def test_a_run_monitor_names_a_collapse_of_the_patches() -> None:
    healthy = {"loss": 5.0, "entropy_frac": 0.5, "marginal_frac": 0.9, "feature_spread": 0.5, "ok": True}
    rows = [healthy | {"step": n, "patch_entropy_frac": 0.999, "patch_marginal_frac": 1.0} for n in range(1, 61)]
    monitor = Monitor(1000)
    found = [monitor.watch(row) for row in rows][-1]
    assert found is not None and found.name == "uniform" and "of the patches" in found.evidence
    assert of_rows(rows, 1000).name == "collapsed (uniform)"
