"""A program that ends with the process that started it, however that ends: also when it is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

_PATIENCE_SECONDS = 5


def run(command: Sequence[str], remove: str) -> int:
    """Run a program and wait for it; its exit code.

    Between it and us stands a process that waits for the end of its input, which comes when we are gone.

    Args:
        command: The program and its arguments.
        remove: A folder to remove if we do not live to do so.
    """
    words = [sys.executable, "-m", __name__, remove, *command]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as watcher:
        try:
            return watcher.wait()
        finally:
            assert watcher.stdin is not None
            watcher.stdin.close()


def _watch(remove: str, command: Sequence[str]) -> int:
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the program too

    def follow() -> None:
        while os.read(0, 1):
            pass
        program.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(_PATIENCE_SECONDS)
        program.kill()

    signal.signal(signal.SIGTERM, lambda number, frame: program.terminate())
    threading.Thread(target=follow, daemon=True).start()
    code = program.wait()
    shutil.rmtree(remove, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(_watch(sys.argv[1], sys.argv[2:]))
