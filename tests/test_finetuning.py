"""`opendino finetune`: what it trains on, what it compares, and which classifier `predict` takes afterwards."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from tests.factories import checkpoint_tensors, difference, model_folder, plain_folder, small_vit

import opendino
from opendino import existing_runs, finetuning, sharing
from opendino.cli import main
from opendino.core.errors import UserError
from opendino.data.fingerprint import key_digests
from opendino.data.held_out import held_out_labeled, is_held_out, training_images
from opendino.data.labels import Relabeled, all_labels
from opendino.data.open_source import open_source
from opendino.data.subset import Subset
from opendino.features.paired_change import change
from opendino.methods import supervised
from opendino.models.classifier import load_classifier

TOY = "toy:textures?n=60&size=32"
QUICK: dict[str, Any] = {
    "steps": 6, "batch": 8, "workers": 0, "checkpoint_every": "2", "keep_checkpoints": 9, "report": False,
    "precision": "float32", "threads": 1, "eval_every": "3",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(
        tmp_path_factory.mktemp("model"), small_vit("vit/8", seed=5, image_px=32, depth=2, num_heads=2), 32
    )


def listed(path: Path, num: int) -> str:
    """A CSV with one of two classes for each of the first images."""
    source = open_source(TOY)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "class"), *((source.key(n), "ab"[n % 2]) for n in range(num))])
    return str(path)


@pytest.fixture(scope="module")
def tuned(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    home = tmp_path_factory.mktemp("tuned")
    labels = listed(home / "labels.csv", 60)
    return home / "run", opendino.finetune(model, TOY, labels=labels, out=str(home / "run"), **QUICK)


def test_it_starts_from_the_model_and_the_head_learns_first(model: str, tuned: tuple[Path, Any]) -> None:
    run, _ = tuned
    given = opendino.load(model).backbone.state_dict()
    config = existing_runs.read_run_config(run)
    assert (config.views["global"].size, config.optim.layer_decay, config.hold_out) == (32, 0.75, 0.2)
    moved = []
    for step in (0, 2, 6):
        found = checkpoint_tensors(run, step)
        moved.append(any(not torch.equal(found[f"method.student.backbone.{key}"], given[key]) for key in given))
    assert moved == [False, False, True]  # a fifth of six steps is one; its rate rises from 0 after it


def test_both_are_measured_on_the_images_kept_out_and_the_better_one_is_opened(tuned: tuple[Path, Any]) -> None:
    run, result = tuned
    held_out = held_out_labeled(open_source(TOY), 0.2)
    assert held_out is not None
    found = result.against_start
    assert found["measure"] == "classifier" and found["num_images"] == len(held_out)
    assert result.num_queries == len(held_out) and set(result.accuracy) == {"student"}
    for name, score in (("frozen", found["before"]), ("finetuned", found["after"])):
        told = json.loads((run / "finetuning.json").read_text())
        (run / "finetuning.json").write_text(json.dumps(told | {"keep": name}))
        opened, classifier = load_classifier(run)
        assert classifier.known is not None and classifier.known.top1 == pytest.approx(score)
        assert classifier.known.num_queries == len(held_out) and "kept out of training" in classifier.measured
        kept = run / "frozen" if name == "frozen" else run
        assert opened.fingerprint == opendino.load(kept).fingerprint
    assert f"{found['before']:.1f} %" in found["says"] and f"{run}/frozen" in found["says"]


def test_a_stopped_run_resumes_exactly_and_compares_again(model: str, tuned: tuple[Path, Any], tmp_path: Path) -> None:
    run, whole = tuned
    shutil.copytree(run, tmp_path / "parts")
    for step in (4, 6):
        shutil.rmtree(tmp_path / f"parts/checkpoints/step_{step:08d}")
    (tmp_path / "parts/finetuning.json").unlink()
    again = opendino.resume(tmp_path / "parts")
    assert difference(run, tmp_path / "parts", 6) is None
    assert {**again.against_start, "says": ""} == {**whole.against_start, "says": ""}
    assert (tmp_path / "parts/finetuning.json").is_file()


def test_predict_and_export_take_the_result(
    tuned: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = tuned
    assert main(["predict", str(run), "toy:textures?n=5&size=32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["written"] == 5 and found["classifier"]["num_queries"] > 0
    choice, says = json.loads((run / "finetuning.json").read_text()), {}
    for keep in ("finetuned", "frozen"):
        (run / "finetuning.json").write_text(json.dumps(choice | {"keep": keep}))
        assert main(["export", str(run), "--to", "opendino", "--out", str(tmp_path / keep)]) == 0
        says[keep] = capsys.readouterr().out
        assert opendino.load(tmp_path / keep).fingerprint == opendino.load(run).fingerprint
        assert f"For the frozen one: opendino export {run}/frozen --to opendino --out PATH" in says[keep]
    assert "which `opendino predict` takes too: its classifier has" in says["finetuned"]
    assert "takes the frozen one, because this one is not shown to be better: its classifier" in says["frozen"]
    monkeypatch.setattr(sharing, "push", lambda *_, **__: "there")
    assert main(["push", str(run), "me/net"]) == 0
    assert f"the frozen one: opendino push {run}/frozen USER/NAME" in capsys.readouterr().out
    assert main(["export", str(run), "--to", "opendino", "--out", str(tmp_path / "again"), "--json"]) == 0
    assert "`opendino predict` takes the frozen one" in json.loads(capsys.readouterr().out)["note"]
    assert main(["export", str(run / "frozen"), "--to", "opendino", "--out", str(tmp_path / "exported")]) == 0
    assert "fine-tuned" not in capsys.readouterr().out
    assert opendino.load(tmp_path / "exported").fingerprint == opendino.load(run / "frozen").fingerprint
    exported, original = (opendino.load(str(path)).classes for path in (tmp_path / "frozen", run))
    assert exported == original


def test_the_command_names_labels_and_images_to_compare_on(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = listed(tmp_path / "few.csv", 10)
    words = [model, TOY, "--labels", labels, "--val", "toy:textures?n=20&size=32&split=val"]
    options = ["--steps", "1", "--batch", "4", "--workers", "0", "--report", "False", "--out", str(tmp_path / "run")]
    assert main(["finetune", *words, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["against_start"]
    assert found["num_images"] == 20 and found["keep"] == "frozen"  # of other classes: neither is ever right
    log = (tmp_path / "run/log.txt").read_text()
    assert "50 of 60 images have no label and are not used" in log and "10 images, 2 classes" in log


@pytest.mark.parametrize(("shared", "tested"), [(12, 8), (20, 0)])
def test_images_of_val_that_are_trained_on_are_not_tested_on(
    model: str, tmp_path: Path, shared: int, tested: int, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{'ab'[number % 2]}/{number}.png" for number in range(24)]
    train = plain_folder(tmp_path / "train", *names)
    val = plain_folder(tmp_path / "val", *[f"{'ab'[number % 2]}/v{number}.png" for number in range(20 - shared)])
    for name in names[:shared]:
        (val / name).parent.mkdir(parents=True, exist_ok=True)
        (val / name).symlink_to(train / name)
    options = QUICK | {"steps": 1, "batch": 4}
    found = opendino.finetune(model, str(train), labels="folders", val=str(val), out=str(tmp_path / "run"), **options)
    if tested:
        assert found.against_start["num_images"] == tested
    else:
        assert found.against_start["verdict"] == "unknown" and "are in --train" in capsys.readouterr().err


def test_adapters_train_resume_exactly_and_leave_a_plain_model(model: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    given = opendino.load(model).backbone.state_dict()
    labels, run = listed(tmp_path / "few.csv", 60), tmp_path / "run"
    method = supervised.Config(lora_rank=2)
    opendino.finetune(model, TOY, labels=labels, out=str(run), method=method, **QUICK | {"eval_every": "6"})
    plain = opendino.load(run).backbone.state_dict()
    assert plain.keys() == given.keys()
    changed = {key.rpartition(".")[0].rpartition(".")[2] for key in given if not torch.equal(given[key], plain[key])}
    assert changed == {"qkv", "proj", "fc1", "fc2"}
    saved = checkpoint_tensors(run, 6)
    assert len([key for key in saved if key.startswith("optimizer.") and key.endswith("exp_avg")]) == 2 * 8 + 2
    shutil.copytree(run, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/step_00000006")
    opendino.resume(tmp_path / "parts")
    assert difference(run, tmp_path / "parts", 6) is None
    assert opendino.load(run).fingerprint == opendino.load(tmp_path / "parts").fingerprint


def test_without_images_to_compare_on_the_frozen_features_stay(model: str, tmp_path: Path) -> None:
    result = opendino.finetune(
        model, TOY, labels=listed(tmp_path / "few.csv", 10), out=str(tmp_path / "run"), hold_out=0.0,
        **QUICK | {"steps": 1, "batch": 4},
    )  # fmt: skip
    assert (result.against_start["verdict"], result.against_start["keep"]) == ("unknown", "frozen")
    assert "Give --val DIR" in result.against_start["says"]
    assert load_classifier(tmp_path / "run")[1].known is None


def test_a_model_that_is_gone_is_no_reason_to_lose_the_run(tuned: tuple[Path, Any], tmp_path: Path) -> None:
    config = existing_runs.read_run_config(tuned[0])
    gone = type(config)(**vars(config) | {"init": str(tmp_path / "gone")})
    found = finetuning.against_frozen_head(gone, tuned[0], torch.device("cpu"))
    assert (found["verdict"], found["keep"]) == ("unknown", "finetuned") and "is not there" in found["says"]


def test_only_labeled_images_are_trained_on_and_kept_out() -> None:
    source = open_source("toy:textures?n=40&size=32")
    labels = all_labels(source)
    labels[10:] = -1
    few = Relabeled(source, source.classes, labels)
    used, kept = training_images(few, 0.3, labeled_only=True), held_out_labeled(few, 0.3)
    expected = is_held_out(key_digests(few), 0.3)[:10]
    assert isinstance(used, Subset) and kept is not None and 0 < len(kept) < 10
    assert len(used) == (~expected).sum() and len(kept) == expected.sum()
    assert held_out_labeled(used, 0.3).indices == kept.indices, "a run's training images know all of them"
    assert held_out_labeled(few, 0.0) is None
    with pytest.raises(UserError, match="None of the 40 images has a label"):
        training_images(Relabeled(source, (), all_labels(source) * 0 - 1), 0.3, labeled_only=True)


def test_the_network_is_kept_only_if_it_is_better() -> None:
    for right, verdict in ((1.0, "Better"), (0.5, "Not shown to be better"), (0.0, "Worse")):
        before, after = torch.full((100,), 0.5).double(), torch.full((100,), right).double()
        found = change(before, after)
        name = {1: "better", 0: "no better", -1: "worse"}[found.direction]
        says = finetuning._says(found, Path("run"))
        assert says.startswith(verdict) and ("takes the fine-tuned network" in says) == (name == "better")


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_model_of_photographs_is_tuned_on_images_of_16_bits(model: str, tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "cells" / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 3000, (channels, 32, 32), np.uint16)
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="separate" if channels > 1 else None)
    run = tmp_path / "run"
    found = opendino.finetune(model, str(tmp_path / "cells"), labels="folders", out=str(run), stack="channels", **QUICK)
    assert found.against_start["num_images"] > 0
    tuned, frozen = opendino.load(run), opendino.load(run / "frozen")
    assert frozen.reading == tuned.reading and len(frozen.preprocessing["mean"]) == channels
    assert frozen.preprocessing["mean"] == tuned.preprocessing["mean"]
    assert frozen.embed(str(tmp_path / "cells")).vectors.isfinite().all()
