"""Retrieval end to end: class folders, and the revisited protocol on a small synthetic benchmark."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import pattern_image

from opendino.cli import main
from opendino.evals.retrieval import scores

Answer = dict[str, Any]
Ask = Callable[..., Answer]
EVAL = "retrieval"


def classes(folder: Path, num_classes: int = 4, copies: int = 3) -> Path:
    """Every class holds one picture several times, in several file formats without loss and color modes."""
    for label in range(num_classes):
        place = folder / f"class{label}"
        place.mkdir(parents=True)
        for copy in range(copies):
            image = pattern_image(label)
            if copy == 1:
                image.convert("RGBA").save(place / "1.webp", lossless=True)
            else:
                image.save(place / f"{copy}.{'png' if copy else 'bmp'}")
    return folder


def benchmark(folder: Path) -> Path:
    """Six images of the database and two queries, in which the landmark is the left half."""
    (folder / "jpg").mkdir(parents=True)
    for number in range(6):
        pattern_image(number).save(folder / f"jpg/image_{number}.png")
    for number in (0, 1):
        wide = Image.new("RGB", (96, 48), "red")
        wide.paste(pattern_image(number), (0, 0))
        wide.save(folder / f"jpg/query_{number}.png")
    return folder


def truth(**changes: Any) -> dict[str, Any]:
    box = np.array([0.0, 0, 48, 48])
    gnd = [
        {"bbx": box, "easy": np.array([0]), "hard": np.array([], np.int64), "junk": np.array([1])},
        {"bbx": box, "easy": [], "hard": [1], "junk": []},
    ]
    return {
        "imlist": [f"image_{n}" for n in range(6)], "qimlist": ["query_0", "query_1"], "gnd": gnd
    } | changes  # fmt: skip


def test_copies_in_every_class_make_everything_100(ask: Ask, tmp_path: Path) -> None:
    answer = ask(classes(tmp_path / "set"))
    assert answer["mAP"] == pytest.approx(100)
    # two others of the class: with five asked for, the last of them is second
    assert answer["mP"] == {"1": 100, "5": 100, "10": 100} and answer["recall"] == {"1": 100, "5": 100, "10": None}
    assert answer["queries"] == answer["images"] == 12 and answer["skipped"] == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--pool", "gem"], ["--multi-scale", "False"], ["--size-px", "20"], ["--batch", "1"], ["--k", "1", "2"],
        ["--whiten", "{}"], ["--gem-power", "1", "--pool", "gem", "--whiten", "{}"], ["--which", "teacher"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_flag_keeps_copies_together(ask: Ask, tmp_path: Path, flags: list[str]) -> None:
    folder = classes(tmp_path / "set")
    answer = ask(folder, *(flag.format(folder) for flag in flags))
    assert answer["mAP"] == pytest.approx(100)
    assert list(answer["mP"]) == (["1", "2"] if "--k" in flags else ["1", "5", "10"])


def test_classes_that_are_no_classes_are_found_by_chance_only(ask: Ask, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"set/{number % 4}").mkdir(parents=True, exist_ok=True)
        pattern_image(number).save(tmp_path / f"set/{number % 4}/{number}.png")  # ten patterns in four classes
    assert 15 < ask(tmp_path / "set")["mAP"] < 60


def test_a_network_that_tells_nothing_apart_gets_no_credit(ask: Ask, tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"set/{number // 2}").mkdir(parents=True, exist_ok=True)
        pattern_image(0).save(tmp_path / f"set/{number // 2}/{number}.png")
    answer = ask(tmp_path / "set")
    assert answer["mAP"] == pytest.approx(100 / 14)  # the one positive comes last of seven: (0/6 + 1/7) / 2
    assert answer["recall"]["5"] == 0


def test_batches_change_nothing(ask: Ask, tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"set/{number % 10}").mkdir(parents=True, exist_ok=True)
        pattern_image(number, side=20 + number % 3 * 15).save(tmp_path / f"set/{number % 10}/{number}.png")
    small, large = (ask(tmp_path / "set", "--batch", batch) for batch in (4, 64))
    assert small == large and 0 < small["mAP"] < 100


def test_odd_modes_and_unreadable_files_are_counted(ask: Ask, tmp_path: Path) -> None:
    folder = classes(tmp_path / "set")
    pattern_image(0).convert("L").save(folder / "class0/gray.png")
    pattern_image(1).convert("P").save(folder / "class1/palette.gif")
    pattern_image(2).convert("CMYK").save(folder / "class2/cmyk.jpg")
    (folder / "class3/broken.jpg").write_bytes(b"\xff\xd8 no image")
    (folder / "class3/empty.png").touch()
    answer = ask(folder)
    assert answer["images"] == 15 and answer["skipped"] == 2


def test_the_only_one_of_its_class_is_no_query(ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = classes(tmp_path / "set")
    (folder / "lonely").mkdir()
    pattern_image(9).save(folder / "lonely/9.png")
    answer = ask(folder)
    assert answer["images"] == 13 and answer["queries"] == 12
    assert answer["mAP"] == pytest.approx(100)


def test_the_table_says_the_protocol(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "retrieval", str(tiny_model), str(classes(tmp_path / "set"))]) == 0
    text = capsys.readouterr().out
    assert "100.00" in text and "mP@10" in text and "multiples of 8 px" in text and "each image is a query" in text


@pytest.mark.parametrize("form", ["pickle", "json", "found in DATA"])
def test_revisited_protocol(ask: Ask, tmp_path: Path, form: str) -> None:
    folder = benchmark(tmp_path / "bench")
    if form == "json":
        file = tmp_path / "truth.json"
        file.write_text(json.dumps(truth(), default=lambda array: array.tolist()))
    else:
        file = (folder if form == "found in DATA" else tmp_path) / "gnd_small.pkl"
        file.write_bytes(pickle.dumps(truth()))
    answer = ask(folder, *([] if form == "found in DATA" else ["--ground-truth", file]))
    # cropped to its box, each query equals its positive image
    assert answer["easy"] == {"mAP": 100, "mP": {"1": 100, "5": 100, "10": 100}, "queries": 1}
    assert answer["hard"] == {"mAP": 100, "mP": {"1": 100, "5": 100, "10": 100}, "queries": 1}
    assert answer["medium"]["queries"] == 2 and answer["medium"]["mAP"] == answer["mAP"] == 100
    assert answer["images"] == 6


def test_queries_are_cropped_to_their_box_by_default(ask: Ask, tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "bench")
    (folder / "gnd_small.pkl").write_bytes(pickle.dumps(truth()))
    whole = ask(folder, "--crop-queries", "False")
    assert whole["mAP"] < 100 and "not cropped" in whole["protocol"]
    entire = truth()
    for entry in entire["gnd"]:
        entry["bbx"] = np.array([0.0, 0, 96, 48])
    (folder / "gnd_small.pkl").write_bytes(pickle.dumps(entire))
    assert ask(folder)["mAP"] == whole["mAP"]


def test_junk_and_the_other_lists_are_ignored(ask: Ask, tmp_path: Path) -> None:
    """The query's own image is easy, another is hard: the hard score must not depend on the easy image."""
    folder = benchmark(tmp_path / "bench")

    def asked(**lists: list[int]) -> Answer:
        gnd = [{"bbx": [0, 0, 48, 48], **lists}]
        (folder / "gnd_small.json").write_text(json.dumps(truth(qimlist=["query_0"], gnd=gnd)))
        return ask(folder)

    both = asked(easy=[0], hard=[3], junk=[])
    assert both["easy"]["mAP"] == 100
    assert both["hard"]["mAP"] == asked(hard=[3], junk=[0])["hard"]["mAP"]
    without = asked(hard=[3])["hard"]["mAP"]  # now image 0 is in the way
    assert without < both["hard"]["mAP"]
    assert asked(hard=[3], junk=[0, 1, 2, 4, 5])["hard"]["mAP"] == 100
    empty = asked(easy=[0])
    assert empty["hard"] == {"mAP": None, "mP": {"1": None, "5": None, "10": None}, "queries": 0}


