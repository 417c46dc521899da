"""Whole runs on small images: what they leave behind, that they go on exactly, and how they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.factories import checkpoint_tensors, difference, dino_run, noise_folder

import opendino
from opendino import run_parts, training
from opendino.cli import train_command
from opendino.config import dump
from opendino.core import compilation
from opendino.core.errors import UserError
from opendino.engine import checkpoint, optim
from opendino.methods import dino, distill, mean_teacher
from opendino.recipes import demo
from opendino.views.settings import changed

TIMED = ("images_per_second", "data_wait", "mfu", "peak_memory_bytes", "seconds")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(opendino.train(dino_run(tmp_path_factory.mktemp("runs") / "whole")).run)


def test_what_a_run_leaves(finished: Path) -> None:
    left = {path.name for path in finished.iterdir()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "log.txt",
        "checkpoints",
        "latest",
        "backbone.safetensors",
        "backbone.json",
    } <= left
    assert any(name.startswith("events.out.tfevents") for name in left)
    assert (finished / "latest").read_text().strip() == "checkpoints/step_00000010"
    assert not [path for path in finished.rglob("*") if "partial" in path.name]
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 11))
    assert all(np.isfinite(row["loss"]) and row["kl"] >= 0 and 0 <= row["entropy_frac"] <= 1 for row in steps)
    judged = [row for row in rows if "effective_rank" in row]
    assert [row["step"] for row in judged] == [0, 5, 10]
    assert judged[0]["knn"]["teacher"] == judged[0]["knn"]["student"]
    assert judged[0]["knn"].keys() == {"teacher", "student", "pixels", "untrained"}
    assert [*judged[0]["crop_match"]] == ["teacher", "untrained", "pixels", "color"]


def test_the_model_of_a_run_opens(finished: Path) -> None:
    for which in ("teacher", "student"):
        model = opendino.load(finished, which=which)
        saved = {
            k.removeprefix(f"method.{which}.backbone."): v
            for k, v in checkpoint_tensors(finished, 10).items()
            if k.startswith(f"method.{which}.backbone.")
        }
        assert all(torch.equal(value, saved[key]) for key, value in model.backbone.state_dict().items())
        assert model.embed([Image.new("RGB", (40, 60))] * 2).shape == (2, 24)


@pytest.mark.parametrize(("workers", "cache"), [(2, "disk"), (0, "device"), (1, "device")])
def test_workers_and_cache_change_nothing(finished: Path, tmp_path: Path, workers: int, cache: str) -> None:
    opendino.train(dino_run(tmp_path / "run", workers=workers, cache=cache))
    assert difference(finished, tmp_path / "run", 10) is None
    assert not (tmp_path / "run" / "cache.bin").exists()


@pytest.mark.parametrize("spare", [True, False])
def test_views_made_in_a_second_thread_are_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: bool
) -> None:
    made: set[str] = set()

    def watched(*args: Any) -> Any:
        made.add(threading.current_thread().name.partition("_")[0])
        return make_views(*args)

    make_views = run_parts.make_views
    monkeypatch.setattr(run_parts, "make_views", watched)
    monkeypatch.setattr(run_parts, "cores", lambda: 2 if spare else 1)
    run = opendino.train(dino_run(tmp_path / "run")).run
    assert difference(finished, Path(run), 10) is None
    assert made == {"views" if spare else "MainThread"}


KILLER = """
import os, pathlib, signal, sys
import torch._dynamo, torch.utils.tensorboard  # slow to import, so once and not in every child
from opendino import config, train
from opendino.engine import optim, checkpoint

def killing(function, when):
    calls = 0
    def wrapped(*args, **kwargs):
        nonlocal calls
        result = function(*args, **kwargs) if after else None
        calls += 1
        if calls == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return result if after else function(*args, **kwargs)
    return wrapped

