"""Check a run for collapse and other problems: opendino doctor RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opendino.cli import Outcome
from opendino.core.errors import UsageError, UserError

USAGE = "usage: opendino doctor RUN [--json]"


def run(args: list[str]) -> Outcome | None:
    """Check a run folder, finished or not."""
    if args in (["-h"], ["--help"]):
        print(f"{USAGE}\n\nRUN is a run folder of `opendino train`. The run may still be in progress.")
        return None
    if len(args) != 1 or args[0].startswith("-"):
        raise UsageError(f"doctor takes one run folder, not {' '.join(args) or 'nothing'}", USAGE)
    from opendino.data.metadata import confounders_hint
    from opendino.existing_runs import verdict_on
    from opendino.features import measure_trust

    folder = Path(args[0]).expanduser()
    if not (folder / "metrics.jsonl").is_file():
        raise UserError(
            f"'{folder}' is not a run folder: it has no metrics.jsonl", "Start one with: opendino train DATA"
        )
    settings = _settings(folder)
    found = verdict_on(folder, settings)
    lines = [f"{found.name}: {found.evidence}"] + ([f"cure: {found.cure}"] if found.cure else [])
    hint = confounders_hint(str(folder), str(settings.get("data", "")), str(settings.get("labels", "")))
    fields = {"verdict": found.name, "evidence": found.evidence, "cure": found.cure}
    fields |= {"collapse": found.collapse, "confounders": hint or None}
    if found.by_crops:
        trust = measure_trust.of("crop_match")
        lines += [f"how often crops find each other orders runs {trust}", measure_trust.source()]
    lines += [f"batch effects: {hint}"] * bool(hint)
    return Outcome("\n".join(lines), fields)


def _settings(folder: Path) -> dict[str, Any]:
    from opendino.config import read_tree

    settings = read_tree(folder / "config.yaml")
    steps = settings.get("steps")
    if not isinstance(steps, int) or steps < 1:
        raise UserError(
            f"{folder}/config.yaml does not say how many steps the run has",
            "Give the run folder that `opendino train` made",
        )
    return settings
