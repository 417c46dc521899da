"""Functions of network outputs that several methods share."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from opendino.core import distributed
from opendino.core.compilation import compiled

_ROWS_AT_ONCE = 256  # rows per matrix product with the prototypes: enough for full speed, little memory


def to_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32, for softmax, normalization and losses; float64 is unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats over the last axis, `[... K]` → `[...]`; 0 … ln K."""
    return torch.special.entr(probabilities).sum(-1)


def feature_std(features: Tensor) -> Tensor:
    """Standard deviation of L2-normalized features `[B D]`: the square root of their total variance, a scalar.

    0 if all features are equal (collapse), about 1 if their directions are spread evenly.
    """
    return torch.nn.functional.normalize(to_float32(features), dim=-1).std(0).norm()


def output_statistics(targets: Tensor, loss: Tensor, features: Tensor, prefix: str = "") -> dict[str, Tensor]:
    """Metrics by which `engine.collapse_detection` sees a collapse of softmax outputs or of features.

    Args:
        targets: Teacher probabilities `[... K]`.
        loss: Their cross-entropy with the student's.
        features: `[B D]`, of the teacher's backbone.
        prefix: Before each name, e.g. "patch_".
    """
    teacher_entropy, max_entropy = entropy(targets).mean(), math.log(targets.shape[-1])
    found = {
        "teacher_entropy": teacher_entropy,
        "kl": loss.detach() - teacher_entropy,
        "entropy_frac": teacher_entropy / max_entropy,
        "marginal_frac": entropy(targets.mean(tuple(range(targets.ndim - 1)))) / max_entropy,
        "feature_spread": feature_std(features),
    }
    return {f"{prefix}{name}": value for name, value in found.items()}


def koleo(features: Tensor, eps: float = 1e-8) -> Tensor:
    """KoLeo: -log of the distance of each image to the nearest other one, mean over images (Sablayrolles et al. 2019).

    It spreads the features of a batch evenly. The nearest is searched among the images of all ranks, so that the result
    does not depend on their number; DINOv2 searches on each device.

    Args:
        features: `[B D]`, of one view of this rank's images, as many on every rank; they are L2-normalized here.
        eps: Added to the differences and to the distance, as in DINOv2, so that equal features stay finite.

    Returns:
        Scalar, at least -ln 2; large if features are nearly equal.
    """
    with torch.autocast(features.device.type, enabled=False):
        own = torch.nn.functional.normalize(to_float32(features), dim=-1)  # [B, D]
        everyone = distributed.all_gather_with_gradient(own)  # [B * ranks, D]
        with torch.no_grad():
            place = torch.arange(len(own), device=own.device)[:, None] + distributed.rank() * len(own)
            nearest = (own @ everyone.mT).scatter_(1, place, -torch.inf).argmax(1)  # [B]
        return -((own - everyone[nearest] + eps).norm(dim=-1) + eps).log().mean()


@torch.no_grad()
def sinkhorn_knopp(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Soft assignments of images to prototypes that use every prototype equally (Cuturi 2013; SwAV, section 3.1).

    exp(scores / temperature) is normalized in turn so that the images of all ranks give every prototype the same sum,
    and every image has the sum 1. In logarithms, so that no score is too large or too small for `exp`.

    Args:
        scores: `[... B K]`, of this rank's images; the leading axes are assigned separately.
        temperature: Lower is closer to one prototype per image.
        iterations: Number of times that both sums are normalized; the images' last.

    Returns:
        `[... B K]`, rows sum to 1; columns nearly to (images of all ranks) / K. float32 or wider, no gradient.
    """
    log_codes = to_float32(scores) / temperature
    for _ in range(iterations):
        log_codes = log_codes - distributed.all_reduce_logsumexp(log_codes.logsumexp(-2, keepdim=True))
        log_codes = log_codes.log_softmax(-1)
    return log_codes.exp()


def cross_entropy(rows: Tensor, prototypes: Tensor, targets: Tensor, temperature: float, *, same_views: bool) -> Tensor:
    """Cross-entropy H(teacher view, student view), mean over images and pairs of different views (eq. 2 of the paper).

    H(q, p) with p = softmax(x) is (Σ_k q)·logsumexp(x) - Σ_k q·x, which is linear in q. So the targets of each student
    view are summed first, and its logits are computed once. The gradient, (Σ_k q)·p - q, is computed in the forward
    pass, for a few views at a time: no logits are stored for the backward pass, where plain autograd stores several
    tensors of the size of all logits. The backward pass overwrites it, so a second one is an error of torch.

    Args:
        rows: `[V_s B D]`, output of the student's bottleneck, float32 or float64.
        prototypes: `[K D]`; logits are rows · prototypesᵀ / τ_s, with the product in autocast precision.
        targets: `[V_t B K]`, teacher probabilities; they get no gradient.
        temperature: τ_s.
        same_views: Whether the first V_t student views are the teacher's views; a view is not compared with itself.

    Returns:
        Scalar loss.
    """
    return cast(Tensor, _CrossEntropy.apply(rows, prototypes, targets, temperature, same_views))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, prototypes: Tensor, targets: Tensor, temperature: float, same_views: bool
    ) -> Tensor:
        device, (num_views, batch, _) = rows.device.type, rows.shape
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
        weight, total = prototypes.to(half), targets.sum(0)
        num_pairs = num_views * len(targets) - len(targets) * same_views
        share, step = 1 / (num_pairs * batch), max(1, _ROWS_AT_ONCE // batch)
        loss, d_rows, d_prototypes = rows.new_zeros(()), torch.empty_like(rows), None
        with torch.autocast(device, enabled=False):
            for first in range(0, num_views, step):
                part = rows[first : first + step].to(half)  # [v, B, D] with v ≤ step
                # Sum of the targets of each student view, without the target from the same view: [v, B, K]
                target_sum = total.expand(len(part), -1, -1)
                if same_views and first < len(targets):
                    target_sum = target_sum.clone()
                    own = targets[first : first + step]
                    target_sum[: len(own)] -= own
                terms, gradient = _loss_and_gradient(part @ weight.mT, target_sum, temperature, share)
                loss += terms
                d_rows[first : first + step] = gradient @ weight
                product = gradient.flatten(0, 1).mT @ part.flatten(0, 1)
                d_prototypes = product.to(prototypes.dtype) if d_prototypes is None else d_prototypes.add_(product)
        ctx.save_for_backward(d_rows, d_prototypes)
        return loss * share

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_rows, d_prototypes = ctx.saved_tensors
        return d_rows.mul_(grads[0]), d_prototypes.mul_(grads[0]), None, None, None


@compiled
def _loss_and_gradient(scores: Tensor, target_sum: Tensor, temperature: float, share: float) -> tuple[Tensor, Tensor]:
    """Σ H(q, softmax(s / τ)) over all rows, and `share` times its gradient with respect to the scores.

    May overwrite `scores`.

    Args:
        scores: s, `[V B K]`, in the precision of the matrix product.
        target_sum: Σ q of each row, `[V B K]`, in the precision of the loss.
        temperature: τ.
        share: Weight of a row in the mean.
    """
    logits = scores.to(target_sum.dtype).div_(temperature)
    mass, lse = target_sum.sum(-1, keepdim=True), logits.logsumexp(-1, keepdim=True)
    terms = (mass * lse).sum() - torch.linalg.vecdot(target_sum, logits).sum()
    gradient = logits.sub_(lse).exp_().mul_(mass).sub_(target_sum).mul_(share / temperature)
    return terms, gradient.to(scores.dtype)
