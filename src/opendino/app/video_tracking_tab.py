"""Follow: objects painted on a film's first frame, followed through the film."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from opendino.app import uploads
from opendino.app.context import NETWORK, Context, bounded, handle_errors, refusal, session
from opendino.app.model_cache import encoder_for
from opendino.core.errors import BadImage, UserError
from opendino.data.decode import decode
from opendino.datasets import video_frames
from opendino.evals.video_segmentation import Tracker, harden
from opendino.models.load import Model
from opendino.visualize.drawing.tile_grid import COLORS

NAME = "Follow"

_MAX_LAYERS, _MAX_LAYER_BYTES = 8, 32 * 2**20

_BRUSHES = COLORS[1:5]
"""An object each."""
_RGB = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in _BRUSHES], np.float32)


def build(desk: Context, model: gr.Dropdown) -> None:
    """The tab."""
    gr.Markdown(
        f"Put in a short film, paint over what you want to follow on its first frame (a color an object), and go. "
        f"The first {uploads.FILM_FRAMES} frames are taken."
    )
    film: gr.State = gr.State(None)
    with gr.Row():
        with gr.Column():
            upload = gr.File(label="Film (.mp4, .mov, .webm, .mkv, .avi)", file_types=["video"], height=150)
            refused = gr.HTML(visible=False)
            editor = gr.ImageEditor(
                label="First frame: paint here",
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=24, colors=list(_BRUSHES), color_mode="fixed"),
                format="png",
                height=420,
                interactive=True,
            )
            size = gr.Slider(64, 480, 240, step=16, label="Shorter side seen (px)")
            go = gr.Button("Follow", variant="primary")
        with gr.Column():
            found = gr.Video(
                label="Followed", interactive=False, height=420, autoplay=True, loop=True, buttons=["download"]
            )
            note = gr.Markdown()

    def take(raw: Any) -> tuple[Any, Any, Any]:
        try:
            file = uploads.path(raw, desk.uploads)
            if file is None:
                return None, None, gr.update(visible=False)
            first = uploads.film(file)
        except UserError as error:
            return None, None, refusal(error)
        return file, first, gr.update(visible=False)

    def follow(
        name: str | None,
        file: Path | None,
        painted: Any,
        size: float,
        ask: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - so gradio knows that it is wanted
    ) -> tuple[str, str]:
        if file is None:
            raise UserError("There is no film yet", "Put one in above")
        side = int(bounded(size, 64, 480))
        labels = painted_labels(_layers(painted, desk.uploads))
        out = desk.temporary(".mp4")
        frames = itertools.islice(video_frames.frames(file), uploads.FILM_FRAMES)
        drawn = followed(desk.model(name, session(ask)), frames, labels, side)
        rate = video_frames.rate(file) or Fraction(25)
        number = video_frames.write(out, progress.tqdm(drawn, total=uploads.FILM_FRAMES, unit="frames"), rate)
        objects = len(np.unique(labels[labels > 0]))
        return str(out), f"{number:,} frames, {objects} object{'s' * (objects > 1)}."

    upload.change(
        handle_errors(take),
        upload,
        [film, editor, refused],
        preprocess=False,
        api_visibility="private",
        show_progress="hidden",
    )
    go.click(
        handle_errors(follow),
        [model, film, editor, size],
        [found, note],
        preprocess=False,
        api_visibility="private",
        **NETWORK,
    )


def _layers(painted: Any, folder: Path) -> list[bytes]:
    """The PNGs of what is painted that the browser has just uploaded, before gradio opens them.

    Raises:
        UserError: There are too many, or a large one.
    """
    sent = painted.get("layers") if isinstance(painted, dict) else None
    if not isinstance(sent, list):
        return []
    if len(sent) > _MAX_LAYERS:
        raise UserError(f"{len(sent)} layers were painted", f"At most {_MAX_LAYERS} are taken")
    files = [uploads.path(layer, folder) for layer in sent]
    return [uploads.content(file, _MAX_LAYER_BYTES) for file in files if file]


def painted_labels(layers: list[bytes]) -> np.ndarray:
    """Which object is painted where, by the nearest color of a brush: uint8 `[H W]`, 0 for none.

    Args:
        layers: PNGs of one size, transparent where nothing is painted. One of more pixels than the largest first frame
            has on the page is refused undecoded.

    Raises:
        UserError: Nothing is painted anywhere, or a layer is too large.
    """
    labels = np.zeros((1, 1), np.uint8)
    ways = 255 - _RGB  # from white, which transparency becomes; a soft rim lies on the way to its color
    for layer in layers:
        try:
            pixels = decode(layer, max_pixels=uploads.KEPT_AREA_PX)
        except BadImage as error:
            raise UserError(f"What is painted cannot be used: {error}", "Clear it and paint again") from None
        away = 255 - pixels.astype(np.float32)
        along = away @ ways.T / np.linalg.norm(ways, axis=1)
        nearest = along.argmax(-1)
        painted = along.max(-1) > 0.5 * np.linalg.norm(ways, axis=1)[nearest]
        labels = np.where(painted, nearest + 1, labels if labels.shape == painted.shape else 0).astype(np.uint8)
    used = [number for number in np.unique(labels) if number]
    if not used:
        raise UserError("Nothing is painted yet", "Paint over what you want to follow on the first frame")
    return labels


def followed(
    model: Model, frames: Iterator[tuple[str, np.ndarray | BadImage]], labels: np.ndarray, size_px: int
) -> Iterator[np.ndarray]:
    """The frames with the objects colored, by label propagation (Jabri et al. 2020).

    Args:
        model: On any device.
        frames: (name, uint8 `[H W 3]`); those that cannot be read are left out.
        labels: Of the first, uint8 `[h w]`, 0 for none.
        size_px: Shorter side that the network sees.

    Yields:
        uint8 `[H W 3]` with even sides, all of one size.
    """
    tracker, eye, shape = None, None, (0, 0)
    for _, pixels in frames:
        if isinstance(pixels, BadImage):
            continue
        image = uploads.picture_of(pixels)
        if eye is None:
            eye = encoder_for(model, image, size_px)
            shape = (image.width - image.width % 2, image.height - image.height % 2)
        image = image.resize(shape) if image.size != shape else image
        features = eye.patches(eye.prepare(image))
        if tracker is None:
            soft = _soft(labels, features.shape[:2])
            tracker = Tracker(features, soft)
            found = labels
        else:
            found = harden(tracker(features), *features.shape[:2]).numpy()
            found = harden(_one_hot(found), shape[1], shape[0]).numpy()
        yield colored(image, found)


def colored(image: Image.Image, labels: np.ndarray) -> np.ndarray:
    """A frame with its objects in their colors, uint8 `[H W 3]`."""
    mask = np.asarray(Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST))
    pixels = np.array(image)
    inside = mask > 0
    pixels[inside] = (0.45 * pixels[inside] + 0.55 * _RGB[mask[inside] - 1]).astype(np.uint8)
    return pixels


def _one_hot(labels: np.ndarray) -> Tensor:
    return (torch.from_numpy(labels) == torch.arange(len(_BRUSHES) + 1)[:, None, None]).float()


def _soft(labels: np.ndarray, grid: tuple[int, int] | torch.Size) -> Tensor:
    """The share of every label in every patch, float32 `[C h w]`."""
    return interpolate(_one_hot(labels)[None], tuple(grid), mode="area")[0]
