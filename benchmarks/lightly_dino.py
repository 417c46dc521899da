"""DINO of lightly's pieces (transform, head and loss; `pip install lightly`) with the network and views of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import update_momentum
from lightly.transforms.dino_transform import DINOTransform
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from opendino.engine import precision
from opendino.existing_runs import read_run_config
from opendino.models.build import backbone

TIMED_STEPS = 10


class LightlyStep:
    """Student, teacher, loss and optimizer of lightly's pieces.

    Args:
        make_network: Makes a network that takes lists of batches, as those of `models.build.backbone`.
        method: Settings of DINO.
        optim: Settings of the optimizer.
    """

    def __init__(self, make_network: Callable[[], Any], method: Any, optim: Any) -> None:
        self.student, self._optim, self._method = make_network(), optim, method
        self._student_head, self.teacher, self._teacher_head = self._head(), deepcopy(self.student), self._head()
        self._teacher_head.load_state_dict(self._student_head.state_dict())
        self._loss = DINOLoss(output_dim=method.out_dim)  # its temperatures, for its centering by a mean
        self._parameters = [*self.student.parameters(), *self._student_head.parameters()]
        self._optimizer = torch.optim.AdamW(self._parameters, weight_decay=optim.weight_decay)

    def _head(self) -> nn.Module:
        method = self._method
        return DINOProjectionHead(
            self.student.embed_dim, method.hidden_dim, method.bottleneck_dim, method.out_dim, freeze_last_layer=1,
            batch_norm=method.head_batch_norm,
        )  # fmt: skip

    def __call__(
        self, crops: list[Tensor], rate: float, momentum: float, epoch: int, dtype: torch.dtype = torch.float32
    ) -> None:
        """One step on the views `[B 3 H W]`, the two global ones first, as in lightly's example: view by view."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        update_momentum(self.student, self.teacher, momentum)
        update_momentum(self._student_head, self._teacher_head, momentum)
        with precision.autocast(torch.device("cpu"), dtype):
            with torch.no_grad():
                targets = [self._teacher_head(self.teacher([crop])[0]) for crop in crops[:2]]
            outputs = [self._student_head(self.student([crop])[0]) for crop in crops]
        loss = self._loss([each.float() for each in targets], [each.float() for each in outputs], epoch=epoch)
        self._optimizer.zero_grad()
        loss.backward()
        self._student_head.cancel_last_layer_gradients(epoch)
        nn.utils.clip_grad_norm_(self._parameters, self._optim.clip)
        self._optimizer.step()


def transform(views: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]) -> DINOTransform:
    """The transform of lightly with the sizes, scales, blur and colors of the views of a run."""
    large, small, colors = views["global"], views["local"], views["global"].color_jitter
    return DINOTransform(
        global_crop_size=large.size, global_crop_scale=large.crop.scale, local_crop_size=small.size,
        local_crop_scale=small.crop.scale, n_local_views=small.number, cj_prob=colors.p, cj_strength=1.0,
        cj_bright=colors.brightness, cj_contrast=colors.contrast, cj_sat=colors.saturation, cj_hue=colors.hue,
        random_gray_scale=large.gray.p, gaussian_blur=(large.blur.p, views["second"].blur.p, small.blur.p),
        solarization_prob=views["second"].solarize.p, normalize={"mean": mean, "std": std},
    )  # fmt: skip


def train(run: Path, folder: Path, seed: int, seconds: float) -> tuple[nn.Module, dict[str, Any]]:
    """Train for about as many processor seconds at the run's precision, reading images as lightly does, view by view.

    Args:
        run: A run of ours, for network, views, batch, prototypes, precision and learning rate.
        folder: Training images, by class.
        seed: For weights, order and views.
        seconds: Of the processor, with everything; the length in steps is fixed by timing the first ones.

    Returns:
        The teacher, and "steps" and "processor seconds".
    """
    began = time.process_time()
    config = read_run_config(run)
    torch.manual_seed(seed)
    method, size_px = config.method, config.views["global"].size
    step = LightlyStep(
        lambda: backbone(config.backbone, image_px=size_px, **config.backbone_options), method, config.optim
    )
    images = ImageFolder(str(folder), transform(config.views, config.mean, config.std))
    peak = config.optim.lr * config.batch / 256
    dtype = getattr(torch, config.precision)
    loader = DataLoader(images, config.batch, shuffle=True, drop_last=True)
    steps, batches = 0, iter(())
    for number in count():
        if number == TIMED_STEPS:
            per_step = (time.process_time() - began) / TIMED_STEPS
            steps = max(TIMED_STEPS, int(seconds / per_step))
        if steps and number >= steps:
            taken = {"steps": steps, "processor seconds": time.process_time() - began}
            return step.teacher.eval(), taken
        try:
            crops, _ = next(batches)
        except StopIteration:
            batches = iter(loader)
            crops, _ = next(batches)
        total = steps or 100 * TIMED_STEPS  # the warm-up is longer than the timed steps
        share, warm_up = number / total, max(TIMED_STEPS, total // 10)
        rate = peak * (number + 1) / warm_up if number < warm_up else peak * (1 + math.cos(math.pi * share)) / 2
        momentum = method.momentum_end - (method.momentum_end - method.momentum) * (1 + math.cos(math.pi * share)) / 2
        step(crops, rate, momentum, number // len(loader), dtype)
    raise AssertionError
