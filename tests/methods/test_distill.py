"""Distillation: losses against their closed forms; a frozen teacher with its own preprocessing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from opendino.core.errors import UsageError, UserError
from opendino.core.types import Clock, Views
from opendino.methods import distill
from opendino.methods.distill import feature_distance, soft_cross_entropy
from opendino.models.build import backbone
from opendino.models.conv4 import Conv4
from opendino.models.load import load, preprocessing, save_backbone

EXACT = {"rtol": 0, "atol": 1e-10}
B, CLASSES = 6, 3
CLOCK = Clock(0, 10, 5)


@pytest.fixture
def big(tmp_path: Path) -> str:
    """A trained model of 24 px that classifies, with its own normalization."""
    network = backbone("vit/8", image_px=24, embed_dim=12, depth=2, num_heads=2)
    own = preprocessing(24, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    head = nn.Linear(12, CLASSES)
    save_backbone(tmp_path, {"teacher": network}, preprocessing=own, classifier=head, classes=("a", "b", "c"))
    return str(tmp_path)


def method(big: str, **changes: object) -> distill._Distillation:
    config = distill.Config(teacher=big, **changes)
    return distill.build(config, lambda _: Conv4(width=2)).train()


def views(size: int = 32, **groups: int) -> Views:
    crops = {name: torch.randn(1, B, 3, size, size) for name in ("global", *groups)}
    return Views(crops, torch.tensor([0, 1, 2, -1, -1, -1]), torch.arange(B), 3)


def test_soft_targets_loss_and_gradient_are_the_closed_form() -> None:
    student, teacher = torch.randn(2, B, CLASSES, dtype=torch.float64)
    student.requires_grad_()
    temperature = 3.0
    loss = soft_cross_entropy(student, teacher, temperature)
    p, q = (student.detach() / temperature).softmax(1), (teacher / temperature).softmax(1)
    torch.testing.assert_close(loss.detach(), temperature**2 * (q * (q / p).log()).sum(1).mean(), **EXACT)
    loss.backward()
    torch.testing.assert_close(student.grad, temperature * (p - q) / B, **EXACT)


def test_at_high_temperature_it_is_the_distance_of_centered_logits() -> None:
    student, teacher = torch.randn(2, B, CLASSES, dtype=torch.float64)
    loss = soft_cross_entropy(student, teacher, 1e4)
    difference = (student - teacher) - (student - teacher).mean(1, keepdim=True)
    # section 2.1 of the paper; the next term is smaller by 1/T
    torch.testing.assert_close(loss, difference.square().sum(1).mean() / (2 * CLASSES), rtol=1e-3, atol=0)


def test_feature_distance_is_invariant_to_scale_and_mean() -> None:
    prediction, target = torch.randn(2, B, 5, dtype=torch.float64)
    prediction.requires_grad_()
    loss = feature_distance(prediction, target)
    centered = target - target.mean(0)
    standard = centered / (centered.square().mean(0).sqrt() + 1e-6)
    torch.testing.assert_close(loss.detach(), (prediction.detach() - standard).square().mean(), **EXACT)
    loss.backward()
    torch.testing.assert_close(prediction.grad, 2 * (prediction.detach() - standard) / (B * 5), **EXACT)
    scaled = feature_distance(prediction.detach(), 100 * target + 7)
    torch.testing.assert_close(scaled, loss.detach(), rtol=1e-5, atol=0)  # but for the 1e-6 against division by zero
    mean = feature_distance(torch.zeros_like(target), target)
    assert float(mean) == pytest.approx(1, abs=1e-5), "the mean of the set as prediction costs 1"


def test_label_and_soft_loss_are_weighted(big: str) -> None:
    trained, seen = method(big, objective="logits", label_weight=0.25), views()
    metrics = trained(seen, CLOCK).metrics
    torch.testing.assert_close(metrics["loss"], 0.75 * metrics["kl"] + 0.25 * metrics["classification"])
    logits = trained.student["classifier"](trained.student["backbone"]([seen.crops["global"][0]])[0])[:3]
    expected = -(one_hot(seen.labels[:3], CLASSES) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(metrics["classification"], expected.detach())


def test_the_teacher_sees_its_own_normalization_and_size(big: str) -> None:
    trained = method(big)
    frozen, model = trained.teacher["backbone"], load(big)
    pixels = torch.rand(B, 3, 24, 24)

    def normal(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    ours = frozen([normal((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])[0]
    torch.testing.assert_close(ours, model.embed(normal((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))), rtol=0, atol=1e-5)
    assert frozen([torch.randn(2, 3, 40, 40)])[0].shape == (2, 12)
    assert frozen.features(torch.randn(2, 3, 40, 40)).grid == (3, 3)


def test_the_teacher_and_its_batch_statistics_never_change(tmp_path: Path) -> None:
    save_backbone(tmp_path, {"teacher": Conv4(width=4)}, preprocessing=preprocessing(32))
    trained = method(str(tmp_path))
    before = {key: value.clone() for key, value in trained.teacher.state_dict().items()}
    trained(views(), CLOCK).loss.backward()
    trained.after_step(CLOCK, torch.tensor(True))
    assert all(torch.equal(value, before[key]) for key, value in trained.teacher.state_dict().items())
    assert trained.product == ("student",) and tuple(trained.networks()) == ("student",)


def test_features_of_whole_images_are_computed_once(big: str) -> None:
    trained, seen = method(big, teacher_view="whole"), views(whole=1)
    asked = []
    trained.teacher["backbone"].register_forward_pre_hook(lambda *_: asked.append(1))
    first = trained(seen, CLOCK).metrics["loss"]
    seen.crops["whole"].zero_()  # never looked at again
    assert torch.equal(trained(seen, CLOCK).metrics["loss"], first)
    assert len(asked) == 1
    trained(Views(seen.crops, seen.labels, seen.indices + 1), CLOCK)
    assert len(asked) == 2, "one unknown image is enough to ask again"


def test_the_teachers_logits_need_a_classifier(tmp_path: Path) -> None:
    save_backbone(tmp_path, {"teacher": Conv4(width=4)}, preprocessing=preprocessing(32))
    with pytest.raises(UserError, match="was not trained to classify"):
        method(str(tmp_path), objective="logits")


def test_a_teacher_must_be_named_and_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--method\.teacher"):
        method("")
    with pytest.raises(UserError, match="no folder"):
        method(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"label_weight": 2.0}, {"label_weight": 0.5}])
def test_impossible_settings_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        distill.Config(**wrong)


def test_other_images_than_of_three_channels_are_refused(big: str) -> None:
    with pytest.raises(UserError, match="the images have 5, and the teacher takes 3"):
        distill.build(distill.Config(teacher=big), lambda _: Conv4(width=2, in_chans=5))
