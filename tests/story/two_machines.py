"""`opendino`, which waits in its 9th step for the other machine to be lost, and in its 17th for it to come back."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from opendino import training
from opendino.cli import main
from opendino.engine.interrupt import Interrupt

told, ask = [], Interrupt._ask


def noted(self: Interrupt, *args: Any) -> None:
    told.append(1)
    ask(self, *args)


step = training.step


def waiting(*args: Any) -> Any:
    clock, together = args[4], os.environ["WORLD_SIZE"] == "2"
    while clock.step == 8 and together and not Path(os.environ["LOST"]).exists():
        time.sleep(0.05)
    while clock.step == 16 and not together and not told:
        time.sleep(0.05)
    return step(*args)


training.step, Interrupt._ask = waiting, noted
sys.exit(main())
