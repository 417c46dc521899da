"""Import a checkpoint of another library as a model folder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from opendino.core import registry
from opendino.core.errors import UserError
from opendino.interop import checkpoint_files
from opendino.interop.checkpoint_files import Checkpoint, Imported
from opendino.models.description import check_preprocessing
from opendino.models.image_reading import ImageReading
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
            imported = module.read(checkpoint)
            check_preprocessing(imported.preprocessing, f"'{checkpoint.path}'")
            return _for_its_channels(imported)
    keys = list(next(iter(checkpoint.networks.values()), checkpoint.tree))
    some = ", ".join(str(key)[:60] for key in keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
    raise UserError(
        f"'{checkpoint.path}' has no known format ({', '.join(readers)}); its keys are {some or 'none'}",
        "If timm has this architecture: --architecture NAME",
    )


def _for_its_channels(imported: Imported) -> Imported:
    """One mean and std per channel of the network: the file's if it has as many, else their average for each.

    A network of one channel through which each channel goes by itself keeps those of all channels.
    """
    if ImageReading.of(imported.preprocessing).channel_mode == "separate":
        return replace(imported, about=f"{imported.about}, for each channel by itself")
    channels, wanted = next(iter(imported.networks.values())).in_chans, dict(imported.preprocessing)
    for key in ("mean", "std"):
        values = list(wanted[key])
        if len(values) not in (0, channels):
            wanted[key] = [sum(values) / len(values)] * channels
    about = imported.about if channels == 3 else f"{imported.about}, {channels} channel{'s' * (channels > 1)}"
    return replace(imported, preprocessing=wanted, about=about)


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
