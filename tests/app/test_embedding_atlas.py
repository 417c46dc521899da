"""Handing a table to embedding-atlas."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest

from opendino.cli import main
from opendino.core import child_process

# Notes how it was called, and copies the file it was given.
STUB = """#!/bin/sh
printf '%s\\n' "$@" > "$NOTED"; cp "$1" "$NOTED.parquet"
"""


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin/embedding-atlas"
    program.parent.mkdir()
    program.write_text(STUB)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTED", str(tmp_path / "noted"))
    return tmp_path / "noted"


def test_parquet_is_handed_over_as_it_is_on_this_machine_alone(place: Path, noted: Path) -> None:
    table = str(place / "photos.parquet")
    assert main(["explore", table, "--port", "5099"]) == 0
    words = noted.read_text().splitlines()
    assert words == [table, "--vector", "vector", "--text", "key", "--host", "127.0.0.1", "--port", "5099"]


def test_a_lance_table_is_handed_over_as_parquet(place: Path, tmp_path: Path, noted: Path) -> None:
    table = tmp_path / "photos.lance"
    assert main(["embed", str(place / "runs/first"), str(place / "photos"), "--out", str(table)]) == 0
    assert main(["explore", str(table)]) == 0
    rows = pyarrow.parquet.read_table(f"{noted}.parquet")
    assert rows.num_rows == 24 and {"key", "vector"} <= set(rows.column_names)


def test_the_program_is_found_beside_python_and_before_the_path(
    place: Path, tmp_path: Path, noted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = tmp_path / "environment"
    environment.mkdir()
    (environment / "python").symlink_to(sys.executable)
    (environment / "embedding-atlas").write_text("#!/bin/sh\nexit 7\n")
    (environment / "embedding-atlas").chmod(0o755)
    found: list[list[str]] = []
    monkeypatch.setattr(sys, "executable", str(environment / "python"))
    monkeypatch.setattr(child_process, "run", lambda command, remove: found.append(command) or 0)
    assert main(["explore", str(place / "photos.parquet")]) == 0
    assert found[0][0] == str(environment / "embedding-atlas")


@pytest.mark.parametrize(
    ("ending", "how"),
    [("lance", signal.SIGTERM), ("parquet", signal.SIGKILL), ("parquet", signal.SIGHUP)],
)
def test_the_map_ends_with_the_command(
    place: Path, tmp_path: Path, noted: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals, ending: str
) -> None:
    table = place / "photos.parquet"
    if ending == "lance":
        if not (place / "photos.lance").exists():
            words = ["embed", str(place / "runs/first"), str(place / "photos"), "--out", str(place / "photos.lance")]
            assert main([*words, "--workers", "1"]) == 0
        table = place / "photos.lance"
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    program = tmp_path / "bin/embedding-atlas"
    program.write_text('#!/bin/sh\necho $$ > "$NOTED.part"; mv "$NOTED.part" "$NOTED"; exec sleep 600\n')
    command = subprocess.Popen([sys.executable, "-m", "opendino", "explore", str(table)])
    try:
        waited(noted.exists)
        server = int(noted.read_text())
        command.send_signal(how)
        command.wait(60)
        waited(lambda: not alive(server))
        waited(lambda: not list((tmp_path / "temporary").iterdir()))
    finally:
        command.kill()
        command.wait()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def waited(until: Callable[[], bool]) -> None:
    last = time.monotonic() + 400
    while not until():
        assert time.monotonic() < last
        time.sleep(0.1)


def test_without_the_program_the_way_on_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["explore", str(place / "photos.parquet"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["error"] == {"message": "The map needs embedding-atlas", "hint": 'pip install "opendino[explore]"'}


def test_a_missing_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "nowhere.parquet"]) == 1
    assert "There is no table nowhere.parquet" in capsys.readouterr().err
