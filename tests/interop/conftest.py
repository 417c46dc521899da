"""Layouts of files as they were published, written out as shapes: what the readers are held against."""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
Fill = Callable[[tuple[int, ...]], Tensor]


@pytest.fixture(scope="session")
def layouts() -> SimpleNamespace:
    """The functions below."""
    return SimpleNamespace(
        zeros=zeros, random=random, vit=vit, resnet=resnet, head=head, filled=filled, full=full,
        tiny=vit(64, 16, depth=2), tiny_head=head(64, prototypes=97, hidden=32, narrow=16),
    )  # fmt: skip


def zeros(shape: tuple[int, ...]) -> Tensor:
    """One number behind any shape: costs nothing."""
    return torch.zeros(()).expand(shape)


def random(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape) * 0.05


def vit(width: int, patch: int, depth: int = 12, tokens: int | None = None) -> Shapes:
    """DINO v1, vision_transformer.py: 224 px, MLP of four widths, qkv in one."""
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens or 1 + (224 // patch) ** 2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{norm}.weight": (width,), f"blocks.{i}.{norm}.bias": (width,)}
        for layer, (rows, columns) in {
            "attn.qkv": (3 * width, width), "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width),
        }.items():  # fmt: skip
            shapes |= {f"blocks.{i}.{layer}.weight": (rows, columns), f"blocks.{i}.{layer}.bias": (rows,)}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def resnet(blocks: tuple[int, int, int, int], bottleneck: bool, classes: int = 0) -> Shapes:
    """torchvision, resnet.py (He et al. 2016, table 1; the stride is in the 3×3 convolution)."""
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7)}

    def norm(name: str, width: int) -> None:
        for key in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{key}"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 64)
    entering = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        leaving = 4 * width if bottleneck else width
        for i in range(count):
            name = f"layer{stage + 1}.{i}"
            sizes = [(width, entering, 1), (width, width, 3), (leaving, width, 1)]
            sizes = sizes if bottleneck else [(width, entering, 3), (width, width, 3)]
            for number, (rows, columns, side) in enumerate(sizes, 1):
                shapes[f"{name}.conv{number}.weight"] = (rows, columns, side, side)
                norm(f"{name}.bn{number}", rows)
            if i == 0 and entering != leaving:
                shapes[f"{name}.downsample.0.weight"] = (leaving, entering, 1, 1)
                norm(f"{name}.downsample.1", leaving)
            entering = leaving
    if classes:
        shapes |= {"fc.weight": (classes, entering), "fc.bias": (classes,)}
    return shapes


def head(
    width: int, prototypes: int = 65536, batch_norm: bool = False, hidden: int = 2048, narrow: int = 256
) -> Shapes:
    """DINO v1's head: three linear layers, with batch norm at 1 and 4 where asked for, and the weight-normed last."""
    second, third = (3, 6) if batch_norm else (2, 4)
    shapes: Shapes = {}
    for i, (rows, columns) in {0: (hidden, width), second: (hidden, hidden), third: (narrow, hidden)}.items():
        shapes |= {f"mlp.{i}.weight": (rows, columns), f"mlp.{i}.bias": (rows,)}
    for i in (1, 4) if batch_norm else ():
        for key in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"mlp.{i}.{key}"] = (hidden,)
        shapes[f"mlp.{i}.num_batches_tracked"] = ()
    return shapes | {"last_layer.weight_g": (prototypes, 1), "last_layer.weight_v": (prototypes, narrow)}


def filled(shapes: Shapes, fill: Fill, prefix: str = "") -> dict[str, Tensor]:
    counter = "num_batches_tracked"
    return collections.OrderedDict(
        (prefix + key, torch.zeros((), dtype=torch.int64) if key.endswith(counter) else fill(shape))
        for key, shape in shapes.items()
    )


def full(backbone: Shapes, head: Shapes, fill: Fill = zeros, teacher_prefix: str = "") -> dict[str, Any]:
    """main_dino.py's checkpoint.pth: what it saves, with the types it saves it in."""
    student = {**filled(backbone, fill, "module.backbone."), **filled(head, fill, "module.head.")}
    teacher = {
        **filled(backbone, fill, f"{teacher_prefix}backbone."),
        **filled(head, fill, f"{teacher_prefix}head."),
    }
    first = next(iter(backbone.values()))
    moments = {"step": 1200, "exp_avg": fill(first), "exp_avg_sq": fill(first)}
    group = {"lr": np.float64(1e-6), "weight_decay": np.float64(0.4), "betas": (0.9, 0.999), "params": [0]}
    return {
        "student": collections.OrderedDict(student),
        "teacher": collections.OrderedDict(teacher),
        "optimizer": {"state": {0: moments}, "param_groups": [group]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", lr=5e-4, global_crops_scale=(0.4, 1.0), use_fp16=True),
        "dino_loss": collections.OrderedDict(center=fill((1, 97))),
        "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "_growth_tracker": 5},
    }
