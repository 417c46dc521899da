"""The settings of a run, as a tree of Configs: dataclasses in Python, a YAML file, and command line options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import msgspec
import tyro
import yaml
from msgspec import Meta
from tyro.conf import Positional

from opendino.core import registry
from opendino.core.contracts import MethodConfig
from opendino.core.errors import UsageError, nearest
from opendino.core.ranges import (  # fmt: skip
    Batch,
    Checked,
    Count,
    CountOrZero,
    Duration,
    DurationOrAuto,
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
from opendino.core.unique_keys import UniqueKeyLoader
from opendino.data import intensity
from opendino.data.cache import Cache
from opendino.data.channel_images import pooled
from opendino.data.video_file import join_every
from opendino.engine import optim
from opendino.engine.parallel import Parallel
from opendino.engine.precision import Precision
from opendino.methods import dino
from opendino.models import build
from opendino.views import image_kinds
from opendino.views import settings as view_settings

Sizes = tuple[Annotated[int, Meta(ge=0, le=65_536)], ...]
Option = (
    Annotated[int, Meta(ge=-65_536, le=65_536)] | Annotated[float, Meta(ge=-65_536, le=65_536)] | bool | str | Sizes
)
ChannelNumber = Annotated[int, Meta(ge=0, le=9999)]
LENGTHS = ("epochs", "steps", "minutes")
STACKS = "ask, channels, max, mean, images, or the number of a page"


@dataclass(frozen=True)
class Config(Checked):
    """All settings of a run. "auto" values are chosen when the run starts, and printed with the reason."""

    data: Annotated[str, Positional, tyro.conf.arg(metavar="DATA", help_behavior_hint="(required)")]
    """Images: a folder, a video, .tar, .zip, .parquet, a text file of paths, shards/{000..127}.tar (local or https://),
    hf:NAME?split=train, or toy:KIND."""
    every: str = ""
    """Time between the frames used of videos in DATA: 2s, or all for every frame; default 1s. Same as DATA?every=2s."""
    val: str | None = None
    """Labeled images for the k-NN accuracy during training; default: part of DATA, if it has class folders."""
    labels: str = "auto"
    """Labels to use: none, folders (sub-folders are classes), 10% (of each class), a CSV of path,class, or masks. auto:
    those of DATA; sub-folders give a k-NN accuracy, but do not decide whether the run has learned."""
    channels: tuple[ChannelNumber | str, ...] = ()
    """Channels to use, by number from 0 or by name, in this order, e.g. 0 2 4; default: all."""
    stack: Annotated[str, Meta(pattern=r"^(ask|channels|max|mean|images|[0-9]{1,5})$", description=STACKS)] = "ask"
    """Several pages or slices in a file: channels, max, mean, images (one of each), or the number of a page.
    ask: stop and show what was found."""
    channel_files: str | None = None
    """File names if each channel is a file of its own, e.g. "{id}_w{channel}.tif"."""
    channel_mode: Literal["together", "separate"] = "together"
    """separate: a network of one channel learns from each channel by itself; features of an image are those of its
    channels, joined. For sets whose channels vary; costs a pass per channel."""
    intensity: tuple[Annotated[float, Meta(ge=-3.4e38, le=3.4e38)] | str, ...] = ("auto",)
    """Values that become black and white: LOW HIGH, full, per-image or a .csv of channel,low,high.
    auto: from the values of the whole set; 8-bit photographs stay as they are."""
    bits: Literal["auto", 8, 16] = "auto"
    """Bits of each value in cache and transfer. auto: 16 if the files have more than 8 and the range needs them."""
    out: str | None = None
    """Run folder to create; default: runs/NAME-DATE."""
    init: str | None = None
    """Pretrained MODEL to start from: a run, a model folder or timm:NAME. --backbone auto uses its architecture.
    Weights are adapted to another image size, patch size or added registers."""
    init_networks: Literal["backbone", "all"] = "backbone"
    """What to take from --init: backbone, or all (also heads and teacher, of a run of the same method)."""
    hold_out: Fraction = 0.0
    """Fraction of the images kept out of training, chosen by name; `opendino continue` compares models on them."""
    backbone: str = "vit_small/16"
    """vit_tiny|small|base, with /PATCH in px or without, any timm name (resnet50), or resnet18/3x3 (for small images).
    auto: chosen from the image size and the device."""
    backbone_options: dict[str, Option] = field(default_factory=dict)
    """Extra keyword arguments of the backbone's constructor, e.g. num_registers 4."""
    drop_path: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    """Stochastic depth rate of the student in [0, 1), increasing linearly over blocks; 0 for small networks."""
    drop_path_on_subset: bool = False
    """Skip dropped images in ViT blocks (DINOv2). Faster; results differ: random numbers are used differently."""
    method: MethodConfig = field(default_factory=dino.Config)
    """Settings of the training method."""
    views: dict[str, Any] = field(default_factory=dict)
    """Size, number and augmentations of the views, by group; the groups and their defaults are the method's."""
    orientation: Literal["photo", "any"] = "photo"
    """any: no side of the images is up (micrographs, aerial images, surfaces): flip and turn all views."""
    optim: optim.Config = field(default_factory=optim.Config)
    """Settings of the optimizer."""
    epochs: Positive | Literal["auto"] | None = None
    """Length in epochs; set this, steps or minutes. auto: 200; on a CPU as many as take 20 minutes."""
    steps: Count | None = None
    """Length in optimizer steps; set this, epochs or minutes."""
    minutes: Positive | None = None
    """Length in minutes with evaluations, without start-up and report; converted to steps once, by timing a few."""
    batch: Batch | Literal["auto"] = "auto"
    """Images per optimizer step over all devices; the learning rate scales with it."""
    mean: Mean = IMAGENET_MEAN
    """Per-channel mean for normalization, for pixels in [0, 1]; default: ImageNet for photographs, else that of the
    images; or that of the --init model."""
    std: Std = IMAGENET_STD
    """Per-channel standard deviation for normalization, for pixels in [0, 1]; default as for mean."""
    seed: Seed = 0
    """Random seed of the initial weights, the order of the images and the augmentations."""
    device: str = "auto"
    """cuda, mps or cpu. auto: the first that is available."""
    devices: Annotated[int, Meta(ge=1, le=4096)] | Literal["auto"] = "auto"
    """Number of GPUs or CPU processes on this machine; torchrun and srun set it. auto: all GPUs, or 1 process."""
    parallel: Parallel = "auto"
    """ddp: a copy of the weights per device; fsdp: sharded weights, for large networks. auto: ddp if it fits."""
    sync_batch_norm: bool = True
    """Compute BatchNorm statistics over the images of all devices; False is faster."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    precision: Precision = "auto"
    """Precision of the networks: lower is faster on a GPU; softmax and losses are always float32."""
    compile: bool | Literal["auto"] = "auto"
    """Use torch.compile: faster steps, about a minute more at the start. auto: on a GPU, from 1,000 steps."""
    workers: Annotated[int, Meta(ge=0, le=4096)] | Literal["auto"] = "auto"
    """Number of data loader workers (processes that decode images); affects only speed."""
    threads: Annotated[int, Meta(ge=1, le=4096)] | Literal["auto"] = "auto"
    """CPU threads per process. auto: OMP_NUM_THREADS if set, else the fastest number, measured at the start."""
    cache: Cache = "auto"
    """Where to cache decoded images: device (at the start), ram or disk (as they are read). auto: where they fit."""
    max_bad_frac: Fraction = 0.5
    """Stop the run if more than this fraction of the images cannot be read."""
    eval_every: DurationOrAuto = "auto"
    """Interval of the online evaluation (k-NN, effective rank): 10%, 5ep or a number of steps. auto: 10%, in short runs
    more."""
    eval_images: CountOrZero | Literal["auto"] = "auto"
    """Number of images for the online evaluation; 0 turns it off."""
    knn_k: Count = 10
    """Number of neighbors of the k-NN in the online evaluation."""
    checkpoint_every: Duration = "10%"
    """Interval of checkpoints: 10%, 5ep or a number of steps."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep."""
    report: bool = True
    """Write report.html at the end: curves, attention maps, nearest neighbors, next commands."""
    resume: bool = False
    """Resume the run in --out, if any, with its own settings; for schedulers that restart commands."""
    profile: bool = False
    """Profile a few early steps: profile.txt sums up the time spent, profile.json.gz is the trace."""
    max_nonfinite: Repeats = 10
    """Stop the run after this many consecutive steps with a non-finite loss."""

    def __post_init__(self) -> None:
        if not isinstance(self.method, MethodConfig):
            raise UsageError(f"method is {shown(self.method)}", "Use a method's Config, e.g. methods.dino.Config()")
        super().__post_init__()
        object.__setattr__(self, "views", view_settings.complete(method_module(self).VIEWS, self.views))
        if len(self.mean) != len(self.std):
            raise UsageError(f"mean has {len(self.mean)} values and std has {len(self.std)}", "Give one per channel")
        join_every(self)
        given = [f"{name}={shown(value)}" for name in LENGTHS if (value := getattr(self, name)) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} were both given", "Give one of them")
        if self.init_networks == "all" and not self.init:
            raise UsageError("init_networks is all, without init", "Add --init RUN, or use: opendino continue RUN")
        intensity.parse(self.intensity)
        if self.resume and self.out is None:
            raise UsageError("--resume needs a run folder", "Add --out runs/NAME")


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(Config):
    """The settings a run uses: a Config without "auto". Only `resolve` makes one from what a user asked for."""

    optim: optim.ResolvedConfig = field(default_factory=optim.ResolvedConfig)
    epochs: None = None
    bits: Literal[8, 16] = 8
    minutes: None = None
    steps: Count  # pyright: ignore[reportGeneralTypeIssues], it has no default here
    batch: Batch  # pyright: ignore[reportGeneralTypeIssues]
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    workers: Annotated[int, Meta(ge=0, le=4096)] = 0
    threads: Annotated[int, Meta(ge=1, le=4096)] = 1
    cache: Literal["device", "ram", "disk", "off"] = "off"
    eval_every: Duration = "10%"
    eval_images: CountOrZero = 0


def resolved(config: Config, **changes: Any) -> ResolvedConfig:
    """Convert a Config to a ResolvedConfig, with `changes` for the fields that still say "auto".

    Raises:
        OutOfRange: A field says "auto", or the run has no length in steps.
    """
    if "optim" not in changes:
        changes["optim"] = resolved_optim(config.optim)
    method = getattr(method_module(config), "ResolvedConfig", type(config.method))
    changes["method"] = method(**_values(config.method))
    return ResolvedConfig(**_values(config) | changes)


def resolved_optim(config: optim.Config, **changes: Any) -> optim.ResolvedConfig:
    """The same for the settings of the optimizer."""
    return optim.ResolvedConfig(**_values(config) | changes)


def _values(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def method_module(config: Config) -> Any:
    """The module of the method that `config.method` belongs to."""
    return registry.load(registry.METHODS, method_name(config))


def views(config: Config) -> ViewSpec:
    """The views that the method needs, with the normalization and the patch size of the run.

    Raises:
        UsageError: The method cannot train with these views.
    """
    spec = method_module(config).views(config.method, config.views)
    mean, std = config.mean, config.std
    if config.channel_mode == "separate":
        mean, std = ((value,) for value in pooled(mean, std))
    return replace(spec, mean=mean, std=std, patch_px=build.patch_px(config.backbone))


def with_method(config: Config, name: str) -> Config:
    """The same settings with another method: its defaults, and its views.

    Raises:
        UsageError: There is no such method.
    """
    return replace(config, method=method_config(name), views={})


def method_name(config: Config) -> str:
    """Name of the method, e.g. "dino".

    Raises:
        UsageError: `config.method` is a Config of no method that is known.
    """
    kind = type(config.method)
    package, _, name = kind.__module__.rpartition(".")
    if package == registry.METHODS:
        return name
    for name in set(registry.names(registry.METHODS)) - set(registry.own_names(registry.METHODS)):
        if issubclass(kind, registry.load(registry.METHODS, name).Config):
            return name
    raise UsageError(
        f"{kind.__module__}.{kind.__qualname__} belongs to no method",
        "Pass its module: opendino.train(..., method=module)",
    )


def method_config(name: str) -> MethodConfig:
    """The default Config of a method.

    Raises:
        UsageError: There is no such method.
    """
    return registry.load(registry.METHODS, name).Config()


def resolve_parts(config: Config, facts: Facts) -> tuple[Config, list[str]]:
    """Resolve the "auto" values of method, views and optimizer; also returns the reasons, one line each."""
    views, why_views = dict(config.views), []
    if not facts.is_rgb or config.channel_mode == "separate":
        defaults, channels = method_module(config).VIEWS, 1 if config.channel_mode == "separate" else len(config.mean)
        views, why_views = image_kinds.without_colors(views, defaults, channels)
    views, why = view_settings.resolved(views, facts)
    why_views += why
    if config.orientation == "any":
        views, why = image_kinds.in_any_orientation(views)
        why_views += why
    method, why_method = config.method.resolved(facts)
    optimizer, why_optimizer = config.optim.resolved(facts)
    reasons = [f"method.{reason}" for reason in why_method] + [f"views.{reason}" for reason in why_views]
    reasons += [f"optim.{reason}" for reason in why_optimizer]
    return replace(config, method=method, views=views, optim=optimizer), reasons


def to_tree(config: Config) -> dict[str, Any]:
    """Convert a Config to plain dicts, lists and scalars, e.g. for YAML."""
    tree = cast(dict[str, Any], msgspec.to_builtins(config))
    tree["views"] = view_settings.to_tree(config.views)
    name = method_name(config)
    tree["method"] = {"name": name} | cast(dict[str, Any], msgspec.to_builtins(config.method))
    if plugin := registry.origin(registry.METHODS, name):
        tree["method"]["from"] = plugin
    return tree


def from_tree(tree: dict[str, Any], base: Config | None = None) -> Config:
    """Create a Config from plain values, with `base` for the values that are missing.

    Raises:
        UsageError: A key is unknown (the message has the closest one), a value is invalid, or `data` is missing.
    """
    tree = dict(tree)
    method = tree.pop("method", {})
    if isinstance(method, str):
        method = {"name": method}
    if not isinstance(method, dict):
        raise UsageError(f"method is {method!r}, not a name or settings", "Write method: dino, or its settings below")
    name = method.get("name")
    if not isinstance(name, str | None):
        raise UsageError(f"method.name is {name!r}, not a name", "Write, for example, name: dino")
    plugin = method.get("from")
    if plugin is not None and name not in registry.names(registry.METHODS):
        raise registry.not_here("method", str(name), plugin)
    tree["method"] = {key: value for key, value in method.items() if key not in ("name", "from")}
    if base is None:
        if not isinstance(tree.get("data"), str):
            raise UsageError("The settings have no data", "Add a line such as data: ~/photos")
        base = Config(data=tree["data"])
    if name is not None and name != method_name(base):
        base = with_method(base, name)
    views = tree.pop("views", {})
    if any(tree.get(name) is not None for name in LENGTHS):  # the new length replaces the one in `base`
        base = replace(base, **dict.fromkeys(LENGTHS))
    made: Config = _overlay(base, tree, "")
    return replace(made, views=_overlay_views(made.views, views))


def read_tree(path: str | Path) -> dict[str, Any]:
    """Read the settings from a YAML file.

    Raises:
        UsageError: The file cannot be read, is not a mapping, or has a duplicate key.
    """
    try:
        with open(Path(path).expanduser(), "rb") as file:
            tree = UniqueKeyLoader(file).get_single_data()
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} has no settings", "Write lines such as epochs: 100")
    return tree


def dump(config: Config) -> str:
    """Convert a Config to YAML text; `read_tree` and `from_tree` are the inverse."""
    return msgspec.yaml.encode(to_tree(config)).decode()


def _overlay_views(base: dict[str, Any], tree: Any) -> dict[str, Any]:
    """Settings of views with the values of `tree`; its key "all" stands for every group, and comes first."""
    if not isinstance(tree, dict):
        raise UsageError(f"views is {shown(tree)}, not settings", "Write views: {local: {number: 4}}")
    found = dict(base)
    for group in sorted(tree, key=lambda name: name != "all"):
        if group not in (*base, "all") or not isinstance(tree[group], dict):
            raise UsageError(f"Unknown key {shown(f'views.{group}')}", nearest(str(group), [*base, "all"]))
        for name in base if group == "all" else (group,):
            found[name] = _overlay(found[name], view_settings.without_origins(tree[group]), f"views.{name}.")
    return found


def _overlay(base: Any, tree: dict[str, Any], path: str) -> Any:
    """Copy a dataclass with the values of `tree`, after a check; `path` is the prefix of keys in errors."""
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
        if text and isinstance(value, int | float) and abs(value) < 1e15:  # 1500 steps, unquoted
            value = f"{value:g}" if isinstance(value, float) else str(value)
        changes[key] = convert(value, kinds[key], where, strict=False)  # not strict: YAML reads 5e-4 as text
    return replace(base, **changes)
