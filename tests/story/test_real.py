"""Real photographs, from the packs beside the repository (OPENDINO_DATA); skipped where they are absent."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

import opendino
from opendino.data.dataset_probe import probe_dataset
from opendino.data.open_source import open_source
from opendino.recipes import resnet50, vits16_300ep
from opendino.views.settings import changed


@pytest.fixture(scope="module")
def clothing(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pack = data_folder / "clothing96_small_jpeg85.tar.gz"
    if not pack.is_file():
        pytest.skip(f"no {pack}")
    home = tmp_path_factory.mktemp("real")
    with tarfile.open(pack) as tar:
        tar.extractall(home, filter="data")
    return home / "clothing96"


def test_real_photographs_are_found_with_their_classes(clothing: Path) -> None:
    source = open_source(str(clothing / "train"))
    assert (len(source), len(source.classes)) == (1100, 10)
    looked = probe_dataset(source, 0.0)
    assert looked.short_side_px == 96


@pytest.mark.parametrize("recipe", [vits16_300ep, resnet50])
def test_real_photographs_train_a_paper_recipe_made_small(clothing: Path, tmp_path: Path, recipe: object) -> None:
    config = recipe.config(str(clothing / "train"))  # type: ignore[attr-defined]
    method = replace(config.method, out_dim=256, hidden_dim=64)
    views = changed(config.views, {"global.size": 64, "local.size": 32, "local.number": 2})
    options = (
        {"embed_dim": 48, "depth": 2, "num_heads": 3}
        if recipe is vits16_300ep
        else {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)}
    )
    result = opendino.train(
        replace(
            config,
            method=method,
            views=views,
            backbone_options=options,
            epochs=None,
            steps=6,
            batch=16,
            workers=1,
            eval_images=60,
            val=str(clothing / "val"),
            out=str(tmp_path / "run"),
        )
    )
    assert result.steps == 6
    assert result.knn is not None
    assert set(result.knn) == {"teacher", "student", "pixels", "untrained"}
    assert result.effective_rank is not None and result.effective_rank >= 1
    assert result.images_per_second > 0 and 0 <= result.data_wait <= 1
