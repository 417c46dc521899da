"""Tab "Label": choose diverse images of a table, give them labels, save the labels as CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from opendino.app.context import NETWORK, Context, Head, bounded, enlarged, handle_errors
from opendino.core.errors import UserError
from opendino.data.source_files import cell
from opendino.embeddings.diverse_selection import first_batch

NAME = "Label"

_MOST_LETTERS = 100
State = dict[str, Any]
"""table: its name; keys: chosen images; labels: key → label; at: position of the image shown."""


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    gr.Markdown(
        "Choose images that differ as much as possible, write a label for each, and download them. Save the file in "
        "the folder of the images; `opendino eval linear MODEL --train labels.csv` then tells how well the rest can be "
        "classified. 50 are a good start."
    )
    state: gr.State = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            number = gr.Slider(5, 200, 50, step=5, label="Number of images")
            choose = gr.Button("Choose images", variant="primary")
            text = gr.Textbox(label="Label of the image (Enter: save, next image)", max_length=_MOST_LETTERS)
            known = gr.Radio([], label="Labels so far (click: save, next image)", visible=False)
            note = gr.Markdown()
            download = gr.DownloadButton("Download the labels (.csv)", visible=False)
        with gr.Column(scale=3):
            picture = gr.Image(label="Image", interactive=False, height=360, buttons=[])
        with gr.Column(scale=3):
            images = gr.Gallery(
                label="Chosen (click to go there)", columns=4, height=420, object_fit="contain", allow_preview=False
            )

    def start(name: str | None, wanted: float) -> tuple[Any, ...]:
        shown = context.table(name)
        keys, vectors = shown.vectors
        rows = first_batch(vectors, min(len(keys), int(bounded(wanted, 5, 200))))
        chosen = [keys[row] for row, _ in rows]
        state = {"table": name, "keys": chosen, "labels": {}, "at": 0}
        return [shown.thumbnail(key) for key in chosen], *_view(context, state)

    def save(state: State | None, label: str) -> tuple[Any, ...]:
        if not state:
            raise UserError("No images are chosen", "Press 'Choose images' first")
        label = label.strip() if isinstance(label, str) else ""
        if not label or len(label) > _MOST_LETTERS:
            raise UserError("The label is empty or too long", f"Write 1 to {_MOST_LETTERS} letters")
        labels = state["labels"] | {state["keys"][state["at"]]: label}
        left = [place for place, key in enumerate(state["keys"]) if key not in labels]
        place = next((place for place in left if place > state["at"]), left[0] if left else state["at"])
        return _view(context, state | {"labels": labels, "at": place})

    def go(state: State | None, event: gr.SelectData) -> tuple[Any, ...]:
        if not state:
            return _view(context, state)
        return _view(context, state | {"at": int(bounded(event.index, 0, len(state["keys"]) - 1))})

    shown = [state, picture, text, known, note, download]
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    choose.click(handle_errors(start), [head.table, number], [images, *shown], **private, **NETWORK)
    text.submit(handle_errors(save), [state, text], shown, **private)
    known.input(handle_errors(save), [state, known], shown, preprocess=False, **private)
    images.select(handle_errors(go), state, shown, **private)


def _view(context: Context, state: State | None) -> tuple[Any, ...]:
    """The state, and what the page shows of it: image, its label, labels so far, a sentence, the file."""
    if not state:
        return state, None, "", gr.skip(), "", gr.skip()
    key, labels = state["keys"][state["at"]], state["labels"]
    counts = Counter(labels.values())
    file = context.temporary_file(".csv")
    file.write_text(as_csv(labels), encoding="utf-8")
    told = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    return (
        state,
        enlarged(context.table(state["table"]).thumbnail(key)),
        labels.get(key, ""),
        gr.update(choices=[*counts], value=None, visible=bool(counts)),
        f"Image {state['at'] + 1} of {len(state['keys'])}: {Path(key).name}. "
        f"**{len(labels)} labeled**{': ' * bool(told)}{told}",
        gr.update(value=str(file), visible=bool(labels)),
    )


def as_csv(labels: Mapping[str, str]) -> str:
    """Labels as CSV with the columns path and class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class"])
    writer.writerows([cell(key), cell(label)] for key, label in labels.items())
    return text.getvalue()
