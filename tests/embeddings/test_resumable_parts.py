"""Tables do not depend on interruptions or on the number of processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import model_folder, small_vit

from opendino.core.contracts import Source
from opendino.core.errors import BadImage, UsageError, UserError
from opendino.data.open_source import open_source
from opendino.data.sources.toy import ToySource
from opendino.embeddings import embed_images, resumable_parts, table_files, table_schema
from opendino.embeddings.embed_images import Embedder
from opendino.embeddings.resumable_parts import Written
from opendino.models.build import backbone
from opendino.models.load import Model, load, preprocessing

pq = pytest.importorskip("pyarrow.parquet")
PART = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(model_folder(tmp_path_factory.mktemp("models") / "vit", small_vit()))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


class Counted(Source):
    """A source that records reads, and can kill the process during a read."""

    def __init__(self, source: Source, deadly: int = -1) -> None:
        self.source, self.deadly, self.seen = source, deadly, []

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def label(self, index: int) -> int:
        return self.source.label(index)

    def read(self, index: int) -> bytes | np.ndarray:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(index)
        return self.source.read(index)

    def checksum(self, index: int) -> int:  # not a look at the image
        return self.source.checksum(index)


def write(model: Model, source: Source, out: Path, **options: object) -> Written:
    embedder = embeds(model, source, patches=options.pop("patches", False))
    done = resumable_parts.write(out, embedder, **{"part_images": PART, **options})  # type: ignore[arg-type]
    assert done is not None
    return done


def embeds(model: Model, source: Source, **options: object) -> Embedder:
    origin = embed_images.table_origin(model, source, name="vit", which=None, data="there")
    return Embedder(model, source, origin, batch=8, workers=2, **options)  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> Source:
    """39 images with unusual names and one broken file."""
    (tmp_path / "photos").mkdir()
    for number, odd in enumerate(["\n", "\r", '"', ",", "é图", " ", "'", "x", "\t", "%"] * 4):
        Image.new("RGB", (20 + number, 30), (6 * number, 99, 200)).save(tmp_path / f"photos/{number:02d}{odd}.png")
    (tmp_path / "photos/17x.png").write_bytes(b"no image")
    return open_source(tmp_path / "photos")


def read(path: Path, dim: int) -> tuple[list[str], np.ndarray, list[tuple[int, int]]]:
    """Keys, vectors and sizes of a file, read by common libraries."""
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        assert head == ["key", "width", "height", *(f"v{i}" for i in range(dim))]
        found = np.array([[np.float32(cell) for cell in row[3:]] for row in rows])
        return [row[0] for row in rows], found, [(int(row[1]), int(row[2])) for row in rows]
    if path.suffix == ".npz":
        with np.load(path) as arrays:  # allow_pickle is False by default
            sizes = zip(arrays["width"].tolist(), arrays["height"].tolist(), strict=True)
            return arrays["key"].tolist(), arrays["vector"], list(sizes)
    table = pq.read_table(path)
    sizes = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
    return table["key"].to_pylist(), np.array(table["vector"].to_pylist(), np.float32), list(sizes)


@pytest.mark.parametrize("suffix", table_files.WRITERS)
def test_each_format_gives_back_what_was_computed(model: Model, photos: Source, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"x{suffix}"
    done = write(model, photos, out)
    expected = list(embeds(model, photos).rows(range(len(photos)), within=PART))
    keys, vectors, sizes = read(out, 24)
    assert keys == [key for rows in expected for key in rows.keys] and "00\n.png" in keys and "01\r.png" in keys
    assert np.array_equal(vectors, torch.cat([rows.vectors for rows in expected]).numpy())  # to the last bit
    assert sizes == [size for rows in expected for size in rows.sizes]
    assert (done.written, done.skipped, done.bad) == (39, 1, [("17x.png", "not an image in a known format")])
    assert done.listed == tmp_path / "x.bad.csv"
    assert done.listed.read_text() == '"key","reason"\n"17x.png","not an image in a known format"\n'
    assert sorted(os.listdir(tmp_path)) == ["photos", "x.bad.csv", out.name]


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_patches_and_what_a_table_remembers(model: Model, tmp_path: Path, suffix: str) -> None:
    source, out = ToySource(n=50), tmp_path / f"x{suffix}"
    write(model, source, out, patches=True)
    cells = torch.cat([r.patches for r in embeds(model, source, patches=True).rows(range(50), within=PART)])  # type: ignore[misc]
    if suffix == ".npz":
        with np.load(out) as arrays:
            about, found = json.loads(arrays["opendino"].item()), arrays["patches"]
    else:
        table = pq.read_table(out)
        about = table_schema.about(table.schema)
        found = table["patches"].combine_chunks().values.to_numpy(zero_copy_only=False)
    assert found.dtype == np.float16 and np.array_equal(found.reshape(50, 4, 24), cells.numpy())
    assert about["grid"] == [2, 2] and about["dim"] == 24 and about["fingerprint"] == model.fingerprint
    assert sorted(os.listdir(tmp_path)) == [out.name]  # every image could be read: no list of bad ones


def test_a_row_group_holds_several_parts_and_a_large_table_has_several(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "_ROW_GROUP_BYTES", 3 * PART * 24 * 4)  # keys and sizes come on top
    for num_images, expected in ((300, [96, 96, 96, 12]), (192, [96, 96])):
        write(model, ToySource(n=num_images), tmp_path / f"{num_images}.parquet")
        told = pq.ParquetFile(tmp_path / f"{num_images}.parquet").metadata
        assert [told.row_group(i).num_rows for i in range(told.num_row_groups)] == expected


def killed(folder: Path, out: Path, num_images: int, deadly: int) -> None:
    """Run in a process that is killed at one of the images."""
    command = [sys.executable, __file__, folder, out, str(num_images), str(deadly)]
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": root})
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_repeated_kills_do_not_change_the_table(folder: Path, model: Model, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.parquet", tmp_path / "x.parquet"
    write(model, ToySource(n=600), whole)
    for deadly in (150, 420):
        killed(folder, out, 600, deadly)
        assert not out.exists()
    source = Counted(ToySource(n=600))
    done = write(model, source, out)
    # the reader is a batch ahead of the network: of the last part before the image that killed one may be missing
    assert sorted(source.seen) in (list(range(416 - PART, 600)), list(range(416, 600)))
    assert done.written == 600 and out.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["whole.parquet", "x.parquet"]


def cut_off(model: Model, source: Source, out: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    """All parts exist but no table: the merge fails."""
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(table_files, "write", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        write(model, source, out, **options)


def test_parts_of_something_else_are_refused_and_dropped_on_request(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, source = tmp_path / "x.parquet", ToySource(n=70)
    cut_off(model, source, out, monkeypatch)
    other = Model(backbone("conv4", width=3), preprocessing(16), {})
    for who, what, options, told in (
        (other, source, {}, "another model"),
        (model, ToySource(n=71), {}, "another number of images"),
        (model, ToySource(n=70, split="val"), {}, "other images"),
        (model, source, {"patches": True}, "another value of --patches"),
        (model, source, {"part_images": 16}, "other settings"),
    ):
        with pytest.raises(UserError, match=f"holds parts made with {told}.*--overwrite"):
            write(who, what, out, **options)
    again = Counted(source)
    assert write(model, again, out).images_per_second is None and again.seen == []  # nothing was touched
    out.unlink()
    cut_off(other, source, out, monkeypatch)
    assert write(model, source, out, overwrite=True).written == 70
    assert pq.read_schema(out).field("vector").type.list_size == 24 and os.listdir(tmp_path) == ["x.parquet"]


def test_a_damaged_part_is_named(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.csv"
    cut_off(model, ToySource(n=70), out, monkeypatch)
    (part,) = out.with_name("x.csv.parts").glob("part-00001-*")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=r"part-00001-of-00003\.safetensors is damaged.*Remove it"):
        write(model, ToySource(n=70), out)
    part.unlink()
    assert write(model, ToySource(n=70), out).written == 70


def test_parts_of_a_disk_that_was_away_are_read_again(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of three parts is mostly unreadable when it is made; the others stay."""

    class Away(Counted):
        def read(self, index: int) -> bytes | np.ndarray:
            if index >= 2 * PART + 2:
                raise BadImage("cannot be read: Input/output error")
            return super().read(index)

    out, source = tmp_path / "x.parquet", ToySource(n=2 * PART + 12)
    cut_off(model, Away(source), out, monkeypatch)
    again = Counted(source)
    done = write(model, again, out)
    assert done.written == len(source) and not done.bad
    assert sorted(again.seen) == list(range(2 * PART, len(source)))


