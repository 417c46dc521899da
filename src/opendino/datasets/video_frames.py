"""Read and write videos, and the folder layout of DAVIS (Perazzi et al. 2016, Pont-Tuset et al. 2017)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opendino.core.errors import BadImage, UserError, nearest
from opendino.core.progress import track
from opendino.data.decode import decode
from opendino.data.source_files import is_hidden, is_image, printable, read_regular
from opendino.data.video_file import open_video, pyav, upright
from opendino.datasets import mask_files as masks
from opendino.datasets.mask_metrics import boundary_f, jaccard


@dataclass(frozen=True)
class Video:
    """A video with a mask of its first frame.

    Attributes:
        name: Name of the folder, or of the file without its suffix.
        path: A folder of images, or a video file.
        masks: PNG files: one for the first frame, or one for each frame in order.
        one_object: Whether all objects in the masks count as one, as in DAVIS 2016.
    """

    name: str
    path: Path
    masks: tuple[Path, ...]
    one_object: bool = False


class Truth:
    """Ground-truth masks of a video, at the size of its frames.

    Args:
        video: The video.
        height, width: Size of its frames in pixels.
        notes: Messages about resized masks are appended here.

    Attributes:
        numbers: Object numbers in the first mask, in ascending order. Everywhere else objects are counted 1, 2, … in
            this order.
        first: uint8 `[H W]`, the first mask, with objects counted 1, 2, ….

    Raises:
        UserError: The first mask is unreadable or has no object.
    """

    def __init__(self, video: Video, height: int, width: int, notes: list[str]) -> None:
        self._video, self._size, self._notes = video, (height, width), notes
        raw, self._colors = _read_mask(video.masks[0])
        self._black_and_white = masks.is_black_and_white(raw)
        numbered, _ = self._objects(0)
        self.numbers = [int(number) for number in np.unique(numbered) if number]
        if not self.numbers:
            raise UserError(
                f"{printable(str(video.masks[0]))} has no object: every pixel is 0 or void",
                "Give a mask whose objects have pixel values 1, 2, …",
            )
        self.first = np.searchsorted([0, *self.numbers], numbered).astype(np.uint8)

    def encode(self, mask: np.ndarray) -> bytes:
        """Encode a mask, with objects counted 1, 2, …, as an indexed PNG with the numbers and colors of the video."""
        return masks.encode(np.array([0, *self.numbers], np.uint8)[mask], self._colors)

    def score(self, frame: int, mask: np.ndarray) -> Tensor:
        """J and F of every object in a frame.

        Args:
            frame: Number of the frame.
            mask: uint8 `[H W]`, the prediction, with objects counted 1, 2, ….

        Returns:
            float64 `[2 objects]`.
        """
        truth, void = (torch.from_numpy(array) for array in self._objects(frame))
        found = torch.from_numpy(mask)
        pairs = [(truth == number, found == count) for count, number in enumerate(self.numbers, start=1)]
        true, predicted = (torch.stack(group) for group in zip(*pairs, strict=True))  # [objects H W]
        return torch.stack([jaccard(true, predicted, void), boundary_f(true, predicted, void)])

    def _objects(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        path = self._video.masks[frame]
        raw, _ = _read_mask(path)
        if raw.shape != self._size:
            has, wants = (f"{size[1]}×{size[0]}" for size in (raw.shape, self._size))
            self._notes.append(
                f"{self._video.name}: masks of {has} px for frames of {wants} px were resized by nearest neighbor"
            )
            raw = masks.resize(raw, *self._size)
        numbered, void = masks.objects(raw, self._black_and_white)
        return (numbered.clip(max=1) if self._video.one_object else numbered), void


def _read_mask(path: Path) -> tuple[np.ndarray, bytes]:
    try:
        return masks.read(path)
    except BadImage as error:
        raise UserError(f"The mask {printable(str(path))} cannot be used: {error}") from error


def frames(path: Path) -> Iterator[tuple[str, np.ndarray | BadImage]]:
    """Iterate over the frames of a video.

    Args:
        path: A folder, whose images are sorted by name with numbers by value, 2 before 10; or a video file (PyAV).

    Yields:
        Name of the frame, and uint8 `[H W 3]`, upright; or the `BadImage` of an unreadable frame, so that the numbers
        of the other frames do not change.

    Raises:
        UserError: Not a video, a damaged one, or PyAV is not installed.
    """
    if not path.is_dir():
        yield from ((f"{number:05d}", frame) for number, frame in enumerate(_decode_video(path)))
        return
    for image in track(_images(path), "frames"):
        try:
            yield image.stem, decode(read_regular(image))
        except BadImage as error:
            yield image.stem, error


def rate(path: Path) -> Fraction | None:
    """Average frame rate of a video file, in frames per second; None for a folder, or if the file has none.

    Raises:
        UserError: Not a video, a damaged one, or PyAV is not installed.
    """
    if path.is_dir():
        return None
    with open_video(path) as container:
        return container.streams.video[0].average_rate


def size(path: Path) -> tuple[int, int]:
    """Width and height of a video file in pixels, from its header; no frame is decoded.

    Raises:
        UserError: Not a video, a damaged one, or PyAV is not installed.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height


