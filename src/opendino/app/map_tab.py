"""Tab "Map": the images of a table as a map; a box drawn on it selects images as a list of files."""

from __future__ import annotations

import base64
import io
from typing import Any

import gradio as gr
from PIL import Image

from opendino.app.context import NETWORK, Context, Head, bounded, caption, handle_errors
from opendino.app.image_input import open_at_click
from opendino.app.model_cache import ShownTable
from opendino.core.errors import UserError
from opendino.embeddings.table_groups import CLUSTER, FOLDER, columns_to_color_by, group_names
from opendino.visualize.drawing import scatter_map, style, templates

NAME = "Map"

_SHOWN = 18
"""Number of selected images that are shown."""


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    gr.Markdown(
        "The images of the table: what lies together looks alike to the model. Good: kinds that you can tell apart lie "
        "apart. **Drag a box** on the map to list the images in it."
    )
    with gr.Row():
        with gr.Column(scale=5, min_width=480):
            picture = gr.HTML(html_template=_PICTURE, js_on_load=_DRAG, apply_default_css=False, min_height=200)
        with gr.Column(scale=3, min_width=280):
            by = gr.Dropdown([FOLDER, CLUSTER], value=FOLDER, label="Color by")
            legend = gr.HTML()
            images = gr.Gallery(
                label="In the box", columns=3, height=300, object_fit="contain", allow_preview=False, visible=False
            )
            opened: gr.State = gr.State([])
            listed = gr.Textbox(label="Files in the box", lines=8, max_lines=8, buttons=["copy"], visible=False)
            download = gr.DownloadButton("Download the list (.txt)", visible=False)

    def draw(name: str | None, by: str) -> tuple[Any, ...]:
        hidden = (*(gr.update(visible=False),) * 3, [])
        if name is None:
            return "", gr.skip(), "<p>No table yet: make one in the tab Images.</p>", *hidden
        shown = context.table(name)
        keys, vectors = shown.vectors
        csv = context.catalog.metadata(shown.images) if shown.images else None
        choices = [FOLDER, CLUSTER, *(columns_to_color_by(keys, csv) if csv else [])]
        by = by if by in choices else FOLDER
        names = group_names(keys, vectors, by, csv)
        legend = templates.render("legend.html", groups=scatter_map.colors(names))
        return as_url(draw_map(shown, names)), gr.update(choices=choices, value=by), legend, *hidden

    def select(name: str | None, event: gr.EventData) -> tuple[Any, ...]:
        shown = context.table(name)
        box = event._data.get("box") if isinstance(event._data, dict) else None
        if not isinstance(box, list) or len(box) != 4:
            raise UserError("The box has no corners", "Drag one on the map")
        keys = shown.vectors[0]
        found = [keys[row] for row in scatter_map.rows_in_box(shown.map, [bounded(each, 0, 1) for each in box])]
        text, file = context.file_list(found)
        gallery = [(shown.thumbnail(key), caption(key)) for key in found[:_SHOWN]]
        more = f", the first {_SHOWN} shown" if len(found) > _SHOWN else ""
        label = f"{len(found):,} images in the box{more} (click: look at it)"
        return (
            gr.update(value=gallery, label=label, visible=True),
            gr.update(value=text, visible=True),
            gr.update(value=str(file), visible=bool(found)),
            shown.server_images(found[:_SHOWN]),
        )

    selected = [images, listed, download, opened]
    private: dict[str, Any] = {"api_visibility": "private"}
    gr.on(None, handle_errors(draw), [head.table, by], [picture, by, legend, *selected], **private, **NETWORK)
    open_at_click(head, images, opened)
    picture.select(handle_errors(select), head.table, selected, show_progress="hidden", **private)


def draw_map(shown: ShownTable, names: list[str]) -> Image.Image:
    """The map of a table without a legend, as an image."""
    keys = shown.vectors[0]
    rows = scatter_map.shown_rows(shown.map) if shown.images else []
    thumbnails = {row: shown.thumbnail(keys[row]) for row in rows}
    return style.image(scatter_map.figure(shown.map, names, thumbnails, legend=False))


def as_url(image: Image.Image) -> str:
    """An image as a URL that contains it."""
    content = io.BytesIO()
    image.save(content, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


# Gradio's scatter plot selects ranges of x only, so the box is drawn on a picture.
_PICTURE = """
<div style="position:relative;touch-action:none;user-select:none;cursor:crosshair">
  <img src="${value}" alt="map of the images" draggable="false" style="width:100%;display:block">
  <div class="box" style="position:absolute;border:2px solid #d55e00;background:#d55e0022;display:none"></div>
</div>
"""
_DRAG = """
let start = null;
const place = (event) => {
  const edges = element.querySelector('img').getBoundingClientRect();
  const within = (value) => Math.min(1, Math.max(0, value));
  return [within((event.clientX - edges.left) / edges.width), within((event.clientY - edges.top) / edges.height)];
};
const corners = (end) => [
  Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.max(start[0], end[0]), Math.max(start[1], end[1])];
element.addEventListener('pointerdown', (event) => {
  if (!event.target.closest('img, .box')) return;
  event.preventDefault();
  start = place(event);
});
element.addEventListener('pointermove', (event) => {
  if (!start) return;
  const [left, top, right, bottom] = corners(place(event)).map((value) => 100 * value);
  const box = element.querySelector('.box').style;
  Object.assign(box, {display: 'block', left: left + '%', top: top + '%',
                      width: right - left + '%', height: bottom - top + '%'});
});
window.addEventListener('pointerup', (event) => {
  if (!start) return;
  const box = corners(place(event));
  start = null;
  if (box[2] - box[0] > 0.005 && box[3] - box[1] > 0.005) trigger('select', {box: box});
});
"""
