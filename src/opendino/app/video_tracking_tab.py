"""Tab "Video tracking": objects painted on the first frame of a video are tracked through it."""

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
from opendino.app.context import NETWORK, Context, bounded, handle_errors, refusal, session_id
from opendino.app.model_cache import encoder_for
from opendino.core.errors import BadImage, UserError
from opendino.data.decode import decode
from opendino.datasets import video_frames
from opendino.evals.video_segmentation import Tracker, harden
from opendino.models.load import Model
from opendino.visualize.drawing.style import COLORS

NAME = "Video tracking"

_MAX_LAYERS, _MAX_LAYER_BYTES = 8, 32 * 2**20

_BRUSHES = COLORS[1:5]
"""Brush colors, one per object."""
_RGB = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in _BRUSHES], np.float32)


def build(context: Context, model: gr.Dropdown) -> None:
    """Build the tab."""
    gr.Markdown(
        f"Upload a short video and paint over the objects to track on its first frame, one color per object. "
        f"The first {uploads.VIDEO_FRAMES} frames are used."
    )
    video: gr.State = gr.State(None)
    with gr.Row():
        with gr.Column():
            upload, error_note, editor, size, start = _inputs()
        with gr.Column():
            output = gr.Video(
                label="Tracked objects", interactive=False, height=420, autoplay=True, loop=True, buttons=["download"]
            )
            note = gr.Markdown()

    def track(
        name: str | None,
        file: Path | None,
        painted: Any,
        size: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio finds it by this default
    ) -> tuple[str, str]:
        if file is None:
            raise UserError("No video was uploaded", "Upload one above")
        side = int(bounded(size, 64, 480))
        labels = painted_labels(_layers(painted, context.upload_folder))
        out = context.temporary_file(".mp4")
        frames = itertools.islice(video_frames.frames(file), uploads.VIDEO_FRAMES)
        drawn = draw_tracked(context.model(name, session_id(request)), frames, labels, side)
        rate = video_frames.rate(file) or Fraction(25)
        number = video_frames.write(out, progress.tqdm(drawn, total=uploads.VIDEO_FRAMES, unit="frames"), rate)
        objects = len(np.unique(labels[labels > 0]))
        return str(out), f"{number:,} frames, {objects} object{'s' * (objects > 1)}."

    upload.change(
        handle_errors(lambda raw: _receive(raw, context.upload_folder)),
        upload,
        [video, editor, error_note],
        preprocess=False,
        api_visibility="private",
        show_progress="hidden",
    )
    start.click(
        handle_errors(track),
        [model, video, editor, size],
        [output, note],
        preprocess=False,
        api_visibility="private",
        **NETWORK,
    )


def _inputs() -> tuple[gr.File, gr.HTML, gr.ImageEditor, gr.Slider, gr.Button]:
    """The left column: upload, error message, first frame to paint on, size of the input, start."""
    upload = gr.File(label="Video (.mp4, .mov, .webm, .mkv, .avi)", file_types=["video"], height=150)
    error_note = gr.HTML(visible=False)
    editor = gr.ImageEditor(
        label="First frame: paint the objects",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=24, colors=list(_BRUSHES), color_mode="fixed"),
        format="png",
        height=420,
        interactive=True,
    )
    size = gr.Slider(64, 480, 240, step=16, label="Shorter side of the input (px)")
    start = gr.Button("Track", variant="primary")
    return upload, error_note, editor, size, start


def _receive(raw: Any, folder: Path) -> tuple[Any, Any, Any]:
    """The uploaded video, its first frame, and the error message if it was refused."""
    try:
        file = uploads.resolve_upload(raw, folder)
        if file is None:
            return None, None, gr.update(visible=False)
        first = uploads.first_frame(file)
    except UserError as error:
        return None, None, refusal(error)
    return file, first, gr.update(visible=False)


