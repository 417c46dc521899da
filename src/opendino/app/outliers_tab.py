"""Tab "Outliers": the most unusual images of a table, as `opendino outliers` finds them, and a list of them."""

from __future__ import annotations

from typing import Any, Literal

import gradio as gr

from opendino.app.context import NETWORK, Context, Head, bounded, caption, handle_errors
from opendino.app.image_input import open_at_click
from opendino.core.errors import UserError
from opendino.features.outlier_scores import most_unusual, num_unusual

NAME = "Outliers"

_MEASURES = {"distance": "far from all others", "lof": "in a thinner place than their neighbors"}
_MOST = 60
"""Number of images that can be shown."""


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    gr.Markdown(
        "The images of the table that resemble the others least. Good: damaged, empty and misplaced images come first."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            measure = gr.Radio([(text, name) for name, text in _MEASURES.items()], value="distance", label="Unusual is")
            neighbors = gr.Slider(1, 50, 10, step=1, label="Number of neighbors; as many alike are still found")
            number = gr.Slider(1, _MOST, 20, step=1, label="Number of images")
            find = gr.Button("Find outliers", variant="primary")
            note = gr.Markdown()
            files = gr.Textbox(label="The images shown", lines=6, max_lines=6, buttons=["copy"], visible=False)
            download = gr.DownloadButton("Download the list (.txt)", visible=False)
        with gr.Column(scale=5):
            images = gr.Gallery(
                label="Distance to that neighbor (0 to 2), local outlier factor (about 1 is usual)", columns=5,
                height=600, object_fit="contain", allow_preview=False,
            )  # fmt: skip
            opened: gr.State = gr.State([])

    def search(name: str | None, by: Literal["distance", "lof"], k: float, num: float) -> tuple[Any, ...]:
        shown = context.table(name)
        keys, vectors = shown.vectors
        if by not in _MEASURES:
            raise UserError("The measure is not among the choices", "Choose it on this page")
        if len(keys) < 2:
            raise UserError(f"The table has {len(keys)} image", "Choose a table of more images")
        order, distance, factor = most_unusual(vectors, min(int(bounded(k, 1, 50)), len(keys) - 1), by)
        rows = order[: int(bounded(num, 1, _MOST))]
        gallery = [
            (shown.thumbnail(keys[row]), f"{distance[row]:.3f} · lof {factor[row]:.2f} · {caption(keys[row])}")
            for row in rows
        ]
        text, file = context.file_list([keys[row] for row in rows])
        unusual, limit = num_unusual(distance, factor, by)
        sentence = (
            f"{unusual:,} of {len(keys):,} images are above the usual range ({limit:.3f}); the "
            f"median distance is {float(distance.median()):.3f}. The first {len(rows)}:"
        )
        return (
            gallery,
            f"{sentence}{shown.hint}",
            gr.update(value=text, visible=True),
            gr.update(value=str(file), visible=True),
            shown.server_images([keys[row] for row in rows]),
        )

    find.click(
        handle_errors(search),
        [head.table, measure, neighbors, number],
        [images, note, files, download, opened],
        api_visibility="private",
        **NETWORK,
    )
    open_at_click(head, images, opened)
