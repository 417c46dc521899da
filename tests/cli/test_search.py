"""search, duplicates, outliers, drift, select and map from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.embeddings.conftest import write_table
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
    assert lines[2] == "1 unusable left out, e.g. bad.png: empty file"
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
    assert [each["copy_of"] for each in told["groups"][0]] == [None, "3.png"]
    assert told["sizes"] == {"2": 1} and told["redundant"] == 1 and told["chosen"] is False
    assert main(["duplicates", "t.lance", "--threshold", "0.999", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cosine to the nearest other image: 5% below ")
    assert lines[1] == "threshold 0.999 (as given)"
    assert lines[2] == "1 groups of near-duplicates among 9 images: 1 of 2"
    assert lines[3].startswith("1 images are copies of another by their pixels")


def test_only_copies_by_pixels_are_redundant(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["duplicates", "t.lance", "--threshold", "0.1", "--device", "cpu"]
    assert main([*words, "--sheet", "groups.png"]) == 0
    text = capsys.readouterr().out
    assert "1 groups of near-duplicates among 9 images: 1 of 9" in text  # the features of this model tell little apart
    assert "1 images are copies of another by their pixels and are redundant; 7 more only look similar" in text
    assert Image.open(place / "groups.png").convert("RGB").width > 8 * 160
    assert main([*words, "--sheet", "groups.svg"]) == 0
    capsys.readouterr()
    assert re.findall("group [^<]*", (place / "groups.svg").read_text()) == [f"group 1: {n}/9" for n in range(1, 9)]
    (place / "photos/8.png").unlink()
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["redundant"] == 0 and told["unreadable"] == 1


def test_the_threshold_is_chosen_from_the_set(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = torch.randn(200, 5) @ torch.randn(5, 24) + 100 * torch.randn(24)  # all cosines are near 1
    vectors[150:] = vectors[:50]
    write_table(place / "v.parquet", vectors)
    assert main(["duplicates", "v.parquet", "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    groups = [{each["path"] for each in group} for group in told["groups"]]
    assert all(any({f"{row}.png", f"{150 + row}.png"} <= group for group in groups) for row in range(50))
    assert sum(map(len, groups)) < 110
    assert told["chosen"] is True and told["random_cosine"] > 0.95
    assert told["unreadable"] == sum(map(len, told["groups"])) and told["redundant"] == 0


def test_outliers_come_first(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(8):
        Image.new("RGB", (20, 30), (200, 30 + number, 10)).save(place / f"photos/red{number}.png")
    Image.new("RGB", (20, 30), (0, 0, 255)).save(place / "photos/blue.png")
    assert main(["embed", "model", "photos", "--out", "o.parquet", "--device", "cpu"]) == 0
    capsys.readouterr()
    words = ["outliers", "o.parquet", "--k", "3", "--num", "5", "--out", "o.csv", "--sheet", "o.png", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 18 and len(told["outliers"]) == 5
    assert not any(each["path"].startswith("red") for each in told["outliers"])
    distances = [each["distance"] for each in told["outliers"]]
    assert distances == sorted(distances, reverse=True)
    listed = open_source("o.csv")
    assert told["unusual"] == sum(each["distance"] > told["limit"] for each in told["outliers"])
    assert len(listed) == 18 and Path(listed.key(0)).name == told["outliers"][0]["path"]
    assert Image.open(place / "o.png").convert("RGB").width > 5 * 160
    assert main([*words, "--by", "lof"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " unusual: local outlier factor above " in lines[1]
    factors = [float(line.split()[1]) for line in lines[3:8]]
    assert factors == sorted(factors, reverse=True) and lines[-2:] == ["all 18 → o.csv", "→ o.png"]


def test_drift_is_found_and_images_of_both_tables_are_not_compared(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = torch.randn(200, 24), torch.randn(60, 24)
    new[:30, 0] += 8
    write_table(place / "a.parquet", old)
    write_table(place / "b.parquet", torch.cat([new, old[:20]]))
    words = ["drift", "a.parquet", "b.parquet", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == [200, 60] and told["shared"] == 20 and told["p"] == pytest.approx(1 / 1001)
    assert told["own_frac"][1] > told["expected_frac"][1] + 0.1
    assert sum(int(each["path"].removesuffix(".png")) < 30 for each in told["different"]) >= 29
    assert main([*words, "--sheet", "d.png", "--num", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "the tables differ (p ≤ 0.001): 200 images of a.parquet, 60 of b.parquet; 20 more are in"
    )
    assert lines[2].startswith(
        "brightness, contrast and sharpness are not compared: the images of a.parquet are not at "
    )
    lines.pop(2)
    assert lines[2].startswith("beside it, 3 parts of a.parquet, 60 images each, in the order of the table: ")
    assert "; 0 of them differ from the rest as much as b.parquet does" in lines[2] and len(told["part_fracs"]) == 3
    assert len(lines) == 4 + 1 + 3 + 1 and (place / "d.png").is_file()
    write_table(place / "c.parquet", torch.randn(60, 24))
    assert main(["drift", "a.parquet", "c.parquet", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("no difference is shown") and lines[-1].endswith(
        "may not show in vectors; single odd images: opendino outliers c.parquet"
    )


def test_drift_reads_the_images_and_sees_that_a_fifth_is_brighter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder, num in (("old", 200), ("new", 100), ("same", 100)):
        (tmp_path / folder).mkdir()
        for n in range(num):
            pixels = rng.normal(110 + 8 * rng.normal(), 20, (12, 12)) * (1.35 if folder == "new" and n % 5 == 0 else 1)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / folder / f"{n}.png")
        write_table(tmp_path / f"{folder}.parquet", torch.randn(num, 24), data=str(tmp_path / folder))
    words = ["--device", "cpu", "--permutations", "400"]
    assert main(["drift", "old.parquet", "new.parquet", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    brightness = told["appearance"][0]
    assert told["p"] > 0.01 > brightness["p"] and brightness["name"] == "brightness"
    assert all(int(row["path"].removesuffix(".png")) % 5 == 0 for row in brightness["different"][:5])
    values = [row["value"] for row in brightness["different"]]
    assert len(values) == 40 and values == sorted(values, reverse=True)
    assert brightness["b"]["p90"] > brightness["a"]["p90"] + 0.05 and brightness["a"]["mean"] == pytest.approx(
        0.43, abs=0.01
    )
    assert main(["drift", "old.parquet", "new.parquet", *words, "--sheet", "new.svg", "--num", "3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("the images differ in brightness")
    assert "in the vectors no difference is shown (p = " in out[0]
    listed = next(line for line in out if line.startswith("  brightest of new.parquet: "))
    assert listed.count("(") == 3 and all(f"{row['path']} (" in listed for row in brightness["different"][:3])
    drawn = (tmp_path / "new.svg").read_text()
    assert f"brightness {values[0]:.3f}" in drawn and "no finding" not in drawn
    assert main(["drift", "old.parquet", "same.parquet", *words, "--sheet", "same.svg"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("bright", "contrast", "sharp"))]
    assert len(lines) == 3 and all("no difference is shown" in line for line in lines)
    titles = " ".join(re.findall("<text[^>]*>([^<]*)", (tmp_path / "same.svg").read_text()))
    assert titles.startswith("no difference is shown (p = ") and "these are no finding" in titles


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
    words = ["select", "t.lance", "--num", "7", "--out", "c.txt", "--labeled", "labeled.txt", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["labeled"] == 2
    assert {each["path"] for each in told["chosen"]} == {f"{n}.png" for n in (0, 3, 4, 5, 6, 7, 8)}
    (place / "labeled.txt").write_text("elsewhere/1.png\nother.png\n")
    assert main([*words, "--json"]) == 0
    output = capsys.readouterr()
    assert (
        json.loads(output.out)["labeled"] == 1 and "1 of the 2 images in labeled.txt are not in the table" in output.err
    )
    assert main([*words, "--out", "labeled.txt"]) == 2 and "choose another name" in capsys.readouterr().err


def test_with_classes_the_next_images_are_those_a_classifier_is_unsure_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    angles = torch.cat([torch.linspace(0.0, 0.4, 20), torch.tensor([0.75, 0.8]), torch.linspace(1.17, 1.57, 20)])
    write_table(tmp_path / "v.parquet", torch.stack([angles.cos(), angles.sin()], 1))
    rows = [0, 5, 10, 15, 26, 31, 36, 41]
    lines = [f"{row}.png,{'low' if row < 21 else 'high'}\n" for row in rows]
    (tmp_path / "labels.csv").write_text("path,class\n" + "".join(lines))
    words = ["select", "v.parquet", "--num", "2", "--out", "c.txt", "--labeled", "labels.csv", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["labeled"] == 8 and {each["path"] for each in told["chosen"]} & {"20.png", "21.png"}
    assert all(0 <= each["uncertainty"] <= 1 for each in told["chosen"]) and told["chosen"][0]["uncertainty"] > 0.5
    assert main(words) == 0
    assert "uncertainty of a classifier of the 8 labels, 0 sure to 1 unsure: chosen 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "exit_code", "told"),
    [
        (["search"], 2, "No model was named"),
        (["search", "model", "t.lance"], 2, "No image was named"),
        (["search", "model", "no.lance", "photos/1.png"], 1, "There is no table no.lance"),
        (["search", "model", "photos", "photos/1.png"], 2, "is not the name of a table"),
        (["map", "cells.csv"], 2, "Create one: opendino embed MODEL DATA --out cells.parquet"),
        (["search", "other", "t.lance", "photos/1.png"], 1, "t.lance holds vectors of model, not of other"),
        (["search", "model", "t.lance", "photos/no.png"], 1, "photos/no.png"),
        (["search", "model", "t.lance", "photos/1.png", "-k", "0"], 2, "-k is 0"),
        (["search", "model", "t.lance", "photos/1.png", "--sheet", "s.gif"], 2, "s.gif"),
        (["duplicates", "t.lance", "--threshold", "2"], 2, "--threshold is 2"),
        (["duplicates", "t.lance", "--sheet", "s.gif"], 2, "s.gif"),
        (["outliers", "t.lance", "--k", "9"], 1, "--k is 9, and there are 9 images"),
        (["outliers", "t.lance", "-k", "0"], 2, "-k is 0"),
        (["outliers", "t.lance", "--out", "o.txt"], 2, "o.txt"),
        (["outliers", "t.lance", "--by", "size"], 2, "--by is 'size'"),
        (["drift", "t.lance"], 2, "TABLE"),
        (["drift", "t.lance", "t.lance"], 1, "All 9 images of t.lance are in t.lance too"),
        (["drift", "t.lance", "v.parquet"], 1, "Embed both sets of images with the same model"),
        (["select", "t.lance", "--num", "10", "--out", "c.txt"], 1, "there are 9 images"),
        (["select", "t.lance", "--num", "0", "--out", "c.txt"], 2, "--num is 0"),
        (["select", "t.lance", "--num", "1", "--out", "no/c.txt"], 1, "no folder"),
        (["select", "t.lance", "--num", "1", "--out", "c.png"], 2, "c.png"),
        (["select", "t.lance", "--num", "1", "--out", "c.txt", "--labeled", "bad.txt"], 1, "is in the table"),
    ],
)
def test_mistakes_are_one_line(
    place: Path, words: list[str], exit_code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "bad.txt").write_text("elsewhere.png\n")
    write_table(place / "v.parquet", torch.randn(3, 24))
    assert main(words) == exit_code
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and told in captured.err
    assert not (place / "c.txt").exists()


def test_a_map_is_drawn_with_its_images_colored_by_a_column(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "labels.csv").write_text("path,device\n" + "".join(f"{n}.png,{'xy'[n % 2]}\n" for n in range(9)))
    words = ["map", "t.lance", "--out", "map.png", "--labels", "labels.csv"]
    assert main([*words, "--color-by", "device", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 9 and 2 <= told["shown"] <= 9 and told["groups"] == {"x": 5, "y": 4}
    with Image.open(place / "map.png") as image:
        assert image.width == pytest.approx(2008, abs=2) and image.height > image.width
    assert main([*words, "--color-by", "plate"]) == 1
    assert "no column 'plate'" in capsys.readouterr().err