def _layers(painted: Any, folder: Path) -> list[bytes]:
    """The painted layers as PNG bytes, from the browser's uploads, before gradio opens them.

    Raises:
        UserError: There are too many layers, or one is too large.
    """
    sent = painted.get("layers") if isinstance(painted, dict) else None
    if not isinstance(sent, list):
        return []
    if len(sent) > _MAX_LAYERS:
        raise UserError(f"{len(sent)} layers were painted", f"At most {_MAX_LAYERS} are allowed")
    files = [uploads.resolve_upload(layer, folder) for layer in sent]
    return [uploads.read_bytes(file, _MAX_LAYER_BYTES) for file in files if file]


def painted_labels(layers: list[bytes]) -> np.ndarray:
    """The label of each pixel, by the nearest brush color.

    Args:
        layers: PNGs of one size, transparent where nothing is painted. A layer with more pixels than the largest
            possible first frame is refused before it is decoded.

    Returns:
        uint8 `[H W]`, 0 for the background.

    Raises:
        UserError: Nothing is painted, or a layer is too large.
    """
    labels = np.zeros((1, 1), np.uint8)
    # Transparent pixels decode to white. Antialiased edges lie on the line from white to a brush color, so each pixel
    # is projected onto these lines.
    directions = 255 - _RGB  # [K, 3]
    for layer in layers:
        try:
            pixels = decode(layer, max_pixels=uploads.KEPT_AREA_PX)
        except BadImage as error:
            raise UserError(f"The painted layer cannot be used: {error}", "Clear it and paint again") from None
        offset = 255 - pixels.astype(np.float32)  # [H, W, 3]
        projection = offset @ directions.T / np.linalg.norm(directions, axis=1)  # [H, W, K]
        nearest = projection.argmax(-1)  # [H, W]
        painted = projection.max(-1) > 0.5 * np.linalg.norm(directions, axis=1)[nearest]
        labels = np.where(painted, nearest + 1, labels if labels.shape == painted.shape else 0).astype(np.uint8)
    used = [number for number in np.unique(labels) if number]
    if not used:
        raise UserError("Nothing is painted", "Paint over the objects to track on the first frame")
    return labels


def draw_tracked(
    model: Model, frames: Iterator[tuple[str, np.ndarray | BadImage]], labels: np.ndarray, size_px: int
) -> Iterator[np.ndarray]:
    """Track objects by label propagation (Jabri et al. 2020) and draw them on the frames.

    Args:
        model: The model, on any device.
        frames: (name, uint8 `[H W 3]`); unreadable frames are skipped.
        labels: Labels of the first frame, uint8 `[h w]`, 0 for the background.
        size_px: Shorter side of the network input.

    Yields:
        uint8 `[H W 3]`, all of one size, with even sides as video codecs require.
    """
    tracker, encoder, shape = None, None, (0, 0)
    for _, pixels in frames:
        if isinstance(pixels, BadImage):
            continue
        image = uploads.frame_image(pixels)
        if encoder is None:
            encoder = encoder_for(model, np.asarray(image), size_px)
            shape = (image.width - image.width % 2, image.height - image.height % 2)
        image = image.resize(shape) if image.size != shape else image
        features = encoder.patches(encoder.prepare(np.asarray(image)))  # [h, w, D]
        if tracker is None:
            tracker = Tracker(features, _patch_labels(labels, features.shape[:2]))
            found = labels
        else:
            found = harden(tracker(features), *features.shape[:2]).numpy()
            found = harden(_one_hot(found), shape[1], shape[0]).numpy()
        yield draw_objects(image, found)


def draw_objects(image: Image.Image, labels: np.ndarray) -> np.ndarray:
    """Blend the objects of a frame with their colors; uint8 `[H W 3]`."""
    mask = np.asarray(Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST))
    pixels = np.array(image)
    inside = mask > 0
    pixels[inside] = (0.45 * pixels[inside] + 0.55 * _RGB[mask[inside] - 1]).astype(np.uint8)
    return pixels


def _one_hot(labels: np.ndarray) -> Tensor:
    return (torch.from_numpy(labels) == torch.arange(len(_BRUSHES) + 1)[:, None, None]).float()


def _patch_labels(labels: np.ndarray, grid: tuple[int, int] | torch.Size) -> Tensor:
    """The share of each label in each patch, float32 `[C h w]`."""
    return interpolate(_one_hot(labels)[None], tuple(grid), mode="area")[0]
