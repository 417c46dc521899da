"""Images as vectors: opendino embed MODEL DATA --out FILE.parquet|.csv|.npz|.lance"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from opendino.cli import Outcome, flags
from opendino.core import distributed
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Batch, Checked, Workers
from opendino.data.open_source import open_source
from opendino.embeddings import embed_images, table_files
from opendino.embeddings import resumable_parts as parts
from opendino.engine import parallel
from opendino.features.image_stream import skipped_message
from opendino.models.load import load


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino embed` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images: a folder, a .tar or .zip, a text file of paths, or any other source."""
    out: str
    """The table to write; its ending, .parquet, .csv, .npz or .lance, says how. The same command goes on where it
    ended, and brings a .lance table up to date: only new and changed images are embedded."""
    which: Literal["teacher", "student"] | None = None
    """teacher or student; the network to use by default."""
    patches: bool = False
    """Also keep the features of every patch, as float16 (.parquet, .npz and .lance)."""
    overwrite: bool = False
    """Replace the table, and drop unfinished parts of another model or of other images."""
    prune: bool = False
    """Remove images from a .lance table that are gone from DATA; else they stay and are counted."""
    batch: Batch = 64
    """Images at a time."""
    workers: Workers = 4
    """Threads that decode images."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prune and not self.out.lower().endswith(".lance"):
            raise UsageError("--prune is for .lance tables", "Other tables hold the images of DATA and no more")


def run(args: list[str]) -> Outcome | None:
    """A row for every readable image. Under torchrun the processes share the work."""
    config = flags.parse(Config, args, "opendino embed", "Turn images into a table of vectors.")
    began, out = time.monotonic(), Path(config.out).expanduser()
    if out.suffix.lower() == ".lance":
        return _follow(config, began)
    table_files.check(out, config.patches)
    parts.check(out, config.overwrite)
    with parallel.process_group(config.device) as device:
        model, source = load(config.model, config.which).to(device), open_source(config.data)
        origin = embed_images.table_origin(model, source, name=config.model, which=config.which, data=config.data)
        with _going_on():
            done = parts.write(
                model,
                source,
                out,
                origin,
                patches=config.patches,
                batch=config.batch,
                workers=config.workers,
                overwrite=config.overwrite,
            )
    if done is None:
        return None
    speed = f"{done.images_per_second:,.1f} images/s" if done.images_per_second else "nothing was left to compute"
    lines = [f"{done.written:,} images → {config.out} ({speed})"]
    if done.bad:
        lines.append(f"{done.skipped:,} unreadable left out, e.g. {': '.join(done.bad[0])}; all in {done.listed}")
    fields = {
        "table": config.out,
        "written": done.written,
        "skipped": done.skipped,
        "seconds": time.monotonic() - began,
        "images_per_second": done.images_per_second,
        "bad": done.bad,
        "fingerprint": model.fingerprint,
    }
    return Outcome("\n".join(lines), fields)


def _follow(config: Config, began: float) -> Outcome:
    """A .lance table as DATA is now."""
    from opendino.embeddings import lance_table

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("A .lance table is written by one process", "Run it without torchrun")
    out = config.out if "://" in config.out else str(Path(config.out).expanduser())
    model, source = load(config.model, config.which).to(distributed.device(config.device)), open_source(config.data)
    with _going_on():
        done = lance_table.update(
            out,
            model,
            source,
            embed_images.table_origin(model, source, name=config.model, which=config.which, data=config.data),
            patches=config.patches,
            batch=config.batch,
            workers=config.workers,
            prune=config.prune,
            overwrite=config.overwrite,
        )
    parts = [f"{done.added:,} new, {done.changed:,} changed, {done.unchanged:,} unchanged"]
    if done.removed:
        parts.append(f"{done.removed:,} removed")
    lines = [f"{', '.join(parts)} → {config.out}"]
    if done.vanished:
        lines.append(
            f"{len(done.vanished):,} are gone from {config.data}, e.g. {done.vanished[0]}; --prune removes them"
        )
    if done.bad:
        lines.append(skipped_message(done.bad))
    fields = {
        "table": config.out,
        "written": done.added + done.changed,
        "unchanged": done.unchanged,
        "removed": done.removed,
        "vanished": len(done.vanished),
        "skipped": len(done.bad),
        "seconds": time.monotonic() - began,
        "bad": done.bad,
        "fingerprint": model.fingerprint,
    }
    return Outcome("\n".join(lines), fields)


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    """Whatever ends the work early, what is written stays, and the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise UserError("Interrupted", "The same command goes on from here", exit_code=130) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"The disk is full: {error}", "Make room; the same command goes on from here") from error
