"""k-NN: against brute force and scikit-learn, on pictures of every kind, from the command line."""

from __future__ import annotations

import csv
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.factories import model_folder, small_vit
from torch import Tensor

from opendino.cli import main
from opendino.core.errors import UsageError, UserError
from opendino.evals.knn import Config, Weights, average_precision, evaluate, few_shot, knn, knn_multi_label
from opendino.features.pixel_baseline import NAME as BASELINE
from opendino.models.conv4 import Conv4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("model"), small_vit(depth=2))


def picture(path: Path, shade: int, mode: str = "RGB") -> Path:
    """A gray picture with a little noise of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(path.name.encode())).integers(-4, 5, (20, 24, 3))
    Image.fromarray((noise + shade).clip(0, 255).astype(np.uint8)).convert(mode).save(path)
    return path


def folders(root: Path, counts: dict[str, int]) -> str:
    """A folder a class; its pictures have a shade of the class's own, so that neighbors know the class."""
    for name, count in counts.items():
        for number in range(count):
            picture(root / name / f"{number}.png", 40 + 60 * (ord(name[0]) - ord("a")))
    return str(root)


def brute_force(
    bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float | None = None
) -> list[list[int]]:
    """The classes of each query from most votes to least, one neighbor after the other in plain Python."""
    bank, queries = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (bank, queries))
    ranked = []
    for cosines in (queries @ bank.T).tolist():
        votes = dict.fromkeys(labels.unique().tolist(), 0.0)
        for at in sorted(range(len(cosines)), key=lambda i: (-cosines[i], i))[:k]:
            votes[int(labels[at])] += np.exp(cosines[at] / temperature) if temperature else 1.0
        ranked.append(sorted(votes, key=lambda label: (-votes[label], label)))
    return ranked


@pytest.mark.parametrize("temperature", [None, 0.07, 5.0])
@pytest.mark.parametrize("k", [1, 4, 20, 500])
def test_it_votes_as_brute_force_does(k: int, temperature: float | None) -> None:
    bank, labels = torch.randn(120, 5, dtype=torch.float64), torch.randint(0, 8, (120,)) * 7 - 3
    queries = torch.randn(60, 5, dtype=torch.float64)
    ranked = brute_force(bank, labels, queries, k, temperature)
    for place in range(5):
        truth = torch.tensor([classes[place] for classes in ranked])
        weights = "similarity" if temperature else "uniform"
        top1, top5 = knn(bank, labels, queries, truth, [k], temperature or 1.0, weights)[k]
        assert top1 == (100 if place == 0 else 0)
        assert top5 == (100 if place < k else 0)  # k neighbors vote for at most k classes


def test_equal_votes_go_to_the_lower_class_and_equal_neighbors_by_their_order() -> None:
    axes = torch.cat([torch.eye(3), -torch.eye(3)])  # cosines are exactly -1, 0 or 1, so there are many ties
    bank, labels, queries = axes[torch.randint(0, 6, (90,))], torch.randint(0, 6, (90,)), axes
    for k in (1, 2, 7, 30):
        truth = torch.tensor([classes[0] for classes in brute_force(bank, labels, queries, k)])
        assert knn(bank, labels, queries, truth, [k], weights="uniform")[k][0] == 100


@pytest.mark.parametrize("k", [1, 5, 16])
def test_uniform_votes_are_scikit_learns(k: int) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    bank, labels, queries = torch.randn(300, 6).double(), torch.randint(0, 4, (300,)), torch.randn(200, 6).double()
    theirs = neighbors.KNeighborsClassifier(k, metric="cosine", weights="uniform").fit(bank.numpy(), labels.numpy())
    predicted = torch.from_numpy(theirs.predict(queries.numpy()))
    assert knn(bank, labels, queries, predicted, [k], weights="uniform")[k][0] == 100


def test_two_thousand_classes_are_no_trouble() -> None:
    bank, labels = torch.randn(4000, 16), torch.arange(4000) % 2000
    top1, top5 = knn(bank, labels, bank[:500] + 1e-4 * torch.randn(500, 16), labels[:500], [1, 10])[10]
    assert top1 > 99 and top5 > 99