def test_unreadable_images_leave_the_benchmark(ask: Ask, tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "bench")
    (folder / "jpg/image_0.png").write_bytes(b"damaged")
    (folder / "gnd_small.pkl").write_bytes(pickle.dumps(truth()))
    answer = ask(folder)
    assert answer["skipped"] == 1 and answer["images"] == 5
    assert answer["easy"]["queries"] == 0 and answer["medium"]["queries"] == 1 and answer["mAP"] == 100


def test_a_box_outside_of_the_image_makes_the_query_unusable(ask: Ask, tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "bench")
    entries = truth()
    entries["gnd"][0]["bbx"] = [200, 200, 300, 300]
    (folder / "gnd_small.pkl").write_bytes(pickle.dumps(entries))
    answer = ask(folder)
    assert answer["skipped"] == 1 and answer["medium"]["queries"] == 1


def test_mistakes_are_one_line(ask: Ask, tmp_path: Path) -> None:
    def told(*words: object) -> tuple[int, str]:
        answer = ask(*words)
        return answer["exit"], f"{answer['error']['message']} | {answer['error']['hint']}"

    folder = classes(tmp_path / "set")
    flat, bench, broken = tmp_path / "flat", benchmark(tmp_path / "bench"), tmp_path / "broken"
    flat.mkdir()
    pattern_image(0).save(flat / "one.png")
    for number in range(2):
        (broken / str(number)).mkdir(parents=True)
        (broken / f"{number}/x.jpg").write_bytes(b"no image")
    singles = tmp_path / "singles"
    for number in range(2):
        (singles / str(number)).mkdir(parents=True)
        pattern_image(number).save(singles / f"{number}/x.png")
    cases = {
        (): (2, "No images were named"),
        (tmp_path / "gone",): (1, "gone does not exist"),
        (flat,): (1, "flat has no classes | Sort the images into one sub-folder per class"),
        (broken,): (1, "None of the 2 images can be read, e.g. 0/x.jpg"),
        (singles,): (1, "No class of"),
        (folder, "--whiten", tmp_path / "gone"): (1, "gone does not exist"),
        (folder, "--whiten", flat): (1, "Whitening cannot be learned from a single image"),
        (folder, "--ground-truth", tmp_path / "gone.pkl"): (1, "Cannot read"),
        (folder, "--size-px", 0): (2, "--size-px is 0"),
        (folder, "--batch", 0): (2, "--batch is 0"),
        (folder, "--gem-power", 0): (2, "--gem-power is 0"),
        (folder, "--k", 0): (2, "--k is 0"),
        (folder, "--k"): (2, "--k is empty"),
        (folder, "--pool", "max"): (2, "max"),
        (folder, "--device", "gpu"): (2, "Unknown device 'gpu'"),
        (folder, "--which", "student"): (1, "holds no student"),
    }
    for words, (code, said) in cases.items():
        found, line = told(*words)
        assert found == code and said in line, (words, line)

    def with_truth(content: Any) -> str:
        (bench / "gnd_small.pkl").write_bytes(pickle.dumps(content))
        return told(bench)[1]

    names = truth()["imlist"]
    absent = with_truth(truth(imlist=[*names[:5], "image_9"]))
    assert "lacks 1 images of the ground truth, e.g. image_9" in absent
    assert "No query of the ground truth has a positive image" in with_truth(truth(gnd=[{}, {}]))
    (bench / "gnd_other.json").touch()
    assert "has 2 ground truth files | Choose one, e.g. --ground-truth" in told(bench)[1]
    (bench / "gnd_other.json").unlink()
    (bench / "more").mkdir()
    pattern_image(0).save(bench / "more/image_0.jpg")
    assert "has several images named 'image_0'" in with_truth(truth())


def test_a_malicious_ground_truth_is_refused_and_runs_nothing(ask: Ask, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = benchmark(tmp_path / "bench")
    (folder / "gnd_small.pkl").write_bytes(pickle.dumps(truth(gnd=[Evil(), Evil()])))
    answer = ask(folder)
    assert answer["exit"] == 1 and "mkdir', which is not plain data" in answer["error"]["message"]
    assert not (tmp_path / "ran").exists()


def test_means_are_over_the_queries_that_have_something_to_find() -> None:
    found = scores([torch.tensor([0]), torch.tensor([], dtype=torch.int64), torch.tensor([1])], (1, 5))
    assert found == {
        "mAP": 100 * (1 + 1 / 4) / 2,
        "mP": {"1": 50, "5": 100 * (1 + 1 / 2) / 2},  # the positive is second: one of two
        "recall": {"1": 50, "5": 100},
        "queries": 2,
    }
    assert scores([], (1,)) == {"mAP": None, "mP": {"1": None}, "recall": {"1": None}, "queries": 0}
