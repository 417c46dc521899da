"""Learning rate and weight decay of each step: linear warm-up, then half a cosine, as in DINO v1."""

from __future__ import annotations

import torch

from opendino.core.schedule_formulas import warmup_cosine
from opendino.core.types import Clock
from opendino.engine import optim


def set_lr_and_weight_decay(
    optimizer: torch.optim.Optimizer, config: optim.ResolvedConfig, clock: Clock, batch: int
) -> tuple[float, float]:
    """Set the learning rate and weight decay of a step: linear warm-up, then half cosines.

    Args:
        optimizer: From `optim.build`.
        config: Its settings.
        clock: The step about to run.
        batch: Images per step over all devices; the peak learning rate is `lr · batch / 256`.

    Returns:
        Learning rate of the head, and weight decay.
    """
    total = clock.total_steps
    warmup = clock.in_steps(config.lr_warmup)
    lr = warmup_cosine(clock.step, config.lr * batch / 256, config.min_lr, total, warmup)
    weight_decay = warmup_cosine(clock.step, config.weight_decay, config.weight_decay_end, total)
    # A frozen backbone has a learning rate of 0: its weights do not change, but the optimizer's moments adapt.
    frozen = clock.in_steps(config.freeze_backbone)
    backbone_warmup = min(1.0, max(0, clock.step - frozen) / max(1, warmup)) if frozen else 1.0
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"] * (backbone_warmup if group["backbone"] else 1.0)
        if group["decayed"]:
            group["weight_decay"] = weight_decay
    return lr, weight_decay