for line in sys.stdin:  # one child a line: forked here, before anything has started a thread
    place, when, path = line.split()
    if (child := os.fork()) == 0:
        after = place == "step"
        if place == "step":
            optim.step = killing(optim.step, int(when))
        else:
            pathlib.Path.rename = killing(pathlib.Path.rename, int(when))
        train(config.from_tree(config.read_tree(path)))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""Kills a run by SIGKILL after an optimizer step, or in a checkpoint that is written but not yet in its place."""

KILLS = [("step", n) for n in (1, 4, 5, 7, 10)] + [("checkpoint", n) for n in range(1, 5)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    home, lines = tmp_path_factory.mktemp("killed"), []
    for place, when in KILLS:
        path = home / f"{place}{when}.yaml"
        path.write_text(dump(dino_run(home / f"{place}{when}")))
        lines.append(f"{place} {when} {path}")
    command = [sys.executable, "-W", "ignore", "-c", KILLER]
    ended = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=500)
    assert ended.stdout.split() == [str(-signal.SIGKILL)] * len(KILLS), ended.stderr
    return {kill: home / "".join(map(str, kill)) for kill in KILLS}


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: "".join(map(str, kill)))
def test_killed_and_resumed_is_the_same_run(
    finished: Path, killed: dict[tuple[str, int], Path], kill: tuple[str, int]
) -> None:
    opendino.resume(killed[kill])
    assert difference(finished, killed[kill], 10) is None


def test_a_damaged_checkpoint_is_passed_over(finished: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest = run / "checkpoints" / "step_00000010" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert checkpoint.newest(run) == run / "checkpoints" / "step_00000008"
    opendino.resume(run)
    assert difference(finished, run, 10) is None


def test_asked_to_stop_it_saves_and_goes_on_later(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tmp_path / "config.yaml"
    config.write_text(dump(dino_run(run, steps=100_000, workers=1, eval_every="100%", checkpoint_every="100%")))
    command = [sys.executable, "-m", "opendino", "train", "toy:textures?n=48", "--config", str(config), "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for _ in range(1200):
            if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count('"loss"') > 3:
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: loader workers get it too
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert f"opendino resume {run}" in json.loads(stdout)["error"]["hint"]
    state = json.loads((run / (run / "latest").read_text().strip() / "state.json").read_text())
    assert state["step"] > 0
    assert state["step"] == json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def test_labels_of_other_classes_than_the_teachers_are_refused(tmp_path: Path) -> None:
    options = {"backbone": "conv4", "backbone_options": {"width": 4}}
    run = opendino.train(dino_run(tmp_path / "run", method=mean_teacher.Config(), **options)).run
    method = distill.Config(teacher=run, objective="logits", label_weight=0.5)
    with pytest.raises(UserError, match=r"classifier has 10 classes \(bricks.*--method\.label-weight 0"):
        opendino.train(dino_run(tmp_path / "forms", data="toy:forms?n=48&size=32", val=None, method=method, **options))
    assert not (tmp_path / "forms").exists()


def test_learning_from_labels_is_not_judged_on_the_same_images(tmp_path: Path) -> None:
    options = {"backbone": "conv4", "backbone_options": {"width": 4}}
    result = opendino.train(dino_run(tmp_path / "run", method=mean_teacher.Config(), val=None, **options))
    assert result.knn is None and result.accuracy is None and result.effective_rank is not None
    assert "use --val or --hold-out to get accuracies" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("labels", ["auto", "folders", "none"])
def test_sub_folders_are_classes_only_if_the_user_says_so(tmp_path: Path, labels: str) -> None:
    for number in range(40):  # two dates, told apart by the color of their light
        path = tmp_path / "photos" / f"2024-01-0{1 + number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 60, (32, 32, 3))
        Image.fromarray((noise + np.array([180 * (number % 2), 90, 0])).astype(np.uint8)).save(path)
    result = opendino.train(dino_run(tmp_path / "run", data=str(tmp_path / "photos"), val=None, steps=2, labels=labels))
    log = (tmp_path / "run" / "log.txt").read_text()
    unconfirmed = labels == "auto"
    assert (result.knn is None) == (labels == "none")
    assert ("2 sub-folders: k-NN accuracy with them as classes is shown at the end" in log) == unconfirmed
    assert ("k-NN by folders (unconfirmed), top-1" in train_command.report(result).text) == unconfirmed
    assert ("folders are told apart by color alone (100%)" in log) == unconfirmed


def test_bad_files_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    folder = noise_folder(tmp_path / "photos", 12)
    (folder / "broken.jpg").write_bytes(b"no image at all")
    (folder / "empty.png").touch()
    run = tmp_path / "run"
    opendino.train(dino_run(run, data=str(folder), val=None, batch=4, steps=8))
    lines = (run / "bad_files.csv").read_text().splitlines()
    assert lines[0] == "file,reason"
    assert [line.split(",")[0] for line in lines[1:]] == ["broken.jpg", "empty.png"]


def test_a_run_that_knows_many_bad_files_goes_on(tmp_path: Path) -> None:
    folder = noise_folder(tmp_path / "photos", 50)
    for number in range(30):
        (folder / f"broken{number}.jpg").write_bytes(b"x")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    opendino.train(dino_run(whole, data=str(folder), val=None, batch=4, steps=30, checkpoint_every="20"))
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints/step_00000030")
    opendino.resume(cut)
    assert difference(whole, cut, 30) is None
    assert len((cut / "bad_files.csv").read_text().splitlines()) == 31


def test_a_run_of_days_on_a_cpu_says_how_to_make_it_shorter(capsys: pytest.CaptureFixture[str]) -> None:
    training._warn_of_days(3.2 * 86_400, torch.device("cpu"))
    assert "3.2 days are left on this cpu" in (said := capsys.readouterr().err) and "--minutes 60" in said
    training._warn_of_days(3600.0, torch.device("cpu"))
    training._warn_of_days(3.2 * 86_400, torch.device("cuda"))
    assert not capsys.readouterr().err


def test_too_many_bad_files_stop_the_start_and_leave_nothing(tmp_path: Path) -> None:
    folder = noise_folder(tmp_path / "photos", 3)
    for number in range(7):
        (folder / f"broken{number}.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"7 of 10 images looked at cannot be read, e\.g\. broken0\.jpg"):
        opendino.train(dino_run(tmp_path / "runs" / "run", data=str(folder), val=None, batch=2))
    assert not (tmp_path / "runs").exists()


def test_a_failure_in_the_first_step_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(optim, "step", explode)
    with pytest.raises(RuntimeError, match="out of memory"):
        opendino.train(dino_run(tmp_path / "runs" / "run"))
    assert not (tmp_path / "runs").exists()


def test_non_finite_steps_change_nothing_and_then_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = dino.cross_entropy
    monkeypatch.setattr(dino, "cross_entropy", lambda *args, **kwargs: real(*args, **kwargs) * float("nan"))
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"not finite for 3 steps in a row; last good checkpoint: .*step_0000000"):
        opendino.train(dino_run(run, max_nonfinite=3, checkpoint_every="1", keep_checkpoints=20))
    saved = sorted((run / "checkpoints").iterdir())
    first, last = (load_file(path / "tensors.safetensors") for path in (saved[0], saved[-1]))
    weights = [key for key in first if key.startswith("method.")]
    assert len(saved) > 1
    assert all(torch.equal(first[key], last[key]) for key in weights)
    assert "was skipped, its loss is not finite; its images: textures/train/" in (run / "log.txt").read_text()


def test_resume_refuses_changed_images(tmp_path: Path) -> None:
    folder = noise_folder(tmp_path / "photos", 12)
    run = tmp_path / "run"
    opendino.train(dino_run(run, data=str(folder), val=None, batch=4, steps=4))
    noise_folder(folder, 14)
    with pytest.raises(UserError, match=r"\(12 then, 14 now: 2 new, 0 gone\)") as grown:
        opendino.resume(run)
    assert f"opendino continue {run} {folder}" in grown.value.hint and f"--init {run}" in grown.value.hint
    (folder / "0.png").unlink()
    with pytest.raises(UserError, match=r"The images have changed .*\(12 then, 13 now: 2 new, 1 gone\)"):
        opendino.resume(run)
    (run / "image_keys.npy").unlink()
    with pytest.raises(UserError, match=r"The images have changed .*\(12 then, 13 now\)"):
        opendino.resume(run)


def test_resume_tells_images_of_other_content_by_the_same_names(tmp_path: Path) -> None:
    folder = noise_folder(tmp_path / "photos", 12)
    run = tmp_path / "run"
    opendino.train(dino_run(run, data=str(folder), val=None, batch=4, steps=4))
    for path in folder.iterdir():
        Image.new("RGB", (40, 40), (0, 99, 0)).save(path)
    with pytest.raises(UserError, match=r"The images have changed .*12 of 12 looked at have other content"):
        opendino.resume(run)


def test_what_was_measured_with_other_settings_is_not_compared_with(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert opendino.resume(run).knn.keys() == {"teacher", "student", "untrained", "pixels"}
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("knn_k: 3", "knn_k: 5"))
    assert opendino.resume(run).knn.keys() == {"teacher", "student"}
    assert "evaluation settings have changed" in (run / "log.txt").read_text()


def test_accumulation_is_the_same_run(tmp_path: Path) -> None:
    # No drop path: it draws per part. Then only the order of float32 sums differs, amplified by ten AdamW steps of at
    # most lr each; parameters that move by less than 1 % of that are equal for this purpose.
    whole, parts = (
        dino_run(tmp_path / name, drop_path=0.0, optim=replace(dino_run(tmp_path).optim, grad_accum_steps=n))
        for name, n in (("a", 1), ("b", 4))
    )
    results = [opendino.train(config) for config in (whole, parts)]
    a, b = (checkpoint_tensors(Path(result.run), 10) for result in results)
    lr = whole.optim.lr * 16 / 256
    for key in (key for key in a if key.startswith("method.") and "center" not in key):
        assert (a[key] - b[key]).abs().max() < 0.01 * 10 * lr, key
    assert (a["method.center"] - b["method.center"]).abs().max() < 1e-4


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_it_is_the_same_run_and_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_block: dict[str, Any] = {  # and no local crops: each rate and each size is compiled anew
        "backbone_options": {"embed_dim": 24, "depth": 1, "num_heads": 2}, "drop_path": 0.0,
        "views": changed(demo.config().views, {"local.number": 0}),
    }  # fmt: skip
    eager, whole = (
        Path(opendino.train(dino_run(tmp_path / name, compile=name == "whole", **one_block)).run)
        for name in ("eager", "whole")
    )
    a, b = checkpoint_tensors(eager, 10), checkpoint_tensors(whole, 10)
    lr = dino_run(tmp_path).optim.lr * 16 / 256
    for key in (key for key in a if key.startswith("method.") and "center" not in key):
        # The first step is counted and so not compiled; then sums are in another order, as under accumulation above.
        assert (a[key] - b[key]).abs().max() < 0.02 * 10 * lr, key
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints/step_00000010")
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "compiler_works", lambda device: "no compiler")
        with pytest.raises(UserError, match=r"torch\.compile does not work on this machine: no compiler"):
            opendino.resume(cut)
    opendino.resume(cut)
    assert difference(whole, cut, 10) is None
