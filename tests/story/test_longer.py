"""Runs made longer: finished or stopped, by resume or by the same command with another length; exact all the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.factories import checkpoint_tensors, dino_run, metric_rows

import opendino
from opendino import config as configs
from opendino import existing_runs
from opendino.cli import main
from opendino.config import Config
from opendino.core.errors import UsageError, UserError
from opendino.core.types import Clock
from opendino.engine import learning_rate, optim
from opendino.views.settings import changed

PER_EPOCH = 3


def small_run(out: Path, **changes: object) -> Config:
    """Ten steps on the smallest network, without evaluations; every fourth step stays as a checkpoint."""
    method = replace(dino_run(out).method, out_dim=16, freeze_last_layer="10%")
    base = dino_run(
        out, val=None, backbone="conv4", backbone_options={"width": 4}, drop_path=0.0, method=method,
        views=changed(dino_run(out).views, {"local.number": 1}),
        keep_checkpoints=20, eval_images=0,
    )  # fmt: skip
    return replace(base, **changes)


def rows(run: Path) -> list[dict[str, float]]:
    return [row for row in metric_rows(run) if "loss" in row]


def assert_equal(a: Path, b: Path, step: int) -> None:
    ours, theirs = checkpoint_tensors(a, step), checkpoint_tensors(b, step)
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert rows(a) == rows(b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "ten"
    opendino.train(small_run(run))
    return run


@pytest.fixture(scope="module")
def longer(finished: Path) -> Path:
    run = finished.parent / "sixteen"
    shutil.copytree(finished, run)
    assert opendino.resume(run, steps=16).steps == 16
    return run


def test_a_finished_run_continues_on_the_curves_of_the_new_length(finished: Path, longer: Path) -> None:
    found = rows(longer)
    assert [row["step"] for row in found] == list(range(1, 17))
    assert found[:10] == rows(finished)
    config = existing_runs.read_run_config(longer)
    assert config.steps == 16 and config.method.freeze_last_layer == "1", "what was over does not begin again"
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
    opt.param_groups[0] |= {"share": 1.0, "backbone": False, "decayed": False}
    for row in found[10:]:
        clock = Clock(int(row["step"]) - 1, 16, PER_EPOCH)
        assert row["lr"] == learning_rate.set_lr_and_weight_decay(opt, config.optim, clock, 16)[0]
    assert "16 steps (was 10): from step 10 on learning rate" in (longer / "log.txt").read_text()


@pytest.mark.parametrize("at", [11, 13, 16])
def test_killed_after_it_was_made_longer_and_resumed_it_is_the_same_run(
    finished: Path, longer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    real, calls = optim.step, []

    def failing(*args: object) -> None:
        calls.append(1)
        if len(calls) == at - 10:
            raise RuntimeError("power cut")
        real(*args)

    monkeypatch.setattr(optim, "step", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        opendino.resume(run, steps=16)
    monkeypatch.setattr(optim, "step", real)
    assert opendino.resume(run).steps == 16
    assert_equal(run, longer, 16)


def test_epochs_are_those_of_the_whole_run(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    assert main(["resume", str(tmp_path / "run"), "--epochs", "5"]) == 0
    assert rows(tmp_path / "run")[-1]["step"] == 5 * PER_EPOCH


def test_a_length_that_cannot_be_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="has already done 10 steps, more than 3"):
        opendino.resume(finished, steps=3)
    with pytest.raises(UsageError, match="both given"):
        opendino.resume(finished, steps=9, epochs=9)
    for word in ("0", "-3", "x", "1.5", "nan"):
        assert main(["resume", str(finished), "--steps", word]) == 2
        assert f"--steps is '{word}'" in capsys.readouterr().err
    assert configs.from_tree(configs.read_tree(finished / "config.yaml")).steps == 10


def test_the_same_command_with_another_length_makes_it_longer(finished: Path, longer: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    existing_runs.save_request(run, replace(existing_runs.read_request(run), out=str(run)))
    opendino.train(small_run(run, resume=True, steps=16))
    assert_equal(run, longer, 16)
    opendino.train(small_run(run, resume=True, steps=16))
    assert existing_runs.read_request(run).steps == 16


def test_the_same_command_continues_a_run_that_was_made_longer(longer: Path) -> None:
    """As a scheduler does it, which knows of the first length alone."""
    assert opendino.train(small_run(longer, resume=True)).steps == 16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 8}, r"batch 8 \(the run's: 16\)"),
        ({"seed": 3, "steps": 16}, r"seed 3 \(the run's: 0\)"),
        ({"data": "toy:forms?n=48&size=32"}, "data 'toy:forms"),
        ({"optim": optim.Config(lr=0.1)}, r"optim\.lr 0\.1 \(the run's: 0\.012\)"),
    ],
)
def test_other_settings_than_the_runs_are_refused_by_name(finished: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=f"{said}.*opendino resume .*another --out"):
        opendino.train(small_run(finished, resume=True, **change))


def test_what_auto_stands_for_is_no_difference(tmp_path: Path) -> None:
    asked = small_run(tmp_path / "run", batch="auto", workers="auto", threads="auto", resume=True)
    opendino.train(asked)
    assert opendino.train(asked).steps == 10


@pytest.mark.parametrize(
    ("warmup", "done", "becomes"), [("6", 2, "3"), ("6", 4, "4"), ("2", 3, "2"), ("2ep", 2, "3"), ("60%", 2, "3")]
)
def test_a_shorter_run_does_not_end_in_its_warm_up(finished: Path, warmup: str, done: int, becomes: str) -> None:
    config = existing_runs.read_run_config(finished)
    config = replace(config, optim=replace(config.optim, lr_warmup=warmup))
    shorter, says = existing_runs.change_length(config, PER_EPOCH * config.batch, done, steps=5)
    assert shorter.optim.lr_warmup == becomes and "shorter in proportion" in says
    longer, says = existing_runs.change_length(config, PER_EPOCH * config.batch, done, steps=50)
    assert longer.optim.lr_warmup == {"60%": "6"}.get(warmup, warmup) and "keep their length" in says
