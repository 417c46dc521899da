"""The settings of a run: one tree of every part's own Config, as dataclass, YAML and command line alike."""

from __future__ import annotations

import dataclasses
import importlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, cast, get_args

import msgspec
import tyro
from tyro.conf import Positional

from opendino.core import registry
from opendino.core.errors import UsageError, nearest
from opendino.core.types import IMAGENET_MEAN, IMAGENET_STD, Facts, ViewSpec
from opendino.data.cache import Cache
from opendino.engine import optim
from opendino.engine.parallel import Parallel
from opendino.engine.precision import Precision
from opendino.methods import dino


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. "auto" values are decided from the data when it starts, and printed."""

    data: Annotated[str, Positional, tyro.conf.arg(metavar="DATA")]
    """Images: a folder, a .tar or .zip, a text file of paths, shards/{000..127}.tar (local or https://), a .parquet,
    hf:NAME?split=train, or toy:KIND."""
    val: str | None = None
    """Labelled images for the k-NN shown while training; without it a part of DATA, where folders name classes."""
    labels: str = "all"
    """Labels that may be seen: all, a share of each class such as 10%, or a CSV of path,class. Methods that learn
    without labels use them for the k-NN alone."""
    out: str | None = None
    """Run folder to make; runs/NAME-DATE where absent."""
    init: str | None = None
    """MODEL whose backbone the student and its teacher start from: a run, a model folder, timm:NAME. With
    --backbone auto the network is that model's; another image size, patch size or added registers are adapted to."""
    backbone: str = "vit_small/16"
    """vit_tiny|small|base/PATCH, any timm name (resnet50, convnext_tiny), or a timm ResNet with a stem for small
    images (resnet18/3x3). auto: what the device can bear."""
    backbone_options: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Further arguments of the backbone's constructor, e.g. num_registers 4."""
    drop_path: float = 0.1
    """Stochastic depth of the student, linear over blocks; the teacher has none."""
    drop_path_on_subset: bool = False
    """Work out each branch for the images that are not dropped alone, a fixed number of each batch (DINOv2): saves
    about that share of the blocks' work, and draws other chances. For our vision transformers."""
    method: Any = field(default_factory=dino.Config)
    """Settings of the training method."""
    optim: optim.Config = field(default_factory=optim.Config)
    """Settings of the optimiser."""
    epochs: float | Literal["auto"] | None = None
    """Length in passes over the data; give this or steps. auto: 200, and about ten minutes for the small
    convolutional network on a CPU."""
    steps: int | None = None
    """Length in optimiser steps; give this or epochs."""
    batch: int | Literal["auto"] = "auto"
    """Images per optimiser step over all devices."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Of the pixels in [0, 1] that the network is to see as 0; with --init that model's."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Their spread that it is to see as 1; with --init that model's."""
    seed: int = 0
    """Decides initial weights, order and every augmentation."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first there is."""
    devices: int | Literal["auto"] = "auto"
    """How many of this machine's devices train together: auto takes every GPU, and one process where there is none.
    Under torchrun or srun these say how many."""
    parallel: Parallel = "auto"
    """How several devices share the work. ddp: each holds everything. fsdp: each holds a part of every tensor, for
    networks too large for one. auto: ddp where that fits."""
    sync_batch_norm: bool = True
    """With several devices BatchNorm takes its statistics over the images of all, as one device would."""
    activation_checkpointing: bool = False
    """Keep less of the student's forward pass and work it out anew on the way back: less memory, a third slower."""
    precision: Precision = "auto"
    """Of the networks; softmax and losses are float32 in any case."""
    compile: bool | Literal["auto"] = "auto"
    """Join small operations into few kernels, which takes about a minute at the start. auto: on a GPU."""
    workers: int | Literal["auto"] = "auto"
    """Processes that decode images; changes nothing but speed."""
    threads: int | Literal["auto"] = "auto"
    """Threads that compute on a CPU, in each process. auto: OMP_NUM_THREADS where it is set, else measured at the
    start, and again when the run has become slower by half; a resumed run keeps its number on the same machine."""
    cache: Cache = "auto"
    """Where decoded images are kept: on the device, all of them from the start; in RAM or on disk once they were
    read. auto: where they fit and are seen more than once."""
    max_bad_frac: float = 0.5
    """The run stops when more than this share of the images cannot be read."""
    eval_every: str = "10%"
    """How often features are judged (k-NN, effective rank)."""
    eval_images: int | Literal["auto"] = "auto"
    """How many images they are judged on; 0 for never."""
    knn_k: int = 10
    """Neighbours of the k-NN shown while training."""
    checkpoint_every: str = "10%"
    """How often the whole state is saved."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    report: bool = True
    """Leave a page at the end, report.html: curves, attention, neighbours, and how to go on."""
    resume: bool = False
    """If the run folder holds a run already, go on with it, by its own settings: for schedulers that start a command
    again. Needs --out."""
    profile: bool = False
    """Look closely at a few early steps: profile.txt says where their time went, profile.json.gz is the trace."""
    max_nonfinite: int = 10
    """Steps in a row whose loss is not finite before the run stops."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UsageError(f"epochs={self.epochs} and steps={self.steps} were both given", "Give one of them")
        for prefix, part in (("", self), ("method.", self.method), ("optim.", self.optim)):
            for part_field in dataclasses.fields(part):
                value = getattr(part, part_field.name)
                if isinstance(value, float) and not math.isfinite(value):
                    raise UsageError(f"{prefix}{part_field.name} is {value}", "Use a finite number")
        for name, least in (
            ("epochs", 0),
            ("steps", 1),
            ("batch", 1),
            ("workers", 0),
            ("threads", 1),
            ("devices", 1),
            ("eval_images", 0),
            ("seed", 0),
            ("keep_checkpoints", 1),
            ("knn_k", 1),
        ):
            value = getattr(self, name)
            if isinstance(value, int | float) and (value < least or (name == "epochs" and value == 0)):
                allowed = "more than 0" if name == "epochs" else f"{least} or more"
                raise UsageError(f"{name} is {value}", f"Use {allowed}")
        if self.resume and self.out is None:
            raise UsageError("--resume was given without a run folder", "Name it: --out runs/NAME")
        if min(self.std) <= 0:
            raise UsageError(f"std is {self.std}", "Use values above 0, e.g. 0.229 0.224 0.225")
        if self.seed >= 2**63:
            raise UsageError(f"seed is {self.seed}", "Use a number below 2^63")
        if not 0 <= self.drop_path < 1:
            raise UsageError(f"drop_path is {self.drop_path}", "Use a share from 0 to below 1")
        if not 0 <= self.max_bad_frac <= 1:
            raise UsageError(f"max_bad_frac is {self.max_bad_frac}", "Use a share from 0 to 1")


def method_module(config: Config) -> ModuleType:
    """The file of the method that `config.method` belongs to."""
    return importlib.import_module(type(config.method).__module__)


def views(config: Config) -> ViewSpec:
    """The views its method asks for, with the run's normalisation."""
    return replace(method_module(config).views(config.method), mean=config.mean, std=config.std)


def method_name(config: Config) -> str:
    """e.g. "dino"."""
    return type(config.method).__module__.rpartition(".")[2]


def method_config(name: str) -> Any:
    """The default Config of a method.

    Raises:
        UsageError: No such method.
    """
    return registry.load("opendino.methods", name).Config()


def resolve(config: Config, facts: Facts) -> tuple[Config, list[str]]:
    """Let the method and the optimiser decide their "auto" values; with the reasons."""
    method, why = config.method.resolved(facts)
    optimiser, why_optim = config.optim.resolved(facts)
    return replace(config, method=method, optim=optimiser), [f"method.{r}" for r in why] + [
        f"optim.{r}" for r in why_optim
    ]


def to_tree(config: Config) -> dict[str, Any]:
    """Plain dicts, lists and scalars, e.g. for YAML."""
    tree = cast(dict[str, Any], msgspec.to_builtins(config))
    tree["method"] = {"name": method_name(config)} | cast(dict[str, Any], msgspec.to_builtins(config.method))
    return tree


def from_tree(tree: dict[str, Any], base: Config | None = None) -> Config:
    """A Config from plain values laid over `base`.

    Raises:
        UsageError: An unknown key (names the nearest), a value of the wrong kind, or no `data`.
    """
    tree = dict(tree)
    method = tree.pop("method", {})
    if isinstance(method, str):
        method = {"name": method}
    if not isinstance(method, dict):
        raise UsageError(f"method is {method!r}, not a name or settings", "Write method: dino, or its settings below")
    name = method.get("name")
    if not isinstance(name, str | None):
        raise UsageError(f"method.name is {name!r}, not a name", "Write for example name: dino")
    tree["method"] = {key: value for key, value in method.items() if key != "name"}
    if base is None:
        if not isinstance(tree.get("data"), str):
            raise UsageError("The settings name no data", "Add a line such as data: ~/photos")
        base = Config(data=tree["data"])
    if name is not None and name != method_name(base):
        base = replace(base, method=method_config(name))
    if (tree.get("steps") is None) != (tree.get("epochs") is None):  # the one that is given replaces the other
        base = replace(base, steps=None, epochs=None)
    return _overlay(base, tree, "")


def read_tree(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        UsageError: No such file, or no mapping in it.
    """
    try:
        tree = msgspec.yaml.decode(Path(path).expanduser().read_bytes())
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} holds no settings", "Write lines such as epochs: 100")
    return tree


def dump(config: Config) -> str:
    """The YAML text that `read_tree` and `from_tree` turn back into this Config."""
    return msgspec.yaml.encode(to_tree(config)).decode()


def _overlay(base: Any, tree: dict[str, Any], path: str) -> Any:
    """A copy of a dataclass with the values of `tree` checked and put in."""
    fields = {f.name: f for f in dataclasses.fields(base)}
    kinds = _kinds(type(base))
    changes = {}
    for key, value in tree.items():
        where = f"{path}{key}"
        if key not in fields:
            raise UsageError(f"Unknown key '{where}'", nearest(str(key), fields))
        current = getattr(base, key)
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            changes[key] = _overlay(current, value, f"{where}.")
            continue
        if kinds[key] is str and isinstance(value, int | float):  # a duration in steps needs no quotes
            value = f"{value:g}" if isinstance(value, float) else str(value)
        try:
            changes[key] = msgspec.convert(value, kinds[key], strict=False)  # YAML reads 5e-4 as text
        except msgspec.ValidationError as error:
            raise UsageError(
                f"{where} is {value!r}: {str(error)[0].lower()}{str(error)[1:]}", _choices(kinds[key])
            ) from None
    return replace(base, **changes)


def _kinds(kind: type) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(kind)


def _choices(kind: Any) -> str:
    choices = [str(c) for c in get_args(kind) if isinstance(c, str)]
    return f"Choose from {', '.join(choices)}" if choices else ""
