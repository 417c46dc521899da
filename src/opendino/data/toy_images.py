"""Procedural images of the toy source: ten textures and ten shapes, as functions of a random generator and a size."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

TAU = 2 * np.pi


# Textures: float32 [H W] in 0 .. 1. `x` [1 W] and `y` [H 1] are pixel coordinates from the center of the image, in
# periods of the pattern; `soft` is the width of a pixel in periods, over which edges are smoothed.


def _edge(depth: np.ndarray, soft: float) -> np.ndarray:
    """Antialiased step: 0 where `depth` is negative, 1 where it is positive, with a ramp one pixel wide between."""
    return np.clip(depth / soft + 0.5, 0, 1)


def triangle_wave(u: np.ndarray) -> np.ndarray:
    """Distance to the nearest integer: a triangle wave of period 1 between 0 and 0.5."""
    return np.abs(u - np.rint(u))


def _rotated(rng: Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The axes at a random angle and offset, `[H W]` each."""
    angle, left, top = rng.uniform(0, TAU), rng.uniform(-9, 9), rng.uniform(-9, 9)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y + np.float32(left), c * y - s * x + np.float32(top)


def _waves(rng: Generator, x: np.ndarray, y: np.ndarray, freq: np.ndarray, amplitude: np.ndarray) -> np.ndarray:
    """Sum of plane waves in random directions, of variance 1: a Gaussian random field with this spectrum, `[H W]`."""
    angle, phase = rng.uniform(0, TAU, (2, len(freq)))
    kx, ky = (TAU * freq * (np.cos(angle), np.sin(angle))).astype(np.float32)
    # exp(i(ax + by)) = exp(iax) · exp(iby), so the sum of all waves is one matrix product: [H F] @ [F W].
    rows = np.exp(np.complex64(1j) * (ky * y + phase.astype(np.float32)))
    columns = np.exp(np.complex64(1j) * kx[:, None] * x)
    scale = (amplitude * np.sqrt(2 / (amplitude**2).sum())).astype(np.float32)
    return ((rows * scale) @ columns).real


