"""Compute an embedding of every image: opendino embed MODEL DATA --out FILE.parquet|.csv|.npz|.lance"""

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
from msgspec import Meta

from opendino.cli import Outcome, flags, run_verdict
from opendino.core import distributed
from opendino.core.contracts import Source
from opendino.core.errors import UsageError, UserError
from opendino.core.ranges import Batch, Checked, Workers
from opendino.data.video_file import join_every
from opendino.embeddings import resumable_parts as parts
from opendino.embeddings import table_files
from opendino.embeddings.embed_images import Embedder, table_origin
from opendino.engine import parallel
from opendino.features.image_stream import skipped_message
from opendino.models.load import Model, load


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino embed`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images: a folder, a .tar or .zip, a text file of paths, or any other source."""
    out: str
    """Table to write: .parquet, .csv, .npz or .lance. The same command continues an interrupted one; a .lance table is
    updated: only new and changed images are embedded."""
    every: str = ""
    """Time between the frames used of videos in DATA: 2s, or all for every frame; default 1s."""
    which: Literal["teacher", "student"] | None = None
    """Network to use: teacher or student; by default the recommended one."""
    patches: bool = False
    """Also store the patch features, as float16 (.parquet, .npz and .lance)."""
    overwrite: bool = False
    """Replace an existing table, and delete unfinished parts of another model or other images."""
    prune: bool = False
    """Remove images that are no longer in DATA from a .lance table; by default they are kept and counted."""
    watch: Annotated[float, Meta(ge=1, le=86_400)] | None = None
    """Seconds between looks for new images, which are added to a .lance table until Ctrl-C. From 20 new ones it says
    whether they differ from the others."""
    batch: Batch = 64
    """Images per forward pass."""
    workers: Workers = 4
    """Number of threads that decode images."""
    device: str = "auto"
    """Device: auto, cuda, mps or cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        join_every(self)
        if self.prune and not self.out.lower().endswith(".lance"):
            raise UsageError("--prune is for .lance tables", "Leave --prune out: other tables hold only DATA")
        if self.watch is not None and not self.out.lower().endswith(".lance"):
            raise UsageError("--watch is for .lance tables", "Name the table --out FILE.lance")


def run(args: list[str]) -> Outcome | None:
    """Write one row per readable image. Under torchrun the images are split between the processes."""
    config = flags.parse(Config, args, "opendino embed", "Compute an embedding of every image.")
    began, out = time.monotonic(), Path(config.out).expanduser()
    run_verdict.warn_unless_learned(config.model)
    if out.suffix.lower() == ".lance":
        return _update_lance(config, began)
    table_files.check(out, config.patches)
    parts.check(out, config.overwrite)
    with parallel.process_group(config.device) as device:
        model = load(config.model, config.which).to(device)
        source = model.reading.open_images(config.data)
        with _resumable():
            done = parts.write(out, _embedder(config, model, source), overwrite=config.overwrite)
    if done is None:
        return None
    speed = f"{done.images_per_second:,.1f} images/s" if done.images_per_second else "all were already computed"
    lines = [f"{done.written:,} images → {config.out} ({speed})"]
    if done.bad:
        lines.append(f"{done.skipped:,} unusable left out, e.g. {': '.join(done.bad[0])}; all in {done.listed}")
    if out.suffix.lower() in (".csv", ".npz"):
        lines.append("vectors only: for search, map, duplicates and outliers write a .parquet or .lance table")
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


def _update_lance(config: Config, began: float) -> Outcome:
    """Create a .lance table, or update it to the images that DATA has now."""
    from opendino.embeddings import lance_table

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("A .lance table is written by one process", "Run the command without torchrun")
    out = config.out if "://" in config.out else str(Path(config.out).expanduser())
    model = load(config.model, config.which).to(distributed.device(config.device))
    with _resumable():
        embedder = _embedder(config, model, model.reading.open_images(config.data))
        done = lance_table.update(out, embedder, prune=config.prune, overwrite=config.overwrite)
        if config.watch:
            from opendino.cli import embed_watch

            def update() -> lance_table.Updated:
                source = model.reading.open_images(config.data)
                return lance_table.update(out, _embedder(config, model, source), only_new=True)

            done.new += embed_watch.rounds(update, out, config.watch)
    parts = [f"{done.added:,} new, {done.changed:,} changed, {done.unchanged:,} unchanged"]
    if done.removed:
        parts.append(f"{done.removed:,} removed")
    lines = [f"{', '.join(parts)} → {config.out}"]
    if done.vanished:
        lines.append(
            f"{len(done.vanished):,} are no longer in {config.data}, e.g. {done.vanished[0]}; --prune removes them"
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


def _embedder(config: Config, model: Model, source: Source) -> Embedder:
    origin = table_origin(model, source, name=config.model, which=config.which, data=config.data)
    return Embedder(model, source, origin, config.patches, config.batch, config.workers)


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
    """Say, on Ctrl-C or a full disk, that the finished parts are kept and the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        raise UserError("Interrupted", "The same command continues from here", exit_code=130) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"The disk is full: {error}", "Free space; the same command continues from here") from error
