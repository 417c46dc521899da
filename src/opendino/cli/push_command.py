"""Upload an exported model to the Hugging Face Hub: opendino push FOLDER USER/NAME [--private]"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from opendino.cli import Outcome, flags
from opendino.core.ranges import Checked


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino push`."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of `opendino export --to huggingface|timm|opendino`; first state a license in its README.md."""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="USER/NAME")]
    """Repository on the Hub; created if it does not exist."""
    private: bool = False
    """If the repository is created, make it private."""
    message: str = "Upload by opendino"
    """Commit message."""


def run(args: list[str]) -> Outcome:
    """Upload with the token that huggingface_hub finds: HF_TOKEN, or the one of `hf auth login`."""
    config = flags.parse(Config, args, "opendino push", "Upload an exported model to the Hugging Face Hub.")
    from opendino.interop.hub_push import push

    url = push(config.folder, config.name, config.private, config.message)
    return Outcome(f"{config.folder} → {url}", {"path": config.folder, "url": url})
