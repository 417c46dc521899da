"""Tab "Segment": paint a few strokes of each class, see the mask of the image, correct it, take the head along."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from opendino.app import painting, uploads
from opendino.app.catalog import ServerImage
from opendino.app.context import Context, Head, bounded, caption, handle_errors, session_id
from opendino.app.image_input import image_input
from opendino.app.painting import BRUSH_NAMES, as_layer, draw_labels, layers, painted_labels
from opendino.core.errors import UserError
from opendino.datasets import mask_files
from opendino.datasets.mask_files import VOID
from opendino.features import scribbles
from opendino.features.scribbles import PatchCache, Scribbled
from opendino.models.load import Model

NAME = "Segment"

_MOST_IMAGES, _THUMBNAIL_PX = 20, 240
State = dict[str, Any]
"""images: what was painted on so far, `Scribbled`; at: position of the one in the editor; names: of the classes."""
_NEXT = """The masks are those of this head, from all strokes. Unpack the file, then
`opendino predict head IMAGES --out MASKS`. The same head again, from the strokes:
`{again}`"""
_MOST_LETTERS = 40


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    gr.Markdown(
        "Paint a stroke of each class, a color each, and look at the mask. Correct it by painting where it is wrong, "
        "also on other images. A few short strokes do; the network is not trained again."
    )
    state: gr.State = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=240):
            _, image, origin = image_input(context, "Image", of_server=True)
            images = gr.Gallery(
                label="Painted so far (click: back to it)", columns=2, height=240, object_fit="contain",
                allow_preview=False, visible=False,
            )  # fmt: skip
        with gr.Column(scale=4, min_width=320):
            editor = painting.editor("Paint here: a color per class", brush_px=12)
            names = gr.Textbox(
                label="Names of the classes", max_lines=1, placeholder="background, scratch",
                info=f"In the order of the colors: {', '.join(BRUSH_NAMES)}",
            )  # fmt: skip
            start = gr.Button("Show the mask", variant="primary")
        with gr.Column(scale=4, min_width=320):
            result = gr.Image(label="Mask", interactive=False, format="png", height=420, buttons=["fullscreen"])
            note = gr.Markdown()
            export = gr.Button("Export")
            download = gr.DownloadButton("Download head, strokes and masks (.zip)", visible=False)
    tab = _Tab(context, PatchCache())
    shown = [state, result, images, note, download]
    # progress is not shown on the editor: it would cover what one paints on
    private: dict[str, Any] = {"preprocess": False, "api_visibility": "private", "show_progress_on": result}
    # One event at a time: each takes the state as the one before left it.
    private |= {"concurrency_id": "segment", "concurrency_limit": 1}
    painted = [state, editor, names]
    image.change(handle_errors(tab.add), [*painted, image, origin, head.model], [editor, *shown], **private)
    images.select(handle_errors(tab.go), [*painted, head.model], [editor, *shown], **private)
    start.click(handle_errors(tab.segment), [*painted, head.model], shown, **private)
    export.click(handle_errors(tab.export), [*painted, head.model], shown, **private)


class _Tab:
    """The events of the tab. The browser's values are not trusted; the features are shared by all sessions."""

    def __init__(self, context: Context, cache: PatchCache) -> None:
        self._context, self._cache = context, cache

    def add(
        self,
        state: State | None,
        painted: Any,
        names: Any,
        image: np.ndarray | None,
        origin: Any,
        model: str | None,
        request: gr.Request,
    ) -> tuple[Any, ...]:
        """Open an image that was chosen, which may be one that was painted on."""
        if image is None:
            return (gr.skip(),) * 6
        state = self._painted(state, painted, names) or {"images": [], "names": class_names(names)}
        same = [at for at, each in enumerate(state["images"]) if np.array_equal(each.image, image)]
        if not same and len(state["images"]) == _MOST_IMAGES:
            raise UserError(f"There are {_MOST_IMAGES} images already", "Export, and reload the page to begin again")
        if not same:
            strokes = np.full(image.shape[:2], VOID, np.uint8)
            new = Scribbled(_name(len(state["images"]) + 1, origin), image, strokes)
            state = state | {"images": [*state["images"], new]}
        at = same[0] if same else len(state["images"]) - 1
        return self._open(state, at, self._context.model(model, session_id(request)))

    def go(
        self,
        state: State | None,
        painted: Any,
        names: Any,
        model: str | None,
        request: gr.Request,
        event: gr.SelectData,
    ) -> tuple[Any, ...]:
        """Open an image that was painted on."""
        if not (state := self._painted(state, painted, names)):
            return (gr.skip(),) * 6
        at = int(bounded(event.index, 0, len(state["images"]) - 1))
        return self._open(state, at, self._context.model(model, session_id(request)))

    def segment(
        self, state: State | None, painted: Any, names: Any, model: str | None, request: gr.Request
    ) -> tuple[Any, ...]:
        """Show the mask of the image in the editor, by a head from all strokes."""
        if not (state := self._painted(state, painted, names)):
            raise UserError("No image is chosen", "Choose or upload one")
        return self._view(state, self._context.model(model, session_id(request)))

    def export(
        self, state: State | None, painted: Any, names: Any, model: str | None, request: gr.Request
    ) -> tuple[Any, ...]:
        """Write the head with everything that repeats it."""
        if not (state := self._painted(state, painted, names)):
            raise UserError("No image is chosen", "Choose or upload one")
        network = self._context.model(model, session_id(request))
        out = self._context.temporary_file(".zip")
        with tempfile.TemporaryDirectory(dir=self._context.folder) as folder:
            found = scribbles.write(Path(folder) / "export", network, state["images"], self._cache, state["names"])
            shutil.make_archive(str(out.with_suffix("")), "zip", folder, "export")
        current = state["images"][state["at"]]
        mask = scribbles.mask(network, found, current.image, self._cache)
        told = _NEXT.format(again=scribbles.repeating_command(found))
        return state, _drawn(current, mask + 1), gr.skip(), told, gr.update(value=str(out), visible=True)

    def _painted(self, state: State | None, painted: Any, names: Any) -> State | None:
        """The state with the strokes that are in the editor now, and the names."""
        if not state:
            return None
        state = state | {"names": class_names(names)}
        sent = layers(painted, self._context.upload_folder)
        if not sent:  # the editor is not ready; one that is sends a layer even if nothing is painted
            return state
        images, at = list(state["images"]), state["at"]
        height, width = images[at].strokes.shape
        labels = painted_labels(sent)
        labels = labels if labels.shape == (height, width) else mask_files.resize(labels, height, width)
        images[at] = replace(images[at], strokes=labels - 1)  # uint8: 0, not painted, becomes 255
        return state | {"images": images}

    def _open(self, state: State, at: int, model: Model) -> tuple[Any, ...]:
        """Put an image into the editor."""
        state = state | {"at": at}
        current = state["images"][at]
        self._cache.features(model, current.image)  # now, and not at the first stroke
        layer = [as_layer(current.strokes + 1)] if current.classes else []
        value = {"background": uploads.preview(current.image), "layers": layer, "composite": None}
        enough = len({number for each in state["images"] for number in each.classes}) > 1
        shown = self._view(state, model) if enough else (state, None, _gallery(state), "", gr.update(visible=False))
        return value, *shown

    def _view(self, state: State, model: Model) -> tuple[Any, ...]:
        """The state, and what the page shows of it: mask, images, a sentence, no file."""
        began, current = time.perf_counter(), state["images"][state["at"]]
        head = scribbles.train(model, state["images"], self._cache, quick=True)
        mask = scribbles.mask(model, head, current.image, self._cache)
        seconds = time.perf_counter() - began
        shares = np.bincount(mask.ravel(), minlength=max(head.classes) + 1) / mask.size
        called = {number: state["names"].get(number, BRUSH_NAMES[number]) for number in head.classes}
        told = ", ".join(f"{name} {100 * shares[number]:.1f} %" for number, name in called.items())
        note = f"{current.name}: {told} (classes {', '.join(map(str, head.classes))}); {seconds:.2f} s"
        return state, _drawn(current, mask + 1), _gallery(state), note, gr.update(visible=False)


def class_names(text: Any) -> dict[int, str]:
    """Class number → name, from what was typed, separated by commas: not trusted, as they end up in a command."""
    words = str(text or "").split(",")[: len(BRUSH_NAMES)]
    cleaned = [" ".join(re.sub(r"[^\w.+()-]+", " ", word).split()).strip(" -")[:_MOST_LETTERS] for word in words]
    return {number: word for number, word in enumerate(cleaned) if word}


def _name(number: int, origin: Any) -> str:
    """A name that is the only one, for an image of the server's folder with that of the image."""
    stem = PurePosixPath(origin.key).stem if isinstance(origin, ServerImage) else "upload"
    return f"{number:02d}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', stem)[:60]}"


def _drawn(scribbled: Scribbled, labels: np.ndarray) -> Image.Image:
    return Image.fromarray(draw_labels(uploads.preview(scribbled.image), labels))


def _gallery(state: State) -> Any:
    """The images with their strokes, small."""
    tiles = []
    for each in state["images"]:
        tile = _drawn(each, each.strokes + 1)
        tile.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        tiles.append((tile, caption(each.name)))
    return gr.update(value=tiles, visible=len(tiles) > 1)
