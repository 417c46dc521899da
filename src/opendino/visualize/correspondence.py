"""What in a second image a network holds to be the same as a point of the first: cosine similarity of patch features.

The patch under the point is compared with every patch of the other image; the most similar one is marked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Literal

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
from opendino.models.load import load
from opendino.visualize.drawing import tile_grid
from opendino.visualize.drawing.image_encoder import ImageEncoder
from opendino.visualize.drawing.tile_grid import Sheet, Tile

_TILE_PX = tile_grid.WIDTH_PX // 3


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino visualize correspondence` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    first: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FIRST")]
    """The image with the point."""
    second: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")]
    """The image that is searched."""
    at: tuple[NotNegative, NotNegative] | None = None
    """X and Y of the point in pixels of the first image from its upper left; its middle by default."""
    which: Literal["teacher", "student"] | None = None
    """Network of a run; the one to use by default."""
    out: str = "correspondence.png"
    """A picture: .png, .jpg, .webp, .pdf, .svg or .html."""
    size_px: PixelSize = 480
    """Shorter side of the images that the network sees, rounded to whole patches."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def show(config: Config) -> Report:
    """Find the point again and draw where.

    Raises:
        UserError: No such model, no image, or a network whose features are no grid or of one size only.
        UsageError: The point lies outside the image.
    """
    path = tile_grid.out(config.out, tile_grid.PICTURES)
    first, second = (_read(name) for name in (config.first, config.second))
    at = config.at or (first.width / 2, first.height / 2)
    if not (0 <= at[0] < first.width and 0 <= at[1] < first.height):
        raise UsageError(
            f"--at is {at[0]:g} {at[1]:g}, outside an image of {first.width}×{first.height} px",
            "Give X and Y from its upper left corner",
        )
    sight = ImageEncoder(load(config.model, config.which).to(distributed.device(config.device)), config.size_px)
    if not sight.any_size:
        name = sight.model.backbone.name
        raise UserError(f"{name} takes images of one size only", "Choose a ViT of ours, or a ResNet")
    began = time.monotonic()
    try:
        seen = sight.prepare(first), sight.prepare(second)
    except BadImage as error:
        raise UserError(f"'{config.first}' and '{config.second}' cannot be compared: {error}") from None
    features = [sight.patches(image) for image in seen]
    place = _patch(at, first.size, features[0])
    similarity = similarities(features[0][place], features[1])
    best = best_point(similarity, second.size)
    here, there = _moved(at, first.size, seen[0].size), _moved(best, second.size, seen[1].size)
    Sheet([tiles(*seen, here, there, similarity)]).save(path)
    found = similarity.max().item()
    text = f"({at[0]:g}, {at[1]:g}) → ({best[0]:.0f}, {best[1]:.0f}) at a similarity of {found:.2f}, drawn in {path}"
    fields = {"paths": [str(path)], "at": list(at), "best": list(best), "similarity": found}
    return Report(text, fields | {"grid": list(similarity.shape), "seconds": time.monotonic() - began})


def similarities(feature: Tensor, patches: Tensor) -> Tensor:
    """Cosine of a feature `[D]` with patches `[rows columns D]`: `[rows columns]` in -1 .. 1."""
    return normalize(patches, dim=-1) @ normalize(feature, dim=-1)


def best_point(similarity: Tensor, size: tuple[int, int]) -> tuple[float, float]:
    """The middle of the most similar patch, x and y in pixels of an image of `size` (width, height)."""
    row, column = divmod(int(similarity.argmax()), similarity.shape[1])
    return (column + 0.5) * size[0] / similarity.shape[1], (row + 0.5) * size[1] / similarity.shape[0]


def tiles(
    first: Image.Image, second: Image.Image, at: tuple[float, float], best: tuple[float, float], similarity: Tensor
) -> list[Tile]:
    """The first image with the point, the second with the match, and the second's similarities, dark to bright.

    Args:
        first, second: As the network saw them.
        at, best: x and y in their pixels.
        similarity: `[rows columns]` of the second, in -1 .. 1.
    """
    low, high = (value.item() for value in similarity.aminmax())
    spread = (similarity - low) / max(high - low, 1e-30)
    map_ = tile_grid.enlarged(tile_grid.color(spread), second.size)
    pictures = [tile_grid.cross(first, *at), tile_grid.cross(second, *best), map_]
    titles = ["the point", "most similar patch", f"cosine {low:.2f} to {high:.2f}"]
    return [Tile(tile_grid.shrunk(each, _TILE_PX), title) for each, title in zip(pictures, titles, strict=True)]


def _read(name: str) -> Image.Image:
    source = open_image_list([name])
    if len(source) > 1:
        raise UsageError(f"'{name}' holds {len(source)} images", "Name one image file")
    try:
        return Image.fromarray(decode(source.read(0)))
    except BadImage as error:
        raise UserError(f"'{name}' cannot be read: {error}") from error


def _patch(at: tuple[float, float], size: tuple[int, int], patches: Tensor) -> tuple[int, int]:
    """Row and column of the patch under a point of an image."""
    rows, columns = patches.shape[:2]
    return min(rows - 1, int(at[1] * rows / size[1])), min(columns - 1, int(at[0] * columns / size[0]))


def _moved(point: tuple[float, float], size: tuple[int, int], to: tuple[int, int]) -> tuple[float, float]:
    """A point of an image in pixels of the same image at another size."""
    return point[0] * to[0] / size[0], point[1] * to[1] / size[1]
