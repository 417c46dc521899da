"""Frames of a video file at regular times, with exact random access (PyAV, extra `video`).

A list of the frames' time stamps is made once, without decoding. A frame is read by seeking to the key frame before it
and decoding up to its time stamp, so it has the same pixels as when the whole video is decoded in order.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from opendino.core.errors import BadImage, UsageError, UserError
from opendino.core.ranges import shown
from opendino.data import mmap_table as index
from opendino.data.readers.limits import MAX_PIXELS
from opendino.data.source_files import VIDEO_SUFFIXES, exists, printable, suffix

_EVERY = re.compile(r"all|(\d+(?:\.\d+)?)s", re.ASCII)
_OPTION = "?every="
_LONG = 10_000  # videos with this many frames or more have their list of time stamps saved
_MAX_OPEN = 4  # decoders per process
_MAX_RECENT = 8  # frames that were decoded on the way to another one, per decoder
_NEVER = -(2**62)  # before any time stamp
_HINT = "Give a video file or a folder of frames"


def is_video(name: str) -> bool:
    """Whether a file name has the suffix of a video, in upper or lower case."""
    return suffix(name) in VIDEO_SUFFIXES


def pyav() -> ModuleType:
    """The library.

    Raises:
        UserError: It is not installed.
    """
    try:
        import av
        import av.error
    except ImportError:
        raise UserError("Video files need PyAV", 'pip install "opendino[video]", or give frames in a folder') from None
    return av


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator[Any]:
    """Context manager: an open PyAV container that has a video.

    Raises:
        UserError: Not a video, a damaged one, or PyAV is not installed.
    """
    av, name = pyav(), printable(str(path))
    failed = av.error.FFmpegError  # by a name of its own, as modules are gone when the interpreter ends
    try:
        # Only local files: a playlist with the suffix of a video must not open network addresses.
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise UserError(f"{name} has no video", _HINT)
            yield container
    except failed as error:
        raise UserError(f"{name} cannot be read as a video: {error.strerror}", _HINT) from error


def upright(frame: Any) -> np.ndarray:
    """The pixels of a PyAV frame, uint8 `[H W 3]`."""
    turns = round(frame.rotation / 90)  # counter-clockwise; phones store the rotation as metadata
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def with_every(data: str, every: str) -> str:
    """DATA with the time between the frames of its videos.

    Raises:
        UsageError: It has one already, or `every` is not a time.
    """
    _seconds(every)
    if _OPTION in data:
        raise UsageError(f"{data} and --every {every} both say which frames to use", "Give one of them")
    return f"{data}{_OPTION}{every}"


def join_every(config: Any) -> None:
    """Make a setting `every` a part of the setting `data`, so that every command finds the same frames.

    Args:
        config: A frozen dataclass with these two fields.

    Raises:
        UsageError: See `with_every`.
    """
    if config.every:
        object.__setattr__(config, "data", with_every(config.data, config.every))
        object.__setattr__(config, "every", "")


def split_every(data: str) -> tuple[str, str]:
    """The path in DATA, and the time between frames that follows it as `?every=2s`; "1s" if none does."""
    path, option, every = data.rpartition(_OPTION)
    return (path, every) if option and not exists(data) else (data, "1s")


def described(every: str) -> str:
    """Which frames are used, and how to choose others, for messages."""
    which = "all" if every == "all" else f"the first of every {every}"
    return f"{which}; for others --every 2s, or ?every=2s after the path"


class VideoFrames:
    """The frames of a video file: the first one in each interval of time.

    Args:
        path: The file.
        every: Interval: "2s", "0.5s", or "all" for every frame.

    Raises:
        UserError: Not a video, a damaged one, one without time stamps, or PyAV is not installed.
        UsageError: `every` is not a time.
    """

    def __init__(self, path: str, every: str) -> None:
        self.path = path
        step = _seconds(every)
        stamps, keys, unit = _load_stamps(path)
        times = (stamps - stamps[0]) * unit
        if step:
            # The first frame at or after 0, step, 2 · step, …; a microsecond absorbs rounding.
            chosen = np.unique(np.searchsorted(times, np.arange(0, times[-1] + 1e-6, step) - 1e-6))
            stamps, keys, times = stamps[chosen], keys[chosen], times[chosen]
        self._stamps, self._keys, self._times = stamps, keys, times

    def __len__(self) -> int:
        return len(self._stamps)

    def name(self, number: int) -> str:
        """Time of a frame in seconds: "00012.500"."""
        return f"{self._times[number]:09.3f}"

    def read(self, number: int) -> np.ndarray:
        """A frame, uint8 `[H W 3]`, upright.

        Raises:
            BadImage: The file is gone or damaged.
        """
        try:
            with _lock:
                decoder = _decoders.pop(self.path, None) or _Decoder(self.path)
                _decoders[self.path] = decoder  # the last one used is at the end
                while len(_decoders) > _MAX_OPEN:
                    _decoders.popitem(last=False)[1].close()
                return decoder.frame(int(self._stamps[number]), int(self._keys[number]), self._stamps)
        except (UserError, OSError, pyav().error.FFmpegError) as error:
            with _lock:
                if broken := _decoders.pop(self.path, None):
                    broken.close()
            raise BadImage(f"the frame at {self.name(number)} s cannot be decoded: {error}") from error


class _Decoder:
    """An open video that remembers where it is: frames that are read in order are decoded once."""

    def __init__(self, path: str) -> None:
        self._closing = contextlib.ExitStack()
        self._container = self._closing.enter_context(open_video(path))
        self._stream = self._container.streams.video[0]
        self._frames: Iterator[Any] | None = None
        self._start = self._last = _NEVER  # time stamps: where the last seek went, the last frame decoded
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()

    def close(self) -> None:
        with contextlib.suppress(UserError):
            self._closing.close()

    def frame(self, stamp: int, key: int, wanted: np.ndarray) -> np.ndarray:
        """The frame with this time stamp.

        Args:
            stamp: Time stamp of the frame.
            key: Time stamp of the last key frame that is not after it.
            wanted: int64, all time stamps that may be asked for; those on the way are kept for a while.

        Raises:
            BadImage: There is no such frame.
        """
        if stamp in self._recent:
            return self._recent[stamp].copy()
        if self._frames is None or not key <= self._last < stamp:
            self._seek(key)
        found = self._decode_to(stamp, wanted)
        if found is None:  # some containers seek to a later frame
            self._seek(None)
            found = self._decode_to(stamp, wanted)
        if found is None:
            raise BadImage("there is no frame with this time stamp")
        return found

    def _seek(self, stamp: int | None) -> None:
        self._container.seek((self._stream.start_time or 0) if stamp is None else stamp, stream=self._stream)
        self._start = _NEVER if stamp is None else stamp
        self._frames, self._last = self._container.decode(self._stream), _NEVER

    def _decode_to(self, stamp: int, wanted: np.ndarray) -> np.ndarray | None:
        for frame in self._frames or ():
            if frame.pts is None:
                continue
            self._last = frame.pts
            if frame.pts > stamp:
                return None
            # After a seek, frames before the key frame may lack those they are decoded from.
            position = int(np.searchsorted(wanted, frame.pts))
            if frame.pts < self._start or position == len(wanted) or wanted[position] != frame.pts:
                continue
            pixels = upright(frame)
            self._recent[frame.pts] = pixels
            while len(self._recent) > _MAX_RECENT:
                self._recent.popitem(last=False)
            if frame.pts == stamp:
                return pixels.copy()
        self._frames = None  # the end
        return None


_lock = threading.RLock()
_decoders: OrderedDict[str, _Decoder] = OrderedDict()
_inherited: list[OrderedDict[str, _Decoder]] = []


def _forget_decoders() -> None:
    """In a forked process: the parent uses the open files, and one of its threads may have held the lock."""
    global _lock, _decoders
    _inherited.append(_decoders)  # never closed: a decoder waits for its threads, which only the parent has
    _lock, _decoders = threading.RLock(), OrderedDict()


def close_decoders() -> None:
    """Close the videos that this process has open."""
    with _lock:
        while _decoders:
            _decoders.popitem()[1].close()


os.register_at_fork(after_in_child=_forget_decoders)
atexit.register(close_decoders)  # before PyAV itself is taken down


def _seconds(every: str) -> float:
    """The interval in seconds; 0 for every frame."""
    found = _EVERY.fullmatch(every)
    if not found or (found[1] and not float(found[1])):
        raise UsageError(
            f"every is {shown(every)}", "Write a time in seconds such as 2s or 0.5s, or all for every frame"
        )
    return float(found[1]) if found[1] else 0.0


def _load_stamps(path: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Time stamps of all frames in order, those of the key frames before them, and their unit in seconds."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be opened: {error.strerror}", _HINT) from error
    rules = f"opendino {version('opendino')} {status.st_size} {status.st_mtime_ns}"
    saved = index.index_path("video", os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    if (found := index.load(saved)) and isinstance(found[1], dict) and found[1].get("rules") == rules:
        return found[0]["stamps"], found[0]["keys"], float(found[1]["unit"])
    stamps, keys, unit = _scan(path)
    if len(stamps) >= _LONG:
        with contextlib.suppress(OSError):  # no writable cache folder
            index.save(saved, {"stamps": stamps, "keys": keys}, {"rules": rules, "unit": unit})
    return stamps, keys, unit


def _scan(path: str) -> tuple[np.ndarray, np.ndarray, float]:
    """The same, from the packets of the file; nothing is decoded."""
    stamps: list[int] = []
    keys: list[int] = []
    with open_video(path) as container:
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise UserError(f"{printable(path)} has frames of {stream.width} × {stream.height} pixels", _HINT)
        unit = float(stream.time_base or 0)
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is None:
                raise UserError(
                    f"{printable(path)} has frames without time stamps",
                    f"Write them once: ffmpeg -i {printable(path)} NEW.mp4",
                )
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    if not stamps or not unit:
        raise UserError(f"{printable(path)} has no frames", _HINT)
    all_stamps, key_stamps = np.unique(np.array(stamps, np.int64)), np.unique(np.array(keys or stamps[:1], np.int64))
    before = np.searchsorted(key_stamps, all_stamps, "right") - 1
    all_stamps, before = all_stamps[before >= 0], before[before >= 0]  # nothing before the first key frame is whole
    return all_stamps, key_stamps[before], unit