def test_a_small_temperature_does_not_overflow() -> None:
    bank = torch.eye(3)[[0, 0, 1, 2, 2, 2]]
    assert knn(bank, torch.tensor([0, 0, 1, 2, 2, 2]), torch.eye(3), torch.arange(3), [6], temperature=1e-3) == {
        6: (100.0, 100.0)
    }


def test_a_class_that_the_bank_lacks_is_never_guessed() -> None:
    bank, labels = torch.eye(4), torch.tensor([5, 5, 9, 9])
    assert knn(bank, labels, torch.eye(4), torch.tensor([7, 4, 11, 9]), [1], weights="uniform")[1] == (25.0, 25.0)


def test_either_side_empty_is_one_clear_line() -> None:
    for sides in ((torch.zeros(0, 3), torch.ones(2, 3)), (torch.ones(2, 3), torch.zeros(0, 3))):
        labels = [torch.zeros(len(side), dtype=torch.int64) for side in sides]
        with pytest.raises(UserError, match="at least 1 labeled image and 1 query"):
            knn(sides[0], labels[0], sides[1], labels[1])


def test_average_precision_is_scikit_learns_ties_included() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, targets = torch.randint(0, 6, (80, 7)).double() / 5, torch.randint(0, 2, (80, 7))
    theirs = [metrics.average_precision_score(t, s) for t, s in zip(targets.T.numpy(), scores.T.numpy(), strict=True)]
    np.testing.assert_allclose(average_precision(scores, targets), theirs, rtol=0, atol=1e-12)


def test_several_labels_are_scored_by_their_share_of_the_votes() -> None:
    bank, queries = torch.randn(50, 4).double(), torch.randn(30, 4).double()
    targets, truth = torch.randint(0, 2, (50, 6)), torch.randint(0, 2, (30, 6))
    truth[:, 5] = 0  # a class that no query has is skipped in the mean
    near = (torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(bank).T).topk(5).indices
    wanted = average_precision(targets[near].double().mean(1)[:, :5], truth[:, :5]).mean()
    assert knn_multi_label(bank, targets, queries, truth, [5], weights="uniform")[5] == pytest.approx(
        100 * float(wanted), abs=1e-9
    )


def test_few_shot_draws_so_many_of_each_class() -> None:
    labels = torch.tensor([3] * 10 + [1] * 2 + [8] * 5)[torch.randperm(17)]
    chosen = few_shot(labels, 4, seed=0)
    assert len(chosen.unique()) == len(chosen)
    assert torch.bincount(labels[chosen], minlength=9)[[1, 3, 8]].tolist() == [2, 4, 4]
    assert torch.equal(chosen, few_shot(labels, 4, seed=0))
    assert not torch.equal(chosen, few_shot(labels, 4, seed=1))


def test_classes_are_matched_by_name(model: str, tmp_path: Path) -> None:
    train = folders(tmp_path / "train", {"a": 4, "b": 4, "d": 4})
    val = folders(tmp_path / "val", {"b": 2, "c": 1, "d": 2})  # b is 1 there and 0 here; c is unknown there
    report = evaluate(Config(model, train=train, val=val, k=(1, 3), device="cpu"))
    assert report.fields["top1"] == 80 and report.fields["by_k"]["3"]["top1"] == 80
    assert (report.fields["num_train"], report.fields["num_val"], report.fields["k"]) == (12, 5, 1)
    assert "1 of the validation images are of classes that" in report.text


def test_without_val_a_fifth_is_held_out_and_said(model: str, tmp_path: Path) -> None:
    train = folders(tmp_path, {"a": 5, "b": 5, "c": 5})
    report = evaluate(Config(model, train=train, k=(1,), device="cpu"))
    assert (report.fields["num_train"], report.fields["num_val"], report.fields["top1"]) == (12, 3, 100)
    assert "a fifth held out" in report.text
    assert "few queries: `opendino eval linear` tests on every label once" in report.text


def test_more_neighbors_than_images_and_fewer_queries_than_neighbors(model: str, tmp_path: Path) -> None:
    train, val = folders(tmp_path / "train", {"a": 3, "b": 2}), folders(tmp_path / "val", {"a": 1, "b": 0, "c": 1})
    report = evaluate(Config(model, train=train, val=val, k=(200,), temperature=0.001, device="cpu"))
    assert report.fields["top1"] == 50 and report.fields["num_val"] == 2


