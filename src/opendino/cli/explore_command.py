"""Show a 2-D map of an embedding table in the browser: opendino explore TABLE [--port N]"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from msgspec import Meta

from opendino.cli import Outcome, flags
from opendino.core.errors import UserError
from opendino.core.ranges import Checked


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino explore`."""

    table: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """A .parquet or .lance table of `opendino embed`."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than 127.0.0.1 lets other machines see the map without a password."""
    port: Annotated[int, Meta(ge=1, le=65_535)] = 5055
    """Port to listen on."""


def run(args: list[str]) -> Outcome | None:
    """Start embedding-atlas on a table and wait for it."""
    from opendino.app.embedding_atlas import explore

    config = flags.parse(
        Config, args, "opendino explore", "Show a 2-D map of an embedding table in the browser, with embedding-atlas."
    )
    from opendino.engine.interrupt import Interrupt

    try:
        with Interrupt():
            code = explore(config.table, config.host, config.port)
    except KeyboardInterrupt:
        return None
    if code:
        raise UserError(f"embedding-atlas exited with code {code}", "See its output above")
    return None
