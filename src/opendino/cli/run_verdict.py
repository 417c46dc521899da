"""The verdict on a run folder, and a warning for what is done with a model that is not shown to have learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opendino.core import log, metrics_log


def of(folder: Path, settings: dict[str, Any]) -> Any:
    """The `engine.verdict.Verdict` on a run, finished or not.

    Args:
        folder: The run folder.
        settings: Its config.yaml.

    Raises:
        OSError: It has no metrics.jsonl.
    """
    from opendino.engine import verdict
    from opendino.existing_runs import cures

    return verdict.of_rows(metrics_log.sampled(folder / "metrics.jsonl"), settings["steps"], cures(settings))


def warn_unless_learned(model: str) -> None:
    """Say it if MODEL is a run that has collapsed or is not shown to have learned; nothing for other models."""
    from opendino.config import read_tree

    folder = Path(model).expanduser()
    if not ((folder / "metrics.jsonl").is_file() and (folder / "config.yaml").is_file()):
        return
    settings = read_tree(folder / "config.yaml")
    if isinstance(settings.get("steps"), int) and (name := of(folder, settings).name) != "learned":
        log.warn(
            f"{model} is {name}: its features may be no better than an untrained network's; opendino doctor {model}"
        )
