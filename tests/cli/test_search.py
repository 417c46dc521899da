"""search, duplicates and select from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from opendino.cli import main
from opendino.data.open import open_source
from opendino.models.build import backbone
from opendino.models.load import load, preprocessing, save_backbone
from opendino.search import embed, lance


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, another, nine photos of which 3 and 8 are the same, and their table."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "other"):
        network = backbone("vit/8", image_px=16, embed_dim=24, depth=1, num_heads=2)
        save_backbone(tmp_path / name, {"teacher": network}, preprocessing=preprocessing(16))
    (tmp_path / "photos").mkdir()
    for number in range(9):
        pixels = torch.randint(
            0, 256, (20, 30, 3), generator=torch.Generator().manual_seed(number % 8 + 3 * (number == 8))
        )
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(tmp_path / f"photos/{number}.png")
    source = open_source("photos")
    origin = embed.origin(load("model"), source, name="model", which=None, data="photos")
    lance.update("t.lance", load("model"), source, origin)
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


def test_a_sheet_is_drawn_even_of_images_that_have_gone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "query.png").write_bytes((place / "photos/4.png").read_bytes())
    words = ["search", "model", "t.lance", "query.png", "-k", "2", "--sheet", "s.png", "--device", "cpu"]
    assert main(words) == 0
    whole = Image.open(place / "s.png").convert("RGB")
    assert whole.width == 3 * 168 + 8
    for file in (place / "photos").iterdir():
        file.unlink()
    assert main(words) == 0
    assert Image.open(place / "s.png").convert("RGB").getpixel((8 + 168 + 5, 8 + 5)) == (0xDD, 0xDD, 0xDD)
    assert capsys.readouterr().err == ""


def test_duplicates_are_grouped(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["duplicates", "t.lance", "--threshold", "0.999", "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [[each["path"] for each in group] for group in told["groups"]] == [["3.png", "8.png"]]
    assert told["groups"][0][0]["score"] == pytest.approx(1, abs=1e-6) and told["images"] == 9
    assert main(["duplicates", "t.lance", "--threshold", "0.999", "--device", "cpu"]) == 0
    assert "1 groups of near-copies" in capsys.readouterr().out


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
    (place / "labelled.txt").write_text("photos/1.png\n2.png\n")
    words = ["select", "t.lance", "--num", "7", "--out", "c.txt", "--start-from", "labelled.txt", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["labelled"] == 2
    assert {each["path"] for each in told["chosen"]} == {f"{n}.png" for n in (0, 3, 4, 5, 6, 7, 8)}


@pytest.mark.parametrize(
    ("words", "exit_code", "told"),
    [
        (["search"], 2, "No model was named"),
        (["search", "model", "t.lance"], 2, "No image was named"),
        (["search", "model", "no.lance", "photos/1.png"], 1, "There is no table no.lance"),
        (["search", "model", "photos", "photos/1.png"], 2, "is no table"),
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