def test_where_nothing_can_be_read_nothing_is_left(model: Model, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(40):
        (tmp_path / f"photos/{number}.jpg").touch()
    with pytest.raises(UserError, match=r"None of the 40 images can be read, e\.g\. 0\.jpg: empty file"):
        write(model, open_source(tmp_path / "photos"), tmp_path / "x.csv")
    assert os.listdir(tmp_path) == ["photos"]


def test_what_fails_before_a_part_is_done_leaves_nothing(tmp_path: Path) -> None:
    broken = Model(backbone("conv4", width=2), preprocessing(16), {})
    torch.nn.init.constant_(next(broken.backbone.parameters()), float("nan"))
    with pytest.raises(UserError, match="NaN or infinite"):
        write(broken, ToySource(n=3), tmp_path / "x.csv")
    assert os.listdir(tmp_path) == []


def test_only_what_is_ours_is_removed(model: Model, tmp_path: Path) -> None:
    (tmp_path / "x.csv.parts").mkdir()
    (tmp_path / "x.csv.parts/notes.txt").touch()
    write(model, ToySource(n=3), tmp_path / "x.csv")
    assert os.listdir(tmp_path / "x.csv.parts") == ["notes.txt"]


def test_the_twenty_first_bad_image_is_only_listed(model: Model, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "photos/a.png")
    for number in range(45):
        (tmp_path / f"photos/b{number:02d}.jpg").touch()
    done = write(model, open_source(tmp_path / "photos"), tmp_path / "x.csv")
    assert done.skipped == 45 and [key for key, _ in done.bad] == [f"b{number:02d}.jpg" for number in range(20)]
    assert done.listed is not None and len(done.listed.read_text().splitlines()) == 46


@pytest.mark.parametrize(
    ("name", "patches", "told"),
    [
        ("x.txt", False, "no supported suffix"),
        ("x", False, "no supported suffix"),
        ("x.csv", True, "cannot hold patch"),
    ],
)
def test_formats_that_there_are_not(name: str, patches: bool, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        table_files.check(Path(name), patches)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(load(sys.argv[1]), Counted(ToySource(n=int(sys.argv[3])), int(sys.argv[4])), Path(sys.argv[2]))
