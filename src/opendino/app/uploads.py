"""Checks of uploaded files. Every upload passes through here before other code opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opendino.core.errors import BadImage, UserError
from opendino.core.types import PixelFormat
from opendino.data import readers
from opendino.data.decode import decode, working_size
from opendino.data.intensity import to_pixels
from opendino.data.picture import picture
from opendino.data.readers.decoded_image import DecodedImage, from_array, numbered
from opendino.data.readers.multi_page_files import Reading, StackQuestion
from opendino.data.sources.archive import ArchiveSource
from opendino.datasets import video_frames

MAX_BYTES = 200 * 2**20
"""Size limit of an upload; the server stops reading after it."""
MAX_PIXELS = 64_000_000
"""Pixel limit of an image."""
KEPT_AREA_PX = 1600 * 1600
"""Images and frames are shrunk to this many pixels."""
_MAX_ASPECT_RATIO = 4
_VIDEO_PIXELS, VIDEO_FRAMES = 3840 * 2160, 240
_ZIP_IMAGES, _ZIP_BYTES, _ZIP_MEMBER_BYTES, _ZIP_LIST_BYTES = 20_000, 2**30, 64 * 2**20, 8 * 2**20


def resolve_upload(raw: Any, folder: Path) -> Path | None:
    """The path of an upload, from the value that the browser sent for it.

    Args:
        raw: The value as received, not trusted.
        folder: Folder that contains all uploads, directly or in subfolders.

    Returns:
        The resolved path; None if nothing was uploaded.

    Raises:
        UserError: The path lies outside `folder` or is not a file.
    """
    if raw is None:
        return None
    name = raw.get("path") if isinstance(raw, dict) else None
    found = Path(name).resolve() if isinstance(name, str) and "\0" not in name else None
    if found is None or not found.is_relative_to(folder.resolve()) or not found.is_file():
        raise UserError("This is not an uploaded file", "Upload one on this page")
    return found


def read_bytes(file: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read an upload.

    Raises:
        UserError: The file is larger than `max_bytes`.
    """
    if file.stat().st_size > max_bytes:
        raise UserError(f"This file has more than {max_bytes // 2**20} MB", "Choose a smaller one")
    return file.read_bytes()


class StackRefused(UserError):
    """An image has several pages, and nobody has said what they are."""


def load_image(content: bytes | np.ndarray | DecodedImage, stack: str = "ask") -> np.ndarray:
    """Decode an image: `[H W C]` with the values of the file, which `Model.pixels` maps to its range.

    Images are shrunk to at most `KEPT_AREA_PX` pixels. Photographs become uint8 RGB, rotated upright by their EXIF tag.

    Args:
        content: The file; or a decoded image, e.g. a frame of a video or the files of its channels.
        stack: What pages of a file are, see `readers.multi_page_files.Reading`.

    Raises:
        StackRefused: The file is a stack, and `stack` is "ask".
        UserError: The file is not an image, is damaged, or has too many pixels or an extreme aspect ratio.
    """
    try:
        image = content if isinstance(content, DecodedImage) else None
        if isinstance(content, bytes):
            image = readers.read_unless_photograph(content, Reading(stack), MAX_PIXELS)
        if image is not None:
            pixels = _kept(image)
        else:
            assert not isinstance(content, DecodedImage)
            pixels = decode(content, KEPT_AREA_PX, MAX_PIXELS)
    except StackQuestion as error:
        found = str(error).partition("? Choose")[0].removesuffix(": channels, or slices")
        raise StackRefused(f"This is a stack: {found}", "Say below what its pages are") from None
    except BadImage as error:
        raise UserError(f"This image cannot be used: {error}") from None
    if max(pixels.shape[:2]) > _MAX_ASPECT_RATIO * min(pixels.shape[:2]):
        raise UserError(f"The aspect ratio of this image is more than {_MAX_ASPECT_RATIO}:1", "Crop it")
    return pixels


def _kept(image: DecodedImage) -> np.ndarray:
    """The values of an image, shrunk; where some are missing they are not mixed with others."""
    size, dtype = (image.pixels.shape[1], image.pixels.shape[0]), image.pixels.dtype
    target = working_size(size, KEPT_AREA_PX)
    if target == size:
        return image.pixels
    how = Image.Resampling.BICUBIC if image.nodata is None else Image.Resampling.NEAREST
    planes = [
        Image.fromarray(plane.astype(np.float32)).resize(target, how) for plane in np.moveaxis(image.pixels, 2, 0)
    ]
    shrunk = np.stack([np.asarray(plane) for plane in planes], 2)
    return np.rint(shrunk).clip(0, np.iinfo(dtype).max).astype(dtype) if dtype.kind == "u" else shrunk


def preview(pixels: np.ndarray) -> Image.Image:
    """A picture of an upload: photographs as they are, others with each channel stretched to its own values."""
    num = pixels.shape[2]
    if pixels.dtype == np.uint8 and num == 3:
        return Image.fromarray(pixels)
    image = from_array(pixels, numbered(num))
    return picture(to_pixels(image, "per-image", PixelFormat(num, 16)), image.channels)


def first_frame(file: Path) -> Image.Image:
    """The first frame of an uploaded video.

    Raises:
        UserError: The file is not a video, or its frames are too large.
    """
    with open(file, "rb") as opened:
        head = opened.read(12)
    # Accept only containers by their magic bytes: ffmpeg also reads playlists, which can name any file.
    if head[4:8] != b"ftyp" and head[:4] != b"\x1aE\xdf\xa3" and (head[:4], head[8:]) != (b"RIFF", b"AVI "):
        raise UserError("This is not a supported video", "Upload an .mp4, .mov, .webm, .mkv or .avi")
    width, height = video_frames.size(file)
    if width * height > _VIDEO_PIXELS:
        raise UserError(f"The frames of this video have {width} × {height} pixels", "Upload one of at most 3840 × 2160")
    _, frame = next(video_frames.frames(file), ("", BadImage("it has no frames")))
    if isinstance(frame, BadImage):
        raise UserError(f"This video cannot be used: {frame}")
    return frame_image(frame)


def frame_image(frame: Any) -> Image.Image:
    """A frame, uint8 `[H W 3]`, as an image of at most `KEPT_AREA_PX` pixels."""
    return Image.fromarray(decode(frame, KEPT_AREA_PX))


def check_zip(file: Path) -> int:
    """Check an uploaded .zip before training on it; nothing is unpacked.

    Returns:
        The number of images in it.

    Raises:
        UserError: The file is not a .zip, has no images or too many, or its unpacked size is too large (zip bomb).
    """
    if file.suffix.lower() != ".zip":
        raise UserError(f"{file.name} is not a .zip", "Pack the images: zip -r images.zip FOLDER")
    found = ArchiveSource(str(file), _ZIP_LIST_BYTES)
    number, total, largest = len(found), int(found.sizes.sum()), int(found.sizes.max())
    if number > _ZIP_IMAGES:
        raise UserError(
            f"The .zip has {number:,} images, more than {_ZIP_IMAGES:,}", "Train with: opendino train images.zip"
        )
    if total > _ZIP_BYTES or largest > _ZIP_MEMBER_BYTES:
        raise UserError(
            f"This .zip would unpack to {total / 2**20:,.0f} MB, with files of {largest / 2**20:,.0f} MB",
            f"At most {_ZIP_BYTES // 2**20:,} MB in total and {_ZIP_MEMBER_BYTES // 2**20} MB per file are allowed",
        )
    return number
