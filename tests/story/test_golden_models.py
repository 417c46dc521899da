"""The backbone and the head against recordings of DINO v1."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from opendino.core.contracts import Backbone
from opendino.models.build import backbone
from opendino.models.heads import ProjectionHead

CLOSE = {"rtol": 0.0, "atol": 1e-10}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    root = Path(__file__).resolve().parents[2]
    path = Path(os.environ.get("OPENDINO_GOLDEN") or root / "../shared/golden/dino_v1_golden.npz")
    if not path.is_file():
        pytest.skip(f"no recording at {path} (OPENDINO_GOLDEN)")
    with np.load(path, allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if key.startswith(("vit.", "head."))}


def part(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


@pytest.fixture(scope="module")
def vit(golden: dict[str, Tensor]) -> Backbone:
    model = backbone("vit/4", image_px=16, embed_dim=24, depth=3, num_heads=3).double().eval()
    model.load_state_dict(part(golden, "vit.state."))
    return model


@pytest.mark.parametrize("case", ["native", "small", "rect", "large"])
def test_golden_vit(golden: dict[str, Tensor], vit: Backbone, case: str) -> None:
    recorded = part(golden, f"vit.{case}.")
    torch.testing.assert_close(vit([recorded["input"]])[0], recorded["cls"], **CLOSE)
    found = vit.features(recorded["input"])
    tokens = torch.cat([found.cls[:, None], found.registers, found.patches], dim=1)
    torch.testing.assert_close(tokens, recorded["tokens"], **CLOSE)
    torch.testing.assert_close(vit.attention(recorded["input"]), recorded["attention"], **CLOSE)


def test_golden_vit_all_sizes_in_one_pass(golden: dict[str, Tensor], vit: Backbone) -> None:
    cases = ("native", "small", "rect", "large")
    for case, cls in zip(cases, vit([golden[f"vit.{case}.input"] for case in cases]), strict=True):
        torch.testing.assert_close(cls, golden[f"vit.{case}.cls"], **CLOSE)


@pytest.mark.parametrize("normed", [True, False])
def test_golden_head(golden: dict[str, Tensor], normed: bool) -> None:
    recorded = part(golden, f"head.norm{int(normed)}.")
    head = ProjectionHead(24, 97, hidden_dim=40, bottleneck_dim=16, norm_last_layer=normed).double()
    head.load_state_dict(part(recorded, "state."))
    torch.testing.assert_close(head(recorded["input"]), recorded["output"], **CLOSE)
