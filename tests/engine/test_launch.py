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
    for what in sys.argv[2:]:  # one after the other from one process: importing torch costs more than all of them
        try:
            print(launch.together(2, work, sys.argv[1], what))
        except UserError as error:
            print(f"{error.exit_code} {error}")
        except RuntimeError as error:
            print(str(error).strip().splitlines()[-1])
"""
OUTCOMES = {
    "refused": "2 No such thing. Take another",
    "bug": "AssertionError: ours",
    "lost": "{'rank': 0, 'world': 2, 'started again': 1}",
    "asked": "130 Stopped, state saved",  # last: the signal goes to every process
}
"""What happens to one of two processes → what the caller of `together` gets."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("together")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", str(script), str(folder), *OUTCOMES]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while len(list(folder.glob("ready *"))) < 2 and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: everything gets it
        stdout, stderr = process.communicate(timeout=400)
    assert "Traceback" not in stderr and len(stdout.splitlines()) == len(OUTCOMES), stderr
    return dict(zip(OUTCOMES, stdout.splitlines(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("what", OUTCOMES)
def test_several_processes_end_with_the_result_of_one(outcomes: dict[str, str], what: str) -> None:
    assert outcomes[what] == OUTCOMES[what]


@pytest.mark.slow
def test_a_run_on_two_devices_survives_the_loss_of_one_bit_for_bit(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        "{backbone: conv4, backbone_options: {width: 4}, drop_path: 0.0, steps: 12, batch: 16, workers: 0,"
        " precision: float32, eval_images: 20, eval_every: 100%, checkpoint_every: '4', keep_checkpoints: 9,"
        " devices: 2, device: cpu, report: false, method: {name: byol, hidden_dim: 16, projection_dim: 8},"
        " views: {global: {size: 32}}}"
    )
    runs = [tmp_path / name for name in ("whole", "killed")]
    command = [sys.executable, "-W", "ignore", str(LOSER), "train", "toy:textures?n=48&size=32"]
    ended = subprocess.run(
        [*command, "--config", str(settings), "--json", "--out", *map(str, runs)],
        capture_output=True, text=True, timeout=400, env={**os.environ, "OPENDINO_TEST_LOST": str(tmp_path / "lost")},
    )  # fmt: skip
    assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr
    assert [json.loads(line)["steps"] for line in ended.stdout.splitlines()] == [12, 12]  # one document each
    whole, killed = (load(run) for run in runs)
    assert whole.keys() == killed.keys() and all(torch.equal(value, killed[key]) for key, value in whole.items())
    assert [row["step"] for row in rows(runs[1]) if "loss" in row] == list(range(1, 13))
    assert [row["step"] for row in rows(runs[0]) if "loss" in row] == list(range(1, 13))


LOSER = Path(__file__).with_name("losing_rank_1.py")


def load(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "checkpoints/step_00000012/tensors.safetensors")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


NOTEBOOK = """
import opendino, sys
from opendino.config import Config
from opendino.methods import byol
from opendino.views.settings import changed
config = Config(
    data="toy:textures?n=16&size=16", backbone="conv4", backbone_options={"width": 2}, steps=2, batch=8, workers=0,
    precision="float32", eval_images=0, report=False, devices=2, device="cpu", out=sys.argv[1], drop_path=0.0,
    method=byol.Config(hidden_dim=8, projection_dim=4),
    views=changed(byol.VIEWS, {"global.size": 16}),
)
result = opendino.train(config)
print(result.steps)
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
    assert ended.stdout == "2\n", ended.stderr
    assert "of each of 2 ddp devices" in (run / "log.txt").read_text()
    assert "2 steps of 8 on cpu" in ended.stderr, "what the run says is seen where it was started"


def test_what_a_command_says_is_raised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown option '--nonsense'") as caught:
        launch.command("train", str(tmp_path), "--nonsense", "1")
    assert caught.value.exit_code == 2
