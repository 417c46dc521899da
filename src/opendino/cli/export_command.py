"""Export a model to another library or format: opendino export MODEL --to NAME --out PATH [flags of NAME]"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Any, Literal

import tyro

from opendino.cli import Outcome, flag_table, flags
from opendino.core.errors import UsageError
from opendino.core.ranges import Checked

_GRAPHS = ("onnx", "torch-export")


@dataclass(frozen=True)
class Config(Checked):
    """Options of `opendino export` that every format has."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, an imported or exported model folder, or timm:NAME."""
    out: str
    """File or folder to write; must not exist."""
    which: Literal["teacher", "student"] | None = None
    """Network to export: teacher or student; by default the recommended one."""


def run(args: list[str]) -> Outcome | None:
    """Write to a temporary path, load it in the other library, compare features, and only then move it to --out."""
    from opendino.interop.exporting import export_model, writer, writers
    from opendino.models.classifier import FROZEN, which_of_two

    names = ", ".join(writers())
    usage = f"usage: opendino export MODEL --to NAME --out PATH [flags of NAME] [--json]; NAME is one of {names}"
    args, found = flag_table.take(args, "to")
    to = found["to"]
    if to is None:
        if {"-h", "--help"} & set(args):
            print(f"{usage}\n\n`opendino export --to NAME --help` shows its flags.")
            return None
        flags.parse(Config, args, "opendino export", "")  # report any other mistake first
        raise UsageError("export lacks --to", f"Add --to NAME; NAME is one of {names}")
    module = writer(to)
    kind = make_dataclass("Config", [], bases=(module.Config, Config), frozen=True)
    config: Any = flags.parse(kind, args, f"opendino export --to {to}", (module.__doc__ or "").partition("\n")[0])
    note = which_of_two(config.model)
    model, difference = export_model(config.model, to, config.out, config.which, config)
    text = (
        f"{model.backbone.name}, the {model.which}, fingerprint {model.fingerprint} → {config.out}\n"
        f"Checked by loading it with {to}: on random images, features differ by {difference:.3g} at most"
    )
    if to in _GRAPHS and "images" not in model.preprocessing and not getattr(config, "photographs", False):
        text += "\n" + _input(model.preprocessing)
    fields = {"path": config.out, "max_difference": difference, "to": to, "fingerprint": model.fingerprint}
    if note:
        note += f". For the frozen one: opendino export {config.model}/{FROZEN} --to {to} --out PATH"
        text, fields = f"{text}\n{note}", fields | {"note": note}
    return Outcome(text, fields)


def _input(prepared: Mapping[str, Any]) -> str:
    """How to prepare an image for a graph, one line."""
    mean, std = (" ".join(f"{value:g}" for value in prepared[name]) for name in ("mean", "std"))
    return (
        f"It takes float32 [B C H W], values 0 to 1 minus mean {mean}, divided by std {std}: of an image whose "
        f"shorter side was resized to {prepared['resize_px']} px ({prepared['interpolation']}) the middle "
        f"{prepared['image_px']} px"
    )
