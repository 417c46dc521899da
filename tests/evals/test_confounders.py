"""Batch effects: uniform p-values without one; found where there is one; told apart from the class."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import plain_folder
from torch import Tensor

from opendino.cli import main
from opendino.data.sources import toy
from opendino.evals.confounders import PROBES, Config, Images, Probe, across, evaluate, predict, readability
from opendino.features.classification_metrics import association, balanced_accuracy

EVAL = "confounders"
SETTINGS = Config("model", permutations=199)


def plates(strength: float, num: int = 160, related: float = 0.0) -> Images:
    """Features of two classes and two plates. Each shifts them in a direction of its own; `related` is the share of
    images whose plate is that of their class."""
    classes = torch.arange(num) % 2
    groups = torch.where(torch.rand(num) < related, classes, torch.randint(0, 2, (num,)))
    features = torch.randn(num, 6)
    features[:, 0] += 2.0 * classes
    features[:, 1] += strength * groups
    features += 3  # cosines are not of centered vectors
    val = torch.arange(num) >= num // 2
    return Images(features, val, classes, ("a", "b"), {"plate": groups}, {"plate": ("x", "y")})


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("related", [0.0, 0.6])
def test_p_is_uniform_without_an_effect(probe: Probe, related: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = []
    for draw in range(200):
        images = plates(0.0, related=related)
        settings = Config("model", permutations=59, seed=draw)
        found.append(readability(images, images.groups["plate"], images.classes, probe, settings).p)
    assert stats.kstest(found, "uniform").pvalue > 0.01


@pytest.mark.parametrize("probe", PROBES)
def test_an_effect_is_found_and_chance_is_what_the_class_explains(probe: Probe) -> None:
    images = plates(4.0)
    found = readability(images, images.groups["plate"], images.classes, probe, SETTINGS)
    assert found.p == 1 / 200 and found.balanced_accuracy > 85 and abs(found.by_chance - 50) < 3
    related = plates(0.0, num=600, related=0.8)
    groups = related.groups["plate"]
    within = readability(related, groups, related.classes, probe, SETTINGS)
    alone = readability(related, groups, None, probe, SETTINGS)
    assert alone.p == 1 / 200 and alone.by_chance < 53  # read by way of the class
    assert within.p > 0.02 and within.by_chance == pytest.approx(within.balanced_accuracy, abs=4)


def test_balanced_accuracy_by_hand() -> None:
    truth, predicted = torch.tensor([0, 0, 0, 0, 3, 3]), torch.tensor([0, 0, 0, 3, 3, 0])
    accuracy, error = balanced_accuracy(predicted, truth)
    assert accuracy == pytest.approx((75 + 50) / 2)
    assert error == pytest.approx(50 * np.sqrt(0.75 * 0.25 / 4 + 0.5 * 0.5 / 2))


def test_k_nearest_vote_by_majority() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 1.0, 1.1, 0.05, 0.9])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    labels, train = torch.tensor([0, 1, 1, 2, 2, -1, -1]), torch.arange(7) < 5

    def voted(k: int) -> list[int]:
        return predict(features, labels, (train, ~train), "knn", k).tolist()

    assert voted(1) == [0, 2] and voted(3) == [1, 2] and voted(100) == [1, 1]


def test_association_is_cramers() -> None:
    contingency = pytest.importorskip("scipy.stats.contingency")
    one, other = torch.randint(0, 3, (200,)), torch.randint(0, 4, (200,))
    other[:60] = one[:60]
    counts = np.zeros((3, 4), np.int64)
    np.add.at(counts, (one.numpy(), other.numpy()), 1)
    assert association(one, other) == pytest.approx(contingency.association(counts, "cramer"), abs=1e-12)
    assert association(torch.cat([one, Tensor([-1]).long()]), torch.cat([other, Tensor([0]).long()])) == pytest.approx(
        association(one, other)
    )
    assert association(one, one) == pytest.approx(1) and association(one, torch.zeros(200).long()) == 0


def test_across_trains_on_the_others() -> None:
    """On plate y the feature of the class has the other sign: what is learned on one plate is wrong on the other."""
    images = plates(0.0, num=800)
    groups = images.groups["plate"]
    sign = 1 - 2.0 * groups
    images.features[:, 0] = 3 + (2.0 * images.classes - 1) * sign + 0.1 * torch.randn(800)
    images.features[:, 1] = 3 + 2 * sign  # the plate is known, so that k-NN can tell what the sign means
    found = across(images, "plate", 10)
    assert found and (found["num"], found["classes"]) == (400, 2)
    assert found["knn"]["with"] > 95 and found["knn"]["without"] < 40 and found["linear"]["without"] < 5
    assert [each["group"] for each in found["groups"]] == ["x", "y"]
    assert all(each["knn"]["with"] > 90 > 10 > each["linear"]["without"] for each in found["groups"])


def test_both_training_sets_are_of_the_same_size() -> None:
    """With few training images of noisy classes a larger training set would win; here nothing depends on the plate."""
    gaps = []
    for _ in range(30):
        images = plates(0.0, num=60)
        images.features[:, 0] -= images.classes  # classes overlap
        found = across(images, "plate", 3)
        assert found
        gaps.append(found["knn"]["with"] - found["knn"]["without"])
    gap = torch.tensor(gaps)
    assert abs(float(gap.mean())) < 2.5 * float(gap.std()) / 30**0.5


def test_across_tests_only_classes_of_several_groups() -> None:
    images = plates(0.0, num=400)
    groups = images.groups["plate"]
    images.classes[groups == 1] = 1  # class 0 is on plate x only
    assert across(images, "plate", 10) is None
    images.classes[(groups == 1) & (torch.rand(400) < 0.3)] = 0
    images.classes[:10] = 2  # in training only, and on both plates
    found = across(images, "plate", 10)
    assert found and found["classes"] == 2 and found["num"] == 200


def written(path: Path, data: str) -> str:
    """A CSV of the plates of generated images."""
    source = toy.build(data)
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "plate", "number", "constant"])
        rows.writerows([source.key(i), f"plate {source.plate(i)}", i, 1] for i in range(len(source)))
    return str(path)


def test_generated_plates_are_read_from_images(tmp_path: Path, ask: Callable[..., dict[str, Any]]) -> None:
    data = "toy:plates?n=400&strength=2"
    answer = ask("--train", data, "--labels", written(tmp_path / "meta.csv", data), "--device", "cpu")
    assert list(answer["columns"]) == ["plate"] and answer["class"]["num"] == 10
    assert (answer["num_train"], answer["num_val"]) == (320, 80)
    plate = answer["columns"]["plate"]
    assert plate["num"] == 4 and plate["association"] < 0.1 and len(plate["across"]["groups"]) == 4
    assert plate["linear"]["p"] < 0.002 and plate["linear"]["balanced_accuracy"] > 45
    assert 20 < plate["linear"]["by_chance"] < 35  # two images of each class and plate: most shuffles move few


def test_the_text_says_what_was_found(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, val = "toy:plates?n=200&strength=5", "toy:plates?n=100&strength=5&split=val"
    written(tmp_path / "meta.csv", train)
    with open(tmp_path / "meta.csv", "a") as file:
        file.write(Path(written(tmp_path / "val.csv", val)).read_text().partition("\n")[2])
    words = ["--train", train, "--val", val, "--labels", str(tmp_path / "meta.csv"), "--device", "cpu"]
    assert main(["eval", EVAL, str(tiny_model), *words, "--columns", "plate"]) == 0
    text = capsys.readouterr().out
    assert "plate can be read from the features (p ≤ 0.002)" in text
    assert "class (10)" in text and "plate (4)" in text and "class, trained without its plate" in text


@pytest.mark.parametrize(
    ("column", "classes", "kind"),
    [
        ("fold", "auto", "sub-folder (2)"),
        ("fold", "folders", "class (2)"),
        ("fold", "none", None),
        ("label", "auto", "class (3)"),
    ],
)
def test_sub_folders_that_nobody_called_classes_are_named_so(
    tmp_path: Path, tiny_model: Path, column: str, classes: Literal["auto", "folders", "none"], kind: str | None
) -> None:
    names = [f"{date}/{number}.png" for date in ("2026-01", "2026-02") for number in range(20)]
    train, val = (str(plain_folder(tmp_path / place, *names)) for place in ("train", "val"))
    rows = [f"{name},{number // 3 % 2},{number % 3}\n" for number, name in enumerate(names)]
    (tmp_path / "meta.csv").write_text("".join([f"path,plate,{column}\n", *rows]))
    meta = str(tmp_path / "meta.csv")
    report = evaluate(Config(str(tiny_model), None, meta, (), classes, train, val, permutations=19, device="cpu"))
    assert ("2 sub-folders: used as classes; --classes folders" in report.text) == (kind == "sub-folder (2)")
    if kind is None:
        assert report.fields["class"] is None and "class" not in report.text
    else:
        assert kind in report.text and report.fields["class"]["confirmed"] == kind.startswith("class")


@pytest.mark.parametrize("classes", ["a", ""])
def test_both_parts_have_the_classes_of_one_column(tiny_model: Path, tmp_path: Path, classes: str) -> None:
    """The images to test on are all of one class, or of none, and their sub-folders are dates."""
    rows = ["path,class,device"]
    for number in range(48):
        part, day = ("photos", "checked")[number // 24], f"day{number % 3 % 2}"
        name = f"{day}/{part}{number}.png"
        (tmp_path / part / day).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number * 5, 0, 0)).save(tmp_path / part / name)
        rows.append(f"{name},{'ab'[number % 2] if part == 'photos' else classes},{'xy'[number // 2 % 2]}")
    (tmp_path / "meta.csv").write_text("\n".join(rows))
    report = evaluate(
        Config(
            str(tiny_model), labels=str(tmp_path / "meta.csv"), train=str(tmp_path / "photos"),
            val=str(tmp_path / "checked"), permutations=19, device="cpu",
        )
    )  # fmt: skip
    assert list(report.fields["columns"]) == ["device"] and "day0" not in report.text
    assert (report.fields["class"] is None) == (classes == "")


def test_without_a_csv_the_sub_folders_are_the_column(tiny_model: Path, tmp_path: Path) -> None:
    for number in range(48):
        folder = tmp_path / ("photos", "checked")[number // 24] / f"day{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(120 * (number % 2), 120 + 120 * (number % 2), (32, 32, 3))
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    train, val = str(tmp_path / "photos"), str(tmp_path / "checked")
    config = Config(str(tiny_model), train=train, val=val, classes="none", permutations=19, device="cpu")
    report = evaluate(config)
    assert list(report.fields["columns"]) == ["folder"] and report.fields["class"] is None
    assert report.fields["columns"]["folder"]["linear"]["balanced_accuracy"] > 90  # dark and bright ones
    for name in ("photos/line.png", "checked/odd.png"):  # beside the sub-folders
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    beside = evaluate(config)
    assert beside.fields["columns"] == report.fields["columns"] and beside.fields["num_val"] == 24
    assert f"1 images of {train} are in no sub-folder and are left out: line.png" in beside.text
    assert f"1 images of {val} are in no sub-folder and are left out: odd.png" in beside.text


@pytest.mark.parametrize(
    ("words", "exit_code", "told"),
    [
        (["--train", "FLAT"], 2, "--labels is missing, and the images are not in two sub-folders or more"),
        (["--labels", "no.csv"], 1, "Cannot read list no.csv"),
        (["--labels", "META", "--columns", "plat"], 2, "plate"),
        (["--labels", "META", "--columns", "constant"], 1, "No column of meta.csv has two values with"),
        (["--labels", "META", "--columns", "number"], 1, "No column of meta.csv has two values with"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, ask: Callable[..., dict[str, Any]], words: list[str], exit_code: int, told: str
) -> None:
    data = "toy:plates?n=40"
    meta = written(tmp_path / "meta.csv", data)
    named = {"META": meta, "FLAT": str(plain_folder(tmp_path / "flat", "a.png", "b.png"))}
    answer = ask("--train", data, "--device", "cpu", *[named.get(word, word) for word in words])
    assert answer["exit"] == exit_code and told in answer["error"]["message"] + answer["error"]["hint"]
