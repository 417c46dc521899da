"""`opendino`, but the process of rank 1 is killed in its sixth step, once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

mark = os.environ.get("OPENDINO_TEST_LOSE")
if mark and __name__ == "__mp_main__":
    from opendino.engine import optim

    step, calls = optim.step, []

    def losing(*args: object) -> None:
        calls.append(1)
        if os.environ.get("RANK") == "1" and len(calls) == 6 and not Path(str(mark)).exists():
            Path(str(mark)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        step(*args)  # pyright: ignore[reportArgumentType]

    optim.step = losing

if __name__ == "__main__":
    from opendino.cli import main

    sys.exit(main())
