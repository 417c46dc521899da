"""Run a program that is stopped when the process that started it ends, even if that process is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

_TERMINATE_TIMEOUT_S = 5


def run(command: Sequence[str], remove: str) -> int:
    """Run a program, wait for it and return its exit code.

    A watcher process in between reads from a pipe that this process holds open. When this process ends, the pipe
    closes, and the watcher stops the program. This also works after SIGKILL, which no handler can catch.

    Args:
        command: The program and its arguments.
        remove: A folder that the watcher removes when the program has ended.
    """
    watcher_command = [sys.executable, "-m", __name__, remove, *command]
    with subprocess.Popen(watcher_command, stdin=subprocess.PIPE) as watcher:
        try:
            return watcher.wait()
        finally:
            assert watcher.stdin is not None
            watcher.stdin.close()


def _watch(remove: str, command: Sequence[str]) -> int:
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the program too

    def stop_at_end_of_input() -> None:
        while os.read(0, 1):  # blocks until the parent has ended; it never writes
            pass
        program.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(_TERMINATE_TIMEOUT_S)
        program.kill()

    signal.signal(signal.SIGTERM, lambda number, frame: program.terminate())
    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    code = program.wait()
    shutil.rmtree(remove, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(_watch(sys.argv[1], sys.argv[2:]))
