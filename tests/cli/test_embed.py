"""Embedding from the command line, alone and under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from tests.factories import model_folder, noise_image, small_vit

from opendino.cli import main
from opendino.data.open_source import open_source
from opendino.datasets import video_frames
from opendino.embeddings import resumable_parts, table_schema
from opendino.embeddings.table_images import TableImages
from opendino.models.load import load

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "vit"
    model_folder(folder, small_vit(), student=small_vit(seed=1))
    return folder


def test_a_row_for_every_readable_image(folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos.parent / "x.parquet"
    words = ["embed", str(folder), str(photos), "--out", str(out), "--device", "cpu"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "5 images" in told and "images/s" in told
    assert "1 unusable left out, e.g. broken.jpg: not an image in a known format; all in" in told
    assert pq.read_table(out)["key"].to_pylist() == [f"{number}.png" for number in range(5)]
    about = table_schema.about(pq.read_schema(out))
    assert (about["model"], about["which"], about["data"], about["images"]) == (str(folder), None, str(photos), 6)
    assert main([*words, "--overwrite", "--which", "student", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert (fields["table"], fields["written"], fields["skipped"]) == (str(out), 5, 1)
    assert fields["bad"] == [["broken.jpg", "not an image in a known format"]]
    assert fields["seconds"] > 0 and fields["images_per_second"] > 0
    assert fields["fingerprint"] == load(folder, "student").fingerprint != about["fingerprint"]
    assert table_schema.about(pq.read_schema(out))["fingerprint"] == fields["fingerprint"]


def test_frames_of_a_film_are_embedded_and_found_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film, out = tmp_path / "film.mp4", tmp_path / "x.parquet"
    video_frames.write(film, (np.asarray(noise_image(32, 32, seed=number)) for number in range(8)), Fraction(2))
    assert main(["embed", str(folder), str(film), "--every", "2s", "--out", str(out), "--device", "cpu"]) == 0
    assert "gives 2 frames (the first of every 2s; for others --every" in " ".join(capsys.readouterr().err.split())
    assert pq.read_table(out)["key"].to_pylist() == ["film.mp4#00000.000", "film.mp4#00002.000"]
    images = TableImages(table_schema.about(pq.read_schema(out)), ["film.mp4#00002.000"], 32 * 32)
    read = images.read("film.mp4#00002.000")
    assert read is not None and np.array_equal(np.asarray(read), open_source(str(film)).read(2))
    assert images.read("film.mp4#00000.000") is None  # not asked for


@pytest.mark.parametrize(
    ("words", "exit_code", "told"),
    [
        ([], 2, "No model was named"),
        (["{folder}"], 2, "No images were named"),
        (["{folder}", "{photos}"], 2, "opendino embed lacks --out"),
        (["{folder}", "{photos}", "--out", "{photos}/../x.txt"], 2, "Use one of .parquet, .csv, .npz"),
        (["{folder}", "{photos}", "--out", "{photos}/../x.csv", "--patches"], 2, "cannot hold patch features"),
        (["{folder}", "{photos}", "--out", "{photos}/no/such/folder/x.csv"], 1, "There is no folder to write"),
        (["{folder}", "{photos}", "--out", "{photos}/../there.csv"], 1, "there.csv exists"),
        (["{folder}", "{photos}", "--out", "{photos}/../folder.csv", "--overwrite"], 1, "folder.csv is a folder"),
        (["{folder}", "nowhere", "--out", "{photos}/../x.csv"], 1, "nowhere does not exist"),
        (["nowhere", "{photos}", "--out", "{photos}/../x.csv"], 1, "There is no folder 'nowhere'"),
        (["{folder}", "{photos}", "--out", "{photos}/../x.csv", "--batch", "0"], 2, "--batch is 0"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    folder: Path, photos: Path, words: list[str], exit_code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.parent / "there.csv").touch()
    (photos.parent / "folder.csv").mkdir()
    assert main(["embed", *(word.format(folder=folder, photos=photos) for word in words)]) == exit_code
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and told in captured.err
    assert sorted(os.listdir(photos.parent)) == ["folder.csv", "photos", "there.csv"]


def test_without_pyarrow_a_parquet_is_refused_and_a_csv_written(
    folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = photos.parent / "x"
    assert main(["embed", str(folder), str(photos), "--out", f"{out}.parquet", "--device", "cpu"]) == 1
    assert 'pip install "opendino[search]"' in capsys.readouterr().err
    assert main(["embed", str(folder), str(photos), "--out", f"{out}.csv", "--device", "cpu"]) == 0
    assert "vectors only: for search, map, duplicates and outliers write a .parquet" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "exit_code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 1)])
def test_what_stops_it_names_the_way_on(
    folder: Path, photos: Path, error: BaseException, exit_code: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(resumable_parts, "write", stop)
    words = ["embed", str(folder), str(photos), "--out", str(photos.parent / "x.csv"), "--device", "cpu"]
    assert main(words) == exit_code
    assert "The same command continues from here" in capsys.readouterr().err.replace("; the", ". The")


@pytest.mark.slow
def test_two_processes_write_the_table_of_one(folder: Path, tmp_path: Path) -> None:
    data = f"toy:?n={2 * 512 + 40}&size=16"  # three parts
    words = ["embed", str(folder), data, "--device", "cpu", "--workers", "1", "--json"]
    assert main([*words, "--out", str(tmp_path / "one.parquet")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "opendino"]
    command = [*launch, *words, "--out", str(tmp_path / "two.parquet")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads(ended.stdout)["written"] == 1064
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["one.parquet", "two.parquet"]
