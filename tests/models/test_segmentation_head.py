"""A segmentation head on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.factories import model_of, small_vit

from opendino.core.errors import UserError
from opendino.models.segmentation_head import SegmentationHead, fingerprint, load_head, save


def written(folder: Path) -> SegmentationHead:
    head = SegmentationHead(torch.randn(3, 48), torch.randn(3), (0, 2, 254), 2, "mIoU 50 %")
    save(folder, model_of(small_vit(depth=2)), head, {"miou": 50.0})
    return head


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    head = written(tmp_path / "head")
    model, found = load_head(tmp_path / "head")
    assert torch.equal(found.weight, head.weight) and torch.equal(found.bias, head.bias)
    assert (found.classes, found.blocks, found.measured) == ((0, 2, 254), 2, "mIoU 50 %")
    assert fingerprint(model, found) == fingerprint(*load_head(tmp_path / "head"))
    found.weight[0, 0] += 1
    assert fingerprint(model, found) != fingerprint(*load_head(tmp_path / "head"))
    assert not list((tmp_path / "head").glob("*.p*"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classes": [0, 300, 2]}, "classes"),
        ({"classes": [0, 1]}, r"weights \[3, 48\]"),
        ({"blocks": 1}, "24 features of the last 1 blocks"),
        ({"names": ["one"]}, "1 names for 3 classes"),
        ({"blocks": 9}, "the last 9 blocks"),
        ({"weights": torch.full((3, 48), torch.nan)}, "NaN"),
    ],
)
def test_a_spoilt_head_is_refused(change: dict, told: str, tmp_path: Path) -> None:
    written(tmp_path)
    if "weights" in change:
        state = load_file(tmp_path / "segmentation.safetensors")
        save_file(state | {"weight": change["weights"]}, tmp_path / "segmentation.safetensors")
    else:
        described = json.loads((tmp_path / "segmentation.json").read_text())
        (tmp_path / "segmentation.json").write_text(json.dumps(described | change))
    with pytest.raises(UserError, match=told) as caught:
        load_head(tmp_path)
    assert "\n" not in str(caught.value)
