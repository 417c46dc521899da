"""Small plots of lines over steps as SVG, drawn without any library: for pages that must stand alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from html import escape

import numpy as np
from numpy.typing import ArrayLike

from opendino.visualize.drawing.tile_grid import COLORS

_WIDTH, _HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 44, 26
_MOST = 400
"""Stretches of a line that each show their extremes: about as many as there are pixels."""

Line = tuple[ArrayLike, ArrayLike]
Style = tuple[str, str]
"""A color, and the dashes of a line as an attribute, or nothing."""
_DASHES = ("", ' stroke-dasharray="7 3"', ' stroke-dasharray="2 3"')  # beyond eight colors


def style(number: int) -> Style:
    """The style of the n-th of many lines."""
    return COLORS[number % len(COLORS)], _DASHES[number // len(COLORS) % len(_DASHES)]


def plot(
    title: str,
    lines: Mapping[str, Line],
    level: tuple[float, str] | None = None,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None,
    styles: Mapping[str, Style] | None = None,
) -> str:
    """One set of axes.

    Args:
        title: What the lines show, with its unit.
        lines: Name → (steps, values); what is not finite is left out. At least one value in all.
        level: A dashed line across, and its name.
        bands: Name of a line → (steps, smallest, largest), drawn pale behind it.
        styles: Name of a line → its color and dashes; by default by its place in `lines`.
    """
    bands, styles = bands or {}, styles or {name: style(number) for number, name in enumerate(lines)}
    shown = {name: _thinned(*line) for name, line in lines.items()}
    xs = np.concatenate([x for x, _ in shown.values()])
    ys = np.concatenate([y for _, y in shown.values()] + ([np.array([level[0]])] if level else []))
    ys = np.concatenate([ys, *(edge for _, low, high in bands.values() for edge in (low, high))])
    assert len(xs), f"{title} has nothing to show"
    x_low, x_high = float(xs.min()), max(float(xs.max()), float(xs.min()) + 1)
    ticks = _ticks(float(ys.min()), float(ys.max()))
    y_low, y_high = min(ticks[0], float(ys.min())), max(ticks[-1], float(ys.max()))

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="11" role="img"><title>{escape(title)}</title>',
        f'<text x="{_LEFT}" y="14" font-size="12" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in ticks:
        parts.append(f'<path d="M{_LEFT} {up(tick):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x, anchor in ((x_low, "start"), (x_high, "end")):
        parts.append(f'<text x="{across(x):.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{x:,.0f}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">step</text>')
    if level:
        parts.append(
            f'<path d="M{_LEFT} {up(level[0]):.1f}H{_WIDTH - _RIGHT}" stroke="#777" stroke-dasharray="5 4"/>'
            f'<text x="{_WIDTH - _RIGHT}" y="{up(level[0]) - 4:.1f}" text-anchor="end">{escape(level[1])}</text>'
        )
    place = float(_LEFT)
    for name, (x, y) in shown.items():
        tint, dashes = styles[name]
        if name in bands:
            steps, low, high = (edge.tolist() for edge in bands[name])
            rim = [*zip(steps, high, strict=True), *zip(steps[::-1], low[::-1], strict=True)]
            points = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in rim)
            parts.append(f'<polygon points="{points}" fill="{tint}" fill-opacity="0.2"/>')
        points = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{tint}" stroke-width="1.6"{dashes}/>')
        if len(x) == 1:
            parts.append(f'<circle cx="{across(float(x[0])):.1f}" cy="{up(float(y[0])):.1f}" r="2.5" fill="{tint}"/>')
        parts.append(f'<text x="{place:.0f}" y="32" fill="{tint}">{escape(name)}</text>')
        place += 6.2 * len(name) + 14
    return "".join([*parts, "</svg>"])


def _thinned(steps: ArrayLike, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The finite values; of many, the lowest and highest of each stretch, in their order."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    keep = np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) <= 2 * _MOST:
        return x, y
    edges = np.linspace(0, len(x), _MOST + 1).astype(int)
    chosen = [
        first + int(f(y[first:last])) for first, last in itertools.pairwise(edges) for f in (np.argmin, np.argmax)
    ]
    chosen = np.unique([0, *chosen, len(x) - 1])
    return x[chosen], y[chosen]


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers within a range."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]
