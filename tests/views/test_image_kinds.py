"""Augmentations that depend on the images: channels that are no colors, images without an upright side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opendino.config import Config, resolve_parts
from opendino.core.errors import UsageError
from opendino.core.types import Facts
from opendino.methods import byol, dino, distill, mean_teacher
from opendino.views.image_kinds import in_any_orientation, without_colors
from opendino.views.settings import active, changed

COLORS = ("color_jitter", "gray", "solarize")


@pytest.mark.parametrize("method", [byol, dino, distill, mean_teacher])
@pytest.mark.parametrize("channels", [1, 2, 12])
def test_the_views_of_every_method_change_channels_instead_of_colors(method: object, channels: int) -> None:
    views, reasons = without_colors(method.VIEWS, method.VIEWS, channels)
    for group, view in views.items():
        assert not any(active(view, name) for name in COLORS)
        before = method.VIEWS[group].color_jitter
        if before.p:
            jitter = view.channel_jitter
            assert (jitter.p, jitter.brightness, jitter.contrast) == (before.p, before.brightness, before.contrast)
            assert active(view, "noise")
    assert len(reasons) == 1 and f"{channels} channel" in reasons[0]
    assert without_colors(views, method.VIEWS, channels) == (views, [])


@pytest.mark.parametrize(("setting", "value"), [("color_jitter.hue", 0.3), ("gray.p", 0.5), ("solarize.p", 0.5)])
def test_colors_that_the_user_set_are_refused_where_there_are_none(setting: str, value: float) -> None:
    views = changed(dino.VIEWS, {f"local.{setting}": value})
    flag = f"--views.local.{setting.replace('_', '-')}"
    with pytest.raises(UsageError, match=r"views\.local\.\w+ .*5 channels") as caught:
        without_colors(views, dino.VIEWS, 5)
    assert flag.rpartition(".")[0] in caught.value.hint
    kept, _ = without_colors(views, dino.VIEWS, 3)  # three channels may be colors after all
    assert active(kept["local"], setting.partition(".")[0]) and not active(kept["global"], "color_jitter")


def test_brightness_and_contrast_that_the_user_set_stay() -> None:
    views = changed(dino.VIEWS, {"all.color_jitter.hue": 0.0, "all.color_jitter.saturation": 0.0})
    kept, reasons = without_colors(views, dino.VIEWS, 5)
    assert active(kept["global"], "color_jitter") and not active(kept["global"], "channel_jitter")
    assert "color_jitter" not in reasons[0]


def test_changes_of_channels_that_the_user_set_stay() -> None:
    views = changed(dino.VIEWS, {"all.channel_jitter.brightness": 0.0, "local.channel_jitter.contrast": 0.7})
    found, _ = without_colors(views, dino.VIEWS, 5)
    for group, contrast in (("global", 0.4), ("second", 0.4), ("local", 0.7)):
        jitter = found[group].channel_jitter
        assert (jitter.p, jitter.brightness, jitter.contrast) == (0.8, 0.0, contrast)


def test_any_orientation_flips_and_turns_all_views_that_are_square() -> None:
    views, reasons = in_any_orientation(changed(dino.VIEWS, {"local.size": (48, 96), "second.vertical_flip.p": 0.1}))
    assert [views[group].quarter_turns.p for group in ("global", "second", "local")] == [1, 1, 0]
    assert [views[group].vertical_flip.p for group in ("global", "second", "local")] == [0.5, 0.1, 0.5]
    assert "--orientation any" in reasons[0]
    assert in_any_orientation(views) == (views, [])


def test_a_start_applies_both_and_photographs_stay_as_they_were() -> None:
    facts = Facts(100, 64, 0, 16, 100, 6)
    config, reasons = resolve_parts(Config("images"), facts)
    assert config.views["global"].vertical_flip.p == 0 and not [
        each for each in reasons if each.startswith("views.all")
    ]
    config = Config("images", mean=(0.5,) * 5, std=(0.2,) * 5, orientation="any")
    config, reasons = resolve_parts(config, Facts(100, 64, 0, 16, 100, 6, is_rgb=False))
    assert config.views["local"].quarter_turns.p == 1 and config.views["local"].color_jitter.p == 0
    assert len([each for each in reasons if each.startswith("views.all")]) == 2


def test_a_dropped_channel_is_black_and_each_is_as_likely() -> None:
    from tests.views.test_augmentations import made, pixels

    canvas = pixels(4, images=300).clamp(min=1)
    out, parameters = made(canvas, {"channel_drop.p": 0.5})
    dropped = (out == 0).all(-1).all(-1)  # [V B C]
    number = parameters["channel_drop"]["channel"]
    assert torch.equal(dropped.sum(-1), (number >= 0).long())
    assert torch.equal(dropped.float().argmax(-1)[number >= 0], number[number >= 0])
    counts = np.bincount(number[number >= 0].flatten(), minlength=4)
    assert counts.sum() == pytest.approx(300, abs=60) and counts.min() > 45
