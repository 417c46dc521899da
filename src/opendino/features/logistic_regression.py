"""Logistic regression for few labels: standardized features, regularization chosen by cross-validation, calibrated."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from opendino.core.compilation import EagerOptimizer
from opendino.core.progress import track

STRENGTHS = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0)
"""Inverse regularization strengths `C` to try; for standardized features the best is nearly always among them."""

_FOLDS, _FEW_FOLDS, _FEW = 5, 10, 1000
_TEMPERATURES = tuple(1.1**n for n in range(-15, 36))  # 0.24 to 28
_MAX_ITERATIONS = 500
_ROUGH, _CLEAR_RISE = 1e-4, 1.01
_SMALL = 2_000_000  # values of all features


@dataclass(frozen=True)
class CrossValidated:
    """A logistic regression trained on all rows, and its cross-validation.

    Attributes:
        weight, bias: float32 `[C D]` and `[C]`, for features as they are given, not standardized; calibrated.
        strength: The chosen `C`.
        loss: Cross-validated log loss of the chosen `C`, in nats, calibrated.
        scores: float32 `[M C]`, calibrated logits of each row by a classifier that has not seen it, with a `C` that was
            chosen without it; -inf for classes that this classifier has not seen either.
        folds: Number of folds.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    loss: float
    scores: Tensor
    folds: int


def cross_validated(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    groups: Tensor | None = None,
) -> CrossValidated:
    """Multinomial logistic regression with an L2 penalty, in float64.

    The features are standardized. `C` is chosen by the log loss in a stratified cross-validation, see `_choose`, each
    `C` with the temperature that calibrates its held-out scores: uncalibrated, the loss prefers a penalty that costs
    accuracy. The rows of a fold are scored with the `C` that is chosen without it: otherwise the choice would raise the
    accuracy of `scores`.

    Args:
        features: float `[M D]`, finite.
        labels: int64 `[M]` in 0 … C - 1; two classes or more must occur.
        num_classes: C.
        strengths: Values of `C` to try, ascending: C · Σ log loss + ½ ‖W‖², as in scikit-learn.
        seed: Of the random folds.
        groups: int64 `[M]`, two values or more: rows of one group, such as pixels of one image, stay in one fold.
    """
    with _few_threads(features):
        fold, num_folds = folds(labels, seed) if groups is None else group_folds(groups, seed)
        standardized, mean, std = _standardize(features)
        reduced, basis = _reduce(standardized)  # [M R]: the penalty does not change under rotation
        held_out = _held_out_scores(reduced, labels, num_classes, fold, strengths)  # [S M C]
        losses = _losses(torch.stack([scores / _temperature(scores, labels) for scores in held_out]), labels)  # [S M]
        best = _choose(losses, strengths)
        others = [_choose(losses[:, fold != number], strengths) for number in range(num_folds)]
        scores = held_out[torch.tensor(others)[fold], torch.arange(len(labels))]
        temperature = _temperature(scores, labels)
        weight, bias = fit(reduced, labels, num_classes, strengths[best])
        weight = weight @ basis.T / std
        bias = bias - weight @ mean
        return CrossValidated(
            (weight / temperature).float(), (bias / temperature).float(), strengths[best], float(losses[best].mean()),
            (scores / temperature).float(), num_folds,
        )  # fmt: skip


@contextlib.contextmanager
def _few_threads(features: Tensor) -> Iterator[None]:
    """One thread where the products are small: more gain nothing, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    if features.numel() < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_strength(features: Tensor, labels: Tensor, num_classes: int, strength: float) -> tuple[Tensor, Tensor]:
    """The same regression with a given `C`, neither chosen nor calibrated by cross-validation: many times as fast.

    Args:
        features: float `[M D]`, finite.
        labels: int64 `[M]` in 0 … C - 1; two classes or more must occur.
        num_classes: C.
        strength: `C`.

    Returns:
        Weight `[C D]` and bias `[C]`, float32, for features as they are given.
    """
    standardized, mean, std = _standardize(features)
    reduced, basis = _reduce(standardized)
    weight, bias = fit(reduced, labels, num_classes, strength, tolerance=_ROUGH)
    weight = weight @ basis.T / std
    return weight.float(), (bias - weight @ mean).float()


def _choose(losses: Tensor, strengths: Sequence[float]) -> int:
    """Index of the strength nearest to 1 whose loss is at most one standard error above the lowest.

    With few labels the lowest loss is mostly luck: with 50 it cost up to a point of accuracy (docs/log.md).

    Args:
        losses: Held-out log loss of each row for each strength that was tried, `[S M]`.
        strengths: S or more values of `C`.
    """
    more = losses - losses[losses.mean(1).argmin()]  # [S M], paired by row
    good = more.mean(1) <= more.std(1, correction=0) / math.sqrt(max(1, more.shape[1] - 1))
    return min(good.nonzero().flatten().tolist(), key=lambda index: abs(math.log(strengths[index])))


def _held_out_scores(x: Tensor, labels: Tensor, num_classes: int, fold: Tensor, strengths: Sequence[float]) -> Tensor:
    """Logits `[S M C]` of each row by the classifier of the other folds, for each strength that was tried.

    The first clear rise of the loss is the end: a weaker penalty overfits more, and takes ten times as long.
    """
    found: list[Tensor] = []
    starts: dict[int, tuple[Tensor, Tensor]] = {}
    least = float("inf")
    for strength in track(strengths, "penalties tried"):
        scores = x.new_zeros(len(x), num_classes)
        for number in fold.unique().tolist():
            rows = fold != number
            weight, bias = fit(x[rows], labels[rows], num_classes, strength, starts.get(number), _ROUGH)
            scores[~rows] = x[~rows] @ weight.T + bias
            starts[number] = weight, bias
        found.append(scores)
        loss = float(_losses(scores[None] / _temperature(scores, labels), labels).mean())
        least = min(least, loss)
        if loss > _CLEAR_RISE * least:
            break
    return torch.stack(found)


def fit(
    x: Tensor,
    labels: Tensor,
    num_classes: int,
    strength: float,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with an L2 penalty on the weights, by L-BFGS.

    Args:
        x: float64 `[M R]`, centered; fastest if its columns are orthogonal.
        labels: int64 `[M]` in 0 … C - 1.
        num_classes: C.
        strength: scikit-learn's inverse regularization strength `C`. With two classes scikit-learn has one row of
            weights instead of two: its `C` is twice ours.
        start: Weight and bias to start from, e.g. those of another strength for the same labels.
        tolerance: Largest gradient of the mean loss that counts as zero.

    Returns:
        Weight `[C R]` and bias `[C]`, float64; the bias of a class without rows is -inf.
    """
    seen, own = labels.unique(return_inverse=True)
    share, penalty = 1 / len(seen), 1 / (strength * len(x))
    if start:
        weight, bias = (each[seen] for each in start)
    else:
        weight, bias = x.new_zeros(len(seen), x.shape[1]), own.bincount().double().log()
    # Scaled by the curvature of each column, the variables are about equally hard.
    scale = (share * (1 - share) * x.square().mean(0) + penalty).rsqrt()  # [R]
    variables = torch.cat([weight / scale, bias[:, None]], 1).requires_grad_()
    scaled = torch.cat([x * scale, x.new_ones(len(x), 1)], 1)
    _minimize(variables, scaled, own, penalty * torch.cat([scale.square(), x.new_zeros(1)]), tolerance)
    weight, bias = variables.detach()[:, :-1] * scale, variables.detach()[:, -1]
    full_weight = x.new_zeros(num_classes, x.shape[1]).index_copy_(0, seen, weight)
    return full_weight, x.new_full((num_classes,), -torch.inf).index_copy_(0, seen, bias)


