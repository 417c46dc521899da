"""From a checkpoint of somewhere else to a model folder of ours."""

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
    """The networks of a checkpoint, by the one layout that recognizes it.

    Raises:
        UserError: None does, or the weights do not fit what it was recognized as.
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
        f"'{checkpoint.path}' is of no layout known here ({', '.join(readers)}); it has {some or 'nothing in it'}",
        "If timm has this architecture: --architecture NAME",
    )


def _for_rgb(imported: Imported) -> Imported:
    """The same for images of three channels, which all images here have, whatever number it was trained with."""
    network, wanted = next(iter(imported.networks.values())), dict(imported.preprocessing)
    channels = int(str(network.kwargs.get("in_chans", 3)))
    for key in ("mean", "std"):
        values = list(wanted[key])
        if channels == 1 and values:  # a gray image must look the same in each channel
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
    """Read a checkpoint and write a model folder, whole or not at all.

    Args:
        path: A file or folder of weights.
        out: The model folder; must not exist.
        architecture: A name of timm's, where the weights alone do not tell.
        num_heads: Heads of a ViT's attention that are not 64 wide.

    Returns:
        What it was recognized as, and the model in the new folder.

    Raises:
        UserError: It cannot be read or recognized, or the folder cannot be written.
    """
    folder = Path(out).expanduser()
    if folder.exists():
        raise UserError(f"'{out}' exists already", "Choose another --out, or remove it first")
    told: dict[str, Any] = {"architecture": architecture, "num_heads": num_heads}
    told = {key: value for key, value in told.items() if value is not None}
    checkpoint = checkpoint_files.read(path)
    if told:
        checkpoint = replace(checkpoint, config={**(checkpoint.config or {}), **told})
    imported = read_recognized(checkpoint)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an import that was killed
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
