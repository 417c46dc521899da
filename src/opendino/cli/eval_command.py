"""Evaluate a trained model: opendino eval EVAL MODEL [--which student] [flags of the eval]"""

from __future__ import annotations

from opendino.cli import Outcome, flags, run_verdict
from opendino.core import registry
from opendino.core.errors import UsageError

_EVALS = "opendino.evals"


def run(args: list[str]) -> Outcome | None:
    """Run an evaluation; each one has its own flags."""
    names = ", ".join(name.replace("_", "-") for name in registry.names(_EVALS))
    usage = f"usage: opendino eval EVAL MODEL [--which teacher|student] [flags] [--json]; EVAL is one of {names}"
    if args in (["-h"], ["--help"]):
        print(f"{usage}\n\n`opendino eval EVAL --help` shows its flags.")
        return None
    if not args or args[0].startswith("-"):
        raise UsageError(f"eval takes the name of an eval, not {args[0] if args else 'nothing'}", usage)
    name = args[0].replace("_", "-")
    module = registry.load(_EVALS, name.replace("-", "_"))
    prog = f"opendino eval {name}"
    config = flags.parse(module.Config, args[1:], prog, registry.summary(_EVALS, name.replace("-", "_")))
    run_verdict.warn_unless_learned(config.model)
    report = module.evaluate(config)
    return Outcome(report.text, report.fields)
