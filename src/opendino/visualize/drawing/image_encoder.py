"""How a network sees whole images of any size, patch by patch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UserError
from opendino.data.decode import decode
from opendino.data.source_files import printable
from opendino.features.image_stream import Bad, prefetch_images
from opendino.models.attention_maps import of_cls, of_mean
from opendino.models.global_descriptor import side_step
from opendino.models.load import Model
from opendino.models.patch_inputs import patch_px, to_network_input

T = TypeVar("T")
_MAX_ELONGATION = 16
"""An image that is longer for its width would become millions of patches once its shorter side is large enough."""
_NAME_BYTES = 150


class ImageEncoder:
    """A model that looks at one image at a time.

    Images keep their aspect ratio, each side rounded to whole patches. A network that takes images of one size only
    sees their middle square.

    Args:
        model: On the device to work on.
        size_px: Shorter side of the images that the network sees, rounded to whole patches.

    Attributes:
        any_size: Whether it takes images of any size and shape.
        patch_px: Side of a patch; the stride of a convolutional network.
        quantity: What `attention` shows, in words; known after its first call.

    Raises:
        UserError: The network's features are no grid.
    """

    def __init__(self, model: Model, size_px: int) -> None:
        self.model, self.patch_px, self.quantity = model, patch_px(model), ""
        self.any_size, self._size_px = side_step(model) is not None, size_px

    def prepare(self, image: Image.Image) -> Image.Image:
        """An RGB image at the size the network will see it.

        Raises:
            BadImage: It is too thin.
        """
        if max(image.size) > _MAX_ELONGATION * min(image.size):
            raise BadImage(
                f"{image.width} × {image.height} pixels: more than {_MAX_ELONGATION} times as long as wide, "
                "too thin to be shown"
            )
        resampling = Image.Resampling[self.model.preprocessing["interpolation"].upper()]
        short = self._size_px if self.any_size else self.model.preprocessing["image_px"]
        step = self.patch_px if self.any_size else 1
        scale = short / min(image.size)
        width, height = (max(1, round(side * scale / step)) * step for side in image.size)
        image = image.resize((width, height), resampling)
        if self.any_size:
            return image
        left, top = ((side - short) // 2 for side in image.size)
        return image.crop((left, top, left + short, top + short))

    def attention(self, image: Image.Image) -> Tensor:
        """What the image's feature rests on, float32 `[heads rows columns]`, of a prepared image.

        Attention of the CLS token in the last block; where there is none, each position's share in the mean feature.
        """
        pixels = to_network_input(np.array(image), self.model)
        if self.quantity != _SHARE:
            try:
                found = of_cls(self.model, pixels, (image.height // self.patch_px, image.width // self.patch_px))
                self.quantity = _ATTENTION
                return _finite(found[0])
            except NotImplementedError:
                self.quantity = _SHARE
        features = self.model.features(pixels)
        return _finite(of_mean(features.patches, features.grid)[0])

    def patches(self, image: Image.Image) -> Tensor:
        """Patch features after the last norm, float32 `[rows columns D]` on the host, of a prepared image."""
        features = self.model.features(to_network_input(np.array(image), self.model))
        return _finite(features.patches[0].unflatten(0, features.grid).float().cpu())


_ATTENTION = "attention of the CLS token in the last block"
_SHARE = "each position's share in the mean of the last feature map (this network has no CLS attention)"


def each(
    source: Source, sight: ImageEncoder, bad: Bad, indices: Sequence[int] | None = None
) -> Iterator[tuple[int, Image.Image]]:
    """Prepared images of a source with their positions, decoded ahead; unreadable ones are added to `bad`."""
    indices = range(len(source)) if indices is None else indices

    def look(place: int) -> Image.Image:
        return sight.prepare(Image.fromarray(decode(source.read(indices[place]))))

    for looked, unread in prefetch_images(source, indices, look, batch=8):
        bad += unread
        for place, image in looked:
            yield indices[place], image


def none_read(bad: Bad) -> UserError:
    """What to say where all images are unreadable."""
    return UserError(f"No image can be read, e.g. {bad[0][0]}: {bad[0][1]}", "Check that the images are intact")


def _finite(found: Tensor) -> Tensor:
    if not found.isfinite().all():
        raise UserError("What the network gives are not finite numbers", "Its weights are broken; take an earlier one")
    return found


def write_each(found: Iterator[tuple[str, T]], folder: Path, save: Callable[[T, Path], None]) -> list[str]:
    """Write pictures as PNGs named as their images, each when it is ready.

    Args:
        found: (key of the image, picture).
        folder: Made if absent.
        save: Writes a picture.

    Raises:
        UserError: The folder cannot be written.
    """
    paths: list[str] = []
    for key, picture in found:
        plain = key.lstrip("/").replace("/", "_").replace("..", "_")
        plain = os.fsdecode(os.fsencode(plain)[-_NAME_BYTES:])  # keys can be longer than names of files
        path = folder / f"{Path(plain).stem}.png"
        if str(path) in paths:  # the same name with another ending, or in another folder
            path = folder / f"{len(paths):06d}_{plain}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save(picture, path)
        except OSError as error:
            raise UserError(f"Cannot write {printable(str(path))}: {error.strerror}", "Choose another --out") from error
        paths.append(str(path))
    return paths
