"""Tab "Label": choose images of a table, label them, predict the rest, choose the next ones by what is unsure."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from opendino.app import uploads
from opendino.app.context import NETWORK, Context, Head, bounded, caption, enlarged, handle_errors
from opendino.app.model_cache import ShownTable
from opendino.core.errors import UserError
from opendino.data.labels import match_labels
from opendino.data.source_files import cell, class_order
from opendino.embeddings.diverse_selection import next_to_label
from opendino.features.few_labels import MOST_CROSS_VALIDATED, measured, predictions, to_csv
from opendino.features.logistic_regression import cross_validated
from opendino.models.classifier import Classifier
from opendino.models.feature_tokens import Tokens

NAME = "Label"

_MOST_LETTERS, _MOST_BUTTONS, _MOST_ROWS = 100, 50, 200
_CSV_BYTES = 16 * 2**20
_COLUMNS = ["image", "class", "probability", "label given"]
State = dict[str, Any]
"""table: its name; data: where its images are; keys: chosen images; labels: key → label; at: position of the image
shown; kept: data → labels of images of other tables, until one of these is chosen again."""


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    gr.Markdown(
        "**1.** Choose images that differ as much as possible, and write a label for each; 50 are a good start. **2.** "
        "Predict the rest. **3.** Choose again: those come first that the predictions are unsure of. Labels that you "
        "have already: a CSV of path and class."
    )
    state: gr.State = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            upload = gr.File(label="Labels so far (.csv, also of Label Studio)", file_types=[".csv"], height=90)
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
    predict = gr.Button("Predict the rest")
    found = gr.Markdown()
    rows = gr.Dataframe(headers=_COLUMNS, interactive=False, max_height=320, visible=False)
    predicted = gr.DownloadButton("Download the predictions (.csv)", visible=False)
    tab = _Tab(context)
    shown = [state, picture, text, known, note, download]
    private: dict[str, Any] = {"api_visibility": "private"}
    hidden: dict[str, Any] = {**private, "show_progress": "hidden"}
    upload.upload(handle_errors(tab.read), [state, head.table, upload], [images, *shown], preprocess=False, **hidden)
    choose.click(handle_errors(tab.choose), [state, head.table, number], [images, *shown], **private, **NETWORK)
    text.submit(handle_errors(tab.save), [state, text], shown, **hidden)
    known.input(handle_errors(tab.save), [state, known], shown, preprocess=False, **hidden)
    images.select(handle_errors(tab.go), state, shown, **hidden)
    predict.click(handle_errors(tab.predict), state, [found, rows, predicted], **private, **NETWORK)


class _Tab:
    """The events of the tab."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def read(self, state: State | None, name: str | None, raw: Any) -> tuple[Any, ...]:
        """Take the labels of an uploaded list; where an image has another label already, that of the list counts."""
        file = uploads.resolve_upload(raw, self._context.upload_folder)
        if file is None:
            return gr.skip(), *self._view(state)
        shown = self._context.table(name)
        keys, state = shown.vectors[0], _of_table(state, name, shown.table.about["data"])
        labels, unmatched = read_labels(file, keys)
        if unmatched:
            gr.Info(f"{unmatched}; the labels of {len(labels):,} images were taken")
        return gr.skip(), *self._view(state | {"labels": state["labels"] | labels})

    def choose(self, state: State | None, name: str | None, wanted: float) -> tuple[Any, ...]:
        """Choose the next images to label; all labels are kept."""
        shown = self._context.table(name)
        state = _of_table(state, name, shown.table.about["data"])
        keys, vectors = shown.vectors
        labeled = {row: state["labels"][key] for row, key in enumerate(keys) if key in state["labels"]}
        if others := sum(map(len, state["kept"].values())):
            gr.Info(f"{others:,} labels of images of another table are kept until that table is chosen again")
        if len(labeled) == len(keys):
            raise UserError("All images of the table are labeled", "Download the labels")
        rows, _ = next_to_label(vectors, labeled, min(len(keys) - len(labeled), int(bounded(wanted, 5, 200))))
        chosen = [keys[row] for row, _ in rows]
        return [shown.thumbnail(key) for key in chosen], *self._view(state | {"keys": chosen, "at": 0})

    def save(self, state: State | None, label: Any) -> tuple[Any, ...]:
        """Label the image, and go to the next one without a label."""
        if not state or not state["keys"]:
            raise UserError("No images are chosen", "Press 'Choose images' first")
        label = label.strip() if isinstance(label, str) else ""
        if not label or len(label) > _MOST_LETTERS:
            raise UserError("The label is empty or too long", f"Write 1 to {_MOST_LETTERS} letters")
        labels = state["labels"] | {state["keys"][state["at"]]: label}
        left = [place for place, key in enumerate(state["keys"]) if key not in labels]
        place = next((place for place in left if place > state["at"]), left[0] if left else state["at"])
        return self._view(state | {"labels": labels, "at": place})

    def go(self, state: State | None, event: gr.SelectData) -> tuple[Any, ...]:
        """Show an image that was chosen."""
        if not state or not state["keys"]:
            return self._view(state)
        return self._view(state | {"at": int(bounded(event.index, 0, len(state["keys"]) - 1))})

    def predict(self, state: State | None) -> tuple[Any, ...]:
        """Predict the class of every image of the table."""
        if not state:
            raise UserError("There are no labels", "Label some images, or give a CSV of labels")
        classifier, rows = predicted(self._context.table(state["table"]), state["labels"])
        file = self._context.temporary_file(".csv")
        file.write_text(to_csv(rows), encoding="utf-8")
        first = sorted(rows, key=lambda row: row["probability"])[:_MOST_ROWS]
        cells = [[caption(row["path"]), row["class"], row["probability"], row["labeled"]] for row in first]
        counts = Counter(row["class"] for row in rows)
        told = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
        known = classifier.accuracy[0].upper() + classifier.accuracy[1:]
        return (
            f"**{len(rows):,} images: {told}.** {known}. Chosen images are no random sample: the accuracy on "
            "all images may be another. Next: 'Choose images' again; those come first that these predictions are "
            f"unsure of. Below the least probable {len(first)}.",
            gr.update(value=cells, visible=True),
            gr.update(value=str(file), visible=True),
        )

    def _view(self, state: State | None) -> tuple[Any, ...]:
        """The state, and what the page shows of it: image, its label, labels so far, a sentence, the file."""
        if not state:
            return state, None, "", gr.skip(), "", gr.skip()
        keys, labels = state["keys"], state["labels"]
        counts = Counter(labels.values())
        file = self._context.temporary_file(".csv")
        file.write_text(as_csv(labels), encoding="utf-8")
        told = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        key = keys[state["at"]] if keys else None
        place = f"Image {state['at'] + 1} of {len(keys)}: {Path(key).name}. " if key is not None else ""
        buttons = [name for name, _ in counts.most_common(_MOST_BUTTONS)]
        return (
            state,
            None if key is None else enlarged(self._context.table(state["table"]).thumbnail(key)),
            labels.get(key, ""),
            gr.update(choices=buttons, value=None, visible=bool(buttons)),
            f"{place}**{len(labels)} labeled**{': ' * bool(told)}{told}",
            gr.update(value=str(file), visible=bool(labels)),
        )


