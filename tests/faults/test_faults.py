"""Most faults once or a few times; `python -m tests.faults` repeats all by the hundred and writes the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = {
    "kill −9 of one of two ranks": "killed-pair",
    "kill −9 of a loader process": "loaders",
    "SIGTERM": "stop",
    "SIGINT": "stop",
    "disk too small for the run": "disk",
    "disk filled by others": "disk",
    "disk too small for cache=disk": "cache",
    "wall clock": "clocks",
    "two started at once: a folder that is not there": "two",
    "two started at once: an empty folder": "two",
    "two started at once: resume": "two",
    "read-only place": "read-only",
    "images removed": "files",
    "NaN on one of two ranks": "nan",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    out = tmp_path_factory.mktemp("faults") / "found.json"
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults", "--kills", "1", "--times", "1", "--out", str(out)]
    command += ["--steps", "18", "--no-report", "--only", *dict.fromkeys(ROWS.values())]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert out.exists(), ended.stderr[-3000:]
    return json.loads(out.read_text())["faults"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ROWS)
def test_a_run_survives_it(table: list[dict[str, object]], fault: str) -> None:
    found = [row for row in table if str(row["fault"]).startswith(fault)]
    if not found and ROWS[fault] in ("disk", "cache", "read-only"):
        pytest.skip("needs root")
    assert len(found) == 1
    assert found[0]["tried"] and found[0]["survived"] == found[0]["tried"], found[0]["notes"]
