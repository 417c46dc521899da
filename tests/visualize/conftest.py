"""A network with known features and attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.factories import model_folder, small_vit
from torch import Tensor, nn

from opendino.core.contracts import Backbone
from opendino.core.types import Features
from opendino.models.load import Model, preprocessing


class Looking(Backbone):
    """Patches of 4 px whose features are their mean colors; CLS and one register, two heads: bright and dark."""

    name, kwargs, embed_dim = "looking", {}, 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        return [self.features(batch).cls for batch in images]

    def features(self, images: Tensor) -> Features:
        patches = nn.functional.avg_pool2d(images, 4) * self.weight
        flat = patches.flatten(2).mT
        return Features(flat.mean(1), flat[:, :1] * 0, flat, (patches.shape[2], patches.shape[3]))

    def attention(self, images: Tensor) -> Tensor:
        light = 20 * self.features(images).patches.mean(-1)
        heads = nn.functional.pad(torch.stack([light, -light], dim=1), (2, 0), value=-50.0).softmax(-1)
        return heads[:, :, None].expand(-1, -1, heads.shape[-1], -1)


@pytest.fixture
def looking() -> Model:
    return Model(Looking(), preprocessing(16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), {})


@pytest.fixture
def vit(tmp_path: Path) -> str:
    return model_folder(tmp_path / "vit", small_vit("vit/4", image_px=32, depth=2, num_heads=3, num_registers=2), 32)
