"""Videos are written frame by frame, complete and in order, with bounded memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opendino.core.errors import UsageError, UserError
from opendino.datasets import video_frames as videos
from opendino.models.load import Model
from opendino.visualize import video
from opendino.visualize.video import Config, _evenly_spaced, pairs, show


def steps(number: int, height: int = 32, width: int = 48) -> Iterator[np.ndarray]:
    """Gray frames, each as bright as its index."""
    for n in range(number):
        yield np.full((height, width, 3), n * 250 // max(1, number - 1), np.uint8)


def test_every_frame_in_order_at_the_same_rate(vit: str, tmp_path: Path) -> None:
    film, out = tmp_path / "film.mp4", tmp_path / "out.mp4"
    assert videos.write(film, steps(20), Fraction(30000, 1001)) == 20
    for kind in ("attention", "pca"):
        report = show(Config(vit, str(film), kind=kind, out=str(out), size_px=32, device="cpu"))
        assert (report.fields["frames"], report.fields["fps"]) == (20, pytest.approx(30000 / 1001))
        assert videos.rate(out) == Fraction(30000, 1001)
        found = [pixels for _, pixels in videos.frames(out)]
        assert len(found) == 20 and found[0].shape == (32, 96, 3)
        light = [pixels[:, :44].mean() for pixels in found]
        assert np.allclose(light, [frame.mean() for frame in steps(20)], atol=5), "the film itself, on the left"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4", "out.mp4", "vit"], "nothing partial is left"


def test_a_folder_of_frames_with_a_broken_one(vit: str, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for n, pixels in enumerate(steps(4)):
        Image.fromarray(pixels).save(folder / f"{n}.png")
    (folder / "2.png").write_bytes(b"no image")
    Image.new("RGB", (20, 40)).save(folder / "4.png")  # of another size
    out = str(tmp_path / "out.mp4")
    report = show(Config(vit, str(folder), out=out, size_px=32, fps=10, device="cpu"))
    assert (report.fields["frames"], report.fields["skipped"], videos.rate(Path(out))) == (4, 1, 10)
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="No frame of"):
        show(Config(vit, str(folder), out=str(tmp_path / "none.mp4"), size_px=32, device="cpu"))
    assert not (tmp_path / "none.mp4").exists()


def test_frames_never_live_together(looking: Model, tmp_path: Path) -> None:
    alive: set[int] = set()
    most = 0
    sight = video.ImageEncoder(looking, 16)

    def images() -> Iterator[tuple[str, np.ndarray]]:
        nonlocal most
        for n, pixels in enumerate(steps(300, 16, 16)):
            frame = pixels.copy()
            alive.add(n)
            weakref.finalize(frame, alive.discard, n)
            most = max(most, len(alive))
            yield str(n), frame

    assert (
        videos.write(
            tmp_path / "o.mp4",
            pairs(images(), lambda i: video.heat(Image.fromarray(i), sight.attention(i)[0])),
            Fraction(25),
        )
        == 300
    )
    assert most <= 3
    assert sum(1 for _ in videos.frames(tmp_path / "o.mp4")) == 300
    most, alive = 0, set()
    kept = _evenly_spaced(images(), 32)
    gc.collect()
    assert [int(name) for name, _ in kept] == list(range(0, 300, 16)) and most <= 34


def test_what_cannot_be_done_is_said(vit: str, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    videos.write(film, steps(2), Fraction(5))
    for config, said in (
        (Config(vit, str(tmp_path / "no.mp4"), out=str(tmp_path / "o.mp4")), "does not exist"),
        (Config(vit, str(film), out=str(film)), "is the input video"),
        (Config(vit, str(film), out=str(tmp_path / "o.avi")), "has no supported suffix"),
    ):
        with pytest.raises(UserError, match=said):
            show(config)
    with pytest.raises(UsageError, match="fps is 0"):
        Config(vit, str(film), fps=0)
