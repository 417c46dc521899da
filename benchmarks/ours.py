"""Our training step for the benchmarks, and the classic one with the same schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from classic import Pair
from torch import Tensor

from opendino import config as configs
from opendino.config import Config
from opendino.core.types import Clock, Views
from opendino.engine import optim, precision
from opendino.methods import dino
from opendino.models import build
from opendino.training import step

CLOCK = Clock(0, 1000, 100)
PAPER = Config(data="", method=dino.Config(freeze_last_layer="0"))


class Ours:
    """A method and its optimizer; drop path is off, so that neither way uses random numbers.

    Args:
        backbone: Its name.
        config: With the settings of DINO and its views.
        settings: Of the optimizer; the rate is not warmed up.
        batch: Images per step.
        dtype: Of our matrix products.
        device: Of networks and views.
    """

    def __init__(
        self, backbone: str, config: Config, settings: optim.ResolvedConfig, batch: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        self.spec = configs.views(config)
        size_px = self.spec.groups[0].short_px
        self.method: Any = dino.build(config.method, lambda role: build.backbone(backbone, image_px=size_px)).train()
        self.method.to(device).to(memory_format=torch.channels_last)
        self.batch, self.dtype, self.device = batch, dtype, device
        self._settings = replace(settings, lr_warmup="0")
        self._optimizer = optim.build(self._settings, self.method.student)

    def noise(self) -> dict[str, Tensor]:
        """Random views, prepared in advance."""
        return {
            g.name: torch.randn(len(g.views), self.batch, 3, *g.view_px, device=self.device)
            for g in self.spec.groups
            if g.views
        }

    def step(self, crops: dict[str, Tensor]) -> Tensor:
        """One step on views; returns its loss without waiting for the device."""
        indices = torch.arange(self.batch, device=self.device)
        views = Views(crops, torch.full_like(indices, -1), indices)
        return step(self.method, self._optimizer, self._settings, self.batch, CLOCK, [views], self.dtype)[0]["loss"]

    def classic(self, pair: Pair, crops: list[Tensor], dtype: torch.dtype = torch.float32) -> float:
        """The same step in the classic way, on a list of views; its loss."""
        with precision.autocast(self.device, dtype):
            return pair.step(
                crops, self._settings.lr * self.batch / 256, self._settings.weight_decay,
                self.method.temperature(CLOCK), self.method.ema_momentum(CLOCK), frozen=False, clip=self._settings.clip,
            )  # fmt: skip


def listed(crops: dict[str, Tensor]) -> list[Tensor]:
    """Views of all groups, one after the other."""
    return [view for group in crops.values() for view in group]