def write(path: Path, frames: Iterable[np.ndarray], rate: Fraction) -> int:
    """Write a video file without sound: H.264 if PyAV has it, else MPEG-4. The file is renamed when it is complete.

    Args:
        path: An .mp4 file.
        frames: uint8 `[H W 3]`, all of the same size, with even height and width.
        rate: Frames per second.

    Returns:
        Number of frames; if there are none, no file is written.

    Raises:
        UserError: PyAV is not installed, or the file cannot be written.
    """
    av = pyav()
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    quality = {"options": {"crf": "18"}} if codec == "libx264" else {"bit_rate": 8_000_000}
    partial = path.with_name(f".{path.name}.partial")
    number = 0
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream(codec, rate=rate.limit_denominator(1001), pix_fmt="yuv420p", **quality)
            for pixels in frames:
                if not number:
                    stream.height, stream.width = pixels.shape[:2]
                number += 1
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            if number:
                container.mux(stream.encode(None))
        if number:
            partial.replace(path)
    except (OSError, av.error.FFmpegError) as error:
        raise UserError(f"Cannot write {printable(str(path))}: {error.strerror}", "Choose another --out") from error
    finally:
        partial.unlink(missing_ok=True)
    return number


def is_davis(root: Path) -> bool:
    """Whether a folder has the layout of DAVIS."""
    return (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir()


def davis(root: Path, year: int = 2017, resolution: str = "480p", sequences: Sequence[str] = ()) -> list[Video]:
    """The validation videos of DAVIS, or some sequences by name.

    Args:
        root: Folder with JPEGImages/RESOLUTION/NAME/*.jpg, Annotations/RESOLUTION/NAME/*.png, ImageSets/YEAR/val.txt.
        year: 2016 or 2017, the list to use; in 2016 all objects of a sequence count as one.
        resolution: Name of the folders below JPEGImages and Annotations.
        sequences: Names of sequences; empty for all in the list.

    Returns:
        The videos. A sequence has a mask for each frame, or only one for the first frame.

    Raises:
        UserError: A list, a sequence or a mask is missing.
    """
    images, annotations = root / "JPEGImages" / resolution, root / "Annotations" / resolution
    for folder in (images, annotations):
        if not folder.is_dir():
            raise UserError(f"There is no folder {printable(str(folder))}", _choices(folder.parent))
    listed = root / "ImageSets" / str(year) / "val.txt"
    if not sequences and not listed.is_file():
        raise UserError(f"There is no list {printable(str(listed))}", _choices(listed.parent.parent))
    names = sequences or [line.strip() for line in listed.read_text("utf-8", "replace").splitlines() if line.strip()]
    if not names:
        raise UserError(f"{printable(str(listed))} names no sequence", "Name some with --sequences")
    for name in names:
        if not (images / name).is_dir():
            there = [folder.name for folder in images.iterdir()]
            raise UserError(f"There is no sequence '{name}' in {printable(str(images))}", nearest(name, there))
    return [Video(name, images / name, _annotated(images / name, annotations / name), year == 2016) for name in names]


def _annotated(frames: Path, folder: Path) -> tuple[Path, ...]:
    expected = [folder / f"{image.stem}.png" for image in _images(frames)]
    missing = [mask for mask in expected if not mask.is_file()]
    if missing == expected[1:]:
        return (expected[0],)
    if missing:
        raise UserError(
            f"Sequence '{frames.name}' has no annotation {printable(str(missing[0]))}",
            "It needs one per frame, or only one for the first frame",
        )
    return tuple(expected)


def _images(folder: Path) -> list[Path]:
    """The images in a folder, sorted by name, with numbers in the names sorted by value."""
    found = [path for path in folder.iterdir() if is_image(path.name) and not is_hidden(path.name)]
    if not found:
        raise UserError(f"There are no images in {printable(str(folder))}", "Give a folder of frames or a video file")
    return sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in _NUMBER.split(path.name)])


_NUMBER = re.compile(r"([0-9]+)")


def _choices(folder: Path) -> str:
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return f"There is: {', '.join(there)}" if there else "Check that the folder has the layout of DAVIS"


def _decode_video(path: Path) -> Iterator[np.ndarray]:
    number = 0
    with open_video(path) as container:
        try:
            total = container.streams.video[0].frames or None  # 0: the header does not tell
            for frame in track(container.decode(video=0), "frames", total):
                yield upright(frame)
                number += 1
        except pyav().error.FFmpegError as error:
            where = f"after frame {number - 1}" if number else "as a video"
            raise UserError(
                f"{printable(str(path))} cannot be read {where}: {error.strerror}",
                "Give a video file or a folder of frames",
            ) from error
