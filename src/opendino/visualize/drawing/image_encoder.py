"""Encode whole images of any size: attention maps and patch features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import tyro
from msgspec import Meta
from PIL import Image
from torch import Tensor

from opendino.core import distributed
from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.ranges import Checked, PixelSize
from opendino.data.image_list import open_image_list
from opendino.data.readers.multi_page_files import choose_channels
from opendino.data.source_files import printable
from opendino.features.image_stream import Bad, check_finite, encode_images
from opendino.models.attention_maps import cls_attention, contribution_to_mean
from opendino.models.global_descriptor import side_step
from opendino.models.load import Model, load
from opendino.models.patch_inputs import patch_px, to_network_input
from opendino.models.resize import resize
from opendino.visualize.drawing import tile_grid

T = TypeVar("T")
_MAX_ELONGATION = 16
"""Maximum aspect ratio: resizing the shorter side of a more extreme image would give millions of patches."""
_NAME_BYTES = 150
_WORKERS = 8  # so many large images are decoded at a time


class ImageEncoder:
    """A model that encodes one image at a time.

    Images keep their aspect ratio, with each side rounded to whole patches. A network that takes only one image size
    gets the center crop.

    Args:
        model: On the device to use.
        size_px: Shorter side of the input images in pixels, rounded to whole patches.
        shown: Names or numbers of the channels that pictures show; default: the first three, see `data.picture`.

    Attributes:
        any_size: Whether the network takes images of any size and aspect ratio.
        patch_px: Side of a patch in pixels; for a convolutional network its stride.
        quantity: Description of what `attention` returns; set by its first call.

    Raises:
        UserError: The features of the network are not a grid, or the model has no such channel.
    """

    def __init__(self, model: Model, size_px: int, shown: tuple[str, ...] = ()) -> None:
        try:
            choose_channels(model.reading.channel_names, shown)
        except BadImage as error:
            raise UserError(f"--show-channels: {error}", "Name one to three channels of the model") from None
        self.model, self.patch_px, self.quantity = model, patch_px(model), ""
        self.any_size, self._size_px, self._shown = side_step(model) is not None, size_px, shown

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Resize an image to the input size of the network.

        Args:
            pixels: `[H W C]`, decoded as the model reads it.

        Returns:
            `[height width C]`, uint8, or float32 in [0, 1].

        Raises:
            BadImage: The aspect ratio is above the maximum.
        """
        height, width = pixels.shape[:2]
        if max(height, width) > _MAX_ELONGATION * min(height, width):
            raise BadImage(f"{width} × {height} pixels: the aspect ratio is above the maximum of {_MAX_ELONGATION}")
        resampling = Image.Resampling[self.model.preprocessing["interpolation"].upper()]
        short = self._size_px if self.any_size else self.model.preprocessing["image_px"]
        step = self.patch_px if self.any_size else 1
        scale = short / min(height, width)
        width, height = (max(1, round(side * scale / step)) * step for side in (width, height))
        pixels = resize(pixels, (width, height), resampling)
        if self.any_size:
            return pixels
        left, top = (width - short) // 2, (height - short) // 2
        return pixels[top : top + short, left : left + short]

    def picture(self, pixels: np.ndarray) -> Image.Image:
        """Draw an image `[H W C]`, prepared or not, see `data.picture`."""
        return self.model.reading.picture(pixels, self._shown)

    def attention(self, pixels: np.ndarray) -> Tensor:
        """Attention maps of a prepared image, float32 `[heads rows columns]`.

        Attention of the CLS token in the last block; for networks without it, the contribution of each position to the
        mean feature (1 head).
        """
        images = to_network_input(pixels, self.model)
        if self.quantity != _CONTRIBUTION:
            try:
                rows, columns = (side // self.patch_px for side in pixels.shape[:2])
                found = cls_attention(self.model, images, (rows, columns))
                self.quantity = _ATTENTION
                return _finite(found[0])
            except NotImplementedError:
                self.quantity = _CONTRIBUTION
        features = self.model.features(images)
        return _finite(contribution_to_mean(features.patches, features.grid)[0])

    def patches(self, pixels: np.ndarray) -> Tensor:
        """Patch features of a prepared image after the last norm, float32 `[rows columns D]` on the CPU."""
        features = self.model.features(to_network_input(pixels, self.model))
        return _finite(features.patches[0].unflatten(0, features.grid).float().cpu())


_ATTENTION = "attention of the CLS token in the last block"
_CONTRIBUTION = "contribution of each position to the mean of the last feature map (this network has no CLS attention)"


@dataclass(frozen=True)
class ImagesConfig(Checked):
    """Options of the kinds of picture that show a list of images."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Image files, a folder, a .tar or .zip archive, or a text file of paths."""
    which: Literal["teacher", "student"] | None = None
    """Network to load from a run; default: the method's main network (usually the teacher)."""
    out: str = "images.png"
    """Output file (.png, .jpg, .webp, .pdf, .svg, .html), or a folder for one .png per image."""
    size_px: PixelSize = 480
    """Shorter side of the input images in pixels, rounded to whole patches."""
    show_channels: Annotated[tuple[str, ...], Meta(max_length=3)] = ()
    """Channels that pictures show, by name or number, e.g. 3 2 1; default: red, green, blue or the first three."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""

    def open(self, most: int) -> tuple[Source, ImageEncoder, Path]:
        """The images, their encoder, and the file or folder (a path without suffix) to write.

        Args:
            most: Maximum number of images in one file.

        Raises:
            UserError: The model or images do not exist, or the network has no feature grid.
            UsageError: The images are too many for one file, or its format is not supported.
        """
        path = Path(self.out).expanduser()
        if path.suffix:
            path = tile_grid.out(self.out, tile_grid.PICTURES)
        model = load(self.model, self.which).to(distributed.device(self.device))
        source = model.reading.images(open_image_list(self.images))
        if len(source) > most and path.suffix:
            raise UsageError(
                f"{len(source)} images are too many for one file (maximum {most})",
                f"Use a folder: --out {Path(self.out).with_suffix('')}/",
            )
        return source, ImageEncoder(model, self.size_px, self.show_channels), path


def encode_each(
    encoder: ImageEncoder,
    function: Callable[[np.ndarray], Tensor],
    source: Source,
    bad: Bad,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[int, Image.Image, Tensor]]:
    """Encode the images of a source one by one; threads prepare the next ones.

    Args:
        encoder: Prepares the images.
        function: `attention` or `patches` of the encoder.
        source: The images.
        bad: Unreadable images are added to it.
        indices: Indices of the images to use; None for all.

    Yields:
        (index, picture of the prepared image, output of the function) of each readable image.
    """
    indices = range(len(source)) if indices is None else indices
    for part in encode_images(
        source,
        indices,
        prepare=lambda _, pixels: encoder.prepare(pixels),
        network=lambda images: function(images[0]),
        batch=1,
        workers=_WORKERS,
    ):
        bad += part.bad
        if part.output is not None:
            yield indices[part.positions[0]], encoder.picture(part.images[0]), part.output


def _finite(found: Tensor) -> Tensor:
    check_finite(found)
    return found


def write_each(found: Iterator[tuple[str, T]], folder: Path, save: Callable[[T, Path], None]) -> list[str]:
    """Write one PNG per image, named after its key, as soon as it is ready.

    Args:
        found: (key of the image, picture) pairs.
        folder: Created if it does not exist.
        save: Function that writes a picture to a path.

    Returns:
        The paths of the files.

    Raises:
        UserError: The folder cannot be written.
    """
    paths: list[str] = []
    for key, picture in found:
        name = key.lstrip("/").replace("/", "_").replace("..", "_")
        name = os.fsdecode(os.fsencode(name)[-_NAME_BYTES:])  # keys can be longer than file names may be
        path = folder / f"{Path(name).stem}.png"
        if str(path) in paths:  # the same name with another suffix, or from another folder
            path = folder / f"{len(paths):06d}_{name}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save(picture, path)
        except OSError as error:
            raise UserError(f"Cannot write {printable(str(path))}: {error.strerror}", "Choose another --out") from error
        paths.append(str(path))
    return paths
