"""Tab "Look": attention maps of an image, and the principal components of its patch features."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from opendino.app.context import NETWORK, Context, Head, bounded, enlarged, handle_errors, session_id
from opendino.app.image_input import LOOK, image_input
from opendino.app.model_cache import encoder_for
from opendino.visualize import attention, pca
from opendino.visualize.drawing.pca_colors import fit
from opendino.visualize.drawing.tile_grid import Sheet

NAME = LOOK


def build(context: Context, head: Head) -> None:
    """Build the tab."""
    gr.Markdown(
        "Attention maps of an image, or the first three principal components (PCA) of its patch features. Good: "
        "attention is on the object, and its parts have colors of their own."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            picture = image_input(context, "Image", of_server=True, clicked=head.look).image
            kind = gr.Radio(["Attention", "PCA"], value="Attention", show_label=False, container=False)
            size = gr.Slider(64, 480, 240, step=16, label="Shorter side of the input (px)")
            mass = gr.Slider(0.1, 1, 0.6, step=0.05, label="Share of the attention to show (the rest is pale)")
            foreground = gr.Checkbox(False, label="Black background", visible=False)
        with gr.Column(scale=5):
            output = gr.Image(label="Result", interactive=False, format="png", height=520, buttons=["fullscreen"])
            note = gr.Markdown()

    def show(
        name: str | None,
        image: np.ndarray | None,
        kind: str,
        size: float,
        mass: float,
        split: bool,
        request: gr.Request,
    ) -> tuple[Any, str]:
        if image is None:
            return None, ""
        network = context.model(name, session_id(request))
        encoder = encoder_for(network, image, int(bounded(size, 64, 480)))
        prepared = encoder.prepare(network.pixels(image))
        shown = enlarged(encoder.picture(prepared))
        if kind == "Attention":
            maps = encoder.attention(prepared)
            rows = attention.tiles(shown, maps, bounded(mass, 0.1, 1), name="image")
            return Sheet(rows).image(), _explained(encoder.quantity, mass)
        patches = encoder.patches(prepared)
        basis = fit([patches], "auto" if split else "off")
        shares = ", ".join(f"{share:.0%}" for share in basis.explained)
        note = f"Similar colors mean similar features. The three components explain {shares} of the variance."
        return Sheet([pca.tiles(shown, patches, basis, "image")]).image(), note

    inputs = [head.model, picture, kind, size, mass, foreground]
    gr.on(
        [picture.change, head.model.change, kind.change, size.change, mass.change, foreground.change],
        handle_errors(show),
        inputs,
        [output, note],
        trigger_mode="always_last",
        api_visibility="private",
        **NETWORK,
    )
    kind.change(
        lambda kind: (gr.update(visible=kind == "Attention"), gr.update(visible=kind != "Attention")),
        kind,
        [mass, foreground],
        queue=False,
        api_visibility="private",
    )


def _explained(quantity: str, mass: float) -> str:
    """What the maps show, in words."""
    start = quantity[:1].upper() + quantity[1:]
    return f"{start}, dark to bright. Below or last: the fewest patches that hold {mass:.0%} of it."
