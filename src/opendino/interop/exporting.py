"""Export a model: written to a temporary folder, compared with the original, then moved into place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from opendino.core import registry
from opendino.core.errors import UserError, unknown
from opendino.core.progress import waiting
from opendino.models.load import Model, load

_FORMATS = "opendino.interop.formats"


def writers() -> dict[str, ModuleType]:
    """Export modules by their `--to` name."""
    modules = {name.replace("_", "-"): registry.load(_FORMATS, name) for name in registry.names(_FORMATS)}
    return {name: module for name, module in modules.items() if hasattr(module, "write")}


def writer(to: str) -> ModuleType:
    """Export module of a `--to` name.

    Raises:
        UsageError: Unknown name.
    """
    known = writers()
    if to.replace("_", "-") not in known:
        raise unknown("--to", to, known)
    return known[to.replace("_", "-")]


def export_model(
    name: str, to: str, out: str, which: str | None, config: Any, facts: Mapping[str, Any] = {}
) -> tuple[Model, float]:
    """Export a model to another file format. `out` exists only if the export succeeded and its outputs match.

    Args:
        name: Model name or path, as for `models.load.load`.
        to: One of `writers()`.
        out: File or folder to create; must not exist.
        which: "teacher" or "student"; None for the default network.
        config: `Config` of the export module.
        facts: JSON values for the model card and, in a folder of ours, for backbone.json; added to those of the model.

    Returns:
        The model, and the largest difference between its outputs and those of the exported model.

    Raises:
        UserError: There is no such model, the format does not support it, outputs differ, or `out` cannot be written.
    """
    module, target = writer(to), Path(out).expanduser()
    if target.exists() or target.is_symlink():
        raise UserError(f"'{out}' exists already", "Choose another --out, or remove it first")
    if not target.absolute().parent.is_dir():
        raise UserError(f"There is no folder to write {out} into", "Create it, or choose another --out")
    model = load(name, which)
    if model.classes and model.which == model.description["networks"][0]:
        model = load(name, which, classifier=True)
    model.backbone.requires_grad_(False)
    model.description = {**model.description, "extra": {**model.description.get("extra", {}), **facts}}
    try:
        partial = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}.", suffix=".partial"))
        try:
            with waiting(f"writing for {to} and comparing the features"):
                difference = module.write(model, partial / target.name, config)
            for written in sorted(
                partial.iterdir(), key=lambda path: path.name == target.name
            ):  # `out` itself is moved last
                if (destination := target.with_name(written.name)).exists():
                    raise UserError(f"'{destination}' exists already", "Choose another --out, or remove it first")
                written.rename(destination)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror or error}", "Choose another --out") from error
    except ModuleNotFoundError as error:
        raise UserError(f"--to {to} needs {error.name}", 'pip install "opendino[export]"') from error
    return model, difference
