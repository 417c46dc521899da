"""Copy detection end to end: the layout of Copydays, synthetic copies, and near-duplicates of a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.factories import pattern_image

from opendino.cli import main
from opendino.datasets.copy_transforms import COPIES
from opendino.evals.copy_detection import copy_precision

Answer = dict[str, Any]
Ask = Callable[..., Answer]
EVAL = "copy-detection"


def folder_of(folder: Path, numbers: range) -> Path:
    folder.mkdir(parents=True)
    for number in numbers:
        pattern_image(number).save(folder / f"{number}.png")
    return folder


def copydays(folder: Path, num: int = 5) -> Path:
    """Originals, exact copies as `jpegqual/75` and `crops/10`, copies of other images as `strong`."""
    for block in ("original", "jpegqual/75", "crops/10", "strong"):
        (folder / block).mkdir(parents=True)
    for number in range(num):
        for block in ("original", "jpegqual/75", "crops/10"):
            pattern_image(number).save(folder / block / f"20{number:02d}00.png")
        for copy in (1, 2):
            pattern_image(number + (copy == 2)).save(folder / f"strong/20{number:02d}{copy:02d}.png")
    return folder


def test_copydays_of_exact_copies_is_100_and_strong_is_told_apart(ask: Ask, tmp_path: Path) -> None:
    answer = ask(copydays(tmp_path / "copydays"))
    assert answer["blocks"]["jpegqual/75"] == answer["blocks"]["crops/10"] == pytest.approx(100)
    # the first strong copy of each is exact; the second is of the next image, so its original comes second or later
    assert 50 < answer["mAP_strong"] <= 50 + 50 / 4 + 1e-9
    assert answer["mAP"] == answer["mAP_strong"] == answer["blocks"]["strong"]
    assert answer["mAP_all"] == pytest.approx((5 * 100 + 5 * 100 + 10 * answer["mAP_strong"]) / 20)
    assert answer["queries"] == 20 and answer["originals"] == 5 and "320 px square" in answer["protocol"]


def test_distractors_join_the_database_and_whitening_is_learnt(ask: Ask, tmp_path: Path) -> None:
    set_, others = copydays(tmp_path / "copydays"), folder_of(tmp_path / "others", range(20, 30))
    plain, crowded = ask(set_), ask(set_, "--distractors", others)
    assert crowded["distractors"] == 10
    assert crowded["mAP_strong"] <= plain["mAP_strong"]
    white = ask(set_, "--whiten", others, "--size-px", 32)
    assert "PCA whitening learned on 10 images" in white["protocol"] and "32 px square" in white["protocol"]
    assert white["blocks"]["crops/10"] == pytest.approx(100)


def test_an_original_among_distractors_that_are_its_copies_is_not_found(ask: Ask, tmp_path: Path) -> None:
    set_ = copydays(tmp_path / "copydays", num=1)
    (tmp_path / "others").mkdir()
    for number in range(20):
        pattern_image(0).save(tmp_path / f"others/{number}.png")
    assert ask(set_, "--distractors", tmp_path / "others")["blocks"]["crops/10"] == 0  # rank 20, and 20 count


def test_copies_without_numbers_go_by_name_and_the_folder_may_lie_deeper(ask: Ask, tmp_path: Path) -> None:
    for block in ("original", "blurred"):
        folder_of(tmp_path / "data/deeper" / block, range(5, 9))
    pattern_image(50).save(tmp_path / "data/deeper/blurred/nobody.png")
    (tmp_path / "data/deeper/original/8.png").write_bytes(b"damaged")
    answer = ask(tmp_path / "data", "--mode", "copydays")
    assert answer["blocks"] == {"blurred": pytest.approx(100)} and answer["mAP"] == answer["mAP_all"]
    assert answer["mAP_strong"] is None
    assert answer["queries"] == 3 and answer["skipped"] == 1  # neither nobody.png nor 8.png has an original


def test_numbered_originals_that_are_not_copydays_go_by_name(ask: Ask, tmp_path: Path) -> None:
    for block in ("original", "jpeg"):
        for number in range(5):
            folder = tmp_path / "data" / block
            folder.mkdir(parents=True, exist_ok=True)
            pattern_image(number).save(folder / f"{number + 1:04}.png")
    answer = ask(tmp_path / "data", "--mode", "copydays")
    assert answer["queries"] == 5 and answer["mAP"] == pytest.approx(100)  # 0001 is no copy of 0002


def test_only_the_first_results_count() -> None:
    database = torch.eye(30)
    queries = torch.linspace(1, 0.1, 30).repeat(2, 1)
    found = copy_precision(queries, database, lambda query: [19 + query], depth=20)
    assert found == [pytest.approx(1 / 40), 0]
    assert copy_precision(queries[:1], database, lambda query: [0, 29]) == [0.5]


def test_synthetic_copies(ask: Ask, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "set", range(6))
    answer = ask(images)
    assert list(answer["blocks"]) == list(COPIES)
    assert answer["queries"] == 6 * len(COPIES) and answer["originals"] == 6
    assert answer["mAP"] == answer["mAP_all"] == pytest.approx(sum(answer["blocks"].values()) / len(COPIES))
    assert answer["blocks"]["blur"] > 50 and 0 < answer["mAP"] < 100
    assert ask(images, "--batch", 2) == answer
    assert ask(copydays(tmp_path / "copydays"), "--mode", "augment")["originals"] == 25


def test_one_image_alone_is_refused(ask: Ask, tmp_path: Path) -> None:
    error = ask(folder_of(tmp_path / "one", range(1)))["error"]
    assert "has only 1 original" in error["message"] and "at least 2" in error["hint"]


@pytest.fixture
def with_copies(tmp_path: Path) -> Path:
    """Twelve pictures; of two of them there are also a JPEG and a smaller copy."""
    images = folder_of(tmp_path / "set", range(12))
    (images / "sub").mkdir()
    for number in (3, 7):
        pattern_image(number).save(images / f"sub/again{number}.jpg", quality=95)
        pattern_image(number).resize((40, 40), Image.Resampling.LANCZOS).save(images / f"small{number}.png")
    return images


def test_near_duplicates_are_the_planted_ones(ask: Ask, with_copies: Path) -> None:
    answer = ask(with_copies, "--mode", "duplicates", "--threshold", 0.995)
    assert sorted(sorted(group["files"]) for group in answer["groups"]) == [
        ["3.png", "small3.png", "sub/again3.jpg"],
        ["7.png", "small7.png", "sub/again7.jpg"],
    ]
    assert all(0.995 <= value <= 1 for group in answer["groups"] for value in group["similarity"])
    assert answer["duplicates"] == 4 and answer["images"] == 16


def test_the_groups_are_printed(tiny_model: Path, with_copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (with_copies / "broken.png").write_bytes(b"\x89PNG")
    words = [
        "eval",
        "copy-detection",
        str(tiny_model),
        str(with_copies),
        "--mode",
        "duplicates",
        "--threshold",
        "0.995",
    ]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Near-duplicates in {with_copies}: 2 groups, 16 images compared\n")
    assert "  sub/again3.jpg\n" in text and "1 unusable left out, e.g. broken.png" in text


def test_without_a_threshold_a_small_folder_has_only_equal_images(ask: Ask, with_copies: Path) -> None:
    answer = ask(with_copies, "--mode", "duplicates")
    assert answer["threshold"] == 1 - 1e-6
    assert all(min(group["similarity"]) >= 1 - 1e-6 for group in answer["groups"])


def test_no_duplicates(ask: Ask, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "set", range(8))
    answer = ask(images, "--mode", "duplicates", "--threshold", 0.999)
    assert answer["groups"] == [] and answer["duplicates"] == 0
    assert ask(folder_of(tmp_path / "one", range(1)), "--mode", "duplicates")["groups"] == []


def test_mistakes_are_one_line(ask: Ask, tmp_path: Path) -> None:
    images, broken = folder_of(tmp_path / "set", range(2)), tmp_path / "broken"
    broken.mkdir()
    (broken / "x.jpg").write_bytes(b"no image")
    strangers = tmp_path / "strangers"
    for block, number in (("original", 1), ("strong", 2)):
        folder_of(strangers / block, range(number, number + 1))
    cases = {
        (): (2, "No images were named"),
        (tmp_path / "gone",): (1, "gone does not exist"),
        (broken,): (1, "None of the 1 images can be read, e.g. x.jpg"),
        (images, "--mode", "copydays"): (1, "does not have the layout of Copydays"),
        (images, "--distractors", tmp_path / "gone"): (1, "gone does not exist"),
        (images, "--whiten", tmp_path / "gone"): (1, "gone does not exist"),
        (images, "--threshold", 2): (2, "--threshold is 2"),
        (images, "--threshold", -1): (2, "--threshold is -1"),
        (images, "--threshold", "nan"): (2, "--threshold is nan"),
        (images, "--size-px", 0): (2, "--size-px is 0"),
        (images, "--batch", 0): (2, "--batch is 0"),
        (images, "--mode", "duplicates", "--distractors", images): (2, "--distractors cannot be used"),
        (images, "--mode", "find"): (2, "find"),
        (images, "--size", 9): (2, "Unknown option '--size'"),
        (strangers,): (1, "No copy in"),
    }
    for words, (code, said) in cases.items():
        answer = ask(*words)
        assert answer["exit"] == code and said in answer["error"]["message"], (words, answer)
