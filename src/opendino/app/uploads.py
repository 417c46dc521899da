"""The one door for what people upload: looked at before anything else opens it, refused in a sentence, then removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from opendino.core.errors import BadImage, UserError
from opendino.data.decode import decode
from opendino.data.sources.archive import ArchiveSource
from opendino.datasets import video_frames

MAX_BYTES = 200 * 2**20
"""Of any upload; the server stops reading there."""
MAX_PIXELS = 64_000_000
"""Of a picture."""
KEPT_AREA_PX = 1600 * 1600
"""What a picture or a frame is shrunk to."""
_MAX_ELONGATION = 4
_FILM_PIXELS, FILM_FRAMES = 3840 * 2160, 240
_ZIP_IMAGES, _ZIP_BYTES, _ZIP_MEMBER_BYTES, _ZIP_LIST_BYTES = 20_000, 2**30, 64 * 2**20, 8 * 2**20


def path(raw: Any, folder: Path) -> Path | None:
    """Where an upload lies, of what the browser sent for it; None for nothing.

    Args:
        raw: As it came from outside.
        folder: That uploads lie in, however deep.

    Raises:
        UserError: It lies elsewhere.
    """
    if raw is None:
        return None
    name = raw.get("path") if isinstance(raw, dict) else None
    found = Path(name).resolve() if isinstance(name, str) and "\0" not in name else None
    if found is None or not found.is_relative_to(folder.resolve()) or not found.is_file():
        raise UserError("That is no uploaded file", "Choose one on this page")
    return found


def content(file: Path, most: int = MAX_BYTES) -> bytes:
    """An upload as bytes.

    Raises:
        UserError: It is larger.
    """
    if file.stat().st_size > most:
        raise UserError(f"This file has more than {most // 2**20} MB", "Choose a smaller one")
    return file.read_bytes()


def picture(content: bytes) -> Image.Image:
    """An uploaded picture, RGB, upright, shrunk to what a page can show.

    Raises:
        UserError: It is none, damaged, too large or too thin.
    """
    try:
        image = Image.fromarray(decode(content, KEPT_AREA_PX, MAX_PIXELS))
    except BadImage as error:
        raise UserError(f"This picture cannot be used: {error}") from None
    if max(image.size) > _MAX_ELONGATION * min(image.size):
        raise UserError(f"This picture is more than {_MAX_ELONGATION} times as long as wide", "Cut a part out of it")
    return image


def film(file: Path) -> Image.Image:
    """The first frame of an uploaded film.

    Raises:
        UserError: It is none, or its frames are too large.
    """
    with open(file, "rb") as opened:
        head = opened.read(12)
    # No playlist: it could name other files of this machine.
    if head[4:8] != b"ftyp" and head[:4] != b"\x1aE\xdf\xa3" and (head[:4], head[8:]) != (b"RIFF", b"AVI "):
        raise UserError("This is no film that can be used", "Give an .mp4, .mov, .webm, .mkv or .avi")
    width, height = video_frames.size(file)
    if width * height > _FILM_PIXELS:
        raise UserError(f"The frames of this film have {width} × {height} pixels", "At most 3840 × 2160 are taken")
    _, frame = next(video_frames.frames(file), ("", BadImage("it has no frames")))
    if isinstance(frame, BadImage):
        raise UserError(f"This film cannot be used: {frame}")
    return picture_of(frame)


def picture_of(frame: Any) -> Image.Image:
    """A frame, uint8 `[H W 3]`, shrunk to what a page can show."""
    return Image.fromarray(decode(frame, KEPT_AREA_PX))


def archive(file: Path) -> int:
    """Check an uploaded .zip before training on it; nothing is unpacked.

    Returns:
        How many images it holds.

    Raises:
        UserError: It is none, holds no images or too many, or unpacks to far more than it is.
    """
    if file.suffix.lower() != ".zip":
        raise UserError(f"{file.name} is no .zip", "Pack the images: zip -r images.zip FOLDER")
    found = ArchiveSource(str(file), _ZIP_LIST_BYTES)
    number, total, largest = len(found), int(found.sizes.sum()), int(found.sizes.max())
    if number > _ZIP_IMAGES:
        raise UserError(f"{number:,} images are more than {_ZIP_IMAGES:,}", "Train with: opendino train images.zip")
    if total > _ZIP_BYTES or largest > _ZIP_MEMBER_BYTES:
        raise UserError(
            f"This .zip would unpack to {total / 2**20:,.0f} MB, with files of {largest / 2**20:,.0f} MB",
            f"At most {_ZIP_BYTES // 2**20} and {_ZIP_MEMBER_BYTES // 2**20} are taken",
        )
    return number
