"""Trainings started on the page: each is a separate process; one per session, and a limited number in total."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from opendino.core.errors import UserError
from opendino.models.load import DESCRIPTION

_GRACE_SECONDS = 20
"""Time for a training to finish its step and save after SIGTERM, before it is killed."""


class TrainingJob:
    """A training process, running or finished.

    Args:
        data: Images, as for `opendino train`.
        out: Run folder to create.
        steps: Number of optimizer steps.
        flags: Further flags of `opendino demo`.
    """

    def __init__(self, data: str, out: Path, steps: int, flags: Sequence[str]) -> None:
        self.out, self.steps, self.data, self.stopped = out, steps, data, False
        self._stderr = out.with_name(f"{out.name}.stderr")
        out.parent.mkdir(parents=True, exist_ok=True)
        words = ["demo", data, "--out", str(out), "--steps", str(steps), *flags]
        command = [sys.executable, "-m", "opendino", *words]
        with open(self._stderr, "wb") as file:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    @property
    def failed(self) -> str:
        """The last line of its output if it failed, else an empty string."""
        if self.running or self.stopped or self._process.returncode == 0:
            return ""
        lines = self._stderr.read_text("utf-8", "replace").strip().splitlines()
        if not lines:
            return f"The training process exited with code {self._process.returncode} and no message"
        return lines[-1].removeprefix("opendino: ")

    def ask_to_stop(self) -> None:
        """Send SIGTERM: the training finishes its step and saves its state."""
        if self.running:
            self.stopped = True
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait for the process to exit, and kill it if it does not."""
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.unlink(missing_ok=True)


class TrainingJobs:
    """The trainings of all sessions.

    Args:
        folder: Folder of their run folders.
        keep: Whether the run folders are kept when their session ends.
        max_running: Largest number of trainings that run at the same time.
    """

    def __init__(self, folder: Path, keep: bool, max_running: int) -> None:
        self._folder, self._keep, self._max_running, self._lock = folder, keep, max_running, threading.Lock()
        self._sessions: dict[str, list[TrainingJob]] = {}

    def start(self, session: str, data: str | Path, steps: int, flags: Sequence[str]) -> TrainingJob:
        """Start a training. An uploaded archive is copied next to its run, and deleted when the session ends.

        Args:
            session: The session that starts it.
            data: Generated images ("toy:…"), or the path of an uploaded archive.
            steps: Number of optimizer steps.
            flags: Further flags of `opendino demo`.

        Raises:
            UserError: The session already has a running training, or too many are running.
        """
        with self._lock:
            mine = self._sessions.get(session, [])
            if mine and mine[-1].running:
                raise UserError("You already have a running training", "Stop it first")
            if sum(each.running for all_ in self._sessions.values() for each in all_) >= self._max_running:
                raise UserError("Other users are training on this page", "Try again in a few minutes")
            # no part of the name comes from the client
            out = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(8)}"
            if isinstance(data, Path):
                kept = out.with_name(f"{out.name}.zip")
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(data, kept)
                data = str(kept)
            training = TrainingJob(data, out, steps, flags)
            self._sessions.setdefault(session, []).append(training)
            return training

    def latest(self, session: str) -> TrainingJob | None:
        """The last training of the session."""
        return next(reversed(self._sessions.get(session, [])), None)

    def runs(self, session: str) -> dict[str, Path]:
        """Name → run folder of the session's trainings, newest first."""
        mine = self._sessions.get(session, [])
        started = [(number, each.out) for number, each in enumerate(mine, 1) if (each.out / "metrics.jsonl").is_file()]
        return {f"trained here ({number})": out for number, out in reversed(started)}

    def models(self, session: str) -> dict[str, str]:
        """Name → run folder of the session's trainings that already have a model."""
        return {name: str(out) for name, out in self.runs(session).items() if (out / DESCRIPTION).is_file()}

    def close(self, session: str | None = None) -> None:
        """End a session (None: all sessions): stop its trainings, delete their archives and, unless kept, runs."""
        with self._lock:
            names = [*self._sessions] if session is None else [session]
            closed = [training for name in names for training in self._sessions.pop(name, [])]
        for training in closed:
            training.ask_to_stop()
        for training in closed:
            training.end()
            if not self._keep:
                shutil.rmtree(training.out, ignore_errors=True)
            if not training.data.startswith("toy:"):
                with contextlib.suppress(OSError):
                    os.unlink(training.data)  # noqa: PTH108
