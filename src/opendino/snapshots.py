"""Saves a run's checkpoint and exported model, and restores a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from opendino import config as configs
from opendino.config import Config
from opendino.core import distributed
from opendino.core.contracts import Backbone, Method, Source
from opendino.core.types import ViewSpec
from opendino.data import fingerprint
from opendino.engine import checkpoint
from opendino.models import load


def restore(path: Path, method: Method, optimizer: torch.optim.Optimizer, source: Source) -> dict[str, Any]:
    """Load a checkpoint into a method and its optimizer, and delete newer (damaged) checkpoints.

    Args:
        path: Folder of the checkpoint.
        method: Changed in place.
        optimizer: Changed in place.
        source: The run's images.

    Returns:
        The checkpoint's state, see `engine.checkpoint.save`.

    Raises:
        UserError: The images have changed since the checkpoint was written.
    """
    state = checkpoint.load(path, method, optimizer)
    fingerprint.check(source, state, f"{path} was written")
    if distributed.rank() == 0:
        checkpoint.delete_newer(path)  # they are damaged, and their steps run again
    return state


def prepare_write(
    folder: Path,
    config: Config,
    method: Method,
    tensors: dict[str, Tensor],
    spec: ViewSpec,
    classes: tuple[str, ...],
    state: dict[str, Any],
) -> Callable[[], None]:
    """Copy everything to be saved now, and return a function that writes it later, on another thread.

    Args:
        folder: The run's folder.
        config: Settings of the run.
        method: Its networks are copied, for the exported model.
        tensors: From `checkpoint.snapshot`; already copies.
        spec: The views.
        classes: Class names of the data.
        state: The run's state, copied.

    Returns:
        Writes the exported model and then the checkpoint.
    """
    saved_parts = ("backbone", "classifier")  # heads are only in the checkpoint
    networks = copy.deepcopy(
        {name: {part: net[part] for part in saved_parts if part in net} for name, net in method.networks().items()}
    )
    state = copy.deepcopy(state)

    def write() -> None:
        load.save_backbone(
            folder,
            {name: cast(Backbone, networks[name]["backbone"]) for name in method.product},
            preprocessing=load.preprocessing(spec.groups[0].short_px, spec.mean, spec.std),
            extra={"method": configs.method_name(config), "data": config.data, "step": state["step"]},
            classifier=cast(nn.Linear | None, networks[method.product[0]].get("classifier")),
            classes=method.classes or classes,
        )
        checkpoint.save(folder, tensors, state, config.keep_checkpoints)

    return write
