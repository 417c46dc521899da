"""An editor to paint in; from the layers that the browser sends to numbers, and from numbers to colors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from opendino.app import uploads
from opendino.core.errors import BadImage, UserError
from opendino.data.decode import decode
from opendino.visualize.drawing.style import COLORS

BRUSHES = (*COLORS[1:6], COLORS[0])
"""Brush colors, one per object or class."""
BRUSH_NAMES = ("red", "green", "pink", "orange", "light blue", "dark blue")
_RGB = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in BRUSHES], np.float32)
_MAX_LAYERS, _MAX_LAYER_BYTES = 8, 32 * 2**20
_OPACITY = 0.55


def editor(label: str, brush_px: int) -> gr.ImageEditor:
    """Add a field to paint on an image, with a color per object or class."""
    return gr.ImageEditor(
        label=label,
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=brush_px, colors=list(BRUSHES), color_mode="fixed"),
        format="png",
        height=420,
        interactive=True,
    )


def layers(painted: Any, folder: Path) -> list[bytes]:
    """The painted layers as PNG bytes, from the browser's uploads, before gradio opens them.

    Args:
        painted: The value of the editor as received, not trusted.
        folder: Folder of the uploads.

    Raises:
        UserError: There are too many layers, or one is too large.
    """
    sent = painted.get("layers") if isinstance(painted, dict) else None
    if not isinstance(sent, list):
        return []
    if len(sent) > _MAX_LAYERS:
        raise UserError(f"{len(sent)} layers were painted", f"At most {_MAX_LAYERS} are allowed")
    files = [uploads.resolve_upload(layer, folder) for layer in sent]
    return [uploads.read_bytes(file, _MAX_LAYER_BYTES) for file in files if file]


def painted_labels(layers: list[bytes]) -> np.ndarray:
    """The number of each pixel, by the nearest brush color.

    Args:
        layers: PNGs of one size, transparent where nothing is painted. A layer with more pixels than the largest
            possible image is refused before it is decoded.

    Returns:
        uint8 `[H W]`: 1 for the first brush, 0 where nothing is painted; `[1 1]` without a layer.

    Raises:
        UserError: A layer is too large.
    """
    labels = np.zeros((1, 1), np.uint8)
    # Transparent pixels decode to white. Antialiased edges lie on the line from white to a brush color, so each pixel
    # is projected onto these lines.
    directions = 255 - _RGB  # [K, 3]
    for layer in layers:
        try:
            pixels = decode(layer, max_pixels=uploads.KEPT_AREA_PX)
        except BadImage as error:
            raise UserError(f"The painted layer cannot be used: {error}", "Clear it and paint again") from None
        offset = 255 - pixels.astype(np.float32)  # [H, W, 3]
        projection = offset @ directions.T / np.linalg.norm(directions, axis=1)  # [H, W, K]
        nearest = projection.argmax(-1)  # [H, W]
        painted = projection.max(-1) > 0.5 * np.linalg.norm(directions, axis=1)[nearest]
        labels = np.where(painted, nearest + 1, labels if labels.shape == painted.shape else 0).astype(np.uint8)
    return labels


def as_layer(labels: np.ndarray) -> Image.Image:
    """A layer of an editor with these brush numbers painted, uint8 `[H W]` → RGBA."""
    colors = np.concatenate([np.zeros((1, 4)), np.insert(_RGB, 3, 255, axis=1)]).astype(np.uint8)
    return Image.fromarray(colors[labels])


def draw_labels(image: Image.Image, labels: np.ndarray) -> np.ndarray:
    """Blend an image with the brush colors of numbers, uint8 `[h w]`, 0 for none; uint8 `[H W 3]`."""
    mask = np.asarray(Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST))
    pixels = np.array(image)
    inside = mask > 0
    pixels[inside] = ((1 - _OPACITY) * pixels[inside] + _OPACITY * _RGB[mask[inside] - 1]).astype(np.uint8)
    return pixels
