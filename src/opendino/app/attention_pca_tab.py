"""Look: attention and patch components of a picture."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from opendino.app.context import NETWORK, Context, bounded, handle_errors, session
from opendino.app.model_cache import encoder_for
from opendino.visualize import attention, pca
from opendino.visualize.drawing.pca_colors import fit
from opendino.visualize.drawing.tile_grid import Sheet

NAME = "Look"


def build(desk: Context, model: gr.Dropdown) -> None:
    """The tab."""
    gr.Markdown("What a network sees in a picture: where it looks, and which parts it holds to be alike.")
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            _, picture = desk.picture("Picture")
            kind = gr.Radio(["Attention", "Components"], value="Attention", show_label=False, container=False)
            size = gr.Slider(64, 480, 240, step=16, label="Shorter side seen (px)")
            mass = gr.Slider(0.1, 1, 0.6, step=0.05, label="Attention in color")
            foreground = gr.Checkbox(False, label="Leave the background black", visible=False)
        with gr.Column(scale=5):
            found = gr.Image(label="What it sees", interactive=False, format="png", height=520, buttons=["fullscreen"])
            note = gr.Markdown()

    def look(
        name: str | None, image: Image.Image | None, kind: str, size: float, mass: float, split: bool, ask: gr.Request
    ) -> tuple[Any, str]:
        if image is None:
            return None, ""
        seen = encoder_for(desk.model(name, session(ask)), image, int(bounded(size, 64, 480)))
        prepared = seen.prepare(image)
        if kind == "Attention":
            maps = seen.attention(prepared)
            rows = attention.tiles(_large(prepared), maps, bounded(mass, 0.1, 1), name="picture")
            return (
                Sheet(rows).image(),
                f"{seen.quantity[:1].upper()}{seen.quantity[1:]}, dark to bright; below, the patches that hold most.",
            )
        patches = seen.patches(prepared)
        basis = fit([patches], "auto" if split else "off")
        shares = ", ".join(f"{share:.0%}" for share in basis.explained)
        note = f"Equal colors mean similar features. The three components explain {shares} of the variance."
        return Sheet([pca.tiles(_large(prepared), patches, basis, "picture")]).image(), note

    asked = [model, picture, kind, size, mass, foreground]
    gr.on(
        [picture.change, model.change, kind.change, size.change, mass.change, foreground.change],
        handle_errors(look),
        asked,
        [found, note],
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


def _large(image: Image.Image) -> Image.Image:
    """A small picture enlarged, so that its tiles have room for their titles."""
    scale = max(1, 320 / min(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
