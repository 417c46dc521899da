"""Start and resume runs from Python: `opendino.train` and `opendino.resume`; the command line uses `train` too."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from opendino import comparison, existing_runs, finetuning, length_in_minutes, resolve, training
from opendino import config as configs
from opendino.config import Config, ResolvedConfig
from opendino.core import compilation, distributed, log, registry
from opendino.core.contracts import Callback, Source
from opendino.core.errors import UsageError, UserError
from opendino.data import fingerprint
from opendino.data.sources import python
from opendino.engine import checkpoint, launch, parallel
from opendino.engine.run_result import Result
from opendino.models.description import DESCRIPTION, read_description
from opendino.models.load import check_backbone
from opendino.snapshots import RunState
from opendino.training import Start
from opendino.views import settings as view_settings

Data = str | Path | Source | Any  # Any: a map-style dataset
Network = str | Callable[..., nn.Module]
_OWN_PARTS = "docs/own_method.md"


def settings(data: Data, recipe: str = "auto", **changes: Any) -> Config:
    """The settings of a run; `opendino.Config("photos", epochs=50)` is `opendino train photos --epochs 50`.

    Args:
        data: The images, as for `train`.
        recipe: Name of the recipe; auto: `continued` with `init`, else `small`, which chooses the rest from the images
            and the device when the run starts.
        **changes: Fields of `config.Config`; `method` and `optim` also as a dict.

    Raises:
        UsageError: An unknown recipe or setting, or a value that is not allowed.
    """
    if recipe == "auto":
        recipe = "continued" if changes.get("init") else "small"
    base = registry.load("opendino.recipes", recipe).config(_data(data) or "")
    return _with_settings(base, changes.pop("method", None), changes)


def train(
    data: Config | Data,
    *,
    val: Data | None = None,
    backbone: Network | None = None,
    method: str | ModuleType | Any = None,
    augmentations: Sequence[ModuleType] = (),
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> Result:
    """Start a training run; with several devices in one new process per device.

    `opendino.train("photos", epochs=50, optim={"lr": 1e-3})` is `opendino train photos --epochs 50 --optim.lr 1e-3`:
    everything else is chosen from the images and the device. If the run folder already holds a run, `resume=True`
    continues it, up to a new length if one is given.

    Args:
        data: DATA as on the command line; a `Source`; a map-style dataset of images (`torch.utils.data.Dataset`,
            Hugging Face, a list), see `data.sources.python`; or a whole `Config`.
        val: Labeled images for the k-NN accuracy during training, as `data`.
        backbone: A name, or a function without arguments that returns an `nn.Module`, see `models.module_backbone`.
        method: A name, a method's Config, or a module, see `core.contracts.Method`.
        augmentations: Modules as in `views.augmentations`, each named as its module; `views` turns them on.
        callbacks: Called during the run, on rank 0.
        **changes: `recipe`, and fields of `config.Config`; `method` and `optim` also as a dict. See `settings`.

    Returns:
        Result of the run; models, metrics and checkpoints are in its folder.

    Raises:
        UsageError: Unknown or contradictory settings.
        UserError: The run cannot start (nothing is left behind), or had to stop (its last state is saved).
    """
    _refuse_in_import()
    log.write_to(None)  # a run that did not start leaves no messages to the next one
    if "loss" in changes:
        raise UsageError("There is no setting 'loss'", f"A loss belongs to a method: method=a module, see {_OWN_PARTS}")
    for module in augmentations:
        if not isinstance(module, ModuleType):
            raise UsageError(
                f"augmentations holds a {type(module).__name__}",
                f"Give modules, whose random values are drawn by seed and step: {_OWN_PARTS}",
            )
        register_augmentation(module.__name__.rpartition(".")[2], module)
    given = {"val": _data(val), "backbone": _backbone(backbone)} | changes
    given = {name: value for name, value in given.items() if value is not None}
    config = _with_settings(data, method, given) if isinstance(data, Config) else settings(data, method=method, **given)
    if launch.number(config.devices, config.device) > 1:
        check_sendable(config, [*callbacks, *augmentations])
        with tempfile.TemporaryDirectory() as home:
            (Path(home) / "settings.yaml").write_text(configs.dump(config), encoding="utf-8")
            return Result(**launch.command("train", "--config", f"{home}/settings.yaml"))
    with parallel.process_group(config.device) as device:
        folder, request = existing_runs.folder(config), resolve.absolute_paths(config)
        if distributed.broadcast_object((folder / "config.yaml").is_file()):
            lengths = existing_runs.requested_length(folder, request)
            return _resume(folder, device, Start(request, callbacks, resuming=True), **lengths)
        planned = length_in_minutes.in_epochs(request, device)
        resolved, source = resolve.resolve_config(planned.config, device)
        result = training.run(resolved, source, folder, device, Start(request, callbacks))
        if text := planned.overtime(result.images_per_second, time.monotonic()):
            log.say(text)
        return _compared(result, resolved, folder, device)


def continue_run(run: str | Path, data: Data | None = None, **options: Any) -> Result:
    """Train on from the networks of a run, as a new run with a short schedule, and compare the two at the end.

    `opendino.continue_run("runs/monday", "camera")` is `opendino continue runs/monday camera`. A part of the images is
    kept out of training (`hold_out`). On these, old and new ones, both runs are compared: `Result.against_start`.

    Args:
        run: The run's folder; it is not changed.
        data: The images, as for `train`; None for the folder of the run, which may have grown.
        **options: As for `train`; the other settings are those of the run, see `existing_runs.continued`.

    Raises:
        UserError: There is no such run, or the new one cannot start or had to stop.
    """
    config = existing_runs.continued(run)
    return train(replace(config, data=_data(data) or config.data), **options)


def finetune(model: str | Path, data: Data, *, val: Data | None = None, **options: Any) -> Result:
    """Fine-tune a model as a classifier, and compare it with a classifier of its frozen features at the end.

    With `labels="masks"` it is trained for segmentation, and compared with a segmentation head.

    `opendino.finetune("runs/monday", "photos", labels="labels.csv")` is `opendino finetune runs/monday photos --labels
    labels.csv`. `opendino predict` and `models.classifier.load_classifier` take the better one of the two.

    Args:
        model: The model, as for `opendino.load`; it is not changed.
        data: The images, as for `train`; those without a label are not used.
        val: Labeled images to compare on; None to keep a fifth of the labeled images out of training (`hold_out`).
        **options: As for `train`; `labels` is a CSV of path,class, "masks", or "folders" (default).

    Returns:
        Result of the run; `Result.against_start` has the comparison, see `finetuning.against_frozen_head`.

    Raises:
        UserError: There is no such model, no image has a label, or the run cannot start or had to stop.
    """
    if val is not None:
        options = {"hold_out": 0.0, **options}
    return train(finetuning.settings(model, _data(data) or ""), val=val, **options)


def _compared(result: Result, config: ResolvedConfig, folder: Path, device: torch.device) -> Result:
    """Add the comparison with the run that a continued run, or the model that a fine-tuning run started from."""
    if finetuning.is_finetuning(config):
        compare = finetuning.against_frozen_head
    elif config.init_networks == "all":
        compare = comparison.against_start
    else:
        return result
    found = distributed.on_first_rank(lambda: compare(config, folder, device))
    # By images that the verdict has not seen; of masks it has seen nothing. The comparison says itself what to keep.
    decides = comparison.decides(found) or found["verdict"] == "better" or found["measure"] == "segmentation"
    return replace(result, against_start=found, cure="" if decides and not result.collapse else result.cure)


def resume(
    run: str | Path,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    devices: int | str | None = None,
    data: Data | None = None,
    val: Data | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Resume a run exactly where it stopped (weights, order of images, random choices), on any number of devices.

    What was given in Python must be known again: `register_backbone`, `register_method`, `register_augmentation`.

    Args:
        run: The run's folder.
        steps: New length of the whole run in optimizer steps, see `existing_runs.change_length`.
        epochs: The same in epochs; at most one of the two.
        devices: Number of devices of this machine, or "auto"; None keeps the number.
        data: The dataset, if it was given in Python: the same images.
        val: The same for the labeled images of the evaluations.
        callbacks: Called during the run, on rank 0.

    Raises:
        UserError: There is no such run, its data has changed, or it had to stop again.
    """
    _refuse_in_import()
    config = existing_runs.read_run_config(run)
    for name, again, before in (("data", _data(data), config.data), ("val", _data(val), config.val)):
        if again is not None and again != before:
            raise UserError(
                f"{name} is {again}, and the run's is {before}", "Pass the images that the run started with"
            )
    if launch.number(config.devices if devices is None else devices, config.device) > 1:
        check_sendable(config, callbacks)
        given = {"--steps": steps, "--epochs": epochs, "--devices": devices}
        flags = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
        return Result(**launch.command("resume", str(run), *flags))
    with parallel.process_group(config.device) as device:
        folder = Path(run).expanduser()
        start = Start(existing_runs.read_request(folder), callbacks, resuming=True)
        return _resume(folder, device, start, steps, epochs)