def _bricks(rng: Generator, x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
    u, v = _rotated(rng, x, y)
    joints = 2 * triangle_wave(0.5 * u + 0.5 * np.floor(v))
    return _edge(np.minimum(joints, triangle_wave(v)) - 0.11, soft)


def _cells(rng: Generator, x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
    """Voronoi cells of a jittered lattice; dark lines where the two nearest seeds are equally far away."""
    seeds = rng.uniform(0.15, 0.85, (2, 256)).astype(np.float32)
    u, v = _rotated(rng, 0.75 * x, 0.75 * y)
    column, row = np.floor(u), np.floor(v)
    first = second = np.full(u.shape, np.inf, np.float32)
    for a, b in ((column + i, row + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
        cell = ((a % 16) * 16 + b % 16).astype(np.intp)
        squared = (a + seeds[0][cell] - u) ** 2 + (b + seeds[1][cell] - v) ** 2
        second = np.minimum(second, np.maximum(first, squared))
        first = np.minimum(first, squared)
    return _edge(np.sqrt(second) - np.sqrt(first) - 0.13, soft)


def _chequers(rng: Generator, x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
    a, b = (_edge(triangle_wave(0.6 * w) - 0.25, soft) for w in _rotated(rng, x, y))
    return a + b - 2 * a * b


def _clouds(rng: Generator, x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
    freq = np.geomspace(0.15, 3, 48)
    return np.clip(0.5 + 0.25 * _waves(rng, x, y, freq, freq**-0.5), 0, 1)


def _dots(rng: Generator, x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
    u, v = _rotated(rng, x, y)
    return _edge(0.28 - np.hypot(triangle_wave(u), triangle_wave(v)), soft)


def _labyrinth(rng: Generator, x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
    """Noise of nearly one wavelength, thresholded at zero: winding paths."""
    return _edge(_waves(rng, x, y, rng.uniform(0.8, 0.95, 32), np.ones(32)), 6 * soft)


def _rings(rng: Generator, x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
    u, v = _rotated(rng, 0.65 * x, 0.65 * y)
    return _edge(0.085 - np.abs(np.hypot(triangle_wave(u), triangle_wave(v)) - 0.33), soft)


def _scratches(rng: Generator, x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
    """Straight strokes of equal length in random directions, one in each cell of a lattice."""
    reach = int(x[0, -1] / 0.8) + 1
    lattice = 0.8 * np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1, 1, 1)
    left, top = (lattice + rng.uniform(-0.5, 0.5, lattice.shape)).astype(np.float32)
    angle = rng.uniform(0, np.pi, left.shape)
    c, s = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    along, across = (x - left) * c + (y - top) * s, (y - top) * c - (x - left) * s
    return _edge(0.09 - np.maximum(np.abs(across), np.abs(along) - 0.7).min(0), soft)


def _stripes(rng: Generator, x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
    u, _ = _rotated(rng, x, y)
    return 0.5 + 0.5 * np.sin(np.float32(TAU) * u)


def _zigzag(rng: Generator, x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
    u, v = _rotated(rng, x, y)
    return _edge(triangle_wave(0.9 * v + 1.6 * triangle_wave(0.45 * u)) - 0.25, 1.5 * soft)


TEXTURES = {
    "bricks": _bricks,
    "cells": _cells,
    "chequers": _chequers,
    "clouds": _clouds,
    "dots": _dots,
    "labyrinth": _labyrinth,
    "rings": _rings,
    "scratches": _scratches,
    "stripes": _stripes,
    "zigzag": _zigzag,
}


# Shapes ("forms"): signed distance to the outline, positive inside, for a shape about as large as the unit disc.


def _polygon(x: np.ndarray, y: np.ndarray, points: int, inner: float) -> np.ndarray:
    """A star with tips at radius 1 and notches at radius `inner`; a polygon if `inner` is the radius of its edges."""
    half = np.pi / points
    angle = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)
    dx, dy = 1 - inner * np.cos(half), inner * np.sin(half)
    radius = np.hypot(x, y)
    return (dy * (1 - radius * np.cos(angle)) - dx * radius * np.sin(angle)) / np.hypot(dx, dy)


def _box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.minimum(width - np.abs(x), height - np.abs(y))


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, b = (x + y) / np.sqrt(2) + 0.15, (y - x) / np.sqrt(2) + 0.15
    lobes = np.maximum(0.55 - np.hypot(a - 0.55, b), 0.55 - np.hypot(a, b - 0.55))
    return np.maximum(_box(a, b, 0.55, 0.55), lobes)


FORMS = {
    "bar": lambda x, y: _box(x, y, 1.05, 0.33),
    "crescent": lambda x, y: np.minimum(0.95 - np.hypot(x, y), np.hypot(x - 0.55, y) - 0.8),
    "cross": lambda x, y: np.maximum(_box(x, y, 1, 0.28), _box(x, y, 0.28, 1)),
    "disc": lambda x, y: 0.85 - np.hypot(x, y),
    "half": lambda x, y: np.minimum(1 - np.hypot(x, y - 0.4), 0.4 - y),
    "heart": _heart,
    "ring": lambda x, y: 0.2 - np.abs(np.hypot(x, y) - 0.75),
    "square": lambda x, y: _box(x, y, 0.75, 0.75),
    "star": lambda x, y: _polygon(x, y, 5, 0.42),
    "triangle": lambda x, y: _polygon(x, y, 3, 0.5),
}


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of pixel centers from -0.5 to 0.5, in units of the side: x `[1 W]` and y `[H 1]`."""
    axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    return axis[None, :], axis[:, None]


def texture(rng: Generator, name: str, size: int) -> np.ndarray:
    """A texture of random scale, float `[H W]` in 0 .. 1."""
    periods = float(np.exp(rng.uniform(np.log(4), np.log(6.5))))
    x, y = _axes(size)
    return TEXTURES[name](rng, periods * x, periods * y, periods / size)


def background(rng: Generator, size: int, gray: float) -> np.ndarray:
    """A background: a random texture of low contrast around a gray level, float `[H W]` in about 0 .. 255."""
    name = list(TEXTURES)[rng.integers(len(TEXTURES))]
    return gray + rng.uniform(15, 30) * (2 * texture(rng, name, size) - 1)


def local_coordinates(size: int, place: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates relative to the center `place`, rotated by `angle` (radians).

    Returns:
        x and y, float `[H W]` each, in units of the side.
    """
    x, y = _axes(size)
    x, y = x - place[0], y - place[1]
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def form(name: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """The share of each pixel that a shape covers, `[H W]` in 0 .. 1.

    Args:
        name: One of `FORMS`.
        x, y: Coordinates relative to the shape, `[H W]` in units of the side, from `local_coordinates`.
        radius: Radius of the shape, in units of the side.
    """
    return _edge(FORMS[name](x / radius, y / radius), 1 / (radius * len(x)))


def pixels(gray: np.ndarray) -> np.ndarray:
    """Round and clip gray levels to uint8."""
    return np.rint(np.clip(gray, 0, 255)).astype(np.uint8)


def plate_effect(rng: Generator, gray: np.ndarray, strength: float) -> np.ndarray:
    """A gray image as one plate shows it: brighter or darker, tinted and blurred.

    Args:
        rng: The generator of the plate, in its first state.
        gray: Gray levels `[H W]` in about 0 .. 255.
        strength: 0 changes nothing; at 1 the gain differs by about 15 % and the tint by 10 % (standard deviations over
            plates), and the blur reaches a fiftieth of the side.

    Returns:
        uint8 `[H W 3]`.
    """
    gain, tint, blur = rng.normal(0, 0.15), rng.normal(0, 0.1, 3), rng.uniform(0, 0.02)
    factors = np.exp(strength * (gain + tint))
    colored = pixels(np.clip(gray, 0, 255)[..., None] * factors)  # [H W 3]
    radius = strength * blur * len(gray)
    return np.asarray(Image.fromarray(colored).filter(ImageFilter.GaussianBlur(radius))) if radius else colored
