"""Match: a point of one picture, found again in another."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from opendino.app.context import NETWORK, Context, bounded, handle_errors, session
from opendino.app.model_cache import encoder_for
from opendino.core.errors import UserError
from opendino.visualize import correspondence
from opendino.visualize.drawing.tile_grid import Sheet

NAME = "Match"


def build(desk: Context, model: gr.Dropdown) -> None:
    """The tab."""
    gr.Markdown("Put in two pictures, then click on the first: the network shows what in the second is most like it.")
    with gr.Row():
        first_shown, first = desk.picture("First: click on it", click=True)
        _, second = desk.picture("Second", click=True)
    size = gr.Slider(64, 480, 320, step=16, label="Shorter side seen (px)")
    point: gr.State = gr.State(None)
    found = gr.Image(label="Match", interactive=False, format="png", buttons=["fullscreen"])
    note = gr.Markdown()

    def match(
        name: str | None,
        one: Image.Image | None,
        two: Image.Image | None,
        at: tuple[float, float] | None,
        size: float,
        ask: gr.Request,
    ) -> tuple[Any, str]:
        if one is None or two is None or at is None:
            return None, ""
        if not (0 <= at[0] < one.width and 0 <= at[1] < one.height):
            raise UserError("That point lies beside the picture")
        network, pair = desk.model(name, session(ask)), (one, two)
        sights = [encoder_for(network, image, int(bounded(size, 64, 480))) for image in pair]
        if not sights[0].any_size:
            raise UserError(
                f"{network.backbone.name} takes images of one size only", "Choose a ViT of ours, or a ResNet"
            )
        seen = [each.prepare(image) for each, image in zip(sights, pair, strict=True)]
        patches = [each.patches(image) for each, image in zip(sights, seen, strict=True)]
        here = tuple(at[i] * seen[0].size[i] / one.size[i] for i in (0, 1))
        rows, columns = patches[0].shape[:2]
        place = int(here[1] * rows / seen[0].height), int(here[0] * columns / seen[0].width)
        similarity = correspondence.similarities(patches[0][place], patches[1])
        there = correspondence.best_point(similarity, seen[1].size)
        tiles = correspondence.tiles(seen[0], seen[1], (here[0], here[1]), there, similarity)
        return Sheet([tiles]).image(), f"Cosine similarity of the best match: {similarity.max():.2f}"

    first.change(lambda: None, None, point, api_visibility="private")
    first_shown.select(handle_errors(_clicked), None, point, api_visibility="private")
    gr.on(
        [point.change, second.change, model.change, size.change],
        handle_errors(match),
        [model, first, second, point, size],
        [found, note],
        trigger_mode="always_last",
        api_visibility="private",
        **NETWORK,
    )


def _clicked(where: gr.SelectData) -> tuple[float, float]:
    if not isinstance(where.index, list | tuple) or len(where.index) != 2:
        raise UserError("That is no point of the picture")
    x, y = (bounded(each, 0, 10**6) for each in where.index)
    return x, y
