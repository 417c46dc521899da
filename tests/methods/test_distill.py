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
from opendino.models.load import Model, load, preprocessing, save_backbone

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


def method(big: str, images: dict[str, object] | None = None, **changes: object) -> distill._Distillation:
    """Distillation to a student that takes as many channels as the preprocessing `images` has."""
    images = images or preprocessing(32)
    config = distill.Config(teacher=big, **changes)
    in_chans = 1 if "separate" in str(images) else len(images["mean"])
    made = distill.build(config, lambda _: Conv4(width=2, in_chans=in_chans)).train()
    made.set_preprocessing(images)
    return made


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


def test_classes_without_names_are_numbers_and_not_those_of_the_images(tmp_path: Path) -> None:
    model = Model(Conv4(width=4), preprocessing(32), {}, nn.Linear(Conv4(width=4).embed_dim, 5))  # as of timm
    made = distill._Distillation(distill.Config(teacher="x", objective="logits"), model, Conv4(width=2))
    assert made.classes == ("0", "1", "2", "3", "4")
    taught = distill.Config(teacher="x", objective="logits", label_weight=0.5)
    assert distill._Distillation(taught, model, Conv4(width=2)).classes == ()  # those of the images, which it learns


def test_a_teacher_must_be_named_and_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--method\.teacher"):
        method("")
    with pytest.raises(UserError, match="no folder"):
        method(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"label_weight": 2.0}, {"label_weight": 0.5}])
def test_impossible_settings_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        distill.Config(**wrong)


def science(mean: tuple[float, ...], std: tuple[float, ...], **images: object) -> dict[str, object]:
    """Preprocessing of images that are no photographs."""
    return preprocessing(32, mean, std) | {"resize_px": 32, "images": images}


NAMES = {"names": ["DAPI", "GFP", "Cy3", "Cy5", "phase"]}
FIVE = science((0.1, 0.2, 0.3, 0.4, 0.5), (0.2,) * 5, intensity=[0.0, 3000.0], **NAMES)


@pytest.fixture
def of_five(tmp_path: Path) -> str:
    """A trained model of five channels, and of values from 0 to 3000."""
    save_backbone(tmp_path / "five", {"teacher": Conv4(width=2, in_chans=5)}, preprocessing=FIVE)
    return str(tmp_path / "five")


def test_a_teacher_of_any_channels_and_another_range_sees_values_as_in_its_training(of_five: str) -> None:
    bounds = [(100.0 * channel, 2000.0 + 300 * channel) for channel in range(5)]
    mean, std = (0.3, 0.4, 0.5, 0.6, 0.7), (0.1, 0.2, 0.3, 0.4, 0.5)
    own = science(mean, std, intensity=[value for pair in bounds for value in pair], **NAMES)
    frozen = method(of_five, own).teacher["backbone"]
    low, high = torch.tensor(bounds).unbind(1)
    values = low + torch.rand(2, 32, 32, 5) * (high - low)  # as in the files
    student = ((values - low) / (high - low) - torch.tensor(mean)) / torch.tensor(std)
    expected = load(of_five).embed(values.numpy())
    torch.testing.assert_close(frozen([student.movedim(-1, 1)])[0], expected, rtol=0, atol=1e-4)
    far = frozen._convert(torch.full((1, 5, 32, 32), 1e3))
    torch.testing.assert_close(far[0, :, 0, 0], (1 - torch.tensor(FIVE["mean"])) / 0.2)


def test_a_teacher_of_photographs_sees_black_and_white_as_the_student(big: str) -> None:
    own = science((0.2,) * 3, (0.1,) * 3, intensity=[0.0, 3000.0], names=["0", "1", "2"])
    pixels = torch.rand(B, 3, 24, 24)
    expected = (pixels - torch.tensor((0.5, 0.4, 0.3)).view(3, 1, 1)) / torch.tensor((0.2, 0.3, 0.4)).view(3, 1, 1)
    found = method(big, own).teacher["backbone"]([(pixels - 0.2) / 0.1])[0]
    torch.testing.assert_close(found, load(big).embed(expected), rtol=0, atol=1e-5)


def test_teacher_and_student_of_separate_channels_see_one_each(tmp_path: Path) -> None:
    own = science((0.2,) * 5, (0.1,) * 5, intensity=[0.0, 3000.0], channel_mode="separate", **NAMES)
    save_backbone(tmp_path, {"teacher": Conv4(width=2, in_chans=1)}, preprocessing=own)
    one = torch.randn(B, 1, 32, 32).clamp(-2, 8)
    frozen = method(str(tmp_path), own).teacher["backbone"]
    expected = load(tmp_path).backbone.inner([one])[0]
    torch.testing.assert_close(frozen([one])[0], expected, rtol=0, atol=1e-5)
    together = method(str(tmp_path), own | {"images": FIVE["images"]})
    assert together.student["head"].out_features == 5 * 24, "all channels at once: their features are joined"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": list("abcde")}, r"images have 5 channels \(0 a, .* teacher takes 5 channels \(0 DAPI"),
        ({"intensity": "per-image"}, "intensity per-image, and those of the teacher had 0 3000"),
        ({"channel_mode": "separate"}, r"have 5 channels .*, one at a time, but the teacher takes 5 channels"),
    ],
)
def test_a_teacher_of_other_images_is_refused(of_five: str, changes: dict[str, object], message: str) -> None:
    own = FIVE | {"images": FIVE["images"] | changes}
    with pytest.raises(UserError, match=message):
        method(of_five, own)


def test_a_teacher_of_another_number_of_channels_is_refused(big: str, of_five: str) -> None:
    with pytest.raises(UserError, match=r"images have 5 channels .*, but the teacher takes 3 channels \(0 red"):
        method(big, FIVE)
    with pytest.raises(UserError, match=r"images have 3 channels .*, but the teacher takes 5 channels \(0 DAPI"):
        method(of_five)
