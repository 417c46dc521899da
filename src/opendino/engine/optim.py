"""Optimizers, parameter groups, clipping and the schedules of learning rate and weight decay.

The host never waits for the device: steps with non-finite values (`found_inf`) are skipped on the device itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from opendino.core import auto_values, distributed, duration, schedule
from opendino.core.contracts import Backbone
from opendino.core.ranges import Checked, Duration, FractionAboveZero, NotNegative, Positive, Width
from opendino.core.types import Clock, Facts


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the optimizer. Defaults are those of DINO v1 for ViTs."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    """Optimizer: adamw for ViTs and most networks, sgd or lars for ResNets."""
    lr: Positive | Literal["auto"] = 5e-4
    """Peak learning rate for a batch of 256, scaled linearly with the batch. auto: from optimizer and network."""
    min_lr: NotNegative = 1e-6
    """Learning rate at the end of the cosine schedule; not scaled with the batch."""
    lr_warmup: Duration = "10ep"
    """Length of the linear learning rate warm-up (at most 20% of the run)."""
    layer_decay: FractionAboveZero = 1.0
    """Layer-wise learning rate decay: factor per stage from output to input; below 1 for fine-tuning, 1 for none."""
    freeze_backbone: Duration = "0ep"
    """Train only the head for this time (at most 20% of the run), then warm up the backbone; for use with --init."""
    weight_decay: NotNegative = 0.04
    """Weight decay at the start; biases and one-dimensional parameters are never decayed."""
    weight_decay_end: NotNegative | Literal["auto"] = 0.4
    """Weight decay at the end of its cosine schedule. auto: 0.4; for small ConvNets constant."""
    clip: NotNegative = 3.0
    """Maximum gradient norm; lower it if training is unstable, 0 turns clipping off."""
    clip_by: Literal["tensor", "global"] = "tensor"
    """Clip the norm of each parameter tensor (tensor, as in DINO v1) or of all gradients together (global)."""
    grad_accum_steps: Width | Literal["auto"] = "auto"
    """Number of micro-batches per optimizer step; increase it to save memory. auto: as few as fit in memory."""

    def resolved(self, facts: Facts) -> tuple[Config, list[str]]:
        """Replace every "auto" by a value, limit durations to 20% of the run; also returns the reasons."""
        timing = {"total_steps": facts.total_steps, "steps_per_epoch": facts.steps_per_epoch}
        found: dict[str, tuple[Any, str]] = {}
        if self.lr == "auto":
            found["lr"] = _learning_rate(self.name, facts)
        if self.weight_decay_end == "auto":
            end = self.weight_decay if facts.convolutional else 0.4
            found["weight_decay_end"] = end, "constant, as in the demo" if facts.convolutional else "as in the paper"
        for name in ("lr_warmup", "freeze_backbone"):
            requested = getattr(self, name)
            value = duration.capped(requested, 0.2, **timing)
            if value != requested:
                found[name] = value, f"{requested} is more than 20% of {facts.total_steps:,} steps"
        return auto_values.with_auto_values(self, found)


_PUBLISHED_LR = {"adamw": 5e-4, "sgd": 0.03, "lars": 0.3}
"""DINO v1's published learning rates for a batch of 256."""
_SMALL_CONVNET_LR = 3e-3
"""Learning rate, not scaled with the batch, at which the small ConvNet learns fastest (AdamW, batches of 32 to 64)."""


def _learning_rate(name: str, facts: Facts) -> tuple[float, str]:
    """Learning rate for a batch of 256, and why."""
    if facts.convolutional and name == "adamw":
        return (
            _SMALL_CONVNET_LR * 256 / facts.batch,
            f"{_SMALL_CONVNET_LR:g} at the batch of {facts.batch}, convolutional network",
        )
    return _PUBLISHED_LR[name], f"the published rate for {name}"


