"""A video next to its attention maps (mean over heads) or PCA colors, frame by frame.

Frames are read, encoded and written one by one, so memory does not grow with the video. The PCA is fitted to up to 32
evenly spaced frames in a first pass over the video; equal colors mean similar features in all frames. Attention is
scaled to [0, 1] in each frame. The output keeps the frame rate and has no sound.
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

from opendino.core import distributed
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
    """Options of `opendino visualize video`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    film: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO")]
    """A video file, or a folder of frames."""
    which: Literal["teacher", "student"] | None = None
    """Network to load from a run; default: the method's main network (usually the teacher)."""
    kind: Literal["attention", "pca"] = "attention"
    """What to show next to the video: attention maps, or PCA colors."""
    out: str = "video.mp4"
    """Output file: .mp4."""
    size_px: PixelSize = 480
    """Shorter side of the input frames in pixels, rounded to whole patches."""
    foreground: Foreground = "off"
    """pca: color only one side of the first component, see `opendino visualize pca`."""
    overlay: bool = False
    """attention: draw the maps over the video."""
    fps: Annotated[float, Meta(ge=0.1, le=1000)] = 25.0
    """Frames per second for a folder of frames; a video file keeps its own."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def show(config: Config) -> Report:
    """Write the video.

    Raises:
        UserError: The model or video does not exist, no frame can be read, or PyAV is not installed.
    """
    path, video = tile_grid.out(config.out, (".mp4",)), Path(config.film).expanduser()
    if not video.exists():
        raise UserError(f"{config.film} does not exist", "Use a video file or a folder of frames")
    if path.resolve() == video.resolve():
        raise UsageError(f"--out {config.out} is the input video", "Choose another --out")
    rate = video_frames.rate(video) or Fraction(config.fps).limit_denominator(1001)
    model = load(config.model, config.which)
    model.reading.check_frames(config.model)
    encoder = ImageEncoder(model.to(distributed.device(config.device)), config.size_px)
    began, bad = time.monotonic(), Bad()
    if config.kind == "pca":
        sample = [image for _, image in _evenly_spaced(_frames(video, encoder, Bad()), _FITTED)]
        if not sample:
            raise UserError(f"No frame of {config.film} can be read", "Check that the video is intact")
        basis = fit([encoder.patches(image) for image in sample], config.foreground)

        def draw(pixels: np.ndarray) -> Image.Image:
            return tile_grid.enlarged(basis.colors(encoder.patches(pixels)), (pixels.shape[1], pixels.shape[0]))
    else:

        def draw(pixels: np.ndarray) -> Image.Image:
            return heat(Image.fromarray(pixels), encoder.attention(pixels).mean(0), config.overlay)

    num_frames = video_frames.write(path, pairs(_frames(video, encoder, bad), draw), rate)
    if not num_frames:
        raise UserError(f"No frame of {config.film} can be read", "Check that the video is intact")
    seconds = time.monotonic() - began
    lines = [f"{num_frames:,} frames at {float(rate):g} fps → {path} ({num_frames / seconds:.1f} frames/s processed)"]
    lines += [f"note: {skipped_message(bad)}"] * bool(bad)
    fields = {"paths": [str(path)], "frames": num_frames, "fps": float(rate), "skipped": len(bad), "seconds": seconds}
    return Report("\n".join(lines), fields)


def pairs(images: Iterator[tuple[str, np.ndarray]], draw: Callable[[np.ndarray], Image.Image]) -> Iterator[np.ndarray]:
    """Each image next to its visualization, all at the size of the first image.

    Args:
        images: (name, frame) pairs, frames uint8 `[H W 3]`.
        draw: Maps a frame to an image of the same size.

    Yields:
        uint8 `[H W 3]`, H and W even, as video codecs require.
    """
    size = None
    for _, pixels in images:
        image, drawn = Image.fromarray(pixels), draw(pixels)
        size = size or (image.width + image.width % 2, image.height + image.height % 2)
        left_and_right = [
            each if each.size == size else each.resize(size, Image.Resampling.BICUBIC) for each in (image, drawn)
        ]
        yield np.concatenate([np.asarray(each) for each in left_and_right], axis=1)


def _frames(video: Path, encoder: ImageEncoder, bad: Bad) -> Iterator[tuple[str, np.ndarray]]:
    """(name, prepared frame) for each readable frame; unreadable ones are added to `bad`."""
    for name, pixels in video_frames.frames(video):
        try:
            if isinstance(pixels, BadImage):
                raise pixels
            prepared = encoder.prepare(pixels)
        except BadImage as error:
            bad.append((name, str(error)))
        else:
            yield name, prepared


def _evenly_spaced(items: Iterator[tuple[str, np.ndarray]], most: int) -> list[tuple[str, np.ndarray]]:
    """At most `most` evenly spaced items of a stream of unknown length; never holds more than `most` + 1."""
    kept: list[tuple[str, np.ndarray]] = []
    stride = 1
    for index, item in enumerate(items):
        if index % stride:
            continue
        if len(kept) == most:  # full: drop every second item and double the stride
            kept, stride = kept[::2], 2 * stride
            if index % stride:
                continue
        kept.append(item)
    return kept
