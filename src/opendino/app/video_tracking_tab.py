"""Tab "Video": objects painted on the first frame of a video are tracked through it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from opendino.app import painting, uploads
from opendino.app.context import NETWORK, Context, Head, bounded, handle_errors, refusal, session_id
from opendino.app.model_cache import encoder_for
from opendino.app.painting import BRUSHES, draw_labels, layers, painted_labels
from opendino.core.errors import BadImage, UserError
from opendino.datasets import video_frames
from opendino.evals.video_segmentation import Tracker, harden
from opendino.models.load import Model

NAME = "Video"


def build(context: Context, head: Head) -> None:
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
        labels = painted_labels(layers(painted, context.upload_folder))
        if not labels.any():
            raise UserError("Nothing is painted", "Paint over the objects to track on the first frame")
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
        [head.model, video, editor, size],
        [output, note],
        preprocess=False,
        api_visibility="private",
        **NETWORK,
    )


def _inputs() -> tuple[gr.File, gr.HTML, gr.ImageEditor, gr.Slider, gr.Button]:
    """The left column: upload, error message, first frame to paint on, size of the input, start."""
    upload = gr.File(label="Video (.mp4, .mov, .webm, .mkv, .avi)", file_types=["video"], height=150)
    error_note = gr.HTML(visible=False)
    editor = painting.editor("First frame: paint the objects", brush_px=24)
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
        yield draw_labels(image, found)


def _one_hot(labels: np.ndarray) -> Tensor:
    return (torch.from_numpy(labels) == torch.arange(len(BRUSHES) + 1)[:, None, None]).float()


def _patch_labels(labels: np.ndarray, grid: tuple[int, int] | torch.Size) -> Tensor:
    """The share of each label in each patch, float32 `[C h w]`."""
    return interpolate(_one_hot(labels)[None], tuple(grid), mode="area")[0]
