"""A film beside what a network makes of it, frame by frame: attention (the mean of the heads) or patch components.

Frames are read, looked at and written one by one, so that memory does not grow with the film. Components are fitted to
up to 32 frames, evenly spaced, which takes a first pass over the film; equal colors mean similar features throughout.
Attention is stretched frame by frame. The film keeps its rate and loses its sound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from msgspec import Meta
from PIL import Image

from opendino.core import distributed, log
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.ranges import Checked, PixelSize
from opendino.core.types import Report
from opendino.datasets import video_frames
from opendino.features.image_stream import Bad, skipped_message
from opendino.models.load import load
from opendino.visualize.attention import heat
from opendino.visualize.drawing import tile_grid
from opendino.visualize.drawing.image_encoder import ImageEncoder
from opendino.visualize.drawing.pca_colors import Foreground, fit

_FITTED = 32


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino visualize video` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    film: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILM")]
    """A film file, or a folder of frames."""
    which: Literal["teacher", "student"] | None = None
    """Network of a run; the one to use by default."""
    kind: Literal["attention", "pca"] = "attention"
    """What is shown beside the film."""
    out: str = "video.mp4"
    """An .mp4."""
    size_px: PixelSize = 480
    """Shorter side of the frames that the network sees, rounded to whole patches."""
    foreground: Foreground = "off"
    """Of components: color only one side of the first one, see `opendino visualize pca`."""
    overlay: bool = False
    """Of attention: draw it over the film."""
    fps: Annotated[float, Meta(ge=0.1, le=1000)] = 25.0
    """Frames a second of a folder of frames; a film keeps its own."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def show(config: Config) -> Report:
    """Draw the film.

    Raises:
        UserError: No such model or film, no frame that can be read, or no PyAV.
    """
    path, film = tile_grid.out(config.out, (".mp4",)), Path(config.film).expanduser()
    if not film.exists():
        raise UserError(f"{config.film} does not exist", "Give a film file or a folder of frames")
    if path.resolve() == film.resolve():
        raise UsageError(f"--out {config.out} is the film itself", "Choose another --out")
    rate = video_frames.rate(film) or Fraction(config.fps).limit_denominator(1001)
    sight = ImageEncoder(load(config.model, config.which).to(distributed.device(config.device)), config.size_px)
    began, bad = time.monotonic(), Bad()
    if config.kind == "pca":
        sample = [image for _, image in _evenly(_seen(film, sight, Bad()), _FITTED)]
        if not sample:
            raise UserError(f"No frame of {config.film} can be read", "Check that the film is intact")
        basis = fit([sight.patches(image) for image in sample], config.foreground)

        def draw(image: Image.Image) -> Image.Image:
            return tile_grid.enlarged(basis.colors(sight.patches(image)), image.size)
    else:

        def draw(image: Image.Image) -> Image.Image:
            return heat(image, sight.attention(image).mean(0), config.overlay)

    number = video_frames.write(path, pairs(_seen(film, sight, bad), draw), rate)
    if not number:
        raise UserError(f"No frame of {config.film} can be read", "Check that the film is intact")
    seconds = time.monotonic() - began
    lines = [f"{number:,} frames at {float(rate):g} a second → {path} ({number / seconds:.1f} frames/s)"]
    lines += [f"note: {skipped_message(bad)}"] * bool(bad)
    fields = {"paths": [str(path)], "frames": number, "fps": float(rate), "skipped": len(bad), "seconds": seconds}
    return Report("\n".join(lines), fields)


def pairs(
    images: Iterator[tuple[str, Image.Image]], draw: Callable[[Image.Image], Image.Image]
) -> Iterator[np.ndarray]:
    """Each image and what is drawn of it side by side, all in the size of the first; nothing is kept.

    Args:
        images: (name, frame).
        draw: Frame → picture of the same size.

    Yields:
        uint8 `[H W 3]`, H and W even as films need it.
    """
    size, spoke = None, time.monotonic()
    for number, (_, image) in enumerate(images, start=1):
        picture = draw(image)
        size = size or (image.width + image.width % 2, image.height + image.height % 2)
        both = [each if each.size == size else each.resize(size, Image.Resampling.BICUBIC) for each in (image, picture)]
        yield np.concatenate([np.asarray(each) for each in both], axis=1)
        if time.monotonic() - spoke > 30:
            spoke = time.monotonic()
            log.say(f"{number:,} frames drawn")


def _seen(film: Path, sight: ImageEncoder, bad: Bad) -> Iterator[tuple[str, Image.Image]]:
    """The frames that can be read, prepared."""
    for name, pixels in video_frames.frames(film):
        try:
            if isinstance(pixels, BadImage):
                raise pixels
            prepared = sight.prepare(Image.fromarray(pixels))
        except BadImage as error:
            bad.append((name, str(error)))
        else:
            yield name, prepared


def _evenly(items: Iterator[tuple[str, Image.Image]], most: int) -> list[tuple[str, Image.Image]]:
    """At most so many of a stream of unknown length, evenly spaced; never holds more than that and one."""
    kept: list[tuple[str, Image.Image]] = []
    stride = 1
    for place, item in enumerate(items):
        if place % stride:
            continue
        if len(kept) == most:
            kept, stride = kept[::2], 2 * stride
            if place % stride:
                continue
        kept.append(item)
    return kept
