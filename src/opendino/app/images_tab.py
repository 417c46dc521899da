"""Tab "Images": what is in the folders that were named when the page was started, and tables of their vectors."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import gradio as gr

from opendino.app.catalog import ServerImage
from opendino.app.context import Context, Head, caption, handle_errors, session_id
from opendino.app.image_input import open_at_click
from opendino.app.page_words import STACK, of_images, with_fields
from opendino.app.train_tab import STACKS
from opendino.core.errors import UserError
from opendino.data.image_overview import look_at
from opendino.embeddings import resumable_parts
from opendino.embeddings.embed_images import Embedder, Rows, table_origin
from opendino.features.image_stream import skipped_message
from opendino.visualize.drawing import templates

NAME = "Images"

_LISTED = 20
"""Number of unusable images that are named."""


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    gr.Markdown(
        "What is in the folder that was named when the page was started. Then: **train** on it (tab Train), and make a "
        "**table** of it with the model at the top, for the tabs Map, Search, Duplicates, Outliers and Label."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            data = head.images
            data.render()
            stack = gr.Dropdown(list(STACKS), value="ask", label=f"{STACK} (stacks only)")
            embed = gr.Button("Make a table with the model", variant="primary")
            note = gr.Markdown()
        with gr.Column(scale=5):
            page = gr.HTML(min_height=80)
            examples = gr.Gallery(
                label="Examples, spread over the set (click: look at it)", columns=6, height=320, object_fit="contain",
                allow_preview=False,
            )  # fmt: skip
            shown: gr.State = gr.State([])

    def look(name: str | None, pages: str) -> tuple[str, list[Any], list[ServerImage]]:
        known = context.catalog.data()
        if name not in known:
            return templates.render("images.html", facts={}, bad=[], more=0), [], []
        if pages not in STACKS:
            raise UserError("The meaning of pages is not among the choices", "Choose one on this page")
        found = look_at(known[name], pages)
        more = max(0, len(found.bad) - _LISTED)
        facts = {name: of_images(fact) for name, fact in found.facts.items()}
        bad = [(key, with_fields(reason)) for key, reason in found.bad[:_LISTED]]
        return (
            templates.render("images.html", facts=facts, bad=bad, more=more),
            [(picture, caption(key)) for picture, key in found.examples],
            [ServerImage(known[name], key, pages) for _, key in found.examples],
        )

    def make_table(
        name: str | None,
        model: str | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio finds it by this default
    ) -> tuple[Any, str]:
        known = context.catalog.data()
        if name not in known:
            raise UserError("No images are chosen", "Start the page with: opendino app FOLDER")
        session = session_id(request)
        network, path = context.model(model, session), context.models(session)[str(model)]
        source = network.reading.open_images(known[name])
        origin = table_origin(network, source, name=path, which=None, data=known[name])
        context.out.mkdir(parents=True, exist_ok=True)
        images, run = Path(known[name]).stem, Path(path).name.replace(":", "-")
        # A folder or run of the same name elsewhere gets a table of its own.
        mark = blake2b(f"{known[name]}\0{network.fingerprint}".encode(), digest_size=3).hexdigest()
        out = context.out / f"{run if run.startswith(f'{images}-') else f'{images}-{run}'}-{mark}.parquet"
        embedder = _Watched(network, source, origin, progress=progress)
        done = resumable_parts.write(out, embedder, overwrite=True)
        assert done is not None
        skipped = f" {skipped_message(done.bad)}." if done.bad else ""
        tables = list(context.catalog.tables())
        text = f"{done.written:,} images are in the table **{out.name}**.{skipped} It is chosen at the top of the page."
        return gr.update(choices=tables, value=str(out)), text

    private: dict[str, Any] = {"api_visibility": "private"}
    gr.on(None, handle_errors(look), [data, stack], [page, examples, shown], concurrency_limit=1, **private)
    open_at_click(head, examples, shown)
    alone: dict[str, Any] = {"concurrency_id": "table", "concurrency_limit": 1}  # two would write the same parts
    embed.click(handle_errors(make_table), [data, head.model], [head.table, note], **private, **alone)


@dataclass(frozen=True)
class _Watched(Embedder):
    """An embedder that shows on the page how far it is."""

    progress: Callable[..., Any] = print

    def rows(self, indices: Sequence[int], within: int | None = None) -> Generator[Rows, None, None]:
        done = 0
        for rows in super().rows(indices, within):
            done += rows.num_images
            self.progress((done, len(indices)), desc="Embedding", unit="images")
            yield rows
