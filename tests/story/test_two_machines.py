"""Two machines, played by two network namespaces, train together; one is lost, and comes back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.factories import DINO

import opendino
from opendino.config import Config, dump
from opendino.engine import optim
from opendino.recipes import demo
from opendino.views.settings import changed

STEPS = 24
NAMES = ("opendino-a", "opendino-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def clear() -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture
def machines() -> Iterator[None]:
    """Two namespaces with a cable between them."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip`; Debian has it in the package iproute2")
    clear()
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "cable-a", "netns", NAMES[0], "type", "veth", "peer", "name", "cable-b", "netns", NAMES[1])
        for name, cable, address in zip(NAMES, ("cable-a", "cable-b"), ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        clear()
        pytest.skip(f"this machine makes no network namespaces: {error.stderr.strip()}")
    yield
    for name in NAMES:
        unplug(name)
    clear()


def unplug(name: str) -> None:
    """All processes of a machine end at once."""
    for pid in ip("netns", "pids", name).split():
        subprocess.run(["kill", "-9", pid], capture_output=True)


def start(number: int, settings: Path, run: Path, log: Path) -> subprocess.Popen[str]:
    """torchrun on one of the machines, as docs/scale.md has it but for quicker decisions."""
    cable = ("cable-a", "cable-b")[number]
    command = [
        "ip", "netns", "exec", NAMES[number], sys.executable, "-W", "ignore", "-m", "torch.distributed.run",
        "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "9", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"{ADDRESSES[0]}:29400", "--rdzv-id", "run", "--local-addr", ADDRESSES[number],
        "--rdzv-conf", f"is_host={1 - number},last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=6",
        str(Path(__file__).with_name("two_machines.py")),
        "train", "toy:textures?n=48&size=32", "--config", str(settings), "--out", str(run), "--resume",
    ]  # fmt: skip
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": cable, "TP_SOCKET_IFNAME": cable, "LOST": str(log.with_name("lost")),
        # Or one that comes back waits for ever: torch tells it of a store in another round's book.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }  # fmt: skip
    with open(log, "a") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, text=True, env=environment)


def saved(run: Path) -> dict[int, int]:
    """How many machines wrote each checkpoint, by step."""
    states = [json.loads(path.read_text()) for path in run.glob("checkpoints/step_*/state.json")]
    return {state["step"]: state["world"] for state in states}


def wait_for(what: Callable[[], bool], log: Path) -> None:
    until = time.monotonic() + 280
    while not what():
        assert time.monotonic() < until, log.read_text()[-5000:]
        time.sleep(0.2)


def config(out: Path) -> Config:
    recipe = demo.config("toy:textures?n=48&size=32")
    small = replace(DINO, freeze_last_layer="1ep", momentum=0.9)
    return replace(
        recipe, val=None, out=str(out), backbone="vit/8", drop_path=0.0, method=small,
        views=changed(recipe.views, {"local.number": 2}), steps=STEPS, batch=16, workers=0,
        backbone_options={"embed_dim": 24, "depth": 2, "num_heads": 2}, precision="float32", eval_images=20,
        checkpoint_every="4", eval_every="100%", report=False, keep_checkpoints=99, device="cpu", parallel="fsdp",
        optim=optim.Config(name="sgd", lr=0.005, lr_warmup="0", grad_accum_steps=2),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("machines")
@pytest.mark.timeout(900)
def test_two_machines_survive_the_loss_and_return_of_one(tmp_path: Path) -> None:
    run, settings, logs = tmp_path / "run", tmp_path / "settings.yaml", [tmp_path / "log a", tmp_path / "log b"]
    settings.write_text(dump(config(run)))
    first, lost = (start(number, settings, run, logs[number]) for number in (0, 1))
    wait_for(lambda: 8 in saved(run), logs[0])
    unplug(NAMES[1])
    assert lost.wait(timeout=60) == -signal.SIGKILL
    (tmp_path / "lost").touch()
    wait_for(lambda: 16 in saved(run), logs[0])
    second = start(1, settings, run, logs[1])
    wait_for(lambda: first.poll() is not None, logs[0])
    assert first.returncode == 0, logs[0].read_text()[-5000:]
    assert second.wait(timeout=60) == 0
    worlds = saved(run)
    assert [worlds[step] for step in (8, 16, 24)] == [2, 1, 2]

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    opendino.train(config(tmp_path / "alone"))
    ours, alone, begun = (
        load_file(folder / f"checkpoints/step_{step:08d}/tensors.safetensors")
        for folder, step in ((run, STEPS), (tmp_path / "alone", STEPS), (run, 0))
    )
    assert ours.keys() == alone.keys()
    for key, value in alone.items():
        if key.startswith("method."):  # sums in another order: some 5e-6 of the way
            moved = float((value - begun[key]).norm())
            assert float((ours[key] - value).norm()) <= 1e-4 * moved + 1e-6 * float(value.norm()), key
    assert all(bool(torch.isfinite(value).all()) for value in ours.values())
