"""Linear probe: correct on separable data, the optimum of logistic regression, chosen on train only."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.factories import model_folder, plain_folder, small_vit
from torch import Tensor

from opendino import features
from opendino.cli import main
from opendino.core.errors import UsageError, UserError
from opendino.data.cache import DecodedImages
from opendino.data.decode import decode
from opendino.data.open_source import open_source
from opendino.evals.linear import Config, evaluate
from opendino.features.classification_metrics import accuracy
from opendino.features.eval_crops import make
from opendino.features.linear_classifiers import train_together
from opendino.features.logistic_regression import STRENGTHS, fit
from opendino.models.classifier import load_classifier

TOY = "toy:textures?n=120&size=16"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("model"), small_vit(depth=5), extra={"data": TOY})


def batches(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from ((x[part], y[part]) for part in torch.randperm(len(x)).split(size))


def test_what_can_be_separated_is_separated() -> None:
    y = torch.arange(300) % 6
    x = 3 * torch.eye(6)[y].repeat(1, 2) + 0.3 * torch.randn(300, 12)
    for weight, bias in train_together(batches(x, y, 64), 200, 6, [slice(0, 12)], [[0.1, 1.0]])[0]:
        found = accuracy(x @ weight.T + bias, y)
        assert (found.top1, found.top5) == (100, 100)


def test_training_together_is_training_alone() -> None:
    x, y = torch.randn(90, 7, dtype=torch.float64), torch.randint(0, 4, (90,))
    data = list(itertools.islice(batches(x, y, 30), 20))
    columns, lrs = [slice(0, 7), slice(2, 5)], [[0.01, 0.3, 1.0], [0.1]]
    together = train_together(data, 20, 4, columns, lrs, weight_decay=0.1)
    for own, rates, found in zip(columns, lrs, together, strict=True):
        for lr, (weight, bias) in zip(rates, found, strict=True):
            alone = train_together(data, 20, 4, [own], [[lr]], weight_decay=0.1)[0][0]
            torch.testing.assert_close((weight, bias), alone, rtol=0, atol=1e-12)  # the order of sums


def test_a_step_is_torchs() -> None:
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.randint(0, 3, (40,))
    data = list(itertools.islice(batches(x, y, 8), 10))
    start = train_together(data, 1, 3, [slice(0, 5)], [[0.0]])[0][0][0]
    layer = torch.nn.Linear(5, 3, dtype=torch.float64)
    layer.weight.data.copy_(start)
    layer.bias.data.zero_()
    sgd = torch.optim.SGD([{"params": [layer.weight], "weight_decay": 0.2}, {"params": [layer.bias]}], 0.5, 0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, len(data))
    for inputs, labels in data:
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(layer(inputs), labels).backward()
        sgd.step()
        schedule.step()
    weight, bias = train_together(data, len(data), 3, [slice(0, 5)], [[0.5]], weight_decay=0.2)[0][0]
    torch.testing.assert_close((weight, bias), (layer.weight.data, layer.bias.data), rtol=0, atol=1e-12)  # rounding


def test_a_rate_that_diverges_is_not_chosen_and_ends_nothing() -> None:
    x, y = 1e18 * torch.randn(50, 4), torch.randint(0, 3, (50,))
    weight, bias = train_together(batches(x, y, 10), 60, 3, [slice(0, 4)], [[1e30]], weight_decay=1.0)[0][0]
    assert not weight.isfinite().all()
    assert accuracy(x @ weight.T + bias, y).top1 == 0


@pytest.mark.parametrize(
    ("protocol", "width", "tokens"),
    [
        ("auto", 4 * 24, "CLS of the last 4 blocks"),
        ("vits", 4 * 24, "CLS of the last 4 blocks"),
        ("vitb", 2 * 24, "CLS + mean patch"),
        ("resnet", 24, "CLS"),
    ],
)
def test_protocols_and_the_classifier_they_leave(
    model: str, tmp_path: Path, protocol: str, width: int, tokens: str
) -> None:
    out = tmp_path / "classifier"
    report = evaluate(Config(model, protocol=protocol, solver="sgd", epochs=5, lr=(1.0,), out=str(out), device="cpu"))  # type: ignore[arg-type]
    assert report.fields["tokens"] == tokens and tokens in report.text
    assert report.fields["candidates"] == []  # a single rate is used without a search
    opened, made = load_classifier(out)
    assert made.weight.shape == (10, width) and made.classes == open_source(TOY).classes
    assert opened.backbone.embed_dim == 24
    with pytest.raises(UserError, match="exists already"):
        evaluate(Config(model, out=str(out), device="cpu"))


def test_the_saved_classifier_says_what_the_report_says(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val, out = "toy:textures?n=40&size=16&split=val", str(tmp_path / "classifier")
    words = [
        "eval",
        "linear",
        model,
        "--val",
        val,
        "--solver",
        "sgd",
        "--epochs",
        "20",
        "--protocol",
        "grid",
        "--out",
        out,
    ]
    assert main([*words, "--device", "cpu", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert len(fields["candidates"]) == 3 * 11
    assert main(["predict", out, val, "--device", "cpu", "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    right = [row["class"] == row["path"].split("/")[2] for row in predictions]
    assert 100 * sum(right) / len(right) == fields["top1"]
    assert all(0.1 <= row["probability"] <= 1 for row in predictions)  # the best of ten


def test_val_does_not_choose(model: str) -> None:
    # The classifier does not depend on --val.
    chosen = [
        evaluate(Config(model, train=TOY, val=val, solver="sgd", epochs=3, device="cpu")).fields["candidates"]
        for val in (f"{TOY}&seed=3", "toy:textures?n=30&size=16&split=val&seed=9")
    ]
    assert chosen[0] == chosen[1]


def test_crops_are_resampled_every_epoch(model: str) -> None:
    config = Config(model, epochs=2, lr=(0.3,), augment=True, batch=32, workers=1, device="cpu")
    report = evaluate(config)
    assert "random crops and flips" in report.text and report.fields["top1"] >= 0
    assert f"opendino eval knn {model} --train {TOY} --baselines True" in report.text
    assert evaluate(config).fields == report.fields


def labeled(home: Path, **numbers: int) -> str:
    """A list of toy images, as many of each class as asked for."""
    source, lines = open_source("toy:textures?n=400&size=16"), ["path,class"]
    for name, number in numbers.items():
        label = source.classes.index(name)
        for index in [i for i in range(len(source)) if source.label(i) == label][:number]:
            Image.fromarray(decode(source.read(index))).save(home / f"{index}.png")
            lines.append(f"{index}.png,{name}")
    (home / "labels.csv").write_text("\n".join(lines))
    return str(home / "labels.csv")


def test_few_labels_are_cross_validated_and_all_used(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "classifier")
    report = evaluate(Config(model, train=labeled(tmp_path, bricks=9, dots=20), out=out, device="cpu"))
    fields = report.fields
    assert (fields["solver"], fields["num_train"], fields["num_val"], fields["num_queries"]) == ("lbfgs", 29, 0, 29)
    assert fields["measured"] == "10-fold cross-validation" and fields["C"] in STRENGTHS
    assert fields["majority"] == pytest.approx(100 * 20 / 29) == fields["pixels"]["majority"]
    assert fields["cross_validated"]["top1"] == fields["top1"]
    assert report.text.count("95% interval") == report.text.count("most frequent class") == 3, "of it and of baselines"
    for baseline in ("pixels", "untrained"):
        change = f"{fields['top1'] - fields[baseline]['top1']:+.1f} ± "
        assert f"the network against it, image by image: {change}" in report.text
    assert bool(fields["caution"]) == ("points: may be chance" in report.text or "points: worse" in report.text)
    assert f"caution: {fields['caution']}; more labels" in report.text.splitlines()[-2]
    # What is saved is what predict says, with the interval.
    opened = load_classifier(out)[1]
    assert opened.known is not None and opened.known.top1 == fields["top1"]
    assert main(["predict", out, TOY, "--device", "cpu"]) == 0
    told = capsys.readouterr().err
    assert "10-fold cross-validation" in told and f"{fields['top1']:.1f}% on 29 images (95% interval" in told
    assert told.rstrip().endswith(f"; {fields['caution']}")


def test_of_many_labels_some_train_the_untrained_network(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opendino.evals.linear._MOST_UNTRAINED", 50)
    report = evaluate(Config(model, C=(1.0,), device="cpu"))
    assert report.fields["untrained"]["num_queries"] == 50 and report.fields["num_queries"] == 120
    assert "untrained network, the same classifier, both on 50 of the labels: " in report.text


def test_with_val_both_figures_are_given(model: str, tmp_path: Path) -> None:
    val = "toy:textures?n=40&size=16&split=val"
    report = evaluate(Config(model, train=labeled(tmp_path, bricks=9, dots=20), val=val, device="cpu"))
    assert report.fields["num_val"] == report.fields["num_queries"] == 40
    assert report.fields["cross_validated"]["num_queries"] == 29
    assert report.fields["measured"] == f"images of {val}"
    assert report.text.count("95% interval") == 5
    assert any("32 of the validation images are of classes" in note for note in report.fields["notes"])


def test_too_few_labels_say_what_they_cannot_say(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "classifier")
    report = evaluate(Config(model, train=labeled(tmp_path, bricks=1, dots=6), out=out, device="cpu"))
    assert report.fields["top1"] is None and report.fields["pixels"] is None
    assert "accuracy not known: 7 labels are too few" in report.text and "%" not in report.text
    assert "one label only: bricks" in report.fields["notes"][0]
    assert main(["predict", out, TOY, "--out", str(tmp_path / "x.csv"), "--device", "cpu"]) == 0
    assert "accuracy of this classifier is not known: 7 labels are too few" in capsys.readouterr().out


def test_many_labels_are_for_sgd_and_few_can_be_too(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opendino.evals.linear.MOST_CROSS_VALIDATED", 119)
    assert evaluate(Config(model, lr=(1.0,), epochs=2, device="cpu")).fields["solver"] == "sgd"  # of 120 images
    monkeypatch.setattr("opendino.evals.linear.MOST_CROSS_VALIDATED", 120)
    assert evaluate(Config(model, C=(1.0,), device="cpu")).fields["solver"] == "lbfgs"


def test_kinds_of_features_are_compared_by_cross_validation(model: str) -> None:
    config = Config(model, protocol="grid", C=(1.0, 0.1), feature_dtype="float16", device="cpu")
    report = evaluate(config)
    assert report.fields["C"] in (0.1, 1.0) and report.fields["solver"] == "lbfgs"
    alone = {
        kind: evaluate(Config(model, protocol=kind, C=(1.0, 0.1), feature_dtype="float16", device="cpu")).fields
        for kind in ("vits", "vitb", "resnet")
    }
    best = min(alone.values(), key=lambda fields: fields["log_loss"])
    assert report.fields["tokens"] == best["tokens"]
    assert report.fields["log_loss"] == pytest.approx(best["log_loss"], abs=1e-4)


def test_one_class_is_refused_in_one_line(model: str, tmp_path: Path) -> None:
    plain_folder(tmp_path, *[f"{number}.png" for number in range(4)])
    (tmp_path / "list.csv").write_text("".join(f"{number}.png,only\n" for number in range(4)))
    with pytest.raises(UserError, match="are only"):
        evaluate(Config(model, train=str(tmp_path / "list.csv"), device="cpu"))


@pytest.mark.parametrize(
    "change", [{"lr": ()}, {"lr": (0.0,)}, {"C": (-1.0,)}, {"epochs": 0}, {"weight_decay": -1.0}, {"seed": -1}]
)
def test_values_out_of_range_are_wrong_usage(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Config("model", **change)  # type: ignore[arg-type]


def test_crops_and_lbfgs_are_incompatible() -> None:
    with pytest.raises(UsageError, match="use --solver sgd"):
        Config("model", augment=True, solver="lbfgs")


def test_real_photographs_give_the_accuracy_of_scikit_learn(data_folder: Path, tmp_path: Path) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    pack = data_folder / "clothing96_small_jpeg85.tar.gz"
    if not pack.is_file():
        pytest.skip(f"no {pack}")
    with tarfile.open(pack) as tar:
        tar.extractall(tmp_path, filter="data")
    sides = []
    for split in ("train", "val"):
        images = DecodedImages(open_source(str(tmp_path / "clothing96" / split)), 128**2)
        crops = make(images, images, len(images), 32)  # all of them in the bank
        sides.append((features.pixels(crops.bank, side=8) - 0.5, crops.bank_labels))
    (x, y), (val, truth) = sides
    theirs = linear_model.LogisticRegression(C=1.0, max_iter=2000, tol=1e-6).fit(x.numpy(), y.numpy())
    wanted = 100 * theirs.score(val.numpy(), truth.numpy())
    weight, bias = (each.float() for each in fit(x.double(), y, 10, 1.0))
    assert accuracy(val @ weight.T + bias, truth).top1 == pytest.approx(wanted, abs=0.5)
    # The same objective for SGD: scikit-learn's is C Σ loss + ½ ‖W‖², so λ = 1 / (C M).
    weight, bias = train_together(batches(x, y, 275), 4000, 10, [slice(0, 192)], [[0.3]], 1 / len(x))[0][0]
    assert accuracy(val @ weight.T + bias, truth).top1 == pytest.approx(wanted, abs=0.5)
    assert wanted > 20  # ten classes: far from chance
