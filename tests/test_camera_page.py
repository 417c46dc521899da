"""The commands of docs/camera.md run in their order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests.factories import noise_folder

from opendino.cli import main

PAGE = Path(__file__).parents[1] / "docs/camera.md"
QUICK = (
    "--steps 2 --batch 6 --backbone conv4 --workers 0 --threads 1 --device cpu --precision float32 --report False "
    "--method.out-dim 16 --method.hidden-dim 8 --method.bottleneck-dim 4 --eval-images 8"
)


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    folders = ("camera/2026-06", "camera/2026-07", "labeled/good", "labeled/scratch", "checked/good", "checked/scratch")
    for number, folder in enumerate(folders):
        noise_folder(Path(folder), 12, width=32 + number)  # other pixels for another width
    text = PAGE.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    (daily,) = [line for line in lines if "cd /srv/line" in line]
    lines = [*lines, *daily.split(" && ")[1:]]
    commands = [line for line in lines if re.match(r"opendino (?!serve)", line)]
    assert len(commands) == 12
    for command in commands:
        words = shlex.split(command.replace("--minutes 30", QUICK))[1:]
        assert main(words) == 0, (command, capsys.readouterr().err)
    made = ("odd.png", "odd.csv", "classes.csv", "to-label.txt", "all.lance", "runs/camera-2/backbone.safetensors")
    assert [name for name in made if not Path(name).exists()] == []
