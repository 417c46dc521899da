"""Tab "Export": a model as a file for other libraries."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from opendino.app.context import NETWORK, Context, Head, handle_errors, session_id
from opendino.core.errors import UserError
from opendino.interop.exporting import export_model, writer

NAME = "Export"

_FORMATS = {
    "ONNX (no Python needed)": ("onnx", "model.onnx"),
    "timm (PyTorch image models)": ("timm", "model"),
    "Hugging Face transformers": ("huggingface", "model"),
    "opendino": ("opendino", "model"),
}
"""Name on the page → format and name of the file or folder."""

_BUSY = "Exporting, and comparing the features: about half a minute ..."


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    gr.Markdown(
        "The model at the top as a file for other libraries. It is loaded there once, and its features are compared "
        "with those of this page, before it is handed out."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            kind = gr.Radio(list(_FORMATS), value=next(iter(_FORMATS)), label="For")
            start = gr.Button("Export", variant="primary")
        with gr.Column(scale=5):
            note = gr.Markdown()
            download = gr.DownloadButton("Download (.zip)", visible=False)

    def export(name: str | None, kind: str, request: gr.Request) -> tuple[str, Any]:
        known = context.models(session_id(request))
        if name not in known or kind not in _FORMATS:
            raise UserError("No model is chosen", "Train one in the tab Train, or start with: opendino app RUN")
        to, file = _FORMATS[kind]
        out = context.temporary_file(".zip")
        with tempfile.TemporaryDirectory(dir=context.folder) as folder:
            target = Path(folder) / "export" / file
            target.parent.mkdir()
            model, difference = export_model(known[name], to, str(target), None, writer(to).Config())
            shutil.make_archive(str(out.with_suffix("")), "zip", target.parent)
        text = (
            f"{model.backbone.name}, the {model.which}, {out.stat().st_size / 2**20:,.1f} MB. Loaded with {to}, its "
            f"features differ by {difference:.2g} at most on random images."
        )
        return text, gr.update(value=str(out), visible=True)

    private: dict[str, Any] = {"api_visibility": "private"}
    told = start.click(lambda: (_BUSY, gr.update(visible=False)), None, [note, download], queue=False, **private)
    done = told.then(handle_errors(export), [head.model, kind], [note, download], **private, **NETWORK)
    done.failure(lambda: "", None, note, queue=False, **private)
