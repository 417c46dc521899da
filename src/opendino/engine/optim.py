"""Settings of the optimizer, its parameter groups, its step, and gradient clipping.

The host never waits for the device: a step with a non-finite loss is skipped on the device itself (`found_inf`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from opendino.core import auto_values, distributed, duration
from opendino.core.contracts import Backbone
from opendino.core.ranges import Checked, Duration, FractionAboveZero, NotNegative, Positive, Width
from opendino.core.types import Facts
from opendino.engine.optimizers import LARS, SGD, AdamW, Muon, full_parameter, norms


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the optimizer. Defaults are those of DINO v1 for ViTs."""

    name: Literal["auto", "adamw", "muon", "sgd", "lars"] = "adamw"
    """Optimizer: adamw for ViTs, muon for small ConvNets, sgd or lars for ResNets. auto: muon for conv4, else adamw."""
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
        """Replace "auto" values and cap warm-up and freeze at 20% of the run; returns the reasons for the log too."""
        found: dict[str, tuple[Any, str]] = {}
        name = self.name
        if name == "auto":
            name, why = ("muon", "learns in fewer steps") if facts.convolutional else ("adamw", "as in the paper")
            found["name"] = name, why
        if self.lr == "auto":
            found["lr"] = _auto_lr(name, facts)
        if self.weight_decay_end == "auto":
            end = self.weight_decay if facts.convolutional else 0.4
            found["weight_decay_end"] = end, "constant, as in the demo" if facts.convolutional else "as in the paper"
        found |= auto_values.capped(self, {"lr_warmup": 0.2, "freeze_backbone": 0.2}, facts)
        return auto_values.with_auto_values(Config, self, found)


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(Config):
    """Settings of the optimizer without "auto"."""

    name: Literal["adamw", "muon", "sgd", "lars"] = "adamw"
    lr: Positive = 5e-4
    weight_decay_end: NotNegative = 0.4
    grad_accum_steps: Width = 1


_BASE_LR = {"adamw": 5e-4, "muon": 5e-4, "sgd": 0.03, "lars": 0.3}
"""DINO v1's published learning rates for a batch of 256; Muon's updates have about the size of AdamW's."""
_CONV_LR = 3e-3
"""Best learning rate of the demo's convolutional network, at batch sizes of 32 to 64 (not per 256)."""


def _auto_lr(name: str, facts: Facts) -> tuple[float, str]:
    """The `auto` learning rate for a batch of 256, and the reason."""
    if facts.convolutional and name in ("adamw", "muon"):
        return (
            _CONV_LR * 256 / facts.batch,
            f"per 256 images; a step of {facts.batch} takes {_CONV_LR:g}, best for the small network",
        )
    return _BASE_LR[name], f"the rate of the paper for {name}"


