"""Tab "Search": the nearest neighbors of an image in an embedding table."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from opendino.app.context import NETWORK, Context, bounded, handle_errors, session_id
from opendino.core.errors import UserError
from opendino.embeddings.embedding_table import EmbeddingTable
from opendino.models.load import Model

NAME = "Search"


def build(context: Context, model: gr.Dropdown) -> None:
    """Build the tab. It uses the model that made the table, not the one chosen at the top of the page."""
    names = list(context.catalog.tables())
    gr.Markdown(
        "The nearest neighbors of an image in an embedding table. Make a table with "
        "`opendino embed MODEL DATA --out photos.parquet`."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            table = gr.Dropdown(names, value=names[0] if names else None, label="Table")
            _, picture = context.image_input("Query image")
            number = gr.Slider(1, 60, 12, step=1, label="Number of results")
        with gr.Column(scale=5):
            output = gr.Gallery(
                label="Nearest neighbors (cosine similarity)", columns=4, height=560, object_fit="contain"
            )
            note = gr.Markdown()

    def search(
        name: str | None, image: np.ndarray | None, k: float, chosen: str | None, request: gr.Request
    ) -> tuple[list[Any], str]:
        tables = context.catalog.tables()
        if image is None:
            return [], ""
        if name not in tables:
            raise UserError("No table is chosen", "Start the page with: opendino app RUN photos.parquet")
        shown = context.cache.table(tables[name])
        network = _model_of(context, shown.table, [chosen, *context.models(session_id(request))], session_id(request))
        nearest = shown.table.nearest(network.embed(image).float().cpu(), int(bounded(k, 1, 60)))
        hits = list(zip(nearest.keys[0], nearest.scores[0], strict=True))
        images = [(shown.thumbnail(key), f"{score:.2f} · {key}") for key, score in hits]
        how = "exact search" if nearest.exact else "approximate search (index)"
        hint = " To see the images, start the page with their path too: `opendino app RUN TABLE IMAGES`."
        return images, f"{len(hits)} of {len(shown.table):,} images, {how}.{hint * (shown.images is None)}"

    gr.on(
        [picture.change, table.change, number.change],
        handle_errors(search),
        [table, picture, number, model],
        [output, note],
        trigger_mode="always_last",
        api_visibility="private",
        **NETWORK,
    )


def _model_of(context: Context, table: EmbeddingTable, names: list[str | None], session: str) -> Model:
    """The model among `names` that made a table, found by its fingerprint."""
    for name in dict.fromkeys(names):
        if name is not None and (found := context.model(name, session)).fingerprint == table.about["fingerprint"]:
            return found
    made_by = table.about["model"]
    raise UserError(
        f"{table.name} was made by {made_by}, which is not open", f"Run: opendino app {made_by} {table.name}"
    )
