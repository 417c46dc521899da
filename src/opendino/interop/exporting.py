"""From a model of ours to files for somewhere else: written beside their place, compared, then moved there."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from opendino.core import registry
from opendino.core.errors import UserError, unknown
from opendino.models.load import Model, load

_FORMATS = "opendino.interop.formats"


def writers() -> dict[str, ModuleType]:
    """The modules that can write, by the names that `--to` takes."""
    modules = {name.replace("_", "-"): registry.load(_FORMATS, name) for name in registry.names(_FORMATS)}
    return {name: module for name, module in modules.items() if hasattr(module, "write")}


def writer(to: str) -> ModuleType:
    """One of them.

    Raises:
        UsageError: There is none of that name.
    """
    known = writers()
    if to.replace("_", "-") not in known:
        raise unknown("--to", to, known)
    return known[to.replace("_", "-")]


def export_model(name: str, to: str, out: str, which: str | None, config: Any) -> tuple[Model, float]:
    """Write a model in another layout, whole and compared, or not at all.

    Args:
        name: What `models.load.load` takes.
        to: One of `writers()`.
        out: The file or folder to make; must not exist.
        which: "teacher" or "student"; None for the network to use.
        config: Of the writer.

    Returns:
        The model, and its largest difference from what the other side computes.

    Raises:
        UserError: No such model, no way to say it in that layout, a difference, or `out` cannot be written.
    """
    module, target = writer(to), Path(out).expanduser()
    if target.exists() or target.is_symlink():
        raise UserError(f"'{out}' exists already", "Choose another --out, or remove it first")
    if not target.absolute().parent.is_dir():
        raise UserError(f"There is no folder to write {out} into", "Make it, or choose another --out")
    model = load(name, which)
    if model.classes and model.which == model.description["networks"][0]:
        model = load(name, which, classifier=True)
    model.backbone.requires_grad_(False)
    try:
        partial = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}.", suffix=".partial"))
        try:
            difference = module.write(model, partial / target.name, config)
            for written in sorted(partial.iterdir(), key=lambda path: path.name == target.name):  # itself last
                if (place := target.with_name(written.name)).exists():
                    raise UserError(f"'{place}' exists already", "Choose another --out, or remove it first")
                written.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror or error}", "Choose another --out") from error
    except ModuleNotFoundError as error:
        raise UserError(f"--to {to} needs {error.name}", 'pip install "opendino[export]"') from error
    return model, difference
