"""Publish an exported folder on a hub: opendino push FOLDER USER/NAME [--private]"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from opendino.cli import Outcome, flags
from opendino.core.ranges import Checked


@dataclass(frozen=True)
class Config(Checked):
    """What `opendino push` takes."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """What `opendino export` made for huggingface, timm or opendino. State a license in its README.md first."""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="USER/NAME")]
    """The repository on the hub; made if it does not exist."""
    private: bool = False
    """Make the repository private, if it has to be made."""
    message: str = "Upload by opendino"
    """Of the commit."""


def run(args: list[str]) -> Outcome:
    """Upload with the token that huggingface_hub finds: HF_TOKEN, or that of `hf auth login`."""
    config = flags.parse(Config, args, "opendino push", "Publish an exported folder on a hub.")
    from opendino.interop.hub_push import push

    url = push(config.folder, config.name, config.private, config.message)
    return Outcome(f"{config.folder} → {url}", {"path": config.folder, "url": url})