def param_groups(
    student: nn.Module, layer_decay: float = 1.0, separate_backbone: bool = False, orthogonal: bool = False
) -> list[dict[str, Any]]:
    """Split trainable parameters into groups with weight decay and without (biases and one-dimensional parameters).

    Args:
        student: Any module; it needs a "backbone" if one of the next two arguments is used.
        layer_decay: Layer-wise learning rate decay: each backbone stage learns at this fraction of the learning rate of
            the stage above it, the last one at this fraction of the head's (Clark et al. 2020, ELECTRA; Bao et al.
            2022, BEiT).
        separate_backbone: Give the backbone separate groups even without layer decay.
        orthogonal: Give the weights of linear layers and convolutions separate groups, for `Muon`; prototypes and
            position embeddings are not among them.

    Returns:
        Parameter groups with the extra keys "share" (factor on the learning rate), "backbone" (whether they belong to
        the backbone), "decayed" (whether weight decay applies) and "orthogonal".
    """
    depth: dict[str, int] = {}  # below the head
    if separate_backbone or layer_decay < 1:
        stages = cast(Backbone, cast(nn.ModuleDict, student)["backbone"]).stages()
        depth = {f"backbone.{name}": len(stages) - i for i, stage in enumerate(stages) for name in stage}
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    matrices = {id(layer.weight) for layer in student.modules() if isinstance(layer, layers)} if orthogonal else set()
    groups: dict[tuple[float, bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            decayed = not (name.endswith(".bias") or parameter.ndim == 1)
            key = layer_decay ** depth.get(name, 0), name in depth, decayed, id(parameter) in matrices
            groups.setdefault(key, []).append(parameter)
    names = ("share", "backbone", "decayed", "orthogonal")
    return [
        {"params": groups[key], **dict(zip(names, key, strict=True)), "weight_decay": 0.0}
        for key in sorted(groups, reverse=True)
    ]


def build(config: Config, student: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a student; `learning_rate.set_lr_and_weight_decay` is called before each step."""
    groups = param_groups(
        student, config.layer_decay, duration.parse(config.freeze_backbone)[0] > 0, orthogonal=config.name == "muon"
    )
    for group in groups:
        group["params"] = [_local_parameter(parameter) for parameter in group["params"]]
    if config.name == "adamw":
        return AdamW(groups, lr=0.0, fused=True)
    if config.name == "muon":
        return Muon(groups, lr=0.0)
    if config.name == "sgd":
        sgd = SGD(groups, lr=0.0, momentum=0.9, fused=True)
        # Create the momentum buffers now, not in the first step, for two reasons: torch's fused SGD requires all or
        # none of a group's buffers to exist, but the prototypes are frozen at first; and if the first step is skipped
        # (`found_inf`) it would leave new buffers uninitialized.
        for group in sgd.param_groups:
            for parameter in group["params"]:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return LARS(groups, lr=0.0)


def _local_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """This rank's shard of a parameter as a plain tensor, so that optimizers need no DTensor support."""
    if not distributed.is_sharded(parameter):
        return parameter
    local = nn.Parameter(distributed.local_tensor(parameter.detach()))
    local.full_parameter = parameter  # pyright: ignore[reportAttributeAccessIssue]
    return local


@torch.no_grad()
def clip(student: nn.Module, max_norm: float, by: Literal["tensor", "global"]) -> Tensor:
    """Clip gradient norms in place.

    Args:
        student: Its gradients are scaled. Norms are those of full tensors, also if they are sharded (collective).
        max_norm: Largest norm; 0 clips nothing.
        by: "tensor" clips each gradient by its own norm (DINO v1), "global" all by their common norm.

    Returns:
        The norm over all gradients before clipping, a float scalar on the device.
    """
    found = [p.grad for p in student.parameters() if p.grad is not None]
    grads = [distributed.local_tensor(grad) for grad in found]
    each = norms(grads, any(distributed.is_sharded(grad) for grad in found))
    total = torch.linalg.vector_norm(each)
    if max_norm > 0:
        # As in DINO v1, including its 1e-6: g · min(1, c / (‖g‖ + 1e-6)).
        scale = (max_norm / ((each if by == "tensor" else total) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale.unbind() if by == "tensor" else scale)  # pyright: ignore[reportPrivateImportUsage]
    return total


class BatchNormBuffers:
    """Copy of a module's buffers, to undo what a skipped step did to BatchNorm's running statistics.

    Args:
        module: Its buffers are copied now, before the forward pass.
    """

    def __init__(self, module: nn.Module) -> None:
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in module.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        # All buffers of a type as one tensor: a network has hundreds, each of a few values.
        self._groups = [(buffers, _flat(buffers)) for buffers in by_dtype.values()]

    def restore(self, ok: Tensor) -> None:
        """Put the copies back if `ok` (bool scalar on the device) is False, without waiting for the device."""
        for buffers, before in self._groups:
            values = torch.where(ok, _flat(buffers), before).split([buffer.numel() for buffer in buffers])
            pairs = zip(values, buffers, strict=True)
            torch._foreach_copy_(buffers, [value.view_as(buffer) for value, buffer in pairs])  # pyright: ignore[reportPrivateImportUsage]


def _flat(tensors: list[Tensor]) -> Tensor:
    """The values of all tensors, one after the other."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def step(optimizer: torch.optim.Optimizer, ok: Tensor) -> None:
    """Run the optimizer's step and delete the gradients; the host does not wait for the device.

    Args:
        optimizer: From `build`.
        ok: Bool scalar on the device; if False the step is skipped and no parameter or moment changes.
    """
    pairs = [(local, full_parameter(local)) for group in optimizer.param_groups for local in group["params"]]
    for local, parameter in pairs:
        if local is not parameter:  # FSDP: let the optimizer's tensors share memory with this rank's shards
            local.data = distributed.local_tensor(parameter.detach())
            local.grad = None if parameter.grad is None else distributed.local_tensor(parameter.grad)
    # The interface that torch's GradScaler uses: fused optimizers read `found_inf` and skip the step on the device.
    optimizer.found_inf = (~ok).to(torch.float32)  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
    for local, parameter in pairs:
        local.grad = parameter.grad = None