class LARS(torch.optim.Optimizer):
    """LARS: SGD with momentum and a trust ratio per tensor (You et al. 2017, arXiv:1708.03888), as in DINO v1.

    For tensors of two or more dimensions: g ← g + wd·p, then g ← g · eta·‖p‖/‖g‖ where both norms are above 0.
    Then v ← momentum·v + g and p ← p - lr·v. Biases and norm parameters get neither weight decay nor
    trust ratio.
    """

    _step_supports_amp_scaling = True  # `found_inf` is honored, see step()

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9, eta: float = 0.001) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "eta": eta, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; skipped if `found_inf` is set and above 0."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if p.ndim > 1:
                    update = update + group["weight_decay"] * p
                    is_sharded = whole(p) is not p
                    p_norm, g_norm = _norm(p, is_sharded), _norm(update, is_sharded)
                    ratio = torch.where((p_norm > 0) & (g_norm > 0), group["eta"] * p_norm / g_norm, 1.0)
                    update = update * ratio
                if not self.state[p]:
                    self.state[p]["velocity"] = torch.zeros_like(p)
                velocity = self.state[p]["velocity"]
                new_velocity = group["momentum"] * velocity + update
                if found_inf is None:
                    velocity.copy_(new_velocity)
                    p.sub_(velocity, alpha=group["lr"])
                else:
                    velocity.copy_(torch.where(found_inf > 0, velocity, new_velocity))
                    p.copy_(torch.where(found_inf > 0, p, p - group["lr"] * velocity))
        return loss


def _norm(part: Tensor, is_sharded: bool) -> Tensor:
    """Norm of the full tensor, of which `part` is this rank's shard if `is_sharded`, else all."""
    return distributed.all_reduce_sum(part.square().sum()).sqrt() if is_sharded else part.norm()


def param_groups(student: nn.Module, layer_decay: float = 1.0, apart: bool = False) -> list[dict[str, Any]]:
    """Parameter groups for the optimizer, with weight decay for all but biases and one-dimensional parameters.

    Args:
        student: Any module; must have a "backbone" if one of the next two arguments is used.
        layer_decay: Factor of the learning rate per stage: the last stage of the backbone has this factor, the stage
            before it the square, and so on (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT).
        apart: Whether to put the backbone into separate groups even if `layer_decay` is 1.

    Returns:
        Groups with the extra keys "decayed" (bool), "share" (factor of the learning rate) and "backbone" (bool).
    """
    depth: dict[str, int] = {}  # stages below the head: 1 is the last stage
    if apart or layer_decay < 1:
        stages = cast(Backbone, cast(nn.ModuleDict, student)["backbone"]).stages()
        depth = {f"backbone.{name}": len(stages) - i for i, stage in enumerate(stages) for name in stage}
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            decayed = not (name.endswith(".bias") or parameter.ndim == 1)
            key = layer_decay ** depth.get(name, 0), name in depth, decayed
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": groups[key], "share": key[0], "backbone": key[1], "decayed": key[2], "weight_decay": 0.0}
        for key in sorted(groups, reverse=True)
    ]


