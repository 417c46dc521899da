"""A warning for what is done with a model that is not shown to have learned."""

from __future__ import annotations

from pathlib import Path

from opendino.core import log


def warn_unless_learned(model: str) -> None:
    """Say it if MODEL is a run that has collapsed or is not shown to have learned; nothing for other models."""
    from opendino.config import read_tree

    folder = Path(model).expanduser()
    if not ((folder / "metrics.jsonl").is_file() and (folder / "config.yaml").is_file()):
        return
    from opendino.existing_runs import verdict_on

    settings = read_tree(folder / "config.yaml")
    if isinstance(settings.get("steps"), int) and (name := verdict_on(folder, settings).name) != "learned":
        log.warn(
            f"{model} is {name}: its features may be no better than an untrained network's. Labels decide "
            f"(opendino eval linear); the evidence so far: opendino doctor {model}"
        )
