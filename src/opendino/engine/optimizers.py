"""Optimizers: AdamW and SGD of torch, Muon, LARS.

The host never waits for the device: a step with a non-finite loss is skipped on the device itself (`found_inf`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from opendino.core import distributed
from opendino.core.compilation import EagerOptimizer


class AdamW(EagerOptimizer, torch.optim.AdamW):
    """AdamW of torch (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Muon(AdamW):
    """Muon for matrices of layers (Jordan et al. 2024, kellerjordan.github.io/posts/muon), AdamW for everything else.

    With a gradient as a matrix G `[rows columns]` (a kernel as `[out, in·height·width]`): M ← μ·M + (1 - μ)·G and
    p ← p - lr·(wd·p + s·√max(rows, columns)·O), where O ≈ U Vᵀ for μ·M + (1 - μ)·G = U S Vᵀ. So an update is as large
    in directions that are rare in the gradients as in common ones, and its root mean square is about s·lr. μ = 0.95.

    Args:
        groups: Parameter groups of `param_groups`; those with "orthogonal" have matrices of linear layers and
            convolutions only.
        lr: Learning rate.
    """

    MOMENTUM = 0.95
    SCALE = 0.6
    """s; AdamW's updates have about 0.2 (Liu et al. 2025, arXiv:2502.16982). Three times that learns fastest here."""

    __setstate__ = torch.optim.Optimizer.__setstate__  # that of AdamW expects its moments for every parameter

    def __init__(self, groups: Iterable[Any], lr: float) -> None:
        super().__init__(groups, lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; skipped on the device if `found_inf` is set and above 0."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        velocities = _velocities(self, params)
        void = getattr(self, "found_inf", params[0].new_zeros(())) > 0
        # A skipped step has its velocities as gradients, which leaves them as they are, and a rate of 0.
        grads = [torch.where(void, v, cast(Tensor, p.grad)) for p, v in zip(params, velocities, strict=True)]
        torch._foreach_lerp_(velocities, grads, 1 - self.MOMENTUM)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_lerp_(grads, velocities, self.MOMENTUM)  # pyright: ignore[reportPrivateImportUsage]
        rate = (~void).to(params[0].dtype) * group["lr"]
        torch._foreach_mul_(params, 1 - rate * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
        updates = _orthogonal(params, grads)
        torch._foreach_mul_(updates, rate * self.SCALE)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_sub_(params, updates)  # pyright: ignore[reportPrivateImportUsage]


def _orthogonal(params: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """√max(rows, columns) · U Vᵀ of each update U S Vᵀ, seen as a matrix; matrices of a shape are computed together."""
    whole = [full_parameter(cast(nn.Parameter, p)) for p in params]
    full = [
        distributed.full_tensor(distributed.from_local_shard(p, update))
        for p, update in zip(whole, updates, strict=True)
    ]
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, update in enumerate(full):
        rows = len(update)
        by_shape.setdefault((rows, update.numel() // rows), []).append(number)
    found: dict[int, Tensor] = {}
    for shape, numbers in by_shape.items():
        matrices = torch.stack([full[number].reshape(shape) for number in numbers])
        found |= zip(numbers, (newton_schulz(matrices) * max(shape) ** 0.5).unbind(), strict=True)
    return [
        distributed.local_tensor(distributed.shard_like(p, found[number].view(p.shape)))
        for number, p in enumerate(whole)
    ]


def newton_schulz(matrices: Tensor) -> Tensor:
    """U Vᵀ of matrices U S Vᵀ, up to a factor of 0.7 to 1.2 for each singular value above a hundredth of the norm.

    Five steps of the iteration that Muon takes: X ← aX + (bXXᵀ + c(XXᵀ)²)X with (a, b, c) = (3.4445, -4.7750, 2.0315).
    In bfloat16 on a GPU, else in the precision of the matrices.

    Args:
        matrices: `[N rows columns]`.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(5):
        squares = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(squares, squares, squares, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x if wide is matrices else x.mT).to(matrices.dtype)


class SGD(EagerOptimizer, torch.optim.SGD):
    """SGD of torch, with momentum."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class LARS(EagerOptimizer):
    """LARS: SGD with momentum and a trust ratio per tensor (You et al. 2017, arXiv:1708.03888), as in DINO v1.

    For tensors with two or more dimensions: g ← g + wd·p, then g ← g · eta·‖p‖/‖g‖ if both norms are above 0.
    For all tensors: v ← momentum·v + g, then p ← p - lr·v. Biases and norms get neither weight decay nor trust ratio.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate.
        momentum: Momentum of the velocity v.
        eta: Trust coefficient.
    """

    _step_supports_amp_scaling = True  # `found_inf` is honored, see step()

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9, eta: float = 0.001) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "eta": eta, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; skipped on the device if `found_inf` is set and above 0."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            updates = {p: cast(Tensor, p.grad) for p in params}
            scaled = [p for p in params if p.ndim > 1]
            if scaled:
                updates |= zip(scaled, self._scaled_gradients(scaled, group), strict=True)
            if params:  # one kernel for all; it reads `found_inf` on the device
                torch._fused_sgd_(  # pyright: ignore[reportPrivateImportUsage]
                    params, [updates[p] for p in params], _velocities(self, params),
                    weight_decay=0.0, momentum=group["momentum"], lr=group["lr"], dampening=0.0, nesterov=False,
                    maximize=False, is_first_step=False, found_inf=getattr(self, "found_inf", None),
                )  # fmt: skip
        return loss

    def _scaled_gradients(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Gradients with weight decay, times their trust ratios."""
        updates = list(torch._foreach_mul(params, group["weight_decay"]))  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(updates, [cast(Tensor, p.grad) for p in params])  # pyright: ignore[reportPrivateImportUsage]
        sharded = any(full_parameter(cast(nn.Parameter, p)) is not p for p in params)
        p_norms, g_norms = norms(params, sharded), norms(updates, sharded)
        ratios = torch.where((p_norms > 0) & (g_norms > 0), group["eta"] * p_norms / g_norms, 1.0)
        torch._foreach_mul_(updates, ratios.unbind())  # pyright: ignore[reportPrivateImportUsage]
        return updates


def _velocities(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> list[Tensor]:
    """The moving averages of gradients of these parameters; 0 in the first step."""
    for p in params:
        if not optimizer.state[p]:
            optimizer.state[p]["velocity"] = torch.zeros_like(p)
    return [optimizer.state[p]["velocity"] for p in params]


def norms(tensors: list[Tensor], sharded: bool) -> Tensor:
    """L2 norms of tensors, `[number]`; if `sharded`, of the full tensors of these shards (collective)."""
    found = torch.stack(torch._foreach_norm(tensors))  # pyright: ignore[reportPrivateImportUsage]
    return distributed.all_reduce_sum(found.square()).sqrt() if sharded else found


def full_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """The student's parameter of an optimizer parameter: the same one, or the DTensor it is a local shard of (FSDP)."""
    return getattr(parameter, "full_parameter", parameter)
