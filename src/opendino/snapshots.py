"""Saves a run's checkpoint and exported model, and restores a checkpoint."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from opendino import config as configs
from opendino import run_images
from opendino.config import ResolvedConfig
from opendino.core import distributed
from opendino.core.contracts import Backbone, Method
from opendino.core.types import ViewSpec
from opendino.data.labels import MASKS
from opendino.engine import checkpoint
from opendino.models import load


@dataclass
class RunState:
    """What a checkpoint stores in addition to tensors, as JSON.

    Attributes:
        step: Optimizer steps done.
        world: Number of processes.
        threads: Measured number of threads and its machine, see `engine.threads.to_state`; None if the user gave it.
        flops: FLOP per image of a training step; 0 until it is counted.
        fingerprint: Of the training images, see `data.fingerprint.sample`.
        bad: Unreadable images, key → reason.
        baselines: Scores that do not change during the run, see `online_eval.OnlineEval`.
    """

    step: int = 0
    world: int = 1
    threads: dict[str, Any] | None = None
    flops: float = 0.0
    fingerprint: dict[str, Any] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)


def restore(path: Path, method: Method, optimizer: torch.optim.Optimizer) -> RunState:
    """Load a checkpoint into a method and its optimizer, and delete newer (damaged) checkpoints.

    Args:
        path: Folder of the checkpoint.
        method: Changed in place.
        optimizer: Changed in place.

    Returns:
        The checkpoint's state.
    """
    state = RunState(**checkpoint.load(path, method, optimizer))
    if distributed.rank() == 0:
        checkpoint.delete_newer(path)  # they are damaged, and their steps run again
    return state


def prepare_write(
    folder: Path,
    config: ResolvedConfig,
    method: Method,
    tensors: dict[str, Tensor],
    spec: ViewSpec,
    classes: tuple[str, ...],
    state: RunState,
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
    # A classifier of one channel is of no use for joined features, and one of pixels none for images.
    only_features = config.channel_mode == "separate" or config.labels == MASKS
    saved_parts = ("backbone",) if only_features else ("backbone", "classifier")  # heads are only in the checkpoint
    networks = copy.deepcopy(
        {name: {part: net[part] for part in saved_parts if part in net} for name, net in method.networks().items()}
    )
    for parts in networks.values():
        cast(Backbone, parts["backbone"]).mask_token = None  # only training needs it
    state = copy.deepcopy(state)

    def write() -> None:
        load.save_backbone(
            folder,
            {name: cast(Backbone, networks[name]["backbone"]) for name in method.product},
            preprocessing=run_images.preprocessing(config, spec),
            extra={"method": configs.method_name(config), "data": config.data, "step": state.step},
            classifier=cast(nn.Linear | None, networks[method.product[0]].get("classifier")),
            classes=() if config.labels == MASKS else method.classes or classes,
        )
        checkpoint.save(folder, tensors, dataclasses.asdict(state), config.keep_checkpoints)

    return write
