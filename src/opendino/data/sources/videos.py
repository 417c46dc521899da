"""A video file: `film.mp4`, `film.mp4?every=2s`. The images are the first frame of each interval of time."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np

from opendino.core import log
from opendino.core.contracts import Source
from opendino.data.source_files import is_file, printable
from opendino.data.video_file import VideoFrames, described, is_video, split_every


@final
class VideoSource(Source):
    """The frames of a video, in order; without classes.

    Args:
        path: The file.
        every: Interval, see `data.video_file.VideoFrames`.

    Raises:
        UserError: Not a video, a damaged one, or PyAV is not installed.
    """

    def __init__(self, path: str, every: str = "1s") -> None:
        self._frames = VideoFrames(path, every)
        self._name = printable(Path(path).name)

    def __len__(self) -> int:
        return len(self._frames)

    def key(self, index: int) -> str:
        """The name of the file and the time in seconds: "film.mp4#00012.500"."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return f"{self._name}#{self._frames.name(index)}"

    def label(self, index: int) -> int:
        """-1: a video has no classes."""
        return -1

    def read(self, index: int) -> np.ndarray:
        """A frame, uint8 `[H W 3]`, upright.

        Raises:
            BadImage: The file is gone or damaged.
        """
        return self._frames.read(index)


def matches(data: str) -> bool:
    """Whether DATA is an existing video file."""
    path, _ = split_every(data)
    return is_video(path) and is_file(path)


def build(data: str) -> VideoSource:
    """The source for a video file.

    Raises:
        UserError: Not a video, a damaged one, or PyAV is not installed.
    """
    source = VideoSource(*split_every(data))
    log.say_once(f"{printable(data)} gives {len(source):,} frames ({described(split_every(data)[1])})")
    return source
