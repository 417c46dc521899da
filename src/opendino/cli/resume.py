"""Go on where a run stopped: opendino resume RUN [--devices N]"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opendino.cli import Outcome
from opendino.core.errors import UsageError

USAGE = "usage: opendino resume RUN [--devices auto|N] [--json]"


def run(args: list[str]) -> Outcome | None:
    """Resume; every setting comes from the run folder."""
    if args in (["-h"], ["--help"]):
        print(
            f"{USAGE}\n\nRUN is a folder that `opendino train` made. The run goes on exactly as it began, and on "
            "another number of devices with the same steps, to rounding."
        )
        return None
    from opendino.cli import _flags

    args, chosen = _flags.take(args, "devices")
    wanted = chosen["devices"]
    if wanted is not None and wanted != "auto" and not (wanted.isdecimal() and int(wanted)):
        raise UsageError(f"--devices is '{wanted}'", "Use auto, or a number from 1 on")
    if len(args) != 1 or args[0].startswith("-"):
        raise UsageError(f"resume takes one run folder, not {' '.join(args) or 'nothing'}", USAGE)
    from opendino import plan
    from opendino.cli.train import report
    from opendino.engine import launch
    from opendino.train import Result, resume

    config = plan.begun(args[0])
    devices = config.devices if wanted is None else wanted if wanted == "auto" else int(wanted)
    number = launch.number(devices, config.device)
    if number == 1:
        return report(resume(args[0]))
    return report(Result(**launch.together(number, _resume, Path(args[0]))))


def _resume(run: Path) -> dict[str, Any]:
    from opendino.train import resume

    return dict(resume(run).__dict__)
