"""Go on where a run stopped: opendino resume RUN"""

from __future__ import annotations

from opendino.cli import Outcome
from opendino.core.errors import UsageError

USAGE = "usage: opendino resume RUN [--json]"


def run(args: list[str]) -> Outcome | None:
    """Resume; every setting comes from the run folder."""
    if args in (["-h"], ["--help"]):
        print(f"{USAGE}\n\nRUN is a folder that `opendino train` made. The run goes on exactly as it began.")
        return None
    if len(args) != 1 or args[0].startswith("-"):
        raise UsageError(f"resume takes one run folder, not {' '.join(args) or 'nothing'}", USAGE)
    from opendino.cli.train import report
    from opendino.train import resume

    return report(resume(args[0]))
