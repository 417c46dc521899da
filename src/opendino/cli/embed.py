"""Turn images into vectors: opendino embed MODEL DATA --out FILE.parquet | .csv | .npz | TABLE.lance"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from opendino.cli import Outcome, _flags
from opendino.core import dist
from opendino.core.errors import UsageError, UserError
from opendino.data.open import open_source
from opendino.engine.parallel import processes
from opendino.features.stream import left_out
from opendino.models.load import load
from opendino.search import embed

_TABLE = ".lance"


@dataclass(frozen=True)
class Config:
    """What `opendino embed` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run, a model folder, or timm:NAME."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images: whatever `opendino train` takes."""
    out: str
    """What to write: a .parquet, .csv or .npz file, or a .lance table, which is brought up to date where it exists."""
    which: Literal["teacher", "student"] | None = None
    """Network of a run; the one to use by default."""
    patches: bool = False
    """Keep the features of all patches too, as float16 (not in a .csv or a table)."""
    overwrite: bool = False
    """Replace the file if it exists."""
    prune: bool = False
    """Of a table: drop what DATA no longer holds."""
    batch: int = 64
    """Images at a time."""
    workers: int = 4
    """Threads that decode images."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        for flag in ("batch", "workers"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} is {getattr(self, flag)}", "Use a whole number from 1 up")
        suffix = Path(self.out).suffix
        if suffix not in (*embed.FORMATS, _TABLE):
            raise UsageError(f"--out is '{self.out}'", f"Let it end in {', '.join(embed.FORMATS)} or {_TABLE}")
        if self.patches and suffix in (".csv", _TABLE):
            raise UsageError(f"--patches go into no {suffix}", "Write a .parquet or .npz")


def run(args: list[str]) -> Outcome:
    """Embed every readable image."""
    config = _flags.parse(Config, args, "opendino embed", "Turn images into vectors; the same call again goes on.")
    out = Path(config.out).expanduser()
    if not out.absolute().parent.is_dir():
        raise UserError(f"There is no folder to write {config.out} into", "Make it, or choose another --out")
    if out.suffix != _TABLE and out.exists() and not config.overwrite:
        raise UserError(f"'{config.out}' exists already", "Add --overwrite, or choose another --out")
    device = dist.device(config.device)
    with processes(device):
        source, model = open_source(config.data), load(config.model, config.which).to(device)
        facts = embed.about(model, config.model, config.which, source, config.data, config.patches)
        found = embed.embed(model, source, out, facts, batch=config.batch, workers=config.workers)
    rate = found.fresh / found.seconds
    fields = {
        "table": config.out, "written": found.written, "skipped": len(found.bad), "seconds": found.seconds,
        "images_per_second": rate, "bad": found.bad[:20], "fingerprint": facts["fingerprint"],
    }  # fmt: skip
    unread = f"; {left_out(found.bad)}, all in {config.out}.bad.csv" if found.bad else ""
    again = f" ({found.fresh:,} of them now)" if found.fresh < found.written else ""
    return Outcome(f"{found.written:,} images{again}, {rate:.3g} images/s → {config.out}{unread}", fields)