def _of_table(state: State | None, name: str | None, data: str) -> State:
    """The state for a table of images of `data`, with the labels that they have already."""
    if state and state["table"] == name:
        return state
    kept = dict(state["kept"]) | {state["data"]: state["labels"]} if state else {}
    labels = kept.pop(data, {})
    kept = {other: found for other, found in kept.items() if found}
    return {"table": name, "data": data, "keys": [], "labels": labels, "at": 0, "kept": kept}


def read_labels(file: Path, keys: list[str]) -> tuple[dict[str, str], str]:
    """Key → label of the images of a table in an uploaded list, as `--labels` reads it, and what matches no image.

    Raises:
        UserError: It is too large, cannot be read, or names none of the images.
    """
    if file.stat().st_size > _CSV_BYTES:
        raise UserError(f"This file has more than {_CSV_BYTES // 2**20} MB", "Give a CSV of path and class")
    try:
        found, unmatched = match_labels(keys, str(file))
    except UserError as error:  # without the name under which the server keeps the file
        raise UserError(error.message.replace(str(file), "The list"), error.hint) from None
    return {keys[row]: label for row, label in found.items()}, unmatched.replace(str(file), "the list")


def predicted(shown: ShownTable, labels: Mapping[str, str]) -> tuple[Classifier, list[dict[str, Any]]]:
    """A classifier of labeled images of a table, and its predictions for all of them.

    Args:
        shown: The table.
        labels: Key of an image → its label.

    Raises:
        UserError: There are fewer than two classes, or too many labels.
    """
    keys, vectors = shown.vectors
    rows = [row for row, key in enumerate(keys) if key in labels]
    names = [labels[keys[row]] for row in rows]
    classes = sorted({*names}, key=class_order)
    if len(classes) < 2:
        raise UserError(f"The labels are of {len(classes)} class", "Label images of two classes or more")
    if len(rows) > MOST_CROSS_VALIDATED:
        raise UserError(f"There are {len(rows):,} labels", "Use: opendino eval linear MODEL --labels FILE.csv")
    numbers = torch.tensor([classes.index(name) for name in names])
    best = cross_validated(vectors[rows], numbers, len(classes))
    classifier = measured(best, numbers, classes, Tokens())
    return classifier, predictions(classifier, vectors, keys, labels)


def as_csv(labels: Mapping[str, str]) -> str:
    """Labels as CSV with the columns path and class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class"])
    writer.writerows([cell(key), cell(label)] for key, label in labels.items())
    return text.getvalue()
