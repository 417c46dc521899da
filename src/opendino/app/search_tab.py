"""Tab "Search": the nearest neighbors of an image in an embedding table."""

from __future__ import annotations

import contextlib
from typing import Any

import gradio as gr
import numpy as np

from opendino.app.catalog import ServerImage
from opendino.app.context import NETWORK, Context, Head, bounded, caption, handle_errors, session_id
from opendino.app.image_input import image_input, open_at_click
from opendino.core.errors import UserError
from opendino.embeddings.embedding_table import EmbeddingTable
from opendino.models.load import Model

NAME = "Search"


def build(context: Context, head: Head) -> None:
    """Build the tab. It uses the model that made the table, not the one chosen at the top of the page."""
    gr.Markdown(
        "The images of the table that the model finds most similar to an image of yours: 1 is the same, 0 has nothing "
        "in common. Good: what you would call the same kind comes first."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            picture = image_input(context, "Query image", of_server=True).image
            number = gr.Slider(1, 60, 12, step=1, label="Number of results")
        with gr.Column(scale=5):
            output = gr.Gallery(
                label="Nearest neighbors (cosine similarity; click: look at it)", columns=4, height=560,
                object_fit="contain", allow_preview=False,
            )  # fmt: skip
            found: gr.State = gr.State([])
            note = gr.Markdown()

    def search(
        name: str | None, image: np.ndarray | None, k: float, chosen: str | None, request: gr.Request
    ) -> tuple[list[Any], str, list[ServerImage]]:
        if image is None:
            return [], "", []
        shown = context.table(name)
        session = session_id(request)
        made_by, network = _model_of(context, shown.table, [chosen, *context.models(session)], session)
        nearest = shown.table.nearest(network.embed(image).float().cpu(), int(bounded(k, 1, 60)))
        hits = list(zip(nearest.keys[0], nearest.scores[0], strict=True))
        images = [(shown.thumbnail(key), f"{score:.2f} · {caption(key)}") for key, score in hits]
        how = "exact search" if nearest.exact else "approximate search (index)"
        other = "" if made_by == chosen else ", not the one at the top of the page"
        return (
            images,
            f"{len(hits)} of {len(shown.table):,} images, {how}, with the model that made the table: "
            f"`{made_by}`{other}.{shown.hint}",
            shown.server_images(nearest.keys[0]),
        )

    gr.on(
        [picture.change, head.table.change, number.change],
        handle_errors(search),
        [head.table, picture, number, head.model],
        [output, note, found],
        trigger_mode="always_last",
        api_visibility="private",
        **NETWORK,
    )
    open_at_click(head, output, found)


def _model_of(context: Context, table: EmbeddingTable, names: list[str | None], session: str) -> tuple[str, Model]:
    """Name and model of the one among `names` that made a table, found by its fingerprint."""
    for name in dict.fromkeys(names):
        with contextlib.suppress(UserError):  # one that cannot be loaded did not make it, or cannot search in it
            if name is not None and (found := context.model(name, session)).fingerprint == table.about["fingerprint"]:
                return name, found
    made_by = table.about["model"]
    raise UserError(
        f"{table.name} was made by {made_by}, which is not open", f"Run: opendino app {made_by} {table.name}"
    )
