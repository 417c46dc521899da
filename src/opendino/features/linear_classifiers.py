"""Train many linear classifiers on features at once by SGD, for many labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from opendino.core.progress import track

MOMENTUM, _INITIAL_STD = 0.9, 0.01


def train_together(
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    num_classes: int,
    columns: Sequence[slice],
    lrs: Sequence[Sequence[float]],
    weight_decay: float = 0.0,
    seed: int = 0,
) -> list[list[tuple[Tensor, Tensor]]]:
    """Train many linear classifiers by SGD in one pass over the data, one per kind of features and learning rate.

    Softmax regression with momentum 0.9, initial weights N(0, 0.01²), cosine learning rate schedule to 0. The gradient
    is computed explicitly: (softmax - one-hot) · features.

    Args:
        batches: Features float `[B W]` and labels int64 `[B]` in 0 … C - 1, at least `steps` batches.
        steps: T, number of steps.
        num_classes: C.
        columns: For each kind of features, its columns of W.
        lrs: For each kind of features, its learning rates.
        weight_decay: λ of λ/2 · ‖W‖², for weights but not biases.
        seed: Seed of the initial weights, which classifiers of the same kind share.

    Returns:
        For each kind and each of its learning rates: weight `[C D]` and bias `[C]`; not finite if the learning rate was
        too large.
    """
    batches, state = iter(batches), None
    for step in track(range(steps), "steps"):
        features, labels = next(batches)
        if state is None:
            state = [
                _start(features[:, c], num_classes, len(rates), seed) for c, rates in zip(columns, lrs, strict=True)
            ]
        decay = 0.5 * (1 + math.cos(math.pi * step / steps))
        for (weight, bias, weight_momentum, bias_momentum), own, rates in zip(state, columns, lrs, strict=True):
            x = features[:, own]
            logits = (x @ weight.flatten(0, 1).T).unflatten(1, weight.shape[:2]) + bias  # [B L C], L learning rates
            error = logits.softmax(2)
            error[torch.arange(len(x)), :, labels] -= 1
            error /= len(x)
            # [L C D]
            gradient = (error.flatten(1).T @ x).view_as(weight).add_(weight, alpha=weight_decay)
            rate = decay * x.new_tensor(rates)[:, None]
            weight_momentum.mul_(MOMENTUM).add_(gradient)
            bias_momentum.mul_(MOMENTUM).add_(error.sum(0))
            weight.sub_(rate[..., None] * weight_momentum)
            bias.sub_(rate * bias_momentum)
    assert state is not None
    return [list(zip(weight, bias, strict=True)) for weight, bias, _, _ in state]


def _start(x: Tensor, num_classes: int, num: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Initial weights `[L C D]`, biases `[L C]`, and momentum buffers of both, for L = `num` learning rates."""
    generator = torch.Generator().manual_seed(seed)
    initial = torch.empty(num_classes, x.shape[1]).normal_(0, _INITIAL_STD, generator=generator)
    weight = initial.to(x).expand(num, -1, -1).clone()
    bias = x.new_zeros(num, num_classes)
    return weight, bias, torch.zeros_like(weight), torch.zeros_like(bias)
