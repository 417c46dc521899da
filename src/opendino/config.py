"""The settings of a run: one tree of every part's own Config, as dataclass, YAML and command line alike."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, cast, get_args

import msgspec
import tyro
import yaml
from msgspec import Meta
from tyro.conf import Positional

from opendino.core import registry
from opendino.core.errors import UsageError, nearest
from opendino.core.ranges import (  # fmt: skip
    Batch,
    Checked,
    Count,
    CountOrZero,
    Duration,
    Fraction,
    Mean,
    Positive,
    Repeats,
    Seed,
    Std,
    convert,
    hints,
    shown,
)
from opendino.core.types import IMAGENET_MEAN, IMAGENET_STD, Facts, ViewSpec
from opendino.data.cache import Cache
from opendino.engine import optim
from opendino.engine.parallel import Parallel
from opendino.engine.precision import Precision
from opendino.methods import dino

Option = Annotated[int, Meta(ge=-65_536, le=65_536)] | Annotated[float, Meta(ge=-65_536, le=65_536)] | bool | str


@dataclass(frozen=True)
class Config(Checked):
    """Everything that decides a run. "auto" values are decided from the data when it starts, and printed."""

    data: Annotated[str, Positional, tyro.conf.arg(metavar="DATA", help_behavior_hint="(required)")]
    """Images: a folder, a .tar or .zip, a text file of paths, shards/{000..127}.tar (local or https://), a .parquet,
    hf:NAME?split=train, or toy:KIND."""
    val: str | None = None
    """Labeled images for the k-NN shown while training; without it a part of DATA, where folders name classes."""
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
    backbone_options: dict[str, Option] = field(default_factory=dict)
    """Further arguments of the backbone's constructor, e.g. num_registers 4."""
    drop_path: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    """Stochastic depth of the student, linear over blocks; the teacher has none."""
    drop_path_on_subset: bool = False
    """Work out each branch for the images that are not dropped alone, a fixed number of each batch (DINOv2): saves
    about that share of the blocks' work, and draws other chances. For our vision transformers."""
    method: Any = field(default_factory=dino.Config)
    """Settings of the training method."""
    optim: optim.Config = field(default_factory=optim.Config)
    """Settings of the optimizer."""
    epochs: Positive | Literal["auto"] | None = None
    """Length in passes over the data; give this or steps. auto: 200, and about ten minutes for the small
    convolutional network on a CPU."""
    steps: Count | None = None
    """Length in optimizer steps; give this or epochs."""
    batch: Batch | Literal["auto"] = "auto"
    """Images per optimizer step over all devices."""
    mean: Mean = IMAGENET_MEAN
    """Of the pixels in [0, 1] that the network is to see as 0; with --init that model's."""
    std: Std = IMAGENET_STD
    """Their spread that it is to see as 1; with --init that model's."""
    seed: Seed = 0
    """Decides initial weights, order and every augmentation."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first there is."""
    devices: Annotated[int, Meta(ge=1, le=4096)] | Literal["auto"] = "auto"
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
    workers: Annotated[int, Meta(ge=0, le=4096)] | Literal["auto"] = "auto"
    """Processes that decode images; changes nothing but speed."""
    threads: Annotated[int, Meta(ge=1, le=4096)] | Literal["auto"] = "auto"
    """Threads that compute on a CPU, in each process. auto: OMP_NUM_THREADS where it is set, else measured at the
    start, and again when the run has become slower by half; a resumed run keeps its number on the same machine."""
    cache: Cache = "auto"
    """Where decoded images are kept: on the device, all of them from the start; in RAM or on disk once they were
    read. auto: where they fit and are seen more than once."""
    max_bad_frac: Fraction = 0.5
    """The run stops when more than this share of the images cannot be read."""
    eval_every: Duration = "10%"
    """How often features are judged (k-NN, effective rank)."""
    eval_images: CountOrZero | Literal["auto"] = "auto"
    """How many images they are judged on; 0 for never."""
    knn_k: Count = 10
    """Neighbors of the k-NN shown while training."""
    checkpoint_every: Duration = "10%"
    """How often the whole state is saved."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept."""
    report: bool = True
    """Leave a page at the end, report.html: curves, attention, neighbors, and how to go on."""
    resume: bool = False
    """If the run folder holds a run already, go on with it, by its own settings: for schedulers that start a command
    again. Needs --out."""
    profile: bool = False
    """Look closely at a few early steps: profile.txt says where their time went, profile.json.gz is the trace."""
    max_nonfinite: Repeats = 10
    """Steps in a row whose loss is not finite before the run stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not dataclasses.is_dataclass(self.method):
            raise UsageError(f"method is {shown(self.method)}", "Give a method's Config, e.g. methods.dino.Config()")
        if self.epochs is not None and self.steps is not None:
            raise UsageError(f"epochs={shown(self.epochs)} and steps={self.steps} were both given", "Give one of them")
        if self.resume and self.out is None:
            raise UsageError("--resume was given without a run folder", "Name it: --out runs/NAME")


def method_module(config: Config) -> ModuleType:
    """The file of the method that `config.method` belongs to."""
    return importlib.import_module(type(config.method).__module__)


def views(config: Config) -> ViewSpec:
    """The views its method asks for, with the run's normalization."""
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


def resolve_parts(config: Config, facts: Facts) -> tuple[Config, list[str]]:
    """Let the method and the optimizer decide their "auto" values; with the reasons."""
    method, why = config.method.resolved(facts)
    optimizer, why_optim = config.optim.resolved(facts)
    return replace(config, method=method, optim=optimizer), [f"method.{r}" for r in why] + [
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
        UsageError: No such file, no mapping in it, or one that gives a key twice.
    """
    try:
        with open(Path(path).expanduser(), "rb") as file:
            tree = _OneOfEachKey(file).get_single_data()
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} holds no settings", "Write lines such as epochs: 100")
    return tree


def dump(config: Config) -> str:
    """The YAML text that `read_tree` and `from_tree` turn back into this Config."""
    return msgspec.yaml.encode(to_tree(config)).decode()


class _OneOfEachKey(yaml.SafeLoader):
    """YAML's reader takes the last of several values of one key; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                where = f"line {line}" if line == lines[key.value] else f"lines {lines[key.value]} and {line}"
                raise UsageError(
                    f"{key.start_mark.name} gives {shown(key.value)} twice, in {where}", "Keep one of them"
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def _overlay(base: Any, tree: dict[str, Any], path: str) -> Any:
    """A copy of a dataclass with the values of `tree` checked and put in."""
    kinds, changes = hints(type(base)), {}
    for key, value in tree.items():
        where = f"{path}{key}"
        if key not in kinds:
            raise UsageError(f"Unknown key {shown(where)}", nearest(str(key), kinds))
        current = getattr(base, key)
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            changes[key] = _overlay(current, value, f"{where}.")
            continue
        text = kinds[key] is str or get_args(kinds[key])[:1] == (str,)
        if text and isinstance(value, int | float) and abs(value) < 1e15:  # a duration in steps needs no quotes
            value = f"{value:g}" if isinstance(value, float) else str(value)
        changes[key] = convert(value, kinds[key], where, strict=False)  # YAML reads 5e-4 as text
    return replace(base, **changes)
