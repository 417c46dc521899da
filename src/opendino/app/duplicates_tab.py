"""Tab "Duplicates": groups of near-duplicate images of a table, and a list of the redundant copies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from opendino.app.context import NETWORK, Context, Head, bounded, caption, handle_errors
from opendino.app.image_input import open_at_click
from opendino.embeddings.duplicate_groups import Duplicates, find_duplicates
from opendino.features.duplicate_threshold import EQUAL

NAME = "Duplicates"

_SHOWN = 60
"""Number of images that are shown."""


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    gr.Markdown(
        "Groups of images of the table that are almost the same. **Copies** are the same by their pixels and could go; "
        "the others of a group only look similar to the model: look at them."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            chosen = gr.Checkbox(True, label="Choose the threshold from the images")
            threshold = gr.Slider(0.5, 1, 0.95, step=0.001, label="Smallest cosine of near-duplicates", visible=False)
            find = gr.Button("Find duplicates", variant="primary")
            note = gr.Markdown()
            copies = gr.Textbox(label="Redundant copies", lines=6, max_lines=6, buttons=["copy"], visible=False)
            download = gr.DownloadButton("Download the list (.txt)", visible=False)
        with gr.Column(scale=5):
            images = gr.Gallery(
                label="The largest groups: group, cosine to the most similar other", columns=5, height=600,
                object_fit="contain", allow_preview=False,
            )  # fmt: skip
            opened: gr.State = gr.State([])

    def search(name: str | None, automatic: bool, smallest: float) -> tuple[Any, ...]:
        shown = context.table(name)
        keys, vectors = shown.vectors
        found = find_duplicates(keys, vectors, shown.about, None if automatic else bounded(smallest, 0.5, 1))
        members = [*captions(found)]
        gallery = [(shown.thumbnail(key), caption) for key, caption in members]
        text, file = context.file_list(found.copies)
        return (
            gallery,
            f"{sentence(found, len(keys))}{shown.hint}",
            gr.update(value=text, visible=bool(text)),
            gr.update(value=str(file), visible=bool(text)),
            shown.server_images([key for key, _ in members]),
        )

    private: dict[str, Any] = {"api_visibility": "private"}
    chosen.change(lambda automatic: gr.update(visible=not automatic), chosen, threshold, queue=False, **private)
    inputs, outputs = [head.table, chosen, threshold], [images, note, copies, download, opened]
    find.click(handle_errors(search), inputs, outputs, **private, **NETWORK)
    open_at_click(head, images, opened)


def captions(found: Duplicates) -> Iterator[tuple[str, str]]:
    """Key and caption of the first images of the largest groups."""
    members = [(number, each) for number, group in enumerate(found.groups, 1) for each in group]
    for number, each in members[:_SHOWN]:
        yield each.key, f"{number} · {each.mark} · {caption(each.key)}"


def sentence(found: Duplicates, num_images: int) -> str:
    """What was found, in words."""
    text = f"{len(found.groups):,} groups among {num_images:,} images, with {_at_least(found.threshold)}."
    if found.cosines:
        text += f" Half of all images have another with {_at_least(found.cosines.nearest[1])}."
    if found.groups:
        text += f" {len(found.copies):,} are copies by their pixels; {found.num_similar:,} only look similar."
    if found.num_unread:
        text += f" {found.num_unread:,} could not be read and are not compared by pixels."
    return text


def _at_least(cosine: float) -> str:
    """The smallest cosine, in words; with more than four digits where four would say 1."""
    if cosine >= EQUAL:
        return "identical vectors"
    return f"cosine {cosine:.4g} or more" if cosine < 0.9999 else f"cosine {cosine:.6f} or more"
