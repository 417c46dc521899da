"""Import a checkpoint of another library as a model folder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from opendino.core import registry
from opendino.core.contracts import Backbone
from opendino.core.errors import UserError
from opendino.interop import checkpoint_files
from opendino.interop.checkpoint_files import Checkpoint, Imported
from opendino.models.adapt import adapt
from opendino.models.build import backbone
from opendino.models.description import check_preprocessing
from opendino.models.load import Model, load, save_backbone

_FORMATS = "opendino.interop.formats"


def read_recognized(checkpoint: Checkpoint) -> Imported:
    """Read the networks of a checkpoint with the format module that recognizes it.

    Raises:
        UserError: No module recognizes it, or the weights do not fit the recognized architecture.
    """
    readers = {name: registry.load(_FORMATS, name) for name in registry.names(_FORMATS)}
    readers = {name: module for name, module in readers.items() if hasattr(module, "recognizes")}
    for module in readers.values():
        if module.recognizes(checkpoint):
            imported = _for_rgb(module.read(checkpoint))
            check_preprocessing(imported.preprocessing, f"'{checkpoint.path}'")
            return imported
    keys = list(next(iter(checkpoint.networks.values()), checkpoint.tree))
    some = ", ".join(str(key)[:60] for key in keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
    raise UserError(
        f"'{checkpoint.path}' has no known format ({', '.join(readers)}); its keys are {some or 'none'}",
        "If timm has this architecture: --architecture NAME",
    )


def _for_rgb(imported: Imported) -> Imported:
    """Adapt networks and preprocessing to RGB images, for checkpoints trained with another number of channels."""
    network, wanted = next(iter(imported.networks.values())), dict(imported.preprocessing)
    channels = int(str(network.kwargs.get("in_chans", 3)))
    for key in ("mean", "std"):
        values = list(wanted[key])
        if channels == 1 and values:  # use the same statistics for each channel, as a gray image has equal channels
            values = [sum(values) / len(values)]
        wanted[key] = [values[i % len(values)] for i in range(3)] if values else values
    if channels == 3:
        return replace(imported, preprocessing=wanted)
    networks: dict[str, Backbone] = {}
    for which, own in imported.networks.items():
        kwargs: dict[str, Any] = {**own.kwargs, "in_chans": 3}
        networks[which] = backbone(own.name, **kwargs)
        adapt(own, networks[which], f"the {which}")
    about = f"{imported.about}, adapted from {channels} channel{'s' * (channels > 1)} to RGB"
    return replace(imported, networks=networks, preprocessing=wanted, about=about)


def import_model(
    path: str, out: str, architecture: str | None = None, num_heads: int | None = None
) -> tuple[Imported, Model]:
    """Read a checkpoint and write a model folder, atomically.

    Args:
        path: File or folder of weights.
        out: Model folder to create; must not exist.
        architecture: Model name of timm, if the weights alone are ambiguous.
        num_heads: Number of attention heads of a ViT, if the head width is not 64.

    Returns:
        The imported checkpoint, and the model loaded from the new folder.

    Raises:
        UserError: The checkpoint cannot be read or recognized, or the folder cannot be written.
    """
    folder = Path(out).expanduser()
    if folder.exists():
        raise UserError(f"'{out}' exists already", "Choose another --out, or remove it first")
    flags: dict[str, Any] = {"architecture": architecture, "num_heads": num_heads}
    flags = {key: value for key, value in flags.items() if value is not None}
    checkpoint = checkpoint_files.read(path)
    if flags:
        checkpoint = replace(checkpoint, config={**(checkpoint.config or {}), **flags})
    imported = read_recognized(checkpoint)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by an import that was killed
        save_backbone(
            partial,
            imported.networks,
            preprocessing=imported.preprocessing,
            extra={"imported": imported.about},
            classifier=imported.classifier,
        )
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror or error}", "Choose another --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return imported, load(folder)
