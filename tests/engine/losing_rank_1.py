"""`opendino … --out WHOLE KILLED`: the command for each folder; of the second, rank 1 is killed in its sixth step."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

LOST = Path(os.environ["OPENDINO_TEST_LOST"])
"""Exists while no process is to be killed."""

if __name__ == "__mp_main__":
    from opendino.engine import optim

    step, calls = optim.step, []

    def losing(*args: object) -> None:
        calls.append(1)
        if os.environ.get("RANK") == "1" and len(calls) == 6 and not LOST.exists():
            LOST.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        step(*args)  # pyright: ignore[reportArgumentType]

    optim.step = losing

if __name__ == "__main__":
    from opendino.cli import main

    *words, whole, killed = sys.argv[1:]
    LOST.touch()
    assert main([*words, whole]) == 0
    LOST.unlink()
    sys.exit(main([*words, killed]))
