"""A run whose machine becomes busy measures its threads again, says so, and is resumed with the number it then had."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.factories import DINO

import opendino
from opendino import resolve
from opendino.engine import checkpoint, optim, threads
from opendino.recipes import demo
from opendino.views.settings import changed


def test_a_change_of_threads_is_saved_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(threads, "choose", lambda *_: (1, "measured"))
    slow = iter([False, True])  # at the second look
    monkeypatch.setattr(threads.Slowdown, "__call__", lambda self, rates: next(slow, False))
    monkeypatch.setattr("opendino.engine.run_monitor.RunMonitor.due", lambda self: True)
    monkeypatch.setattr(resolve, "measured_threads", lambda config, before, device: 3)
    used: list[int] = []
    real = optim.step
    monkeypatch.setattr(optim, "step", lambda *args: (used.append(torch.get_num_threads()), real(*args)))
    recipe = demo.config("toy:textures?n=16&size=16")
    config = replace(
        recipe, val=None, backbone_options={"width": 2}, steps=6, batch=8, workers=0, precision="float32",
        method=replace(DINO, out_dim=8, hidden_dim=8, bottleneck_dim=4),
        views=changed(recipe.views, {"global.size": 16, "local.size": 8}),
        checkpoint_every="100%", eval_images=0, report=False, keep_checkpoints=9, out=str(tmp_path / "run"),
    )  # fmt: skip
    before = torch.get_num_threads()
    opendino.train(config)
    assert used == [1, 1, 3, 3, 3, 3] and torch.get_num_threads() == before
    saved = {
        path.name: checkpoint.state(path)["threads"]["number"]
        for path in sorted((tmp_path / "run" / "checkpoints").iterdir())
    }
    assert saved == {"step_00000000": 1, "step_00000002": 3, "step_00000006": 3}
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000006")
    used.clear()
    opendino.resume(tmp_path / "run")
    assert used == [3, 3, 3, 3]