def register_backbone(name: str, factory: Callable[..., nn.Module]) -> str:
    """Name a function that builds a network, for this process; returns the name to use as `backbone`.

    A run stores only the name: register it again before `opendino.resume` or `opendino.load`. Packages do so by the
    entry-point group `opendino.backbones`.
    """
    name = f"python:{name.removeprefix('python:')}"
    registry.add(registry.BACKBONES, name, factory)
    return name


def register_method(name: str, module: ModuleType) -> str:
    """Name a method's module (see `core.contracts.Method`), for this process; returns the name to use as `method`.

    Raises:
        UsageError: The module lacks `Config`, `VIEWS`, `views` or `build`.
    """
    if missing := [part for part in ("Config", "VIEWS", "views", "build") if not hasattr(module, part)]:
        raise UsageError(f"The method '{name}' has no {missing[0]}", "See core/contracts.py: Method")
    registry.add(registry.METHODS, name, module)
    return name


def register_augmentation(name: str, module: ModuleType) -> str:
    """Name an augmentation's module (see `views.augmentations`), for this process; returns the name in `views`.

    Raises:
        UsageError: The name is taken.
        UserError: The module lacks a part, or is on by default.
    """
    view_settings.add(name, module)
    return name


def _data(data: Data | None) -> str | None:
    if data is None:
        return None
    return str(data) if isinstance(data, str | Path) else python.register(data)


