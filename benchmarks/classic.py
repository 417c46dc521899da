"""The classic way to train DINO, as a baseline: the original's semantics, from torch and torchvision.

Crops by PIL in loader workers, float32 views over the bus; one forward pass per resolution, all tokens in every
block, explicit attention; a log-softmax for each pair of views; clipping that waits for the device for each tensor's
norm; a Python loop for the teacher's average; nothing compiled. Only weights and position embeddings are shared with
ours, so that both can compute the same loss.
"""

from __future__ import annotations

import copy
import itertools
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor, nn
from torch.nn.functional import log_softmax, softmax

from opendino.core.types import ViewSpec
from opendino.views.settings import View


class MultiCrop:
    """The views of a spec, one PIL image after the other; needs torchvision."""

    def __init__(self, spec: ViewSpec) -> None:
        self._views = [self._transform(view, group.size_px, spec) for group in spec.groups for view in group.views]

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """RGB → each view `[3 H W]`."""
        return [view(image) for view in self._views]

    @staticmethod
    def _transform(view: View, size_px: int, spec: ViewSpec) -> Any:
        from torchvision import transforms

        crop, color, low_high = view.crop, view.color_jitter, view.blur.sigma_px
        jitter = transforms.ColorJitter(color.brightness, color.contrast, color.saturation, color.hue)
        return transforms.Compose([
            transforms.RandomResizedCrop(size_px, crop.scale, crop.ratio, transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(view.flip.p),
            transforms.RandomApply([jitter], color.p),
            transforms.RandomGrayscale(view.gray.p),
            _Sometimes(view.blur.p, lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(*low_high)))),
            _Sometimes(view.solarize.p, ImageOps.solarize),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ])  # fmt: skip


class _Sometimes:
    def __init__(self, probability: float, function: Any) -> None:
        self._probability, self._function = probability, function

    def __call__(self, image: Image.Image) -> Image.Image:
        return self._function(image) if random.random() < self._probability else image


class Files(torch.utils.data.Dataset[list[Tensor]]):
    """Image files → views."""

    def __init__(self, paths: list[Path], spec: ViewSpec) -> None:
        self._paths, self._crop = paths, MultiCrop(spec)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> list[Tensor]:
        with open(self._paths[index], "rb") as file:
            return self._crop(Image.open(file).convert("RGB"))


class ViT(nn.Module):
    """The textbook forward pass with the weights of one of our vision transformers: every token in every block."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.net = ours

    def forward(self, images: Tensor) -> Tensor:
        """`[B 3 H W]` → CLS tokens `[B D]`."""
        x = self.net._tokens(images)
        for block in self.net.blocks:
            attention = block.attn
            q, k, v = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
            x = x + self._drop(block, attention.proj((weights @ v).transpose(1, 2).flatten(2)))
            x = x + self._drop(block, block.mlp(block.norm2(x)))
        return self.net.norm(x)[:, 0]

    def _drop(self, block: Any, branch: Tensor) -> Tensor:
        rate = block.drop_path.rate
        if not self.training or rate == 0:
            return branch
        mask = torch.rand(len(branch), 1, 1, device=branch.device).add_(1 - rate).floor_()
        return branch.div(1 - rate) * mask


class Pair:
    """Student, teacher, center and optimizer, initialized from one of our methods."""

    def __init__(self, method: Any) -> None:
        method = copy.deepcopy(method)
        self.student, self.teacher = (
            {"backbone": self._net(net), "head": net["head"]} for net in (method.student, method.teacher)
        )
        self.center, self.config = method.center.clone(), method.config
        decayed = [p for p in self._parameters(self.student) if p.requires_grad and p.ndim > 1]
        plain = [p for p in self._parameters(self.student) if p.requires_grad and p.ndim == 1]
        self.optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}])

    def step(
        self,
        crops: list[Tensor],
        lr: float,
        weight_decay: float,
        temperature: float,
        momentum: float,
        frozen: bool,
        clip: float = 3.0,
    ) -> float:
        """One step on the views `[B 3 H W]`, the two global ones first; returns the loss."""
        for number, group in enumerate(self.optimizer.param_groups):
            group["lr"] = lr
            if number == 0:
                group["weight_decay"] = weight_decay
        with torch.no_grad():
            teacher = self._all(self.teacher, crops[:2])
        student = self._all(self.student, crops)
        loss = self._loss(student.float(), teacher.float(), len(crops), temperature)
        value = loss.item()  # the original stops where this is not finite
        self.optimizer.zero_grad()
        loss.backward()
        for p in self._parameters(self.student):
            if p.grad is not None:
                coefficient = clip / (p.grad.norm(2) + 1e-6)
                if coefficient < 1:
                    p.grad.mul_(coefficient)
        if frozen:
            for p in self.student["head"].last_layer.parameters():
                p.grad = None
        self.optimizer.step()
        with torch.no_grad():
            for t, s in zip(self._parameters(self.teacher), self._parameters(self.student), strict=True):
                t.mul_(momentum).add_((1 - momentum) * s.detach())
        return value

    def _loss(self, student: Tensor, teacher: Tensor, num_views: int, temperature: float) -> Tensor:
        views = (student / self.config.student_temp).chunk(num_views)
        targets = softmax((teacher - self.center) / temperature, dim=-1).detach().chunk(2)
        terms = [
            torch.sum(-target * log_softmax(view, dim=-1), dim=-1).mean()
            for t, target in enumerate(targets) for v, view in enumerate(views) if v != t
        ]  # fmt: skip
        m = self.config.center_momentum
        self.center = self.center * m + teacher.sum(0, keepdim=True) / len(teacher) * (1 - m)
        return sum(terms) / len(terms)

    @staticmethod
    def _all(network: dict[str, Any], crops: list[Tensor]) -> Tensor:
        """One pass for each run of views of one size, then the head on all."""
        sizes = [crop.shape[-1] for crop in crops]
        starts = [i for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]] + [len(crops)]
        rows = [network["backbone"](torch.cat(crops[a:b])) for a, b in itertools.pairwise(starts)]
        return network["head"](torch.cat(rows))

    @staticmethod
    def _parameters(network: dict[str, Any]) -> list[Tensor]:
        return [*network["backbone"].parameters(), *network["head"].parameters()]

    @staticmethod
    def _net(network: Any) -> nn.Module:
        backbone = network["backbone"]
        return ViT(backbone) if hasattr(backbone, "blocks") else _Single(backbone)


class _Single(nn.Module):
    """A network that takes lists of batches, called with one batch."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.net = ours

    def forward(self, images: Tensor) -> Tensor:
        """`[B 3 H W]` → `[B D]`."""
        return self.net([images])[0]