def test_few_shot_reports_mean_and_deviation(model: str, tmp_path: Path) -> None:
    train = folders(tmp_path, {"a": 9, "b": 6})
    report = evaluate(Config(model, train=train, k=(1,), shots=50, tries=3, device="cpu"))
    assert report.fields["top1"] == 100 and report.fields["top1_std"] == 0
    assert "over 3 random samples" in report.text and "some classes have fewer" in report.text


def test_odd_modes_and_unreadable_files(model: str, tmp_path: Path) -> None:
    train = folders(tmp_path, {"a": 3, "b": 3})
    for mode in ("L", "P", "RGBA", "LA", "1"):
        picture(tmp_path / "a" / f"mode {mode}.png", 40, mode)
    Image.fromarray(np.full((20, 24), 10_000, np.uint16)).save(tmp_path / "a" / "sixteen bits.png")
    picture(tmp_path / "b" / "cmyk.jpg", 100, "CMYK")
    (tmp_path / "b" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (tmp_path / "b" / "empty.png").touch()
    report = evaluate(Config(model, train=train, k=(1,), device="cpu"))
    assert report.fields["num_unreadable"] == 2
    assert report.fields["num_train"] + report.fields["num_val"] == 13
    assert "2 unusable left out, e.g. b/broken.jpg" in report.text


def test_labels_come_from_a_csv_too_several_a_picture(model: str, tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        names = ["dark;small", "bright", "bright; small"][number % 3]
        picture(tmp_path / f"{number}.png", (30, 200, 120)[number % 3])
        rows.append((f"{number}.png", names))
    train, val = str(tmp_path / "train.csv"), str(tmp_path / "val.csv")
    for path, own in ((train, rows[:6]), (val, rows[6:])):
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("path", "labels"), *own])
    report = evaluate(Config(model, train=train, val=val, k=(1, 4), multi_label=True, device="cpu"))
    assert report.fields["mAP"] == pytest.approx(100, abs=1e-9)  # every picture finds one of its gray
    assert "3 labels" in report.text and report.fields["by_k"].keys() == {"1", "4"}


