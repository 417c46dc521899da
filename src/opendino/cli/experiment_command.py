"""Run an experiment of short trainings: opendino experiment EXPERIMENT [--out FOLDER] [flags of the experiment]"""

from __future__ import annotations

from opendino.cli import Outcome, flags
from opendino.core import registry
from opendino.core.errors import UsageError

_EXPERIMENTS = "opendino.experiments"


def run(args: list[str]) -> Outcome | None:
    """Run an experiment; each one has its own flags."""
    names = registry.names(_EXPERIMENTS)
    usage = f"usage: opendino experiment EXPERIMENT [flags] [--json]; EXPERIMENT is one of {', '.join(names)}"
    if args in (["-h"], ["--help"]):
        lines = [f"  {name:<10} {registry.summary(_EXPERIMENTS, name)}" for name in names]
        print("\n".join([usage, "", *lines, "", "`opendino experiment EXPERIMENT --help` shows its flags."]))
        return None
    if not args or args[0].startswith("-"):
        raise UsageError(f"experiment takes the name of an experiment, not {args[0] if args else 'nothing'}", usage)
    module = registry.load(_EXPERIMENTS, args[0])
    config = flags.parse(
        module.Config, args[1:], f"opendino experiment {args[0]}", registry.summary(_EXPERIMENTS, args[0])
    )
    report = module.conduct(config)
    return Outcome(report.text, report.fields)
