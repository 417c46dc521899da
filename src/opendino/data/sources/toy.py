"""Generated images, for demos, tests and lessons: `toy:KIND?n=2000&size=32&seed=0&split=train`.

Kinds:
    textures: Ten gray textures. A class is a *structure* (bricks, cells, dots, ...). Position, angle, scale, contrast
        and polarity are random, so comparing pixels says little about the class, but every crop that is not too small
        shows it. Multi-crop training rewards this, so a method that works is soon better than the pixels.
    forms: Ten gray shapes (disc, star, heart, ...) of random position, size and angle on a textured background. Has
        masks (`mask`) and videos (`video`).
    colorful: The same images as `textures`, each in two random colors. It shows a shortcut: the two colors are visible
        in every crop and differ from image to image, and color jitter hides them only a little. So self-distillation
        sorts the images by color. With a three-layer CNN and K = 256 its features fell to chance on the classes,
        where the gray images gave 95 %: a model learns what the augmentations do not remove.
    plates: The images of `textures` from four plates, each with its own gain, tint and blur (`?strength=1`; 0 gives the
        images of `textures`): a batch effect of known strength for `opendino eval confounders`. Every class is spread
        evenly over the plates (`plate`).

Image i is a pure function of (kind, seed, split, i) and shows the same scene at every size; its class is i mod 10.
"""

from __future__ import annotations

from typing import Literal, cast, final, get_args
from urllib.parse import parse_qsl

import numpy as np
from numpy.random import Generator, Philox

from opendino.core.contracts import Source
from opendino.core.errors import UsageError, unknown
from opendino.data.toy_images import (
    FORMS,
    TAU,
    TEXTURES,
    background,
    form,
    local_coordinates,
    pixels,
    plate_effect,
    texture,
    triangle_wave,
)

Kind = Literal["textures", "forms", "colorful", "plates"]
Split = Literal["train", "val"]

_DEFAULTS = {"n": "2000", "size": "32", "seed": "0", "split": "train", "strength": "1"}
_LIMITS = {"n": (1, 10**9), "size": (8, 1024), "seed": (0, 2**63 - 1)}
_MAX_STRENGTH = 10.0
_IMAGE, _VIDEO, _PLATE = 0, 1, 2  # streams of random numbers
NUM_PLATES = 4
"""Plates of `toy:plates`."""


