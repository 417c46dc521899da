"""The rules behind "auto": backbone, view sizes, momentum. Each returns a value and the reason for it in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from opendino.core import duration
from opendino.core.types import Facts

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    C = TypeVar("C", bound=DataclassInstance)


_DETAIL = ((96, 64, (0.25, 1.0), (0.05, 0.25)), (48, 48, (0.3, 1.0), (0.1, 0.3)), (0, 32, (0.4, 1.0), (0.15, 0.4)))
"""For convolutional networks: minimum shorter side of the images, global size, global scale, local scale. Sizes and
scales are chosen so that a crop is resized little and keeps the detail of the image."""
_PATCHES_ACROSS = 6


def backbone(device: str) -> tuple[str, str]:
    """Name of the backbone, and why: the largest one that trains in acceptable time on this type of device."""
    if device == "cpu":
        return "conv4", "a cpu device; a ViT would take days"
    return "vit_small/16", f"a {device} device"


def vit(size: str, short_side_px: int) -> tuple[str, str]:
    """Name of a ViT of a size, e.g. "vit_tiny/16", and why: patches of 16 px as in the paper, less for small images."""
    value = next((side for side in (16, 8) if short_side_px >= _PATCHES_ACROSS * side), 4)
    finer = f"; /{value // 2} sees more detail in four times the time" if value > 4 else ""
    return f"{size}/{value}", f"no patch size was given, images of about {short_side_px} px{finer}"


CONV4_WIDTH = 16
"""In its first 1,500 steps a network of half the usual width learns as much in the same time (docs/log.md); a longer
run is for the usual one (length_in_minutes.py)."""


def size_px(facts: Facts) -> tuple[int, str]:
    """Side of the global views in pixels, and why: the images' side, limited by the device, in steps of two patches."""
    if facts.convolutional:
        size = _detail(facts)[1]
        size = min(size, max(16, facts.short_side_px // 4 * 4))
        return size, f"images of about {facts.short_side_px} px, convolutional network"
    most = 224 if facts.device != "cpu" else 96  # on a CPU a ViT at 224 px trains on one image per second
    step = 2 * facts.patch_px
    value = max(step, min(most, facts.short_side_px) // step * step)
    return value, f"images of about {facts.short_side_px} px on a {facts.device} device"


def scales(facts: Facts) -> tuple[tuple[float, float], tuple[float, float], str]:
    """Ranges of the area of global and local crops as a fraction of the image, and why."""
    if not facts.convolutional:
        return (0.25, 1.0), (0.05, 0.25), "as in the paper"
    _, _, large, small = _detail(facts)
    return large, small, f"keeps the detail of images of about {facts.short_side_px} px"


def colors(facts: Facts) -> tuple[dict[str, float], str]:
    """Strength of the color augmentations by name of the setting, and why.

    Those of the paper are for a thousand kinds of objects, whose color says little. They cost leaves 3 points
    and cells 6, whose color and brightness say a lot. With half of its brightness, contrast and hue, land gains
    5 points over about a quarter of it, and leaves lose no more than chance explains (docs/log.md). Changes of measured
    channels cost cells 3 points even if they are slight. Measured for small networks only.
    """
    if not facts.convolutional:
        return {
            "color_jitter.brightness": 0.4, "color_jitter.contrast": 0.4, "color_jitter.saturation": 0.2,
            "color_jitter.hue": 0.1, "gray.p": 0.2, "solarize.p": 0.2, "channel_jitter.brightness": 0.4,
            "channel_jitter.contrast": 0.4,
        }, "as in the paper"  # fmt: skip
    return {
        "color_jitter.brightness": 0.2, "color_jitter.contrast": 0.2, "color_jitter.saturation": 0.2,
        "color_jitter.hue": 0.05, "gray.p": 0.2, "solarize.p": 0.0, "channel_jitter.brightness": 0.0,
        "channel_jitter.contrast": 0.0,
    }, "gentler than the paper's, convolutional network"  # fmt: skip


def _detail(facts: Facts) -> tuple[int, int, tuple[float, float], tuple[float, float]]:
    return next(row for row in _DETAIL if facts.short_side_px >= row[0])


def momentum(facts: Facts) -> tuple[float, str]:
    """EMA momentum m of the teacher, and why: it averages over 1 / (1 - m) steps, one eighth of the run.

    Limited to 0.95 … 0.996, the latter being DINO v1's value. On small data sets the best momentum increases with the
    length of the run: 0.95 at 240 steps, 0.99 at 720; 0.9 is poor at any length (docs/log.md,
    `opendino experiment defaults`).
    """
    value = min(0.996, max(0.95, 1 - 8 / facts.total_steps))
    return round(value, 4), f"{facts.total_steps:,} steps"


def capped(config: Any, shares: Mapping[str, float], facts: Facts) -> dict[str, tuple[str, str]]:
    """Limit durations of a Config to their share of the run, so that a short run is not all warm-up.

    Args:
        config: A Config.
        shares: Name of a duration → its largest fraction of the run.
        facts: The length of the run.

    Returns:
        Field name → (duration, reason), for those that are too long.
    """
    found, total = {}, facts.total_steps
    for name, share in shares.items():
        requested = getattr(config, name)
        value = duration.capped(requested, share, total_steps=total, steps_per_epoch=facts.steps_per_epoch)
        if value != requested:
            found[name] = value, f"{requested} is more than {share:.0%} of {total:,} steps"
    return found


def with_auto_values(kind: type[C], config: Any, found: dict[str, tuple[Any, str]]) -> tuple[C, list[str]]:
    """Copy a Config with values for fields that say "auto".

    Args:
        kind: Type of the copy: a ResolvedConfig, or a Config if others decide the rest.
        config: A Config.
        found: Field name → (value, reason), for the fields that change.

    Returns:
        The settings as `kind`, and the lines of `reasons`.

    Raises:
        OutOfRange: A field of a ResolvedConfig still says "auto".
    """
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    values |= {name: value for name, (value, _) in found.items()}
    return kind(**values), reasons(found)


def reasons(found: Mapping[str, tuple[Any, str]]) -> list[str]:
    """Lines "name = value, name = value: reason" for the log, one for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, (value, why) in found.items():
        by_reason.setdefault(why, []).append(f"{name} = {value}")
    return [f"{', '.join(changes)}: {why}" for why, changes in by_reason.items()]
