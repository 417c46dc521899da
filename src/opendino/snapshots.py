"""What a run saves of itself, and how it is put back."""

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
    """Put a checkpoint back into place; returns its state.

    Raises:
        UserError: The images are others than when it was written.
    """
    state = checkpoint.load(path, method, optimizer)
    fingerprint.check(source, state, f"{path} was written")
    if distributed.rank() == 0:
        checkpoint.forget_after(path)  # damaged ones, of a future that will now come anew
    return state


def prepared(
    folder: Path,
    config: Config,
    method: Method,
    tensors: dict[str, Tensor],
    spec: ViewSpec,
    classes: tuple[str, ...],
    state: dict[str, Any],
) -> Callable[[], None]:
    """Copy what is to be saved besides `tensors`, now; the function that is returned writes the copies, whenever."""
    kept = ("backbone", "classifier")  # heads are in the checkpoint alone
    networks = copy.deepcopy(
        {name: {part: net[part] for part in kept if part in net} for name, net in method.networks().items()}
    )
    state = copy.deepcopy(state)

    def write() -> None:
        load.save_backbone(
            folder,
            {name: cast(Backbone, networks[name]["backbone"]) for name in method.product},
            preprocessing=load.preprocessing(spec.groups[0].size_px, spec.mean, spec.std),
            extra={"method": configs.method_name(config), "data": config.data, "step": state["step"]},
            classifier=cast(nn.Linear | None, networks[method.product[0]].get("classifier")),
            classes=method.classes or classes,
        )
        checkpoint.save(folder, tensors, state, config.keep_checkpoints)

    return write
