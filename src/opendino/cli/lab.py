"""Run an experiment: opendino lab EXPERIMENT [--out FOLDER] [flags of the experiment]"""

from __future__ import annotations

from opendino.cli import Outcome, _flags
from opendino.core import registry
from opendino.core.errors import UsageError

_LAB = "opendino.lab"


def run(args: list[str]) -> Outcome | None:
    """Conduct it; every experiment has its own flags."""
    names = registry.names(_LAB)
    usage = f"usage: opendino lab EXPERIMENT [flags] [--json]; EXPERIMENT is one of {', '.join(names)}"
    if args in (["-h"], ["--help"]):
        lines = [f"  {name:<10} {registry.summary(_LAB, name)}" for name in names]
        print("\n".join([usage, "", *lines, "", "`opendino lab EXPERIMENT --help` shows its flags."]))
        return None
    if not args or args[0].startswith("-"):
        raise UsageError(f"lab takes the name of an experiment, not {args[0] if args else 'nothing'}", usage)
    module = registry.load(_LAB, args[0])
    config = _flags.parse(module.Config, args[1:], f"opendino lab {args[0]}", registry.summary(_LAB, args[0]))
    report = module.conduct(config)
    return Outcome(report.text, report.fields)
