"""Augmentations that depend on the images: channels other than red, green and blue; images without an upright side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from opendino.core.errors import UsageError
from opendino.views.settings import View, active, changed

_NOISE = {"noise.p": 0.2, "noise.std": (0.0, 0.05)}


def without_colors(
    views: Mapping[str, View], defaults: Mapping[str, View], channels: int
) -> tuple[dict[str, View], list[str]]:
    """Replace color augmentations by per-channel brightness, contrast and noise, for images that are not RGB.

    Only defaults are replaced; what the user has set stays.

    Args:
        views: Name of a group → its settings.
        defaults: The settings that the method has by itself.
        channels: C, number of channels of the images.

    Returns:
        The new views, and the reasons for each change, one line each.

    Raises:
        UsageError: The user has set hue, saturation, gray or solarize for images of other than three channels.
    """
    values: dict[str, Any] = {}
    removed: set[str] = set()
    for group, view in views.items():
        for name in ("color_jitter", "gray", "solarize"):
            settings = getattr(view, name)
            colorless = name == "color_jitter" and not (settings.hue or settings.saturation)
            if not settings.p or colorless:
                continue
            if _given(settings, getattr(defaults[group], name)):
                if channels != 3:
                    raise _refused(group, name, channels)
                continue
            values[f"{group}.{name}.p"] = 0.0
            removed.add(name)
            if name == "color_jitter" and not active(view, "channel_jitter"):
                taken = {"p", "brightness", "contrast"} - _given(view.channel_jitter, defaults[group].channel_jitter)
                values |= {f"{group}.channel_jitter.{each}": getattr(settings, each) for each in taken}
            if name == "color_jitter" and not active(view, "noise"):
                values |= {f"{group}.{name}": value for name, value in _NOISE.items()}
    if not removed:
        return dict(views), []
    off = ", ".join(f"{name}.p = 0" for name in sorted(removed))
    jittered = any(".channel_jitter." in name for name in values)
    on = ", channel_jitter and noise on (neither with --views.all.color-jitter.p 0)" if jittered else ""
    number = "1 channel" if channels == 1 else f"{channels} channels"
    return changed(views, values), [f"all: {off}{on}: {number}, not red, green and blue"]


def in_any_orientation(views: Mapping[str, View]) -> tuple[dict[str, View], list[str]]:
    """Add vertical flips and quarter turns to all views; rectangular views cannot be turned.

    Returns:
        The new views, and the reasons for each change, one line each.
    """
    values = {}
    for group, view in views.items():
        size: Any = getattr(view, "size", views["global"].size)
        square = isinstance(size, int) or size[0] == size[1]
        for name, p in (("vertical_flip", 0.5), ("quarter_turns", float(square))):
            if p and not active(view, name):
                values[f"{group}.{name}.p"] = p
    if not values:
        return dict(views), []
    names = sorted({name.split(".")[1] for name in values})
    return changed(views, values), [f"all: {' and '.join(names)} on: --orientation any"]


def _given(settings: Any, default: Any) -> set[str]:
    """Names of the fields that the user has set: they are neither "auto" nor their default."""
    names = [field.name for field in fields(settings)]
    return {name for name in names if getattr(settings, name) not in ("auto", getattr(default, name))}


def _refused(group: str, name: str, channels: int) -> UsageError:
    flag = f"--views.{group}.{name.replace('_', '-')}"
    if name == "color_jitter":
        return UsageError(
            f"views.{group}.color_jitter changes hue and saturation, and the images have {channels} channels, not RGB",
            f"Add {flag}.hue 0 {flag}.saturation 0; --views.{group}.channel-jitter.p 0.8 changes each channel",
        )
    return UsageError(
        f"views.{group}.{name} is for RGB, and the images have {channels} channels", f"Remove {flag}.p, or set it to 0"
    )
