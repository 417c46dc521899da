"""Supervised training: the loss is smoothed cross-entropy, and every image of a batch has its label."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from opendino.core.errors import UsageError
from opendino.core.types import Clock, Facts, Views
from opendino.methods import supervised
from opendino.models.conv4 import Conv4

B, C = 5, 4
SMALL = supervised.Config()
OTHER_SETTINGS: dict[str, Any] = {"label_smoothing": 0.3, "num_classes": 11, "lora_rank": 2}
"""For tests/contracts/test_settings.py: setting → another value."""


def resolved(num_classes: int) -> supervised.ResolvedConfig:
    return supervised.Config().resolved(Facts(20, 16, num_classes, B, 10, 4, "cpu"))[0]


def test_the_loss_is_smoothed_cross_entropy_with_the_labels() -> None:
    method = supervised.build(resolved(C), lambda role: Conv4(width=2)).double().train()
    images, labels = torch.randn(1, B, 3, 16, 16, dtype=torch.float64), torch.arange(B) % C
    output = method(Views({"global": images}, labels, torch.arange(B), B), Clock(0, 10, 4))
    logits = method.student["classifier"](method.student["backbone"]([images[0]])[0])
    target = 0.1 / C + 0.9 * torch.nn.functional.one_hot(labels, C).double()  # a tenth is spread over all classes
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-10)
    right = 100 * (logits.argmax(1) == labels).double().mean()
    assert float(output.metrics["train_accuracy"]) == pytest.approx(float(right))
    assert list(method.networks()) == ["student"] and "classifier" in method.networks()["student"]


def test_one_class_is_refused() -> None:
    with pytest.raises(UsageError, match="labels of at least 2 classes, but the data has 1"):
        supervised.build(resolved(1), lambda role: Conv4(width=2))
