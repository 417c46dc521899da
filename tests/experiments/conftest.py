"""Runs of an experiment in this process: importing torch anew for each costs more than the runs."""

from __future__ import annotations

import contextlib
import io
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from opendino.cli import main
from opendino.experiments import _trial_runs


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The verbs of the commands that were run."""
    verbs: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-m", "opendino"]
        verbs.append(command[3])
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            code = main(command[3:])
        return subprocess.CompletedProcess(command, code, stdout.getvalue(), "failed")

    monkeypatch.setattr(_trial_runs, "subprocess", SimpleNamespace(run=run))
    return verbs
