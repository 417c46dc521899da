"""Continue an interrupted run, or extend it: opendino resume RUN [--epochs N | --steps N] [--devices N]"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opendino.cli import Outcome
from opendino.core.errors import UsageError

USAGE = "usage: opendino resume RUN [--steps N | --epochs N] [--devices auto|N] [--json]"


def run(args: list[str]) -> Outcome | None:
    """Resume a run. All settings without a flag come from the run folder."""
    if args in (["-h"], ["--help"]):
        print(
            f"{USAGE}\n\nRUN is a run folder of `opendino train`. The run continues with the settings in it; on "
            "another number of devices the steps are the same up to rounding.\n--steps, --epochs: new total length, "
            "also of a finished run. From the resume point, learning rate, weight decay and teacher momentum follow "
            "the schedules of a run of that length; warm-ups keep their length in steps."
        )
        return None
    from opendino.cli import flag_table

    args, chosen = flag_table.take(args, "devices", "steps", "epochs")
    if len(args) != 1 or args[0].startswith("-"):
        raise UsageError(f"resume takes one run folder, not {' '.join(args) or 'nothing'}", USAGE)
    wanted = chosen["devices"]
    devices = wanted if wanted in (None, "auto") else int(_number("devices", wanted, whole=True))
    steps = None if chosen["steps"] is None else int(_number("steps", chosen["steps"], whole=True))
    epochs = None if chosen["epochs"] is None else _number("epochs", chosen["epochs"])
    from opendino import existing_runs
    from opendino.cli.train_command import report
    from opendino.engine import launch
    from opendino.engine.run_result import Result
    from opendino.start import check_sendable, resume

    config = existing_runs.read_run_config(args[0])
    number = launch.number(config.devices if devices is None else devices, config.device)
    if number == 1:
        return report(resume(args[0], steps=steps, epochs=epochs, devices=1))
    check_sendable(config)
    return report(Result(**launch.together(number, _resume, Path(args[0]), steps, epochs)))


def _number(flag: str, word: str | None, whole: bool = False) -> float:
    """The value of a flag as a number above 0."""
    try:
        value = float(word or "")
    except ValueError:
        value = 0.0
    if not 0 < value < 1e12 or (whole and value != int(value)):
        raise UsageError(
            f"--{flag} is '{word}'",
            f"Use a {'whole ' * whole}number {'from 1' if whole else 'above 0'}{', or auto' * (flag == 'devices')}",
        )
    return value


def _resume(run: Path, steps: int | None, epochs: float | None) -> dict[str, Any]:
    from opendino.start import resume

    return dict(resume(run, steps=steps, epochs=epochs).__dict__)
