"""Trainings that people start from the page: each a process of its own, one a session, a few at a time."""

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

_PATIENCE_SECONDS = 20
"""Between asking a training to stop, which lets it finish its step and save, and ending it."""


class TrainingJob:
    """A training under way or over.

    Args:
        data: What `opendino train` takes.
        out: Its run folder.
        steps: Of the run.
        flags: Further words for the command line.
    """

    def __init__(self, data: str, out: Path, steps: int, flags: Sequence[str]) -> None:
        self.out, self.steps, self.data, self.stopped = out, steps, data, False
        self._said = out.with_name(f"{out.name}.stderr")
        out.parent.mkdir(parents=True, exist_ok=True)
        words = ["demo", data, "--out", str(out), "--steps", str(steps), *flags]
        command = [sys.executable, "-m", "opendino", *words]
        with open(self._said, "wb") as file:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    @property
    def running(self) -> bool:
        """Whether it is under way."""
        return self._process.poll() is None

    @property
    def failed(self) -> str:
        """What it said last, where it went wrong; else nothing."""
        if self.running or self.stopped or self._process.returncode == 0:
            return ""
        lines = self._said.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1].removeprefix("opendino: ") if lines else "The training ended without a word"

    def ask_to_stop(self) -> None:
        """It finishes its step and saves its state."""
        if self.running:
            self.stopped = True
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait for a training that was asked to stop, and end it if need be."""
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.unlink(missing_ok=True)


class TrainingJobs:
    """The trainings of all sessions.

    Args:
        folder: Where their run folders go.
        keep: Whether these outlive the session that started them.
        most: Trainings at a time.
    """

    def __init__(self, folder: Path, keep: bool, most: int) -> None:
        self._folder, self._keep, self._most, self._lock = folder, keep, most, threading.Lock()
        self._sessions: dict[str, list[TrainingJob]] = {}

    def start(self, session: str, data: str | Path, steps: int, flags: Sequence[str]) -> TrainingJob:
        """Start a training. An uploaded archive is moved to its run, and removed with the session.

        Args:
            session: Who wants it.
            data: Images to draw ("toy:…"), or an uploaded archive.
            steps: Of the run.
            flags: Further words for the command line.

        Raises:
            UserError: This session has one under way, or there are too many.
        """
        with self._lock:
            mine = self._sessions.get(session, [])
            if mine and mine[-1].running:
                raise UserError("You have a training under way", "Stop it first")
            if sum(each.running for all_ in self._sessions.values() for each in all_) >= self._most:
                raise UserError("Others are training here just now", "Try again in a few minutes")
            out = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(8)}"  # nothing of the client's
            if isinstance(data, Path):
                kept = out.with_name(f"{out.name}.zip")
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(data, kept)
                data = str(kept)
            training = TrainingJob(data, out, steps, flags)
            self._sessions.setdefault(session, []).append(training)
            return training

    def latest(self, session: str) -> TrainingJob | None:
        """The session's last training."""
        return next(reversed(self._sessions.get(session, [])), None)

    def runs(self, session: str) -> dict[str, Path]:
        """The session's own runs by name, the newest first."""
        mine = self._sessions.get(session, [])
        begun = [(number, each.out) for number, each in enumerate(mine, 1) if (each.out / "metrics.jsonl").is_file()]
        return {f"trained here ({number})": out for number, out in reversed(begun)}

    def models(self, session: str) -> dict[str, str]:
        """Those of them that have a model."""
        return {name: str(out) for name, out in self.runs(session).items() if (out / DESCRIPTION).is_file()}

    def close(self, session: str | None = None) -> None:
        """Stop what a session has under way and remove what it left, or that of all sessions."""
        with self._lock:
            names = [*self._sessions] if session is None else [session]
            gone = [training for name in names for training in self._sessions.pop(name, [])]
        for training in gone:
            training.ask_to_stop()
        for training in gone:
            training.end()
            if not self._keep:
                shutil.rmtree(training.out, ignore_errors=True)
            if not training.data.startswith("toy:"):
                with contextlib.suppress(OSError):
                    os.unlink(training.data)  # noqa: PTH108
