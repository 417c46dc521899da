"""Trainings started on the page: each is a separate process; one per session, and a limited number in total."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from opendino.core import log
from opendino.core.errors import UserError
from opendino.models.load import DESCRIPTION

_GRACE_SECONDS = 20
"""Time for a training to finish its step and save after SIGTERM, before it is killed."""


class TrainingJob:
    """A training process, running or finished.

    Args:
        words: The words of the command line after `opendino`, without --out.
        out: Run folder to create.
        session: The session that starts it.
        archive: An uploaded archive that is deleted with the job; None without.
    """

    def __init__(self, words: Sequence[str], out: Path, session: str, archive: Path | None = None) -> None:
        self.out, self.session, self.archive, self._words = out, session, archive, list(words)
        self.stopped, self.began = False, time.monotonic()
        self._stderr = out.with_name(f"{out.name}.stderr")
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "opendino", *words, "--out", str(out)]
        with open(self._stderr, "wb") as file:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    @property
    def said(self) -> list[str]:
        """The lines that it has printed so far."""
        try:
            return self._stderr.read_text("utf-8", "replace").strip().splitlines()
        except FileNotFoundError:  # the job has been removed
            return []

    @property
    def command(self) -> str:
        """The command line that repeats it, into a new run folder; an uploaded archive is called images.zip."""
        words = ("images.zip" if self.archive and word == str(self.archive) else word for word in self._words)
        return shlex.join(["opendino", *words])

    @property
    def failed(self) -> str:
        """The last line of its output if it failed, else an empty string."""
        if self.running or self.stopped or self._process.returncode == 0:
            return ""
        lines = self.said
        if not lines:
            return f"The training process exited with code {self._process.returncode} and no message"
        return lines[-1].removeprefix("opendino: ")

    def ask_to_stop(self) -> None:
        """Send SIGTERM: the training finishes its step and saves its state."""
        if self.running:
            self.stopped = True
            self._process.send_signal(signal.SIGTERM)

    def end(self, patient: bool = False) -> None:
        """Wait for the process to exit, and kill it if it does not.

        Args:
            patient: Wait until it has finished its step, or its evaluation, and saved, however long that takes; Ctrl-C
                kills it.
        """
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            if patient:
                log.say(f"waiting for the training in {self.out} to save; Ctrl-C ends it without")
                with contextlib.suppress(KeyboardInterrupt):
                    self._process.wait()
            self._process.kill()
            self._process.wait()
        self._stderr.unlink(missing_ok=True)
        if self.archive:
            self.archive.unlink(missing_ok=True)


class TrainingJobs:
    """The trainings of all sessions.

    A training on images of the server belongs to no session: it is shown to all of them, and continues when they end.

    Args:
        folder: Folder of the runs of sessions.
        keep: Whether these are kept when their session ends.
        server_folder: Folder of the runs on images of the server; they are always kept.
        max_running: Largest number of trainings that run at the same time.
    """

    def __init__(self, folder: Path, keep: bool, server_folder: Path, max_running: int) -> None:
        self._folder, self._keep, self._server_folder = folder, keep, server_folder
        self._max_running, self._lock = max_running, threading.Lock()
        self._sessions: dict[str | None, list[TrainingJob]] = {}  # None: trainings that belong to no session

    def start(self, session: str, data: str | Path, flags: Sequence[str]) -> TrainingJob:
        """Start a small training. An uploaded archive is copied next to its run, and deleted when the session ends.

        Args:
            session: The session that starts it.
            data: Generated images ("toy:…"), or the path of an uploaded archive.
            flags: Flags of `opendino demo`.

        Raises:
            UserError: The session already has a running training, or too many are running.
        """
        with self._lock:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(8)}"
            out = self._admit(session, self._folder / name)
            archive = None
            if isinstance(data, Path):
                archive = out.with_name(f"{out.name}.zip")
                archive.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(data, archive)
            return self._add(session, TrainingJob(["demo", str(archive or data), *flags], out, session, archive))

    def start_on_server_images(self, session: str, data: str, flags: Sequence[str]) -> TrainingJob:
        """Start a training on images that were named when the page was started.

        Args:
            session: The session that starts it.
            data: Their folder or archive.
            flags: Flags of `opendino train`.

        Raises:
            UserError: Such a training is running already, or too many are running.
        """
        with self._lock:
            name = f"{Path(data).stem}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
            out = self._admit(None, self._server_folder / name)
            return self._add(None, TrainingJob(["train", data, *flags], out, session))

    def _admit(self, session: str | None, out: Path) -> Path:
        """Check that a training may start, and return its run folder; no part of a name comes from the client."""
        mine = self._sessions.get(session, [])
        if mine and mine[-1].running:
            raise UserError("A training is running already", "Stop it first")
        if sum(each.running for all_ in self._sessions.values() for each in all_) >= self._max_running:
            raise UserError("Other users are training on this page", "Try again in a few minutes")
        return out

    def _add(self, session: str | None, training: TrainingJob) -> TrainingJob:
        self._sessions.setdefault(session, []).append(training)
        return training

    def latest(self, session: str) -> TrainingJob | None:
        """The last training that the session sees; one that runs comes first."""
        last = [jobs[-1] for name in (None, session) if (jobs := self._sessions.get(name))]
        return max(last, key=lambda job: (job.running, job.began), default=None)

    def runs(self, session: str) -> dict[str, Path]:
        """Name → run folder of the session's trainings, newest first."""
        mine = self._sessions.get(session, [])
        started = [(number, each.out) for number, each in enumerate(mine, 1) if (each.out / "metrics.jsonl").is_file()]
        return {f"trained here ({number})": out for number, out in reversed(started)}

    def models(self, session: str) -> dict[str, str]:
        """Name → run folder of the session's trainings that already have a model."""
        return {name: str(out) for name, out in self.runs(session).items() if (out / DESCRIPTION).is_file()}

    def close(self, session: str) -> None:
        """End a session: stop its trainings, delete their archives and, unless kept, their runs."""
        with self._lock:
            closed = self._sessions.pop(session, [])
        self._end(closed)

    def close_all(self) -> None:
        """End all sessions, and the trainings that belong to none."""
        with self._lock:
            closed = [training for trainings in self._sessions.values() for training in trainings]
            self._sessions.clear()
        self._end(closed)

    def _end(self, closed: Sequence[TrainingJob]) -> None:
        for training in closed:
            training.ask_to_stop()
        for training in closed:
            of_session = training.out.parent == self._folder
            training.end(patient=not of_session)
            if not self._keep and of_session:
                shutil.rmtree(training.out, ignore_errors=True)
