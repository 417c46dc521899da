"""Correspondence: find a point of one image in another image by cosine similarity of patch features.

The patch at the point is compared with every patch of the other image; the most similar one is marked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from opendino.core import distributed
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.ranges import Checked, NotNegative, PixelSize
from opendino.core.types import Report
from opendino.data.decode import decode
from opendino.data.image_list import open_image_list
from opendino.models.load import Model, load
from opendino.visualize.drawing import style, tile_grid
from opendino.visualize.drawing.image_encoder import ImageEncoder
from opendino.visualize.drawing.tile_grid import Sheet, Tile

_TILE_PX = tile_grid.WIDTH_PX // 3


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino visualize correspondence`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    first: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FIRST")]
    """The image with the point."""
    second: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")]
    """The image to search."""
    at: tuple[NotNegative, NotNegative] | None = None
    """X and Y of the point in pixels of the first image, from its upper left corner; default: the center."""
    which: Literal["teacher", "student"] | None = None
    """Network to load from a run; default: the method's main network (usually the teacher)."""
    out: str = "correspondence.png"
    """Output file: .png, .jpg, .webp, .pdf, .svg or .html."""
    size_px: PixelSize = 480
    """Shorter side of the input images in pixels, rounded to whole patches."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def show(config: Config) -> Report:
    """Find the matching point in the second image, and draw both.

    Raises:
        UserError: The model or an image does not exist, or the network has no feature grid or a fixed image size.
        UsageError: The point is outside the image.
    """
    path = tile_grid.out(config.out, tile_grid.PICTURES)
    model = load(config.model, config.which).to(distributed.device(config.device))
    first, second = (_read(name, model) for name in (config.first, config.second))  # [H W C]
    sizes = [(pixels.shape[1], pixels.shape[0]) for pixels in (first, second)]
    at = config.at or (sizes[0][0] / 2, sizes[0][1] / 2)
    if not (0 <= at[0] < sizes[0][0] and 0 <= at[1] < sizes[0][1]):
        raise UsageError(
            f"--at is {at[0]:g} {at[1]:g}, outside an image of {sizes[0][0]}×{sizes[0][1]} px",
            "Give X and Y in pixels from its upper left corner",
        )
    encoder = ImageEncoder(model, config.size_px)
    if not encoder.any_size:
        name = encoder.model.backbone.name
        raise UserError(f"{name} accepts only one image size", "Use a ViT of opendino, or a ResNet")
    began = time.monotonic()
    try:
        prepared = encoder.prepare(first), encoder.prepare(second)
    except BadImage as error:
        raise UserError(f"'{config.first}' and '{config.second}' cannot be compared: {error}") from None
    features = [encoder.patches(image) for image in prepared]
    pictures = [encoder.picture(image) for image in prepared]
    patch_index = _patch_at(at, sizes[0], features[0])
    similarity = similarities(features[0][patch_index], features[1])
    best = best_point(similarity, sizes[1])
    first_point, second_point = (
        _scale_point(at, sizes[0], pictures[0].size),
        _scale_point(best, sizes[1], pictures[1].size),
    )
    Sheet([tiles(pictures[0], pictures[1], first_point, second_point, similarity)]).save(path)
    found = similarity.max().item()
    text = f"({at[0]:g}, {at[1]:g}) → ({best[0]:.0f}, {best[1]:.0f}) with similarity {found:.2f} → {path}"
    fields = {"paths": [str(path)], "at": list(at), "best": list(best), "similarity": found}
    return Report(text, fields | {"grid": list(similarity.shape), "seconds": time.monotonic() - began})


def similarities(feature: Tensor, patches: Tensor) -> Tensor:
    """Cosine similarity of a feature `[D]` and patches `[rows columns D]`: `[rows columns]` in [-1, 1]."""
    return normalize(patches, dim=-1) @ normalize(feature, dim=-1)


def best_point(similarity: Tensor, size: tuple[int, int]) -> tuple[float, float]:
    """Center (x, y) of the most similar patch, in pixels of an image of `size` (width, height)."""
    row, column = divmod(int(similarity.argmax()), similarity.shape[1])
    return (column + 0.5) * size[0] / similarity.shape[1], (row + 0.5) * size[1] / similarity.shape[0]


def tiles(
    first: Image.Image, second: Image.Image, at: tuple[float, float], best: tuple[float, float], similarity: Tensor
) -> list[Tile]:
    """The first image with the point, the second with the match, and the similarity map of the second.

    Args:
        first, second: Pictures of the prepared images, see `ImageEncoder.picture`.
        at, best: (x, y) in pixels of the first and of the second image.
        similarity: `[rows columns]` of the second image, in [-1, 1].
    """
    low, high = (value.item() for value in similarity.aminmax())
    scaled = (similarity - low) / max(high - low, 1e-30)
    similarity_map = tile_grid.enlarged(style.viridis(scaled), second.size)
    images = [tile_grid.cross(first, *at), tile_grid.cross(second, *best), similarity_map]
    titles = ["point", "most similar patch", f"cosine {low:.2f} to {high:.2f}"]
    return [Tile(tile_grid.shrunk(each, _TILE_PX), title) for each, title in zip(images, titles, strict=True)]


def _read(name: str, model: Model) -> np.ndarray:
    """Decode the one image that the user named, `[H W C]`."""
    source = model.reading.images(open_image_list([name]))
    if len(source) > 1:
        raise UsageError(f"'{name}' contains {len(source)} images", "Name one image file")
    try:
        return decode(source.read(0), pixel_format=source.pixel_format)
    except BadImage as error:
        raise UserError(f"'{name}' cannot be read: {error}") from error


def _patch_at(at: tuple[float, float], size: tuple[int, int], patches: Tensor) -> tuple[int, int]:
    """(row, column) of the patch at a point of an image."""
    rows, columns = patches.shape[:2]
    return min(rows - 1, int(at[1] * rows / size[1])), min(columns - 1, int(at[0] * columns / size[0]))


def _scale_point(point: tuple[float, float], size: tuple[int, int], to: tuple[int, int]) -> tuple[float, float]:
    """Scale a point from an image of one size to the same image at another size."""
    return point[0] * to[0] / size[0], point[1] * to[1] / size[1]