@final
class ToySource(Source):
    """Generated images, uint8 `[size size 3]`.

    Args:
        kind: "textures", "forms", "colorful" or "plates", see the docstring of the module.
        n: Number of images; image i does not depend on it.
        size: Side in pixels, 8 .. 1024.
        seed: Seed of the dataset.
        split: "train" or "val": the same distribution, no image in common.
        strength: Of the effect of the plates of "plates", 0 .. 10.
    """

    def __init__(
        self,
        kind: Kind = "textures",
        n: int = 2000,
        size: int = 32,
        seed: int = 0,
        split: Split = "train",
        strength: float = 1.0,
    ) -> None:
        self.kind, self.n, self.size, self.seed, self.split, self.strength = kind, n, size, seed, split, strength
        self.classes = tuple(FORMS if kind == "forms" else TEXTURES)

    def __len__(self) -> int:
        return self.n

    def key(self, index: int) -> str:
        """Kind, split, class and number: `textures/train/bricks/000010`."""
        return f"{self.kind}/{self.split}/{self.classes[self.label(index)]}/{self._checked(index):06d}"

    def label(self, index: int) -> int:
        """`index` mod 10."""
        return self._checked(index) % len(self.classes)

    def read(self, index: int) -> np.ndarray:
        """The image, uint8 `[H W 3]`; gray kinds have three equal channels."""
        rng, name = self._rng(index), self.classes[self.label(index)]
        if self.kind == "forms":
            gray, _ = self._scene(rng, name)
            return np.repeat(pixels(gray)[..., None], 3, axis=2)
        pattern = texture(rng, name, self.size)
        if rng.random() < 0.5:
            pattern = 1 - pattern
        contrast, middle = rng.uniform(100, 180), rng.uniform(110, 145)
        gray = middle + contrast * (pattern - 0.5)
        if self.kind == "plates":
            rng = self._rng(self.plate(index), stream=_PLATE)  # the same plates in both splits
            return plate_effect(rng, gray, self.strength)
        if self.kind == "textures":
            return np.repeat(pixels(gray)[..., None], 3, axis=2)
        one, other = self._two_colors(rng)
        return pixels(one + (other - one) * pattern[..., None])

    def plate(self, index: int) -> int:
        """The plate of an image of `toy:plates`, 0 to 3: each class has all plates equally often."""
        return self._checked(index) // len(self.classes) % NUM_PLATES

    def mask(self, index: int) -> np.ndarray:
        """The mask of an image of `toy:forms`: uint8 `[H W]`, 0 background, 1 shape.

        Raises:
            UsageError: The kind has no masks.
        """
        self._needs_forms()
        _, cover = self._scene(self._rng(index), self.classes[self.label(index)])
        return (cover > 0.5).astype(np.uint8)

    def video(self, index: int, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
        """A video of one or two shapes that move, rotate and bounce off the borders of a still, textured background.

        Args:
            index: Number of the video, ≥ 0, independent of `len(self)`; videos with an odd number have two shapes.
            num_frames: T. A longer video begins with the shorter one.

        Returns:
            Frames uint8 `[T H W 3]`, and masks uint8 `[T H W]`: 0 background, 1 and 2 the shapes, 2 in front of 1.

        Raises:
            UsageError: The kind has no videos.
        """
        self._needs_forms()
        rng = self._rng(index, stream=_VIDEO)
        sign = rng.choice((-1, 1))
        scene = background(rng, self.size, 128 - sign * rng.uniform(20, 60))
        names = rng.permutation(self.classes)[: 1 + index % 2]
        frames = np.repeat(scene[None], num_frames, axis=0)
        masks = np.zeros(frames.shape, np.uint8)
        time = np.arange(num_frames)
        for number, name in enumerate(names, start=1):
            radius, angle, spin = rng.uniform(0.13, 0.2), rng.uniform(0, TAU), rng.uniform(-0.08, 0.08)
            fill = background(rng, self.size, 128 + sign * rng.uniform(35, 85))
            room = 0.5 - radius
            start = np.array([rng.uniform(0, room) * (2 * number - 3), rng.uniform(-room, room)])
            heading, pace = rng.uniform(0, TAU), rng.uniform(0.01, 0.03)
            free = start + pace * time[:, None] * np.array([np.cos(heading), np.sin(heading)])
            # [T 2]: the straight path, reflected at the borders.
            places = room * (4 * triangle_wave(free / (4 * room) + 0.25) - 1)
            for t in range(num_frames):
                x, y = local_coordinates(self.size, places[t], angle + spin * t)
                cover = form(str(name), x, y, radius)
                rows, columns = (np.clip((axis + 0.5) * self.size, 0, self.size - 1).astype(np.intp) for axis in (y, x))
                frames[t] += cover * (fill[rows, columns] - frames[t])  # the texture moves and rotates with its shape
                masks[t][cover > 0.5] = number
        return np.repeat(pixels(frames)[..., None], 3, axis=3), masks

    def _scene(self, rng: Generator, name: str) -> tuple[np.ndarray, np.ndarray]:
        """One shape on a textured background: gray `[H W]`, and the share of each pixel that it covers `[H W]`."""
        sign = rng.choice((-1, 1))
        scene = background(rng, self.size, 128 - sign * rng.uniform(20, 60))
        fill = background(rng, self.size, 128 + sign * rng.uniform(35, 85))
        radius = rng.uniform(0.22, 0.4)
        place = rng.uniform(-1, 1, 2) * (0.48 - radius)
        cover = form(name, *local_coordinates(self.size, place, rng.uniform(0, TAU)), radius)
        return scene + cover * (fill - scene), cover

    def _two_colors(self, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
        """Two random colors, float `[3]` each, different enough to see the pattern."""
        while True:
            one, other = rng.uniform(20, 235, (2, 3))
            if np.abs(one - other).sum() > 150:
                return one, other

    def _rng(self, index: int, stream: int = _IMAGE) -> Generator:
        # A counter-based generator: streams that differ in an upper word of the counter never overlap.
        # `colorful` shares its word with `textures`, so it has the same patterns.
        word = 2 * (self.kind == "forms") + (self.split == "val" and stream != _PLATE)
        return Generator(Philox(key=self.seed, counter=[0, index, word, stream]))

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.n:
            raise IndexError(f"image {index} of {self.n}")
        return index

    def _needs_forms(self) -> None:
        if self.kind != "forms":
            raise UsageError(f"toy:{self.kind} has no masks and no videos", "Use toy:forms")


def matches(data: str) -> bool:
    """Whether DATA is `toy` or begins with `toy:`."""
    return data == "toy" or data.startswith("toy:")


def build(data: str) -> ToySource:
    """The source for `toy:KIND?n=...&size=...&seed=...&split=...&strength=...`; every part is optional, also "toy:".

    Raises:
        UsageError: Unknown kind or option, or a value out of range.
    """
    kind, _, query = ("" if data == "toy" else data.removeprefix("toy:")).partition("?")
    kind = kind or "textures"
    if kind not in get_args(Kind):
        raise unknown("kind of toy image", kind, get_args(Kind))
    known = {name: value for name, value in _DEFAULTS.items() if name != "strength" or kind == "plates"}
    options = known | dict(parse_qsl(query, keep_blank_values=True))
    for name in options.keys() - known.keys():
        raise unknown("toy option", name, known)
    if options["split"] not in get_args(Split):
        raise unknown("toy split", options["split"], get_args(Split))
    numbers = {name: _number(name, options[name]) for name in _LIMITS}
    strength = _strength(options.get("strength", "0"))
    return ToySource(cast(Kind, kind), split=cast(Split, options["split"]), strength=strength, **numbers)


def _number(name: str, text: str) -> int:
    low, high = _LIMITS[name]
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise UsageError(f"toy:...?{name}={text}", f"{name} is a whole number from {low} to {high}")
    return int(text)


def _strength(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _MAX_STRENGTH:
        raise UsageError(f"toy:...?strength={text}", f"strength is a number from 0 to {_MAX_STRENGTH:g}")
    return value
