"""Search: the images of a table that are most like a picture."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from opendino.app.context import NETWORK, Context, bounded, handle_errors, session
from opendino.core.errors import UserError
from opendino.embeddings.embedding_table import EmbeddingTable
from opendino.models.load import Model

NAME = "Search"


def build(desk: Context, model: gr.Dropdown) -> None:
    """The tab. Its model is the one that made the table, whichever is chosen at the top."""
    names = list(desk.places.tables())
    gr.Markdown(
        "The images of a table that are most like a picture. Make one: `opendino embed MODEL DATA --out photos.parquet`"
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            table = gr.Dropdown(names, value=names[0] if names else None, label="Table")
            _, picture = desk.picture("Picture")
            number = gr.Slider(1, 60, 12, step=1, label="How many")
        with gr.Column(scale=5):
            found = gr.Gallery(label="Most alike, with their cosines", columns=4, height=560, object_fit="contain")
            note = gr.Markdown()

    def search(
        name: str | None, image: Image.Image | None, k: float, chosen: str | None, ask: gr.Request
    ) -> tuple[list[Any], str]:
        tables = desk.places.tables()
        if image is None:
            return [], ""
        if name not in tables:
            raise UserError("There is no table", "Start with: opendino app RUN photos.parquet")
        shown = desk.shelf.table(tables[name])
        network = _maker(desk, shown.table, [chosen, *desk.models(session(ask))], session(ask))
        nearest = shown.table.nearest(network.embed(image).float().cpu(), int(bounded(k, 1, 60)))
        hits = list(zip(nearest.keys[0], nearest.scores[0], strict=True))
        images = [(shown.thumbnail(key), f"{score:.2f} · {key}") for key, score in hits]
        how = "all compared" if nearest.exact else "by an index"
        unseen = " Their pictures are shown if the page is started with them: `opendino app RUN TABLE IMAGES`."
        return images, f"{len(hits)} of {len(shown.table):,} images, {how}.{unseen * (shown.images is None)}"

    gr.on(
        [picture.change, table.change, number.change],
        handle_errors(search),
        [table, picture, number, model],
        [found, note],
        trigger_mode="always_last",
        api_visibility="private",
        **NETWORK,
    )


def _maker(desk: Context, table: EmbeddingTable, names: list[str | None], whose: str) -> Model:
    """The one of the models that made a table."""
    for name in dict.fromkeys(names):
        if name is not None and (found := desk.model(name, whose)).fingerprint == table.about["fingerprint"]:
            return found
    made_by = table.about["model"]
    raise UserError(f"{table.name} was made by {made_by}, which is not here", f"opendino app {made_by} {table.name}")
