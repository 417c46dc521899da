"""Frames of videos: the same as when decoded in order, wherever one starts; videos among images; broken ones."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from tests.factories import keys, pattern_image, plain_folder

from opendino.core import log
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.data import mmap_table, video_file
from opendino.data.open_source import absolute, list_paths, open_source
from opendino.data.video_file import VideoFrames, split_every
from opendino.datasets import video_frames

H264 = {"g": "12", "bf": "3"}
KINDS = {
    "closed.mp4": ("libx264", H264), "open.mp4": ("libx264", H264 | {"x264-params": "open-gop=1:bframes=3"}),
    "film.mkv": ("libx264", H264), "film.avi": ("mjpeg", {}), "film.mpg": ("mpeg2video", {"g": "9", "bf": "2"}),
    "film.webm": ("libvpx-vp9", {"g": "10"}),
}  # fmt: skip


def write(path: Path, num: int = 40, rate: int = 10) -> Path:
    """A film of patterns that change with every frame."""
    codec, options = KINDS.get(path.name, KINDS["closed.mp4"])
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(num):
            pixels = np.array(pattern_image(number // 5)).astype(int) + 2 * (number % 5)
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    video_file.close_decoders()


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_that_of_decoding_in_order(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    in_order = [pixels for _, pixels in video_frames.frames(path)]
    film = VideoFrames(str(path), "all")
    assert len(film) == len(in_order) == 40
    order = random.Random(0).sample(range(40), 40) + list(range(40)) + [39, 0, 38, 12, 11]
    for number in order:
        assert np.array_equal(film.read(number), in_order[number]), number


def test_the_first_frame_of_each_interval(tmp_path: Path) -> None:
    path = write(tmp_path / "film.mp4")
    in_order = [pixels for _, pixels in video_frames.frames(path)]
    for every, chosen in {"1s": [0, 10, 20, 30], "0.25s": [0, 3, 5, 8], "9s": [0]}.items():
        film = VideoFrames(str(path), every)
        assert len(film) == (16 if every == "0.25s" else len(chosen))
        assert [film.name(number) for number in range(len(chosen))] == [f"{frame / 10:09.3f}" for frame in chosen]
        assert all(np.array_equal(film.read(n), in_order[frame]) for n, frame in enumerate(chosen))
    for wrong in ("2", "0s", "fast", "-1s", "2 s"):
        with pytest.raises(UsageError, match="Write a time in seconds"):
            VideoFrames(str(path), wrong)


def test_threads_and_forked_and_pickled_copies_read_the_same(tmp_path: Path) -> None:
    film = open_source(f"{write(tmp_path / 'film.mp4')}?every=0.1s")
    expected = [film.read(number) for number in range(40)]
    copy = pickle.loads(pickle.dumps(film))
    with ThreadPoolExecutor(4) as pool:
        assert all(map(np.array_equal, pool.map(copy.read, range(40)), expected))
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        same = all(np.array_equal(film.read(number), expected[number]) for number in (39, 3, 4, 20))
        os._exit(0 if same else 1)
    assert np.array_equal(film.read(5), expected[5])


def test_a_folder_of_videos_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "say", lambda text, style="": said.append(text))
    folder = plain_folder(tmp_path / "cam", "a/0.png", "a/2.png", "b/9.png")
    write(folder / "a/1.mp4")
    write(folder / "b/0.MKV".lower())
    (folder / "b/recording.mp4").write_bytes((folder / "a/1.mp4").read_bytes()[:500])
    source = open_source(f"{folder}?every=2s")
    frames = ["a/1.mp4#00000.000", "a/1.mp4#00002.000"]
    assert keys(source) == ["a/0.png", *frames, "a/2.png", "b/0.mkv#00000.000", "b/0.mkv#00002.000", "b/9.png"]
    assert source.classes == ("a", "b") and [source.label(i) for i in range(7)] == [0, 0, 0, 0, 1, 1, 1]
    assert isinstance(source.read(0), bytes) and np.array_equal(
        source.read(2), VideoFrames(f"{folder}/a/1.mp4", "all").read(20)
    )
    assert "4 frames of 2 videos in folder" in said[0] and "(the first of every 2s; for others --every" in said[0]
    assert "1 video left out" in said[1] and "recording.mp4 cannot be read as a video" in said[1]
    assert len(open_source(folder)) == 11
    assert absolute(f"{folder}?every=2s") == f"{folder}?every=2s"
    assert list_paths(f"{folder}?every=2s", ["a/0.png"]) == [f"{folder}/a/0.png"]
    assert open_source(str(folder)).checksum(1) == source.checksum(1)
    (folder / "a/1.mp4").unlink()
    video_file.close_decoders()
    with pytest.raises(BadImage, match=r"the frame at 00002\.000 s cannot be decoded"):
        source.read(2)


def test_the_list_of_frames_is_saved_and_belongs_to_one_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_file, "_LONG", 1)
    path = write(tmp_path / "film.mp4", 20)
    first = VideoFrames(str(path), "all")
    with monkeypatch.context() as patch:
        patch.setattr(video_file, "_scan", lambda _: pytest.fail("scanned again"))
        again = VideoFrames(str(path), "all")
    assert np.array_equal(again.read(13), first.read(13)) and again.name(13) == first.name(13)
    assert list(mmap_table.cache_folder().glob("video-*.index"))
    write(path, 30)
    assert len(VideoFrames(str(path), "all")) == 30


def test_what_is_no_video_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(UserError, match=r"text\.mp4 cannot be read as a video"):
        open_source(tmp_path / "text.mp4")
    with pytest.raises(UserError, match=r"No video in folder .* can be read"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        open_source(f"{tmp_path}/film.mp4?every=2s")
    plain_folder(tmp_path, "0.png")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert keys(open_source(tmp_path)) == ["0.png"]
    with pytest.raises(UserError, match=r'pip install "opendino\[video\]"'):
        open_source(tmp_path / "text.mp4")


def test_a_file_whose_name_ends_like_an_option_is_a_file(tmp_path: Path) -> None:
    odd = tmp_path / "cam?every=2s"
    plain_folder(odd, "0.png")
    assert split_every(str(odd)) == (str(odd), "1s") and keys(open_source(odd)) == ["0.png"]
