"""Mean teacher: losses against their closed forms, ramp-ups, and an independent baseline."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from opendino.core.errors import UsageError
from opendino.core.types import Clock, Facts, Views
from opendino.methods import mean_teacher
from opendino.methods.mean_teacher import consistency
from opendino.models.conv4 import Conv4

EXACT = {"rtol": 0, "atol": 1e-10}
B, LABELED, CLASSES = 8, 3, 4
LATE = Clock(9, 10, 5)


def method(**changes: object) -> mean_teacher._MeanTeacher:
    config = mean_teacher.Config(num_classes=CLASSES, momentum_end=0.999, **changes)
    return mean_teacher.build(config, lambda _: Conv4(width=2)).double().train()


def views() -> Views:
    crops = {"global": torch.randn(2, B, 3, 16, 16, dtype=torch.float64)}
    labels = torch.tensor([0, 3, 1, -1, -1, 2, -1, -1])
    return Views(crops, labels, torch.arange(B), LABELED)


def test_consistency_and_its_gradient_are_the_closed_form() -> None:
    logits, target = torch.randn(2, B, CLASSES, dtype=torch.float64)
    target = target.softmax(1)
    logits.requires_grad_()
    value = consistency(logits, target)
    p = logits.detach().softmax(1)
    torch.testing.assert_close(value.detach(), (p - target).square().sum(1).mean(), **EXACT)
    value.backward()
    inner = 2 * (p - target)
    torch.testing.assert_close(logits.grad, p * (inner - (p * inner).sum(1, keepdim=True)) / B, **EXACT)


def test_the_loss_is_labels_plus_weighted_agreement_plus_the_baselines_own() -> None:
    trained, seen = method(), views()
    output = trained(seen, LATE)
    m = output.metrics
    whole = m["classification"] + 10 * m["consistency"] + m["baseline"]
    torch.testing.assert_close(output.loss.detach(), whole, **EXACT)
    student = trained.student["classifier"](trained.student["backbone"]([seen.crops["global"][0]])[0])
    expected = cross_entropy(student[:LABELED], seen.labels[:LABELED])
    torch.testing.assert_close(m["classification"], expected.detach(), **EXACT)


def test_the_classifiers_gradient_is_that_of_cross_entropy_on_the_labeled_images_alone() -> None:
    trained, seen = method(consistency=0.0, baseline=False), views()
    trained(seen, LATE).loss.backward()
    with torch.no_grad():
        features = trained.student["backbone"]([seen.crops["global"][0]])[0][:LABELED]
        error = trained.student["classifier"](features).softmax(1) - one_hot(seen.labels[:LABELED], CLASSES)
    torch.testing.assert_close(trained.student["classifier"].weight.grad, error.T @ features / LABELED, **EXACT)


def test_the_baseline_sees_nothing_but_labeled_images() -> None:
    trained, seen = method(), views()
    trained(seen, LATE).loss.backward()
    wanted = [p.grad.clone() for p in trained.student["baseline"].parameters()]
    trained.zero_grad()
    seen.crops["global"][:, LABELED:] = 7.0
    trained(seen, LATE).loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(trained.student["baseline"].parameters(), wanted, strict=True))


def test_the_baseline_starts_as_the_student_and_can_be_left_out() -> None:
    trained = method()
    assert tuple(trained.networks()) == ("teacher", "student", "baseline")
    student = trained.student.state_dict()
    assert all(torch.equal(value, student[key]) for key, value in trained.student["baseline"].state_dict().items())
    assert tuple(method(baseline=False).networks()) == ("teacher", "student")


def test_weight_and_momentum_follow_the_papers_ramps() -> None:
    trained = method(consistency_rampup="100")
    clocks = [Clock(step, 1000, 10) for step in (0, 50, 99, 100, 999)]
    assert [trained.rampup(clock) for clock in clocks] == pytest.approx(
        [math.exp(-5), math.exp(-5 / 4), math.exp(-5 * 0.01**2), 1.0, 1.0], abs=1e-15
    )
    # at first the plain mean of all weights so far, then the moving ones
    assert [trained.ema_momentum(clock) for clock in clocks] == pytest.approx(
        [0, 1 - 1 / 51, 0.99, 1 - 1 / 101, 0.999], abs=1e-15
    )


def test_a_continued_run_keeps_its_averaged_teacher() -> None:
    trained, clock = method(consistency_rampup="0"), Clock(0, 1000, 10)
    assert (trained.rampup(clock), trained.ema_momentum(clock)) == (1.0, 0.999)


def test_without_labels_it_says_how_to_give_some() -> None:
    config, _ = mean_teacher.Config().resolved(Facts(100, 64, 0, 16, 100, 6))
    with pytest.raises(UsageError, match=r"0 classes.*--labels FILE\.csv"):
        mean_teacher.build(config, lambda _: Conv4(width=2))


@pytest.mark.parametrize("wrong", [{"momentum": -0.1}, {"labeled_frac": 0.0}, {"consistency": -1.0}])
def test_impossible_settings_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        mean_teacher.Config(**wrong)