def build(config: Config, student: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a student; `set_schedules` sets learning rate and weight decay before each step."""
    groups = param_groups(student, config.layer_decay, apart=duration.parse(config.freeze_backbone)[0] > 0)
    for group in groups:
        group["params"] = [_local_parameter(parameter) for parameter in group["params"]]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, fused=True)
    if config.name == "sgd":
        sgd = torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True)
        # Create the momentum buffers now, not at the first step: torch's fused SGD needs all or none of them in a
        # group, but frozen prototypes join later. If that first step is skipped, it leaves its buffers uninitialized.
        for group in sgd.param_groups:
            for parameter in group["params"]:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return LARS(groups, lr=0.0)


def whole(parameter: nn.Parameter) -> nn.Parameter:
    """The student's parameter that an optimizer parameter belongs to; the same object unless sharded (FSDP)."""
    return getattr(parameter, "whole", parameter)


def _local_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """This rank's shard of a parameter as a plain tensor, since fused optimizers do not need to know about DTensor."""
    if not distributed.is_sharded(parameter):
        return parameter
    shard = nn.Parameter(distributed.local_tensor(parameter.detach()))
    shard.whole = parameter  # pyright: ignore[reportAttributeAccessIssue]
    return shard


def set_schedules(optimizer: torch.optim.Optimizer, config: Config, clock: Clock, batch: int) -> tuple[float, float]:
    """Set the learning rate and weight decay of the current step.

    Args:
        optimizer: Result of `build`.
        config: Settings of the optimizer.
        clock: The step that comes next.
        batch: Images per step over all devices; the peak learning rate is `lr · batch / 256`.

    Returns:
        Learning rate of the head, and weight decay.
    """
    assert config.lr != "auto" and config.weight_decay_end != "auto"
    total = clock.total_steps
    warmup = duration.steps(config.lr_warmup, total_steps=total, steps_per_epoch=clock.steps_per_epoch)
    lr = schedule.cosine(clock.step, config.lr * batch / 256, config.min_lr, total, warmup)
    weight_decay = schedule.cosine(clock.step, config.weight_decay, config.weight_decay_end, total)
    # A frozen backbone has learning rate 0: its weights do not change by a bit, while AdamW's moments are estimated.
    frozen = duration.steps(config.freeze_backbone, total_steps=total, steps_per_epoch=clock.steps_per_epoch)
    backbone_warmup = min(1.0, max(0, clock.step - frozen) / max(1, warmup)) if frozen else 1.0
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"] * (backbone_warmup if group["backbone"] else 1.0)
        if group["decayed"]:
            group["weight_decay"] = weight_decay
    return lr, weight_decay


@torch.no_grad()
def clip(student: nn.Module, max_norm: float, by: Literal["tensor", "global"]) -> Tensor:
    """Clip gradients to `max_norm`; 0 turns clipping off. Norms are those of full tensors, also with FSDP.

    Returns:
        Norm of all gradients before clipping, a scalar on the device.
    """
    found = [p.grad for p in student.parameters() if p.grad is not None]
    grads = [distributed.local_tensor(grad) for grad in found]
    norms = torch.stack(torch._foreach_norm(grads))  # pyright: ignore[reportPrivateImportUsage]
    if any(distributed.is_sharded(grad) for grad in found):
        norms = distributed.all_reduce_sum(norms.square()).sqrt()
    total = torch.linalg.vector_norm(norms)
    if max_norm > 0:
        # As in DINO v1, with its 1e-6: g · min(1, c / (‖g‖ + 1e-6)).
        each = norms.unbind() if by == "tensor" else [total] * len(grads)
        shares = [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in each]
        torch._foreach_mul_(grads, shares)  # pyright: ignore[reportPrivateImportUsage]
    return total


class BatchNormBuffers:
    """Copies of a module's buffers (BatchNorm statistics) from before a step, to restore after a skipped step.

    Args:
        module: Any module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._pairs = [(buffer, buffer.clone()) for buffer in module.buffers()]

    def restore(self, ok: Tensor) -> None:
        """Restore the buffers if `ok` (scalar bool on the device) is False."""
        for buffer, before in self._pairs:
            buffer.copy_(torch.where(ok, buffer, before))


def step(optimizer: torch.optim.Optimizer, ok: Tensor) -> None:
    """Run the optimizer step, skipped if `ok` (scalar bool on the device) is False, and set all gradients to None.

    The host does not wait for the device.
    """
    pairs = [(shard, whole(shard)) for group in optimizer.param_groups for shard in group["params"]]
    for shard, parameter in pairs:
        if shard is not parameter:  # use the current shards of the weight and the gradient
            shard.data = distributed.local_tensor(parameter.detach())
            shard.grad = None if parameter.grad is None else distributed.local_tensor(parameter.grad)
    # The protocol of torch's own GradScaler: fused optimizers read `found_inf` and skip on the device.
    optimizer.found_inf = (~ok).to(torch.float32)  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
    for shard, parameter in pairs:
        shard.grad = parameter.grad = None
