"""One command, several processes: number, results, errors, interrupts and restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from opendino.core.errors import UsageError, UserError
from opendino.engine import launch


def test_as_many_as_there_are_or_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [launch.number(*asked) for asked in (("auto", "auto"), ("auto", "cuda"), (2, "cuda"), (1, "auto"))] == [
        4, 4, 2, 1
    ]  # fmt: skip
    assert [launch.number(*asked) for asked in (("auto", "cpu"), (3, "cpu"), ("auto", "cuda:1"))] == [1, 3, 1]
    with pytest.raises(UsageError, match="--devices is 5, and this machine has 4 cuda devices"):
        launch.number(5, "auto")
    with pytest.raises(UsageError, match=r"--devices is 100,000, and this machine has \d+ cores\. Use 1 to \d+"):
        launch.number(100_000, "cpu")
    monkeypatch.setenv("RANK", "1")
    assert launch.number(8, "cuda") == 1


SCRIPT = """
import os, pathlib, signal, sys, time
import torch.distributed as dist
from opendino.core.errors import UserError
from opendino.engine import launch

def work(folder, what):
    folder, rank = pathlib.Path(folder), int(os.environ["RANK"])
    started = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    store, *_ = next(dist.rendezvous("env://"))
    if what == "lost":  # who is started again must not find the addresses of those who are gone
        assert not store.check([f"{rank} was here"])
        store.set(f"{rank} was here", "")
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    if what == "lost" and not started:
        dist.barrier()
        os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)
    if what == "refused" and rank == 1:
        raise UserError("No such thing", "Take another", 2)
    if what == "bug" and rank == 1:
        raise AssertionError("ours")
    if what == "asked":
        stop = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        (folder / f"ready {rank}").touch()
        while not stop:
            time.sleep(0.05)
        raise UserError("Stopped, state saved", "", 130)
    dist.barrier()
    dist.destroy_process_group()
    return {"rank": rank, "world": int(os.environ["WORLD_SIZE"]), "started again": started}

if __name__ == "__main__":
    try:
        print(launch.together(2, work, *sys.argv[1:]))
    except UserError as error:
        print(f"{error.exit_code} {error}")
    except RuntimeError as error:
        print(str(error).strip().splitlines()[-1])
"""


def together(folder: Path, what: str) -> tuple[str, str]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", str(script), str(folder), what]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        if what == "asked":
            while len(list(folder.glob("ready *"))) < 2 and process.poll() is None:
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: everything gets it
        return process.communicate(timeout=400)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("refused", "2 No such thing. Take another"),
        ("bug", "AssertionError: ours"),
        ("asked", "130 Stopped, state saved"),
        ("lost", "{'rank': 0, 'world': 2, 'started again': 1}"),
    ],
)
def test_what_becomes_of_several_processes(tmp_path: Path, what: str, said: str) -> None:
    stdout, stderr = together(tmp_path, what)
    assert stdout.strip() == said, stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_a_run_on_two_devices_survives_the_loss_of_one_bit_for_bit(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        "{backbone: conv4, backbone_options: {width: 4}, drop_path: 0.0, steps: 12, batch: 16, workers: 0,"
        " precision: float32, eval_images: 20, eval_every: 100%, checkpoint_every: '4', keep_checkpoints: 9,"
        " devices: 2, device: cpu, method: {name: byol, hidden_dim: 16, projection_dim: 8},"
        " views: {global: {size: 32}}}"
    )
    runs = [tmp_path / name for name in ("whole", "killed")]
    ended = [train(settings, run, lose=run.name == "killed") for run in runs]
    for stdout, stderr in ended:
        assert json.loads(stdout)["steps"] == 12  # exactly one document
        assert "Traceback" not in stderr, stderr
    whole, killed = (load(run) for run in runs)
    assert whole.keys() == killed.keys() and all(torch.equal(value, killed[key]) for key, value in whole.items())
    assert [row["step"] for row in rows(runs[1]) if "loss" in row] == list(range(1, 13))
    assert [row["step"] for row in rows(runs[0]) if "loss" in row] == list(range(1, 13))


def train(settings: Path, run: Path, lose: bool) -> tuple[str, str]:
    """The output of a run; `lose` kills its second process in step 6, once."""
    environment = {**os.environ, "OPENDINO_TEST_LOSE": str(run.parent / "lost") if lose else ""}
    command = [
        sys.executable, "-W", "ignore", str(LOSER), "train", "toy:textures?n=48&size=32",
        "--config", str(settings), "--out", str(run), "--json",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ended.stderr


LOSER = Path(__file__).with_name("losing_rank_1.py")


def load(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "checkpoints/step_00000012/tensors.safetensors")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


NOTEBOOK = """
import opendino, sys
from opendino.config import Config
from opendino.core.errors import UserError
from opendino.methods import byol
from opendino.views.settings import changed
config = Config(
    data="toy:textures?n=16&size=16", backbone="conv4", backbone_options={"width": 2}, steps=2, batch=8, workers=0,
    precision="float32", eval_images=0, report=False, devices=2, device="cpu", out=sys.argv[1], drop_path=0.0,
    method=byol.Config(hidden_dim=8, projection_dim=4),
    views=changed(byol.VIEWS, {"global.size": 16}),
)
result = opendino.train(config)
print(result.steps, opendino.resume(result.run, steps=3).steps)
try:
    opendino.train(config)
except UserError as error:
    print(error)
"""
"""As a notebook or a script without a guard writes it: other processes cannot import it."""


@pytest.mark.slow
def test_two_devices_from_python_train_together(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(NOTEBOOK)
    run = tmp_path / "run"
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(run)], capture_output=True, text=True, timeout=500
    )
    lines = ended.stdout.splitlines()
    assert lines[0] == "2 3", ended.stderr
    assert "exists already" in lines[1] and f"opendino resume {run}" in lines[1]
    assert "of each of 2 ddp devices" in (run / "log.txt").read_text()
    assert "2 steps of 8 on cpu" in ended.stderr, "what the run says is seen where it was started"


def test_what_a_command_says_is_raised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder") as caught:
        launch.command("resume", str(tmp_path))
    assert caught.value.exit_code == 1
    with pytest.raises(UserError, match="Unknown option") as caught:
        launch.command("train", "x", "--nonsense", "1")
    assert caught.value.exit_code == 2
