"""The untrained network beside a trained one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.factories import model_folder

import opendino
from opendino.data.open_source import open_source
from opendino.features.baselines import untrained_on
from opendino.models import build


@pytest.mark.parametrize("num", [5, 4])
def test_a_last_batch_of_one_image_gives_batch_norm_no_variance(tmp_path: Path, num: int) -> None:
    model = opendino.load(model_folder(tmp_path, build.backbone("resnet18", image_px=32), 32))
    fresh = untrained_on(model, open_source("toy:textures?n=9&size=32"), range(num), batch=4, workers=0)
    assert all(value.isfinite().all() for value in fresh.backbone.state_dict().values())
