"""A field for one image: uploaded, or chosen from a folder of the server; of a stack, one says what its pages are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import gradio as gr
import numpy as np

from opendino.app import uploads
from opendino.app.context import Context, handle_errors, refusal
from opendino.core.errors import UserError
from opendino.data.dataset_probe import sample_indices
from opendino.data.open_source import open_source

_NAMED = 1000
"""Number of images of a folder that are listed; others can be typed."""
_PAGES = [("channels", "channels"), ("their largest values", "max"), ("their mean", "mean"), ("the first page", "0")]
"""What the pages of a stack can be, and the value of --stack."""
_PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class ImageInput(NamedTuple):
    """The field.

    Attributes:
        shown: What one sees of it.
        image: The checked image, `[H W C]` as `uploads.load_image` gives it; None without one.
        origin: Where it is from: path of an upload, or name of a folder and key.
    """

    shown: gr.Image
    image: gr.State
    origin: gr.State


def image_input(context: Context, label: str, *, click: bool = False, of_server: bool = False) -> ImageInput:
    """Add the field.

    Args:
        context: State of the page.
        label: Label above the field.
        click: Whether a click on the image chooses a point.
        of_server: Whether images of the server's folders can be chosen too, if there are any.
    """
    sources: list[Literal["upload", "webcam", "clipboard"]]
    sources = ["upload", "clipboard"] if click else ["upload", "webcam", "clipboard"]
    shown = gr.Image(label=label, sources=sources, height=320, buttons=[])
    image: gr.State = gr.State(None)
    origin: gr.State = gr.State(None)
    note = gr.HTML(visible=False)
    pages = gr.Dropdown(_PAGES, value=None, label="The pages of this stack are", visible=False)
    outputs = [shown, image, origin, note, pages]

    def receive(raw: Any) -> tuple[Any, ...]:
        try:
            file = uploads.resolve_upload(raw, context.upload_folder)
        except UserError as error:
            return _refused(error, None)
        return (None, None, None, *_HIDDEN) if file is None else _opened(context, file)

    gr.on(
        [shown.input, shown.clear], handle_errors(receive), shown, outputs, **_PRIVATE,
        preprocess=False,  # gradio would open the file itself, without our checks
    )  # fmt: skip
    pages.input(handle_errors(lambda where, kind: _opened(context, where, kind)), [origin, pages], outputs, **_PRIVATE)
    if of_server and (folders := list(context.catalog.data())):
        folder = gr.Dropdown(["", *folders], value="", label="Or an image of a folder")
        key = gr.Dropdown([], value=None, label="Image", visible=False, allow_custom_value=True)
        folder.input(handle_errors(lambda name: _names(context, name)), folder, key, **_PRIVATE)
        key.input(handle_errors(lambda *where: _opened(context, where)), [folder, key], outputs, **_PRIVATE)
    return ImageInput(shown, image, origin)


_HIDDEN: tuple[Any, Any] = gr.update(visible=False), gr.update(visible=False, value=None)


def _opened(context: Context, origin: Path | tuple[str, str] | None, pages: str = "ask") -> tuple[Any, ...]:
    """The values of the field for an image."""
    try:
        if origin is None:
            raise UserError("There is no image", "Upload one on this page")
        content = uploads.read_bytes(origin) if isinstance(origin, Path) else _content(context, *origin)
        image = uploads.load_image(content, pages)
    except UserError as error:
        return _refused(error, origin)
    note, _ = _HIDDEN
    return uploads.preview(image), image, origin, note, gr.update(visible=pages != "ask")


def _refused(error: UserError, origin: Any) -> tuple[Any, ...]:
    asks = isinstance(error, uploads.StackRefused)
    return None, None, origin if asks else None, refusal(error), gr.update(visible=asks, value=None)


def _names(context: Context, name: str) -> Any:
    """The list of a folder's images."""
    known = context.catalog.data()
    if name not in known:
        return gr.update(visible=False, choices=[], value=None)
    source = open_source(known[name])
    return gr.update(
        visible=True, value=None, choices=[source.key(index) for index in sample_indices(source, _NAMED)],
        label=f"Image, one of {len(source):,}; type its path for one that is not listed",
    )  # fmt: skip


def _content(context: Context, name: str, key: str) -> bytes | np.ndarray:
    """An image of the server's folder; both names come from the browser.

    Raises:
        UserError: There is no such folder or image.
    """
    known = context.catalog.data()
    if name not in known:
        raise UserError("No folder is chosen", "Choose one on this page")
    source = open_source(known[name])
    index = next((index for index in range(len(source)) if source.key(index) == key), None)
    if index is None:
        raise UserError(f"There is no image '{str(key)[:80]}' in {name}", "Choose one of the list")
    return source.read(index)
