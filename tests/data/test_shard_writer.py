"""Writing shards: content, unchanged files, interruption and resume, readable by WebDataset."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from opendino.cli import main
from opendino.core.contracts import Source
from opendino.core.errors import UserError
from opendino.data import shard_writer
from opendino.data.decode import decode, tiles
from opendino.data.open_source import open_source
from opendino.data.subset import Subset


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes: JPEGs of 40 x 30 that are too large, small PNGs, a BMP, a damaged one."""
    chance = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "in" / ("cat", "dog")[number % 2] / f"{number:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = (40, 30) if number < 6 else (8, 8)
        image = Image.fromarray(chance.integers(0, 255, (side[1], side[0], 3), np.uint8))
        image.save(path.with_suffix(".jpg" if number < 6 else ".bmp" if number == 11 else ".png"))
    (tmp_path / "in/cat/torn.jpg").write_bytes(b"torn")
    return tmp_path / "in"


def plan(data: Path | str, **changes: Any) -> shard_writer.Plan:
    return replace(shard_writer.Plan(str(data), len(open_source(data)), 400, "jpeg", 256), **changes)


def named(source: Source) -> dict[int, tuple[bytes, str]]:
    """Members by number of the sample."""
    return {
        int(source.key(i).rpartition("/")[2]): (source.read(i), source.classes[source.label(i)])
        for i in range(len(source))
    }


def test_small_images_pass_through_and_large_ones_shrink(photos: Path, tmp_path: Path) -> None:
    source = open_source(photos)
    done = shard_writer.pack(source, plan(photos), tmp_path / "out")
    assert (done.images, done.shards, done.unchanged) == (12, 1, 5)
    assert done.bad == [("cat/torn.jpg", "not an image in a known format")]
    assert (tmp_path / "out/bad_files.csv").read_text() == f"file,reason\ncat/torn.jpg,{done.bad[0][1]}\n"
    found = open_source(tmp_path / "out")
    assert found.classes == source.classes == ("cat", "dog")
    for number, (data, name) in named(found).items():
        original = source.read(number)
        assert name == source.classes[source.label(number)]
        if source.key(number).endswith(".png"):
            assert data == original
        elif source.key(number).endswith(".bmp"):
            assert data[:4] == b"\x89PNG"
            assert np.array_equal(decode(data), decode(original))
        else:
            assert Image.open(io.BytesIO(data)).format == "JPEG"
            assert decode(data).shape == decode(original, 400).shape
            assert np.abs(decode(data).astype(int) - decode(original, 400)).mean() < 12  # noise, the worst for JPEG


@pytest.mark.parametrize(("kind", "magic"), [("webp", b"RIFF"), ("png", b"\x89PNG")])
def test_formats(photos: Path, tmp_path: Path, kind: shard_writer.Format, magic: bytes) -> None:
    shard_writer.pack(open_source(photos), plan(photos, format=kind), tmp_path / "out")
    for number, (data, _) in named(open_source(tmp_path / "out")).items():
        original = open_source(photos).read(number)
        if len(decode(original)) == 30:
            assert data.startswith(magic)
            if kind == "png":
                assert np.array_equal(decode(data), decode(original, 400))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_the_real_webdataset_reads_them(webdataset: Any, photos: Path, tmp_path: Path) -> None:
    shard_writer.pack(open_source(photos), plan(photos), tmp_path / "out")
    path = str(tmp_path / "out/000000.tar")
    samples = list(webdataset.WebDataset(path, shardshuffle=False).decode("rgb8"))
    ours = named(open_source(tmp_path / "out"))
    assert [int(sample["__key__"]) for sample in samples] == list(ours)
    for sample in samples:
        pixels = next(sample[ending] for ending in ("jpg", "png") if ending in sample)
        data, name = ours[int(sample["__key__"])]
        assert np.array_equal(pixels, decode(data))
        assert ("cat", "dog")[sample["cls"]] == name


