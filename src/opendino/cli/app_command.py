"""Train, look and search in the browser: opendino app [FOLDER|RUN|MODEL|TABLE ...] [--out RUNS] [--port N]"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from msgspec import Meta

from opendino.cli import Outcome, flags
from opendino.core import log
from opendino.core.errors import UserError
from opendino.core.ranges import Checked


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino app`."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ()
    """Folders or archives of images to train on; run folders, model folders, tables (.parquet, .lance), timm:NAME, or
    folders of these (default: runs/). The page opens nothing else: to see the images of a table, name them too."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than 127.0.0.1 lets other machines use the page without a password."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 7860
    """Port to listen on; 0 for any free port."""
    out: str | None = None
    """Folder for the runs and tables of the images named here; default: runs/. With it, runs that visitors train on
    generated or uploaded images are kept too, in its folder visitors; else they are deleted when the page is closed."""
    trainings: Annotated[int, Meta(ge=1, le=64)] = 1
    """Largest number of trainings that run at the same time."""
    device: str = "auto"
    """Device: auto, cuda, mps or cpu."""


def run(args: list[str]) -> Outcome:
    """Serve the page until Ctrl-C."""
    config = flags.parse(Config, args, "opendino app", "Train, look and search in the browser.")
    gc.disable()  # garbage collection during the imports takes a fifth of the start-up time and frees nothing
    try:
        importlib.import_module("torch")
        log.say("opendino app: importing Gradio ...")
        from opendino.app.page import serve
    except ImportError as error:
        if error.name != "gradio":
            raise
        raise UserError("The web page needs Gradio", 'pip install "opendino[app]"') from None
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # what is frozen at the exit looks like a leak to Triton, which prints it
        gc.enable()
    from opendino.core import distributed
    from opendino.engine.interrupt import Interrupt

    names = config.names or (("runs",) if Path("runs").is_dir() else ())
    out = Path(config.out).expanduser() if config.out else None
    device = distributed.device(config.device)
    log.say("opendino app: building the page ...")
    with (
        Interrupt(),
        serve(names, device=device, host=config.host, port=config.port, out=out, trainings=config.trainings) as address,
    ):
        log.say(f"opendino is at {address}   (Ctrl-C stops it)")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return Outcome("", {"address": address})
