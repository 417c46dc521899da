"""A field for one image, uploaded or of the server; a click on an image of a gallery fills that of the tab Look.

Of a stack, one says what its pages are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gradio as gr
import numpy as np

from opendino.app import uploads
from opendino.app.catalog import ServerImage
from opendino.app.context import Context, Head, bounded, handle_errors, refusal
from opendino.core.errors import BadImage, UserError
from opendino.data.dataset_probe import sample_indices
from opendino.data.image_files import WholeFiles, image_files
from opendino.data.open_source import open_source
from opendino.data.readers.decoded_image import DecodedImage
from opendino.data.readers.multi_page_files import Reading

_NAMED = 1000
"""Number of images of a folder that are listed; others can be typed."""
_PAGES = [("channels", "channels"), ("their largest values", "max"), ("their mean", "mean"), ("the first page", "0")]
"""What the pages of a stack can be, and the value of --stack."""
LOOK = "Look"
"""Name of the tab that opens the image of a gallery."""
_PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class ImageInput(NamedTuple):
    """The field.

    Attributes:
        shown: What one sees of it.
        image: The checked image, `[H W C]` as `uploads.load_image` gives it; None without one.
        origin: Where it is from: path of an upload, or a `ServerImage`.
    """

    shown: gr.Image
    image: gr.State
    origin: gr.State


def image_input(
    context: Context, label: str, *, click: bool = False, of_server: bool = False, clicked: gr.State | None = None
) -> ImageInput:
    """Add the field.

    Args:
        context: State of the page.
        label: Label above the field.
        click: Whether a click on the image chooses a point.
        of_server: Whether images of the server's folders can be chosen too, if there are any.
        clicked: `Head.look`, if images that are clicked on elsewhere are opened here.
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
        return (None, None, None, *_HIDDEN) if file is None else _opened(file)

    gr.on(
        [shown.input, shown.clear], handle_errors(receive), shown, outputs, **_PRIVATE,
        preprocess=False,  # gradio would open the file itself, without our checks
    )  # fmt: skip
    pages.input(handle_errors(_opened_as), [origin, pages], outputs, **_PRIVATE)
    if clicked:
        clicked.change(handle_errors(lambda click: _opened(click[0])), clicked, outputs, **_PRIVATE)
    if of_server and (folders := list(context.catalog.data())):
        folder = gr.Dropdown(["", *folders], value="", label="Or an image of a folder")
        key = gr.Dropdown([], value=None, label="Image", visible=False, allow_custom_value=True)
        folder.input(handle_errors(lambda name: _names(context, name)), folder, key, **_PRIVATE)
        of_folder = handle_errors(lambda *where: _opened(_of_folder(context, *where)))
        key.input(of_folder, [folder, key], outputs, **_PRIVATE)
    return ImageInput(shown, image, origin)


_HIDDEN: tuple[Any, Any] = gr.update(visible=False), gr.update(visible=False, value=None)


def _opened_as(origin: Path | ServerImage | None, pages: str) -> tuple[Any, ...]:
    """The values of the field once it is known what the pages are."""
    return _opened(origin._replace(stack=pages) if isinstance(origin, ServerImage) else origin, pages)


def _opened(origin: Path | ServerImage | None, pages: str = "ask") -> tuple[Any, ...]:
    """The values of the field for an image; `pages` are those of an upload."""
    try:
        if origin is None:
            raise UserError("There is no image", "Upload one on this page")
        if isinstance(origin, ServerImage):
            pages = origin.stack
            image = uploads.load_image(_content(origin), pages)
        else:
            image = uploads.load_image(uploads.read_bytes(origin), pages)
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


def _of_folder(context: Context, name: str, key: str) -> ServerImage:
    """An image of a folder; both names come from the browser.

    Raises:
        UserError: There is no such folder.
    """
    known = context.catalog.data()
    if name not in known:
        raise UserError("No folder is chosen", "Choose one on this page")
    return ServerImage(known[name], str(key))


def _content(image: ServerImage) -> bytes | np.ndarray | DecodedImage:
    """The content of an image of the server.

    Raises:
        UserError: There is no such image.
    """
    source = open_source(image.data)
    files = image_files(source, Reading(image.stack), image.channel_files)
    index = next((index for index in range(len(files)) if files.key(index) == image.key), None)
    if index is None:
        raise UserError(f"There is no image '{image.key[:80]}' in {Path(image.data).name}", "Choose one of the list")
    try:
        return source.read(index) if isinstance(files, WholeFiles) else files.image(index)
    except BadImage as error:
        raise UserError(f"This image cannot be used: {error}") from None


def open_at_click(head: Head, gallery: gr.Gallery, images: gr.State) -> None:
    """Let a click on an image of a gallery open it in the tab Look.

    Args:
        head: The shared components.
        gallery: The gallery, without preview.
        images: Its images in order, each a `ServerImage`; none if they may not be opened.
    """

    def choose(shown: Sequence[ServerImage] | None, event: gr.SelectData) -> tuple[Any, Any]:
        if not shown:
            raise UserError("These images may not be opened", "Start the page with them: opendino app RUN IMAGES")
        at = int(bounded(event.index, 0, len(shown) - 1))
        return (shown[at], time.monotonic()), gr.Tabs(selected=LOOK)  # the time makes a second click a change too

    gallery.select(handle_errors(choose), images, [head.look, head.tabs], **_PRIVATE)
