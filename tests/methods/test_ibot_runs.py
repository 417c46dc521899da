"""Runs of iBOT: what they leave, that killed ones go on exactly, several processes, and a GPU that is not there."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.factories import difference, dino_run, metric_rows
from tests.methods.test_ibot import CLOCK, SMALL, VIT, method, views
from tests.story.test_run import KILLER
from torch import Tensor

import opendino
from opendino import config as configs
from opendino import resolve
from opendino.config import Config
from opendino.core import metrics_log
from opendino.core.errors import UserError
from opendino.engine import optim, parallel
from opendino.engine.verdict import of_rows
from opendino.methods import ibot
from opendino.models.load import load
from opendino.models.run_checkpoints import load_step
from opendino.training import step
from opendino.views.settings import changed
from opendino.visualize.drawing import panels

EXACT = {"rtol": 0, "atol": 1e-10}
RUN_VIEWS = changed(ibot.VIEWS, {"global.size": 32, "local.size": 16, "local.number": 2})


def run(out: Path, **changes: Any) -> Config:
    """Ten steps with everything a run has."""
    settings: dict[str, Any] = {"method": replace(SMALL, freeze_last_layer="2"), "views": RUN_VIEWS} | changes
    return dino_run(out, **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(opendino.train(run(tmp_path_factory.mktemp("runs") / "whole")).run)


def test_what_a_run_leaves_has_no_mask_token(finished: Path) -> None:
    for which in ("teacher", "student"):
        left, again = load(finished, which), load_step(finished, 10, which)
        found, expected = left.backbone.state_dict(), again.backbone.state_dict()
        assert "mask_token" not in found and all(torch.equal(x, expected[key]) for key, x in found.items())
    assert "method.student.backbone.mask_token" in load_file(finished / "checkpoints/step_00000010/tensors.safetensors")


def test_the_metrics_of_patches_reach_the_curves(finished: Path) -> None:
    rows = [row for row in metric_rows(finished) if "loss" in row]
    assert len(rows) == 10 and all(math.isfinite(row["patch_loss"]) for row in rows)
    drawn = {chart.panel.title for chart in panels.charts({"run": panels.of_file(finished / "metrics.jsonl")})}
    assert {"Patch loss", "Patch entropy frac", "Patch center norm", "Koleo", "Loss", "Teacher's entropy"} <= drawn
    assert of_rows(metrics_log.sampled(finished / "metrics.jsonl"), 10).name


def test_a_run_is_planned_with_the_tokens_of_the_patches(tmp_path: Path) -> None:
    few, many = (
        run(tmp_path / "run", method=replace(SMALL, out_dim=number, momentum=0.9), **VIT) for number in (16, 1600)
    )
    ours, theirs = (resolve.activation_bytes(each, configs.views(each)) for each in (many, few))
    assert ours - theirs == pytest.approx(5 * 4 * (1600 - 16) * 5)  # 5 of 16 patches


@pytest.mark.parametrize("name", ["conv4", "resnet18/3x3"])
def test_a_network_without_patches_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="none that can be masked") as caught:
        opendino.train(run(tmp_path / "runs" / "run", backbone=name, backbone_options={}, drop_path=0.0))
    assert "vit_small/16" in caught.value.hint and not (tmp_path / "runs").exists()


def test_it_trains_a_vit_of_timm(tmp_path: Path) -> None:
    out = tmp_path / "run"
    views = changed(RUN_VIEWS, {"local.size": 16})
    opendino.train(run(out, backbone="test_vit", backbone_options={}, views=views, steps=2, batch=8, drop_path=0.0))
    before, after = (load_file(out / f"checkpoints/step_0000000{n}/tensors.safetensors") for n in (0, 2))
    key = "method.student.backbone.mask_token"
    assert not before[key].any() and after[key].any()


KILLS = [("step", 3), ("step", 8), ("checkpoint", 3)]


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_run(finished: Path, tmp_path: Path) -> None:
    lines = []
    for place, when in KILLS:
        path = tmp_path / f"{place}{when}.yaml"
        path.write_text(configs.dump(run(tmp_path / f"{place}{when}")))
        lines.append(f"{place} {when} {path}")
    command = [sys.executable, "-W", "ignore", "-c", KILLER]
    ended = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=500)
    assert ended.stdout.split() == [str(-signal.SIGKILL)] * len(KILLS), ended.stderr
    for place, when in KILLS:
        opendino.resume(tmp_path / f"{place}{when}")
        assert difference(finished, tmp_path / f"{place}{when}", 10) is None


# ---- several processes


def trained(part: slice, how: Any) -> tuple[dict[str, Tensor], list[float]]:
    """Three steps in float64 on a part of eight images."""
    made, settings = method(shared_head=False), optim.ResolvedConfig(name="sgd", lr=0.1, lr_warmup="0")
    model, full = parallel.prepare_distributed(made, torch.device("cpu"), how, True)
    optimizer = optim.build(settings, made.student)
    seen, losses = views(indices=range(8)[part]), []
    for number in range(3):
        tensors, _ = step(model, optimizer, settings, 8, replace(CLOCK, step=number), [seen], torch.float64)
        losses.append(float(tensors["loss"]))
    return dict(full().state_dict()), losses


def process(folder: Path, rank: int, how: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting {how}", rank=rank, world_size=2)
    state, losses = trained(slice(4 * rank, 4 * rank + 4), how)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{how} {rank}.safetensors")
    (folder / f"{how} {rank}.json").write_text(json.dumps(losses))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_together_are_the_run_of_one(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.methods.test_ibot_runs", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr[-3000:]
    expected, losses = trained(slice(0, 8), "ddp")
    for how in ("ddp", "fsdp"):
        for rank in (0, 1):
            found = load_file(tmp_path / f"{how} {rank}.safetensors")
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, **EXACT)
            assert json.loads((tmp_path / f"{how} {rank}.json").read_text()) == pytest.approx(losses, abs=1e-10)


def main(folder: Path) -> int:
    """Fork the processes from one that has imported everything."""
    import torch.distributed.fsdp

    torch.set_num_threads(1)
    for how in ("ddp", "fsdp"):
        context = multiprocessing.get_context("fork")
        group = [context.Process(target=process, args=(folder, rank, how)) for rank in range(2)]
        for each in group:
            each.start()
        for each in group:
            each.join()
        if any(each.exitcode for each in group):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
