"""search, duplicates and select from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.factories import model_folder, noise_folder, noise_image, small_vit

from opendino.cli import main
from opendino.data.open_source import open_source


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with a model, another, nine photos of which 3 and 8 are the same, and their table."""
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "model", small_vit())
    model_folder(tmp_path / "other", small_vit(seed=1))
    noise_folder(tmp_path / "photos", 8)
    noise_image(seed=3).save(tmp_path / "photos/8.png")
    assert main(["embed", "model", "photos", "--out", "t.lance", "--device", "cpu"]) == 0
    assert "9 new, 0 changed, 0 unchanged → t.lance" in capsys.readouterr().out
    return tmp_path


def test_search_shows_paths_and_scores_the_best_first(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "model", "t.lance", "photos/4.png", "-k", "3", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["query"] == "photos/4.png" and told["exact"] is True
    assert told["results"][0] == {"path": "4.png", "score": pytest.approx(1, abs=1e-6)}
    scores = [each["score"] for each in told["results"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert main([*words[:4], "photos/5.png", *words[4:], "--json"]) == 0
    several = json.loads(capsys.readouterr().out)["searches"]
    assert [each["results"][0]["path"] for each in several] == ["4.png", "5.png"]
    assert several[0] == {key: told[key] for key in ("query", "results")}
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["photos/4.png: 3 of 9 images, exact", "   1.0000  4.png"]


def test_a_parquet_file_is_searched_alike(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "model", "photos", "--out", "t.parquet", "--device", "cpu"]) == 0
    capsys.readouterr()
    found = []
    for table in ("t.lance", "t.parquet"):
        assert main(["search", "model", table, "photos/4.png", "--json", "--device", "cpu"]) == 0
        found.append(json.loads(capsys.readouterr().out)["results"])
    assert [{each["path"] for each in results} for results in found] == [{f"{n}.png" for n in range(9)}] * 2
    for one, other in zip(*found, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=2e-6)  # rounded to six digits


def test_a_table_follows_its_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "photos/8.png").unlink()
    Image.new("RGB", (9, 9), "red").save(place / "photos/red.png")
    (place / "photos/bad.png").write_bytes(b"")
    words = ["embed", "model", "photos", "--out", "t.lance", "--device", "cpu"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 new, 0 changed, 8 unchanged → t.lance"
    assert lines[1] == "1 are no longer in photos, e.g. 8.png; --prune removes them"
    assert lines[2] == "1 unreadable left out, e.g. bad.png: empty file"
    assert main([*words, "--prune", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    counts = {key: told[key] for key in ("written", "unchanged", "removed", "vanished", "skipped")}
    assert counts == {"written": 0, "unchanged": 9, "removed": 1, "vanished": 0, "skipped": 1}
    assert main(["embed", "other", "photos", "--out", "t.lance", "--device", "cpu"]) == 1
    assert "t.lance holds vectors of model, not of other" in capsys.readouterr().err
    assert main(["embed", "model", "photos", "--out", "t.parquet", "--prune"]) == 2
    assert "--prune is for .lance tables" in capsys.readouterr().err


def test_a_sheet_is_drawn_even_of_images_that_have_gone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "query.png").write_bytes((place / "photos/4.png").read_bytes())
    words = ["search", "model", "t.lance", "query.png", "-k", "2", "--sheet", "s.png", "--device", "cpu"]
    assert main(words) == 0
    whole = Image.open(place / "s.png").convert("RGB")
    assert whole.width == 3 * 168 + 8
    for file in (place / "photos").iterdir():
        file.unlink()
    assert main(words) == 0
    assert Image.open(place / "s.png").convert("RGB").getpixel((8 + 168 + 5, whole.height - 20)) == (0xDD, 0xDD, 0xDD)
    assert capsys.readouterr().err == ""


def test_duplicates_are_grouped(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["duplicates", "t.lance", "--threshold", "0.999", "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [[each["path"] for each in group] for group in told["groups"]] == [["3.png", "8.png"]]
    assert told["groups"][0][0]["score"] == pytest.approx(1, abs=1e-6) and told["images"] == 9
    assert main(["duplicates", "t.lance", "--threshold", "0.999", "--device", "cpu"]) == 0
    assert "1 groups of near-duplicates" in capsys.readouterr().out


def test_select_writes_a_list_that_is_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "lists").mkdir()
    assert main(["select", "t.lance", "--num", "8", "--out", "lists/c.txt", "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    paths = [each["path"] for each in told["chosen"]]
    assert len({*paths}) == 8 and not {"3.png", "8.png"} <= set(paths)
    radii = [each["radius"] for each in told["chosen"]]
    assert radii == sorted(radii, reverse=True) and radii[-1] == pytest.approx(0, abs=1e-3)
    source = open_source("lists/c.txt")
    assert [source.read(i) for i in range(8)] == [(place / "photos" / path).read_bytes() for path in paths]
    (place / "labeled.txt").write_text("photos/1.png\n2.png\n")
    words = ["select", "t.lance", "--num", "7", "--out", "c.txt", "--start-from", "labeled.txt", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["labeled"] == 2
    assert {each["path"] for each in told["chosen"]} == {f"{n}.png" for n in (0, 3, 4, 5, 6, 7, 8)}


@pytest.mark.parametrize(
    ("words", "exit_code", "told"),
    [
        (["search"], 2, "No model was named"),
        (["search", "model", "t.lance"], 2, "No image was named"),
        (["search", "model", "no.lance", "photos/1.png"], 1, "There is no table no.lance"),
        (["search", "model", "photos", "photos/1.png"], 2, "is not the name of a table"),
        (["search", "other", "t.lance", "photos/1.png"], 1, "t.lance holds vectors of model, not of other"),
        (["search", "model", "t.lance", "photos/no.png"], 1, "photos/no.png"),
        (["search", "model", "t.lance", "photos/1.png", "-k", "0"], 2, "-k is 0"),
        (["search", "model", "t.lance", "photos/1.png", "--sheet", "s.gif"], 2, "s.gif"),
        (["duplicates", "t.lance", "--threshold", "2"], 2, "--threshold is 2"),
        (["select", "t.lance", "--num", "10", "--out", "c.txt"], 1, "there are 9 images"),
        (["select", "t.lance", "--num", "0", "--out", "c.txt"], 2, "--num is 0"),
        (["select", "t.lance", "--num", "1", "--out", "no/c.txt"], 1, "no folder"),
        (["select", "t.lance", "--num", "1", "--out", "c.png"], 2, "c.png"),
        (["select", "t.lance", "--num", "1", "--out", "c.txt", "--start-from", "bad.txt"], 1, "is in the table"),
    ],
)
def test_mistakes_are_one_line(
    place: Path, words: list[str], exit_code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "bad.txt").write_text("elsewhere.png\n")
    assert main(words) == exit_code
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and told in captured.err
    assert not (place / "c.txt").exists()
