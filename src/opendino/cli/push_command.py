"""Upload a model to the Hugging Face Hub: opendino push MODEL USER/NAME [--license ID] [--private]"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from opendino.cli import Outcome, flags, run_verdict
from opendino.core.ranges import Checked


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino push`."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run or model folder; or one of `opendino export`, which is uploaded as it is."""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="USER/NAME")]
    """Repository on the Hub; created if it does not exist."""
    license: str | None = None
    """License of the weights for the model card, an identifier of the Hub: apache-2.0, cc-by-4.0, other."""
    which: Literal["teacher", "student"] | None = None
    """Network to upload: teacher or student; by default the recommended one."""
    private: bool = False
    """If the repository is created, make it private."""
    message: str = "Upload by opendino"
    """Commit message."""


def run(args: list[str]) -> Outcome:
    """Upload with the token that huggingface_hub finds: HF_TOKEN, or the one of `hf auth login`."""
    config = flags.parse(Config, args, "opendino push", "Upload a model to the Hugging Face Hub, with a model card.")
    from opendino.models.classifier import FROZEN, which_of_two
    from opendino.sharing import push

    run_verdict.warn_unless_learned(config.model)
    note = which_of_two(config.model)
    url = push(
        config.model, config.name, license=config.license, which=config.which, private=config.private,
        message=config.message,
    )  # fmt: skip
    text = f'{config.model} → {url}\nLoad it anywhere: opendino.load("hf:{config.name}")'
    if note:
        text += f"\n{note}. For the frozen one: opendino push {config.model}/{FROZEN} USER/NAME"
    return Outcome(text, {"path": config.model, "url": url})