def test_an_interrupted_pack_resumes_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("toy:colorful?n=600&size=64")
    asked = shard_writer.Plan("toy", 600, 10**4, "jpeg", 1)
    whole = shard_writer.pack(source, asked, tmp_path / "whole")
    assert whole.shards > 3
    write, left = shard_writer._write_shard, [2]

    def failing(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(shard_writer, "_write_shard", failing)
    with pytest.raises(KeyboardInterrupt):
        shard_writer.pack(source, asked, tmp_path / "parts")
    monkeypatch.undo()
    (tmp_path / "parts/.000002.tar.partial").write_bytes(b"half")
    first = (tmp_path / "parts/000000.tar").stat().st_mtime_ns
    (tmp_path / "parts/000001.tar").write_bytes(b"damaged since")
    done = shard_writer.pack(source, asked, tmp_path / "parts")
    assert (done.images, done.shards, done.bad) == (whole.images, whole.shards, whole.bad)
    assert (tmp_path / "parts/000000.tar").stat().st_mtime_ns == first, "what was whole is left alone"
    for number in range(whole.shards):
        name = f"{number:06d}.tar"
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert shard_writer.pack(source, asked, tmp_path / "parts").images == 600, "a finished one is nothing to do"
    with pytest.raises(UserError, match="another plan"):
        shard_writer.pack(source, replace(asked, max_area_px=9), tmp_path / "parts")
    with pytest.raises(UserError, match="of other images"):
        shard_writer.pack(Subset(source, range(599, -1, -1)), asked, tmp_path / "parts")


def test_every_class_is_everywhere(tmp_path: Path) -> None:
    source = open_source("toy:?n=200")
    shard_writer.pack(source, shard_writer.Plan("toy", 200, 10**4, "png", 1), tmp_path / "out")
    found = open_source(tmp_path / "out")
    assert len({found.label(i) for i in range(50)}) == 10, "shuffled, though the source goes class by class"
    assert found.classes == source.classes


def test_foreign_folders_are_left_alone(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="something else"):
        shard_writer.pack(open_source(photos), plan(photos), photos)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        shard_writer.pack(open_source(photos), plan(photos), tmp_path / "file")


def test_large_images_are_cut_into_tiles_that_cover_them(tmp_path: Path) -> None:
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/b").mkdir()
    large = np.random.default_rng(0).integers(0, 255, (50, 33, 3), np.uint8)
    Image.fromarray(large).save(tmp_path / "in/a/large.png")
    Image.fromarray(large[:7, :20]).save(tmp_path / "in/b/small.png")
    Image.fromarray(large[:7, :33]).save(tmp_path / "in/b/flat.png")
    asked = plan(tmp_path / "in", max_area_px=400, format="png", tiles_px=20)
    done = shard_writer.pack(open_source(tmp_path / "in"), asked, tmp_path / "out")
    assert (done.images, done.unchanged, done.bad) == (3 * 2 + 1 + 2, 1, [])
    found = open_source(tmp_path / "out")
    assert found.classes == ("a", "b")
    tiles = {found.key(i).rpartition("/")[2]: decode(found.read(i)) for i in range(len(found))}
    assert sorted(tiles) == [
        *(f"000000000-{row:03d}-{column:03d}" for row in range(3) for column in range(2)),
        "000000001-000-000", "000000001-000-001", "000000002",
    ]  # fmt: skip
    for row, top in enumerate((0, 15, 30)):
        for column, left in enumerate((0, 13)):
            expected = large[top : top + 20, left : left + 20]
            assert np.array_equal(tiles[f"000000000-{row:03d}-{column:03d}"], expected)
    assert tiles["000000001-000-001"].shape == (7, 20, 3)
    assert [found.classes[found.label(i)] for i in range(len(found))].count("a") == 6


@pytest.mark.parametrize("kind", ["turned", "deep", "transparent"])
def test_tiles_are_parts_of_what_the_whole_image_shows(kind: str) -> None:
    values = np.linspace(0, 4000, 34 * 30, dtype=np.uint16).reshape(34, 30)
    image = Image.fromarray(values * 4 if kind == "deep" else (values >> 4).astype(np.uint8))
    exif = Image.Exif()
    if kind == "turned":
        exif[0x0112] = 6
    elif kind == "transparent":
        image.putalpha(Image.fromarray((values >> 4).astype(np.uint8)))
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    whole = decode(file.getvalue())
    cut = list(tiles(file.getvalue(), 16))
    steps = {34: 9, 30: 14}
    assert len(cut) == 6 and {tile.shape for *_, tile in cut} == {(16, 16, 3)}
    for row, column, tile in cut:
        top, left = row * steps[whole.shape[0]], column * steps[whole.shape[1]]
        assert np.array_equal(tile, whole[top : top + 16, left : left + 16])


def test_the_limit_of_pixels_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opendino.data.readers.limits.MAX_PIXELS", 1000)
    monkeypatch.setattr(shard_writer, "MAX_PIXELS", 1000)
    monkeypatch.setattr(shard_writer, "_TILED_PIXELS", 3000)
    (tmp_path / "in").mkdir()
    for side in (20, 50, 60):
        Image.new("RGB", (side, side), "red").save(tmp_path / f"in/{side}.png")
    for changes, images in (({}, 1), ({"max_pixels": 2500}, 2), ({"tiles_px": 20}, 1 + 9), ({"max_pixels": 3600}, 3)):
        done = shard_writer.pack(
            open_source(tmp_path / "in"), plan(tmp_path / "in", **changes), tmp_path / f"out{images}"
        )
        assert done.images == images
        assert all("3,600 pixels, more than" in reason for key, reason in done.bad if key == "60.png")


def test_the_verb(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["pack", str(photos), "--out", out, "--size", "20"]) == 0
    assert "12 images in 1 shards" in capsys.readouterr().out
    assert main(["pack", str(photos), "--out", f"{out}2", "--crops-of", "vits16_100ep", "--json"]) == 0
    assert '"max_area_px": 184320' in capsys.readouterr().out
    for words in (
        ["--size", "0"], ["--size", "9", "--crops-of", "small"], ["--tiles", "0"],
        ["--tiles", "9", "--size", "9"],
        ["--crops-of", "small"], ["--crops-of", "no"],
        ["--format", "gif"], ["--shard-mb", "-1"],
    ):  # fmt: skip
        assert main(["pack", str(photos), "--out", f"{out}3", *words]) == 2, words
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out3").exists()


def test_images_of_science_are_packed_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    deep = np.linspace(0, 4000, 90 * 80, dtype=np.uint16).reshape(90, 80)
    Image.fromarray(deep).save(tmp_path / "in/a.png")
    tifffile.imwrite(tmp_path / "in/b.tif", np.stack([deep] * 5), photometric="minisblack")
    tifffile.imwrite(tmp_path / "in/c.tif", np.stack([deep] * 5, -1), photometric="minisblack", planarconfig="contig")
    np.save(tmp_path / "in/d.npy", deep)
    (tmp_path / "in/e.png").write_bytes(imagecodecs.png_encode(np.stack([deep] * 3, -1)))
    (tmp_path / "in/f.jp2").write_bytes(imagecodecs.jpeg2k_encode(np.stack([deep] * 3, -1), level=0))
    Image.fromarray(deep).save(tmp_path / "in/g.pgm")
    Image.fromarray(deep).save(tmp_path / "in/h.jp2", irreversible=False)
    shard_writer.pack(open_source(tmp_path / "in"), plan(tmp_path / "in", max_area_px=100), tmp_path / "out")
    packed = open_source(tmp_path / "out")
    assert {packed.read(i) for i in range(len(packed))} == {
        path.read_bytes() for path in (tmp_path / "in").iterdir() if path.suffix != ".npy"
    }
    assert len(packed) == 7