def _backbone(backbone: Network | None) -> str | None:
    if backbone is None or isinstance(backbone, str):
        return backbone
    if isinstance(backbone, nn.Module) or not callable(backbone):
        raise UsageError(
            f"backbone is a {type(backbone).__name__}",
            "Give a function that builds it: student and teacher need one each",
        )
    return register_backbone(getattr(backbone, "__name__", type(backbone).__name__).strip("<>"), backbone)


def _with_settings(config: Config, method: Any, given: dict[str, Any]) -> Config:
    if isinstance(method, ModuleType):
        register_method(method.__name__.rpartition(".")[2], method) if not _is_ours(method) else None
        method = method.Config()
    if dataclasses.is_dataclass(method):
        config = replace(config, method=method, views={})  # the views of the method
    elif method is not None:
        given["method"] = method
    if given.get("backbone") and given["backbone"] != config.backbone:
        given = {"backbone_options": {}, **given}  # the options are those of the other network
    objects = {name: value for name, value in given.items() if dataclasses.is_dataclass(value)}
    tree = {name: _plain(value) for name, value in given.items() if name not in objects}
    return replace(configs.from_tree(tree, config), **objects)


def _is_ours(module: ModuleType) -> bool:
    return module.__name__.rpartition(".")[0] == registry.METHODS


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def check_sendable(config: Config, objects: Sequence[Any] = ()) -> None:
    """New processes cannot get objects of this one.

    Raises:
        UsageError: There are objects, or something given in Python.
    """
    datasets = any(python.matches(name or "") for name in (config.data, config.val))
    if objects or datasets or existing_runs.given_in_python(config):
        raise UsageError(
            "What is given in Python (dataset, network, method, augmentation, callback) cannot be sent to several "
            "processes",
            "Use devices=1, or start the script or `-m opendino` with torchrun",
        )


def _refuse_in_import() -> None:
    """A script that `--import` runs for the parts in it must not train again.

    Raises:
        UserError: It would.
    """
    if registry.importing:
        raise UserError(
            f"{registry.importing[-1]} starts a run when it is imported",
            'Put its calls of opendino below a line: if __name__ == "__main__":',
        )


def _resume(
    folder: Path, device: torch.device, start: Start, steps: int | None = None, epochs: float | None = None
) -> Result:
    config = existing_runs.read_run_config(folder)
    if (folder / DESCRIPTION).is_file():
        check_backbone(read_description(folder / DESCRIPTION))
    path, state = distributed.broadcast_object(checkpoint.newest(folder)), RunState()
    if path is not None:
        state = RunState(**checkpoint.state(path))
        config = resolve.rescale(config, state.world, device)
    elif any((folder / "checkpoints").glob("step_*")):
        raise UserError(f"'{folder}' has no readable checkpoint", "Start a new run with another --out")
    elif config.batch % (config.optim.grad_accum_steps * distributed.world_size()):
        config = resolve.rescale(config, 0, device)  # it was killed before it saved on how many devices it ran
    source = resolve.images(config)
    fingerprint.check_same_on_all_ranks(source)
    if path is not None:
        existing_runs.check_images(folder, config, source, state.fingerprint)
    config, message = existing_runs.change_length(config, len(source), state.step, steps, epochs)
    if message:
        log.say(message)
    config = resolve.resumed_threads(config, state.threads, device)
    compilation.choose(config.compile, device, config.steps)  # another machine may have no compiler
    # A run that was killed before its first checkpoint starts from the beginning.
    result = training.run(config, source, folder, device, replace(start, checkpoint=path))
    return _compared(result, config, folder, device)
