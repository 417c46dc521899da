"""DINO of lightly's pieces (transform, head and loss; `pip install lightly`) with the network and views of a run."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from itertools import count
from pathlib import Path

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import update_momentum
from lightly.transforms.dino_transform import DINOTransform
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from opendino.existing_runs import read_run_config
from opendino.models.build import backbone

TIMED_STEPS = 10


def train(run: Path, folder: Path, seed: int, seconds: float) -> tuple[nn.Module, int]:
    """Train for about as many processor seconds, reading images as lightly does: by Pillow, view by view.

    Args:
        run: A run of ours, for network, sizes and scales of views, batch, prototypes and learning rate.
        folder: Training images, by class.
        seed: For weights, order and views.
        seconds: Of the processor, with everything; the length in steps is fixed by timing the first ones.

    Returns:
        The teacher, and its number of steps.
    """
    began = time.process_time()
    config = read_run_config(run)
    torch.manual_seed(seed)
    views, method, optim = config.views, config.method, config.optim
    large, small = views["global"], views["local"]
    transform = DINOTransform(
        global_crop_size=large.size, global_crop_scale=large.crop.scale, local_crop_size=small.size,
        local_crop_scale=small.crop.scale, n_local_views=small.number,
        gaussian_blur=(large.blur.p, views["second"].blur.p, small.blur.p), normalize={"mean": config.mean,
        "std": config.std},
    )  # fmt: skip
    student = backbone(config.backbone, image_px=large.size, **config.backbone_options)

    def head() -> nn.Module:
        return DINOProjectionHead(
            student.embed_dim, method.hidden_dim, method.bottleneck_dim, method.out_dim, freeze_last_layer=1
        )

    student_head, teacher, teacher_head = head(), deepcopy(student), head()
    teacher_head.load_state_dict(student_head.state_dict())
    criterion = DINOLoss(output_dim=method.out_dim, teacher_temp=method.teacher_temp, warmup_teacher_temp_epochs=0)
    optimizer = torch.optim.AdamW([*student.parameters(), *student_head.parameters()], weight_decay=optim.weight_decay)
    peak = optim.lr * config.batch / 256
    loader = DataLoader(ImageFolder(str(folder), transform), config.batch, shuffle=True, drop_last=True)
    steps, batches = 0, iter(())
    for step in count():
        if step == TIMED_STEPS:
            per_step = (time.process_time() - began) / TIMED_STEPS
            steps = max(TIMED_STEPS, int(seconds / per_step))
        if steps and step >= steps:
            return teacher.eval(), steps
        try:
            crops, _ = next(batches)
        except StopIteration:
            batches = iter(loader)
            crops, _ = next(batches)
        total = steps or 100 * TIMED_STEPS  # the warm-up is longer than the timed steps
        share, warm_up = step / total, max(TIMED_STEPS, total // 10)
        rate = peak * (step + 1) / warm_up if step < warm_up else peak * (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        momentum = method.momentum_end - (method.momentum_end - method.momentum) * (1 + math.cos(math.pi * share)) / 2
        update_momentum(student, teacher, momentum)
        update_momentum(student_head, teacher_head, momentum)
        with torch.no_grad():
            targets = [teacher_head(teacher([crop])[0]) for crop in crops[:2]]
        outputs = [student_head(student([crop])[0]) for crop in crops]
        loss = criterion(targets, outputs, epoch=step // len(loader))
        optimizer.zero_grad()
        loss.backward()
        student_head.cancel_last_layer_gradients(step // len(loader))
        nn.utils.clip_grad_norm_([*student.parameters(), *student_head.parameters()], optim.clip)
        optimizer.step()
    raise AssertionError
