"""Tab "Match": the best match in a second image for a clicked point of a first one."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from opendino.app.context import NETWORK, Context, Head, bounded, handle_errors, session_id
from opendino.app.image_input import image_input
from opendino.app.model_cache import encoder_for
from opendino.core.errors import UserError
from opendino.visualize import correspondence
from opendino.visualize.drawing.tile_grid import Sheet

NAME = "Match"


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    gr.Markdown("Upload two images and click on a point of the first to see the most similar patch of the second.")
    with gr.Row():
        first_shown, first, _ = image_input(context, "First image: click on a point", click=True)
        second = image_input(context, "Second image", click=True).image
    size = gr.Slider(64, 480, 320, step=16, label="Shorter side of the input (px)")
    point: gr.State = gr.State(None)
    output = gr.Image(label="Match", interactive=False, format="png", buttons=["fullscreen"])
    note = gr.Markdown()

    def match(
        name: str | None,
        one: np.ndarray | None,
        two: np.ndarray | None,
        at: tuple[float, float] | None,
        size: float,
        request: gr.Request,
    ) -> tuple[Any, str]:
        if one is None or two is None or at is None:
            return None, ""
        if not (0 <= at[0] < one.shape[1] and 0 <= at[1] < one.shape[0]):
            raise UserError("The point lies outside the image", "Click on the first image again")
        network, pair = context.model(name, session_id(request)), (one, two)
        encoders = [encoder_for(network, image, int(bounded(size, 64, 480))) for image in pair]
        if not encoders[0].any_size:
            raise UserError(
                f"{network.backbone.name} takes images of one size only", "Choose an opendino ViT or a ResNet"
            )
        prepared = [encoder.prepare(network.pixels(image)) for encoder, image in zip(encoders, pair, strict=True)]
        pictures = [encoder.picture(image) for encoder, image in zip(encoders, prepared, strict=True)]
        patches = [encoder.patches(image) for encoder, image in zip(encoders, prepared, strict=True)]  # 2 x [h, w, D]
        # from pixels of the upload to pixels of the network input, then to the patch
        query = tuple(at[i] * pictures[0].size[i] / one.shape[1 - i] for i in (0, 1))  # x, y
        rows, columns = patches[0].shape[:2]
        patch = int(query[1] * rows / pictures[0].height), int(query[0] * columns / pictures[0].width)
        similarity = correspondence.similarities(patches[0][patch], patches[1])  # [h, w]
        best = correspondence.best_point(similarity, pictures[1].size)
        tiles = correspondence.tiles(pictures[0], pictures[1], (query[0], query[1]), best, similarity)
        return Sheet([tiles]).image(), f"Cosine similarity of the best match: {similarity.max():.2f}"

    first.change(lambda: None, None, point, api_visibility="private")
    first_shown.select(handle_errors(_clicked), None, point, api_visibility="private")
    gr.on(
        [point.change, second.change, head.model.change, size.change],
        handle_errors(match),
        [head.model, first, second, point, size],
        [output, note],
        trigger_mode="always_last",
        api_visibility="private",
        **NETWORK,
    )


def _clicked(event: gr.SelectData) -> tuple[float, float]:
    if not isinstance(event.index, list | tuple) or len(event.index) != 2:
        raise UserError("The click is not a point of the image")
    x, y = (bounded(each, 0, 10**6) for each in event.index)
    return x, y