def folds(labels: Tensor, seed: int = 0) -> tuple[Tensor, int]:
    """Stratified folds: the members of each class are spread evenly, in random order.

    Args:
        labels: int64 `[M]`, two rows or more.
        seed: Of the random order.

    Returns:
        The fold of each row, int64 `[M]`, and the number of folds: 10 up to 1,000 rows, else 5; at most M.
    """
    num = min(_FEW_FOLDS if len(labels) <= _FEW else _FOLDS, len(labels))
    order = torch.from_numpy(np.random.Generator(np.random.Philox(key=[seed, 1])).permutation(len(labels)))
    order = order[labels[order].argsort(stable=True)]  # grouped by class
    fold = torch.empty_like(labels)
    fold[order] = torch.arange(len(labels)) % num
    return fold, num


def group_folds(groups: Tensor, seed: int = 0) -> tuple[Tensor, int]:
    """Folds that keep the rows of a group together, in random order: the fold of each row, and their number, 5 at most.

    Args:
        groups: int64 `[M]`, two values or more.
        seed: Of the random order.
    """
    values, inverse = groups.unique(return_inverse=True)
    num = min(_FOLDS, len(values))
    order = np.random.Generator(np.random.Philox(key=[seed, 2])).permutation(len(values))
    return torch.from_numpy(order)[inverse] % num, num


def _standardize(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features with mean 0 and standard deviation 1, float64; the mean and the deviation, 1 for constant columns."""
    x = features.double()
    mean, std = x.mean(0), x.std(0, correction=0)
    std = std.where(std > 1e-9 * (1 + mean.abs()), 1.0)
    return (x - mean) / std, mean, std


def _reduce(x: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates `[M R]` of rows `[M D]` in an orthonormal basis `[D R]` of their span: few rows have a small R."""
    if x.shape[0] < x.shape[1]:
        basis = torch.linalg.svd(x, full_matrices=False).Vh.T
    else:
        basis = torch.linalg.eigh(x.T @ x).eigenvectors
    return x @ basis, basis


def _temperature(scores: Tensor, labels: Tensor) -> float:
    """The divisor of held-out logits `[M C]` with the lowest log loss: too sure scores have one above 1."""
    return min(_TEMPERATURES, key=lambda t: float(_losses(scores[None] / t, labels).mean()))


def _losses(scores: Tensor, labels: Tensor) -> Tensor:
    """Log loss of each row `[S M]` from scores `[S M C]`; 0 where the class was absent in training, for any `C`."""
    losses = cross_entropy(scores.flatten(0, 1), labels.repeat(len(scores)), reduction="none").view(scores.shape[:2])
    return losses.where(losses.isfinite(), 0.0)


class _LBFGS(EagerOptimizer, torch.optim.LBFGS):
    step = torch.no_grad()(inspect.unwrap(torch.optim.LBFGS.step))


def _minimize(variables: Tensor, x: Tensor, labels: Tensor, penalty: Tensor, tolerance: float) -> None:
    """Minimize mean log loss + ½ Σ penalty · variables² in place; variables `[C R]`, x `[M R]`, penalty `[R]`."""
    optimizer = _LBFGS(
        [variables], max_iter=_MAX_ITERATIONS, tolerance_grad=tolerance, tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    share = 1 / len(x)

    @torch.no_grad()
    def closure() -> Tensor:
        scores = (x @ variables.T).log_softmax(1)
        loss = -scores.gather(1, labels[:, None]).mean() + 0.5 * (penalty * variables.square()).sum()
        error = scores.exp_()
        error[torch.arange(len(x)), labels] -= 1
        variables.grad = share * (error.T @ x) + penalty * variables
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