WRONG = {
    "--train {empty}": "No files in folder",
    "--train {flat}": "names no classes",
    "--train {good} --val {empty}": "No files in folder",
    "--train {good} --val {flat}": "names no classes",
    "--train {broken}": "None of the 3 images can be read",
    "--train {good} --device gpu": "Unknown device 'gpu'",
    "": "does not record what it was trained on",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_evaluated_is_one_line(
    words: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: tmp_path / name for name in ("empty", "flat", "good", "broken")}
    folders(places["good"], {"a": 2, "b": 2})
    places["empty"].mkdir()
    picture(places["flat"] / "one.png", 9)
    for name in ("a/1", "a/2", "b/1"):
        path = places["broken"] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    assert main(["eval", "knn", model, *words.format(**places).split()]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and WRONG[words] in captured.err


@pytest.mark.parametrize("options", [{}, {"shots": 1}, {"multi_label": True}])
def test_one_class_is_refused(model: str, tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "list.csv").write_text("".join(f"{picture(tmp_path / f'{n}.png', 50).name},only\n" for n in range(6)))
    with pytest.raises(UserError, match="are only") as refused:
        evaluate(Config(model, train=str(tmp_path / "list.csv"), k=(3,), device="cpu", **options))
    assert "two classes" in str(refused.value.hint)


def test_labels_that_all_images_share_are_refused(model: str, tmp_path: Path) -> None:
    names = ["a;b", "b;a"]  # two classes by name, of the same labels
    lines = [f"{picture(tmp_path / f'{n}.png', 50).name},{names[n % 2]}\n" for n in range(6)]
    (tmp_path / "list.csv").write_text("".join(lines))
    with pytest.raises(UserError, match="the same labels"):
        evaluate(Config(model, train=str(tmp_path / "list.csv"), k=(3,), multi_label=True, device="cpu"))


@pytest.mark.parametrize("options", [{}, {"shots": 3, "tries": 2}])
def test_every_accuracy_comes_with_its_baseline(model: str, tmp_path: Path, options: dict[str, Any]) -> None:
    train, val = folders(tmp_path / "train", {"a": 8, "b": 8}), folders(tmp_path / "val", {"a": 9, "b": 0, "z": 1})
    report = evaluate(Config(model, train=train, val=val, k=(1,), device="cpu", **options))
    found = {name: report.fields[name] for name in ("top1", "balanced_accuracy", "majority", "num_queries")}
    assert found == {"top1": 90, "balanced_accuracy": 50, "majority": 90, "num_queries": 10}
    assert report.fields["standard_error"] == pytest.approx(9.487, abs=0.001)
    assert report.fields["top5"] is None and any("top-5 is not shown" in note for note in report.fields["notes"])
    assert "top-5 is not shown" in report.text and "90.0%" in report.text and "10 queries" in report.text
    assert "balanced" in report.text and "9.49%" in report.text


@pytest.mark.parametrize("options", [{}, {"shots": 3, "tries": 2}, {"multi_label": True}])
def test_baselines_stand_beside_it_when_asked_for(tmp_path: Path, options: dict[str, Any]) -> None:
    learned = Conv4(width=2)
    torch.nn.init.zeros_(learned.get_parameter("net.6.weight"))  # the third convolution: all features become equal
    model = model_folder(tmp_path / "model", learned)
    train, val = folders(tmp_path / "train", {"a": 8, "b": 8}), folders(tmp_path / "val", {"a": 4, "b": 4})
    report = evaluate(Config(model, train=train, val=val, k=(3,), device="cpu", baselines=True, **options))
    measure = "mAP" if options.get("multi_label") else "top1"
    untrained, pixels = (report.fields["baselines"][name] for name in ("untrained network", BASELINE))
    assert pixels[measure] == 100 and f"{BASELINE}, k = 3: " in report.text
    assert untrained[measure] > report.fields[measure] and "untrained network, k = 3: " in report.text
    assert "--baselines" not in report.text


def test_queries_of_one_class_are_said(model: str, tmp_path: Path) -> None:
    train, val = folders(tmp_path / "train", {"a": 4, "b": 4}), folders(tmp_path / "val", {"b": 3, "c": 1})
    (tmp_path / "val" / "c" / "0.png").write_bytes(b"torn")
    report = evaluate(Config(model, train=train, val=val, k=(1,), device="cpu"))
    assert report.fields["majority"] == 100 and "all validation images are b" in report.text


@pytest.mark.parametrize("weights", ["similarity", "uniform"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_features_without_a_direction_have_no_vote_and_are_never_right(weights: Weights, value: float) -> None:
    bank, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    spoilt = torch.cat([torch.full((3, 4), value), bank])
    many = torch.cat([torch.full((3,), 1), labels])
    assert knn(spoilt, many, bank, labels, [1], weights=weights)[1][0] == 100
    assert knn(bank, labels, torch.full((4, 4), value), labels, [4], weights=weights)[4][0] == 0
    targets = torch.nn.functional.one_hot(labels)
    queries = torch.cat([torch.full((1, 4), value), bank])
    truth = torch.cat([torch.zeros(1, 2, dtype=torch.int64), targets])
    assert knn_multi_label(bank, targets, queries, truth, [1], weights=weights)[1] == pytest.approx(100)


def test_the_command_prints_one_json_document(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = folders(tmp_path, {"a": 5, "b": 5})
    words = ["--train", train, "--k", "1", "2", "--temperature", "0.1", "--device", "cpu", "--json"]
    assert main(["eval", "knn", model, *words]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert {"top1", "top5", "k", "temperature", "num_train", "num_val", "by_k"} <= fields.keys()
    assert {"balanced_accuracy", "majority", "num_queries", "standard_error"} <= fields.keys()
    assert fields["by_k"]["1"] == {name: fields[name] for name in fields["by_k"]["1"]}
    assert {"top1", "top5", "balanced_accuracy", "standard_error"} <= fields["by_k"]["1"].keys()


@pytest.mark.parametrize("change", [{"k": (0,)}, {"k": ()}, {"temperature": 0.0}, {"shots": 0}, {"batch": 0}])
def test_values_out_of_range_are_wrong_usage(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Config("model", **change)
