"""Boxes and stages match the view parameters and the views of training."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from opendino.core.errors import UsageError
from opendino.core.types import BlockMasks
from opendino.data.cache import DecodedImages
from opendino.data.loader import Batch, Batches
from opendino.data.sources.toy import ToySource
from opendino.methods import dino
from opendino.views.multi_crop import multi_crop
from opendino.views.settings import changed
from opendino.visualize.crops import Config, RunBatches, boxed, choices, first, show, tiles, until
from opendino.visualize.drawing.style import COLORS

NEW = ("flip", "vertical_flip", "quarter_turns", "rotation", "channel_jitter", "gamma", "noise", "jpeg", "erase")
SPEC = dino.views(
    dino.Config(),
    changed(
        dino.VIEWS,
        {
            "global.size": 32, "local.size": 16, "local.number": 4, "all.gray.p": 0.5, "all.solarize.p": 0.5,
            **{f"all.{name}.p": 0.5 for name in NEW},
        },
    ),
)  # fmt: skip


@pytest.fixture
def batches() -> Batches:
    return Batches(DecodedImages(ToySource("colorful", n=12, size=48), 10_000), SPEC, seed=3, batch=4)


def test_boxes_are_where_the_draw_says() -> None:
    drawn = np.array(boxed(Image.new("RGB", (100, 50)), [("global", [10, 20, 30, 60]), ("local", [5, 5, 10, 10])]))
    assert drawn.shape == (200, 400, 3)  # four times as large
    for color, (top, left, bottom, right) in ((COLORS[0], (40, 80, 160, 320)), (COLORS[1], (20, 20, 60, 60))):
        ours = (drawn == ImageColor.getrgb(color)).all(-1)
        assert (ours.any(1).nonzero()[0][[0, -1]] == (top, bottom - 1)).all()
        assert (ours.any(0).nonzero()[0][[0, -1]] == (left, right - 1)).all()
        assert ours[top, left:right].all() and ours[bottom - 1, left:right].all()


def test_the_views_shown_are_those_of_training(batches: Batches) -> None:
    batch = batches[2]
    assert isinstance(batch, Batch)
    views = multi_crop(batch.canvas, batch.draws, SPEC)
    rows = tiles(batch, 1, SPEC)
    shown = [tile.image for row in rows for tile in row if tile][1:]
    assert len(shown) == 6
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (SPEC.mean, SPEC.std))
    for n, picture in enumerate(shown):
        name, v = ("global", n) if n < 2 else ("local", n - 2)
        expected = ((views[name][v, 1] * std + mean) * 255).round().clamp(0, 255).permute(1, 2, 0).numpy()
        small = picture.resize(expected.shape[:2], Image.Resampling.NEAREST)  # whole pixels were repeated
        assert np.abs(np.array(small) - expected).max() == 0


def test_every_augmentation_is_named_where_it_changes_the_view_and_the_last_is_the_view(batches: Batches) -> None:
    batch = batches[0]
    assert isinstance(batch, Batch)
    names = list(batch.draws["global"])
    draws = [{group: until(d, name) for group, d in batch.draws.items()} for name in names]
    after = [multi_crop(batch.canvas, each, SPEC)["global"] for each in draws]
    assert torch.equal(after[-1], multi_crop(batch.canvas, batch.draws, SPEC)["global"])
    seen = set()
    for place in range(4):
        for v, done in enumerate(choices(batch, place)[:2]):
            changes = {
                name: not torch.equal(a[v, place], b[v, place])
                for name, (a, b) in zip(names[1:], itertools.pairwise(after), strict=True)
            }
            named = list(done["augmentations"])
            assert {name for name in names[1:] if changes[name]} <= set(named)
            assert all(changes[name] or name == "solarize" for name in named), "a dark view has no bright values"
            assert named == [name for name in names if name in named]
            assert all(text.startswith(name) for name, text in done["augmentations"].items())
            row = tiles(batch, place, SPEC, stages=True)[1 + v]
            assert len(row) == 1 + len(done["augmentations"])
            seen |= set(done["augmentations"])
    assert seen >= {"color_jitter", "gray", "blur", "solarize", *NEW}


def test_a_step_end_to_end(batches: Batches, tmp_path: Path) -> None:
    seen = RunBatches(batches, steps=7, student="all views", teacher="the global views")
    report = show(Config("run", step=4, images=2, out=str(tmp_path / "c.png")), seen)
    assert (report.fields["step"], report.fields["epoch"]) == (4, 1)
    batch = batches[4]
    assert isinstance(batch, Batch)
    keys = [batches.images.source.key(int(index)) for index in batch.indices[:2]]
    assert [each["image"] for each in report.fields["images"]] == keys
    box = report.fields["images"][1]["views"][3]["box"]
    assert box == batch.draws["local"]["crop"]["box"][1, 1].tolist()
    assert "the student gets all views, the teacher the global views" in report.text
    assert len(first(batch, 9).indices) == 4, "no more than there are"
    with pytest.raises(UsageError, match="--step is 7 and the run has 7"):
        show(Config("run", step=7, out=str(tmp_path / "d.png")), seen)
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_the_boxes_of_a_thin_image_fit_on_the_sheet(size: tuple[int, int]) -> None:
    drawn = boxed(Image.new("RGB", size), [("global", [0, 0, size[1], size[0]])])
    assert drawn.width <= 400 and drawn.height <= 800


def test_masked_patches_are_shown_in_the_mean_color_as_the_last_stage() -> None:
    groups = (replace(SPEC.groups[0], masks=BlockMasks(1, 0.5)), SPEC.groups[1])
    spec = replace(SPEC, groups=groups, patch_px=8)
    batch = Batches(DecodedImages(ToySource("colorful", n=12, size=48), 10_000), spec, seed=3, batch=4)[0]
    assert isinstance(batch, Batch)
    texts = [each["augmentations"].get("mask") for each in choices(batch, 0)]
    assert set(texts[:2]) == {None, "mask 50%"}
    assert texts[2:] == [None] * 4
    masked = texts.index("mask 50%")
    where = batch.draws["global"]["mask"]["where"][masked, 0].unflatten(0, (4, 4)).numpy()
    view = np.asarray([tile for row in tiles(batch, 0, spec) for tile in row if tile][1 + masked].image)
    side = len(view) // 4
    gray = (torch.tensor(spec.mean) * 255).round().numpy()
    for row, column in np.ndindex(4, 4):
        center = view[
            row * side + side // 4 : row * side + side // 2, column * side + side // 4 : column * side + side // 2
        ]
        assert bool((abs(center - gray) <= 1).all()) == where[row, column]
    stages = tiles(batch, 0, spec, stages=True)[1 + masked]
    assert stages[-1].title.startswith("mask")
