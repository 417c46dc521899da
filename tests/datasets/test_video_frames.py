"""Videos: frames in order and upright, the folders of DAVIS, and one clear line if something is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from opendino.core.errors import BadImage, UserError
from opendino.datasets import video_frames


def write_film(path: Path, frames: np.ndarray) -> None:
    """An H.264 .mp4 of frames uint8 `[T H W 3]`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "8"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def blocks(num_frames: int) -> np.ndarray:
    """Frames of 48 × 64 px with a white upper left quarter; the rest becomes darker over time."""
    frames = np.zeros((num_frames, 48, 64, 3), np.uint8)
    frames += (100 - 20 * np.arange(num_frames, dtype=np.uint8))[:, None, None, None]
    frames[:, :24, :32] = 255
    return frames


def davis(root: Path, sequences: dict[str, int], masks: int | None = None) -> Path:
    """A DAVIS tree of black frames; the first `masks` of each sequence have an annotation."""
    for name, count in sequences.items():
        for folder, suffix, mode, number in (
            ("JPEGImages", "jpg", "RGB", count),
            ("Annotations", "png", "L", count if masks is None else masks),
        ):
            (root / folder / "480p" / name).mkdir(parents=True)
            for t in range(number):
                Image.new(mode, (8, 6)).save(root / folder / "480p" / name / f"{t:05d}.{suffix}")
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("".join(f"{name}\n" for name in sequences))
    return root


def test_a_film_file_comes_back(tmp_path: Path) -> None:
    wanted = blocks(5)
    write_film(tmp_path / "film.mp4", wanted)
    found = list(video_frames.frames(tmp_path / "film.mp4"))
    assert [name for name, _ in found] == ["00000", "00001", "00002", "00003", "00004"]
    for (_, pixels), original in zip(found, wanted, strict=True):
        assert isinstance(pixels, np.ndarray)
        assert (pixels.dtype, pixels.shape) == (np.uint8, (48, 64, 3))
        assert np.abs(pixels.astype(int) - original).mean() < 3  # the codec's loss


def test_a_film_is_turned_as_its_player_would(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_film(path, blocks(2))
    content = path.read_bytes()
    one, minus, last = (value.to_bytes(4, "big", signed=True) for value in (1 << 16, -(1 << 16), 1 << 30))
    none = bytes(4)
    upright = one + none * 3 + one + none * 3 + last
    clockwise = none + one + none + minus + none * 4 + last
    start = content.index(upright, content.index(b"tkhd"))  # the matrix in the track's header
    path.write_bytes(content[:start] + clockwise + content[start + len(upright) :])
    _, pixels = next(video_frames.frames(path))
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (64, 48, 3)
    assert pixels[:28, 28:].min() > 230 > 130 > pixels[36:].max(), "what was upper left is upper right"


def test_frames_of_a_folder_come_by_number_and_a_bad_one_keeps_its_place(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "frame2.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").touch()
    found = list(video_frames.frames(tmp_path))
    assert [name for name, _ in found] == ["frame1", "frame2", "frame9", "frame10"]
    assert [isinstance(pixels, BadImage) for _, pixels in found] == [False, True, False, False]


def test_davis_lists_its_films(tmp_path: Path) -> None:
    root = davis(tmp_path, {"libby": 3, "bear": 1})
    assert video_frames.is_davis(root) and not video_frames.is_davis(root / "JPEGImages")
    films = video_frames.davis(root)
    assert [(film.name, len(film.masks), film.one_object) for film in films] == [
        ("libby", 3, False),
        ("bear", 1, False),
    ]
    assert films[0].masks[2] == root / "Annotations/480p/libby/00002.png"
    assert [film.name for film in video_frames.davis(root, sequences=["bear"])] == ["bear"]
    (root / "ImageSets" / "2016").mkdir()
    (root / "ImageSets" / "2016" / "val.txt").write_text("bear\n\n")
    assert [(film.name, film.one_object) for film in video_frames.davis(root, 2016)] == [("bear", True)]
    assert len(video_frames.davis(davis(tmp_path / "first", {"a": 3}, masks=1))[0].masks) == 1


def test_what_davis_lacks_is_named(tmp_path: Path) -> None:
    root = davis(tmp_path, {"libby": 4}, masks=3)
    with pytest.raises(UserError, match=r"'libby' has no annotation .*libby/00003\.png\. It needs one per frame"):
        video_frames.davis(root)
    with pytest.raises(UserError, match=r"no sequence 'liby' .* Did you mean libby"):
        video_frames.davis(root, sequences=["liby"])
    with pytest.raises(UserError, match=r"no folder .*1080p\. There is: 480p"):
        video_frames.davis(root, resolution="1080p")
    with pytest.raises(UserError, match=r"no list .*2016/val\.txt\. There is: 2017"):
        video_frames.davis(root, 2016)
    (root / "ImageSets/2017/val.txt").write_text("\n")
    with pytest.raises(UserError, match=r"val\.txt names no sequence"):
        video_frames.davis(root)
    (root / "ImageSets/2017/val.txt").write_text("libby")
    (root / "Annotations/480p/libby/00000.png").unlink()
    with pytest.raises(UserError, match=r"no annotation .*libby/00000\.png"):
        video_frames.davis(root)


def test_not_a_video_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(UserError, match=r"text\.mp4 cannot be read as a video"):
        list(video_frames.frames(tmp_path / "text.mp4"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images in .*empty"):
        list(video_frames.frames(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r'pip install "opendino\[video\]"'):
        list(video_frames.frames(tmp_path / "text.mp4"))
