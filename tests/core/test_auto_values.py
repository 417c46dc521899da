"""The rules of "auto" that depend on image size; complete tables, since the documentation states every value."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opendino.core.types import Facts
from opendino.engine import optim
from opendino.methods import byol, dino, distill, mean_teacher
from opendino.views.settings import changed, resolved

AUTO = changed(
    dino.VIEWS,
    {
        "global.size": "auto", "local.size": "auto", "local.number": "auto", "all.crop.scale": "auto",
        "all.blur.p": "auto",
    },
)  # fmt: skip


def facts(short_side_px: int, convolutional: bool, batch: int = 32) -> Facts:
    return Facts(2000, short_side_px, 0, batch, 600, 60, "cpu", convolutional=convolutional)


@pytest.mark.parametrize(
    ("short", "sizes", "scales"),
    [
        (160, (64, 32), ((0.25, 1.0), (0.05, 0.25))),
        (128, (64, 32), ((0.25, 1.0), (0.05, 0.25))),
        (96, (64, 32), ((0.25, 1.0), (0.05, 0.25))),
        (64, (48, 24), ((0.3, 1.0), (0.1, 0.3))),
        (32, (32, 16), ((0.4, 1.0), (0.15, 0.4))),
        (28, (28, 14), ((0.4, 1.0), (0.15, 0.4))),
        (8, (16, 8), ((0.4, 1.0), (0.15, 0.4))),
    ],
)
def test_crops_of_a_small_network_keep_the_detail(
    short: int, sizes: tuple[int, int], scales: tuple[tuple[float, float], tuple[float, float]]
) -> None:
    found, reasons = resolved(AUTO, facts(short, convolutional=True))
    assert (found["global"].size, found["local"].size) == sizes
    assert tuple(found[name].crop.scale for name in ("global", "second", "local")) == (scales[0], *scales)
    assert (found["local"].number, [view.blur.p for view in found.values()]) == (4, [0.2, 0.1, 0.1])
    assert all(f"{name} = " in " ".join(reasons) for name in ("global.size", "second.crop.scale", "local.number"))
    assert resolved(found, facts(short, convolutional=True)) == (found, []), "what is decided stays decided"
    for module in (byol, mean_teacher, distill):
        assert resolved(module.VIEWS, facts(short, convolutional=True))[0]["global"].size == sizes[0]


def test_a_scale_without_effect_is_not_printed() -> None:
    _, reasons = resolved(changed(AUTO, {"all.crop.fixed": True}), facts(128, convolutional=True))
    assert "crop.scale" not in " ".join(reasons) and "global.size" in " ".join(reasons)


def test_other_networks_keep_the_views_of_the_paper() -> None:
    found, _ = resolved(AUTO, facts(128, convolutional=False))
    assert (found["global"].size, found["local"].size) == (96, 48)  # a CPU stops at 96; 96/224 of it, in sixteens
    assert [view.crop.scale for view in found.values()] == [(0.25, 1.0), (0.25, 1.0), (0.05, 0.25)]
    assert (found["local"].number, [view.blur.p for view in found.values()]) == (6, [1.0, 0.1, 0.5])


@pytest.mark.parametrize(
    ("device", "short", "size"),
    [("cuda", 1000, 224), ("cuda", 120, 96), ("cuda", 33, 32), ("cpu", 5, 32), ("cpu", 500, 96)],
)
def test_the_crop_never_exceeds_the_images_nor_falls_below_32(device: str, short: int, size: int) -> None:
    found, _ = resolved(AUTO, replace(facts(short, convolutional=False), device=device))
    assert found["global"].size == size


def test_explicit_values_are_kept() -> None:
    asked = changed(AUTO, {"global.size": 80, "all.crop.scale": (0.5, 1.0), "local.blur.p": 0.3})
    found, _ = resolved(asked, facts(64, convolutional=True))
    assert (found["global"].size, found["local"].size) == (80, 40)
    assert found["local"].crop.scale == (0.5, 1.0) and found["local"].blur.p == 0.3


def test_local_views_have_the_shape_of_the_global_ones() -> None:
    found, _ = resolved(changed(AUTO, {"global.size": (224, 448)}), facts(64, convolutional=False))
    assert found["local"].size == (96, 192)


@pytest.mark.parametrize("batch", [4, 32, 64])
def test_the_rate_of_a_small_network_does_not_shrink_with_the_batch(batch: int) -> None:
    found, _ = optim.Config(lr="auto").resolved(facts(64, True, batch))
    assert found.lr * batch / 256 == pytest.approx(3e-3)
    assert optim.Config(lr="auto").resolved(facts(64, False, batch))[0].lr == 5e-4
    assert optim.Config(name="sgd", lr="auto").resolved(facts(64, True, batch))[0].lr == 0.03
