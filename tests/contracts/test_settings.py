"""Every setting of a run changes something or is refused: none is accepted and passed over.

Each is changed to another allowed value, and what is seen of the run is compared at the cheapest place where it shows:
the views that are drawn, or all that a run of four steps leaves (files, numbers, weights, log). A setting without an
entry here fails the first test.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.factories import noise_folder

import opendino
from opendino import config as configs
from opendino import resolve
from opendino.config import Config
from opendino.core import compilation, registry
from opendino.core.errors import UserError
from opendino.core.types import Facts
from opendino.data import cache, loader, workers
from opendino.data.cache import DecodedImages
from opendino.data.decode import working_area_px
from opendino.data.open_source import open_source
from opendino.engine import activation_checkpointing, launch, optim, parallel, sizing, throughput
from opendino.methods import byol, dino, distill, mean_teacher
from opendino.models import load
from opendino.models.build import backbone
from opendino.recipes import demo
from opendino.views.multi_crop import multi_crop
from opendino.views.settings import View
from opendino.views.settings import changed as changed_views

TOY = "toy:textures?n=24&size=16"
COLORED = "toy:colorful?n=24&size=16"
METHODS = {
    "dino": dino.Config(
        out_dim=8, hidden_dim=8, bottleneck_dim=4, momentum=0.9, teacher_temp_warmup="4", freeze_last_layer="0",
    ),
    "byol": byol.Config(hidden_dim=8, projection_dim=4, momentum=0.9),
    "mean_teacher": mean_teacher.Config(),
    "distill": distill.Config(),
}  # fmt: skip
SIZES = {"global.size": 16, "local.size": 8, "local.number": 2}
GROUPS = {
    name: changed_views(
        module.VIEWS, {key: size for key, size in SIZES.items() if key.partition(".")[0] in module.VIEWS}
    )
    for name, module in {"dino": dino, "byol": byol, "mean_teacher": mean_teacher, "distill": distill}.items()
}
VIT: dict[str, Any] = {"backbone": "vit/8", "backbone_options": {"embed_dim": 12, "depth": 2, "num_heads": 2}}

VIEWS: dict[str, Any] = {
    "seed": 1, "mean": (0.4, 0.4, 0.4), "std": (0.5, 0.5, 0.5), "data": "toy:forms?n=24&size=16",
    "views.global.size": 24, "views.local.size": 12, "views.local.number": 3, "views.second.solarize.p": 1.0,
    "views.local.blur.p": 1.0, "distill.teacher_view": "whole", "mean_teacher.labeled_frac": 0.5,
}  # fmt: skip
"""Seen in the views of a batch: setting → another value."""
AUGMENT: dict[str, Any] = {
    "crop.scale": (0.7, 0.8), "crop.ratio": (1.0, 1.0), "crop.fixed": True, "flip.p": 1.0, "vertical_flip.p": 1.0,
    "quarter_turns.p": 1.0, "rotation.p": 1.0, "rotation.degrees": 90.0, "color_jitter.p": 0.0,
    "color_jitter.brightness": 0.0, "color_jitter.contrast": 0.0, "color_jitter.saturation": 0.0,
    "color_jitter.hue": 0.0, "channel_drop.p": 1.0,
    "channel_jitter.p": 1.0, "channel_jitter.brightness": 0.5, "channel_jitter.contrast": 0.5,
    "gamma.p": 1.0, "gamma.exponent": (2.0, 3.0), "gray.p": 1.0, "blur.p": 0.5, "blur.sigma_px": (3.0, 4.0),
    "noise.p": 1.0, "noise.std": (0.3, 0.3), "solarize.p": 1.0, "jpeg.p": 1.0, "jpeg.quality": (5, 10), "erase.p": 1.0,
    "erase.scale": (0.5, 0.6), "erase.ratio": (1.0, 1.0),
}  # fmt: skip
"""Of every view."""
RUN: dict[str, Any] = {
    "backbone": "resnet10t", "backbone_options": {"width": 3}, "epochs": 1.0, "steps": 3, "batch": 4,
    "labels": ("50%", {"method": METHODS["mean_teacher"]}), "out": "elsewhere", "init": "MODEL",
    "val": ("toy:textures?n=20&size=16&split=val", {"eval_images": 12}),
    "drop_path": (0.5, VIT), "drop_path_on_subset": (True, VIT | {"drop_path": 0.5}),
    "precision": "bfloat16", "eval_every": ("2", {"eval_images": 12}), "eval_images": 12,
    "knn_k": (1, {"eval_images": 24}), "orientation": "any", "hold_out": 0.5,
    "checkpoint_every": "1", "keep_checkpoints": 1, "report": True, "profile": True,
    "optim.name": "sgd", "optim.lr": 0.1, "optim.min_lr": 0.001, "optim.lr_warmup": ("2", {"steps": 10}),
    "optim.layer_decay": 0.5, "optim.freeze_backbone": "20%",
    "optim.weight_decay": 0.3, "optim.weight_decay_end": 0.3, "optim.clip": 0.001,
    "optim.clip_by": ("global", {"optim": optim.Config(clip=0.001, lr_warmup="0")}), "optim.grad_accum_steps": 2,
    "dino.student_views": "local", "dino.out_dim": 9, "dino.hidden_dim": 9, "dino.bottleneck_dim": 5,
    "dino.head_layers": 2, "dino.head_batch_norm": True, "dino.norm_last_layer": False,
    "dino.freeze_last_layer": ("10%", {"steps": 10}), "dino.centering": "sinkhorn",
    "dino.center_momentum": 0.1, "dino.sharpening": False, "dino.student_temp": 0.2,
    "dino.teacher_temp": 0.09, "dino.teacher_temp_start": 0.02, "dino.teacher_temp_warmup": "1", "dino.momentum": 0.5,
    "dino.momentum_end": 0.95,
    "byol.hidden_dim": 9, "byol.projection_dim": 5, "byol.predictor": False, "byol.momentum": 0.5,
    "byol.momentum_end": 0.95,
    "mean_teacher.consistency": 1.0, "mean_teacher.consistency_rampup": "100%", "mean_teacher.momentum": 0.1,
    "mean_teacher.momentum_end": 0.1, "mean_teacher.baseline": False, "mean_teacher.num_classes": 11,
    "distill.teacher": "OTHER", "distill.objective": "logits",
    "distill.temperature": (9.0, {"method": replace(METHODS["distill"], objective="logits")}),
    "distill.label_weight": (0.5, {"method": replace(METHODS["distill"], objective="logits")}),
}  # fmt: skip
"""Seen in what a run leaves: setting → another value, or (another value, what else both runs have)."""
APART = {
    "device", "devices", "parallel", "sync_batch_norm", "activation_checkpointing", "compile", "workers", "threads",
    "cache", "max_bad_frac", "max_nonfinite", "resume", "channels", "stack", "channel_files", "intensity",
    "bits", "channel_mode", "every", "minutes", "init_networks",
}  # fmt: skip
"""Shown by tests of their own below; how images are read, in tests/models/test_image_reading.py, tests/story/
test_channels.py and tests/data/test_video_file.py; minutes in tests/test_length_in_minutes.py,
init_networks in tests/test_comparison.py."""
for name in sorted(set(registry.names(registry.METHODS)) - METHODS.keys()):
    # A method says in its own tests how a small one looks, and what else its settings can be.
    own_tests = importlib.import_module(f"tests.methods.test_{name}")
    if hasattr(own_tests, "OTHER_SETTINGS"):
        METHODS[name], groups = own_tests.SMALL, registry.load(registry.METHODS, name).VIEWS
        GROUPS[name] = changed_views(groups, {key: x for key, x in SIZES.items() if key.partition(".")[0] in groups})
        RUN |= {f"{name}.{setting}": value for setting, value in own_tests.OTHER_SETTINGS.items()}


def names(part: Any, prefix: str) -> list[str]:
    """Every setting of a Config and of the Configs in it."""
    found = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        nested = dataclasses.is_dataclass(value)
        found += names(value, f"{prefix}{field.name}.") if nested else [f"{prefix}{field.name}"]
    return found


def settings() -> list[str]:
    own = [field.name for field in dataclasses.fields(Config) if field.name not in ("method", "optim", "views")]
    found = own + names(optim.Config(), "optim.")
    for name in registry.names("opendino.methods"):
        found += names(configs.method_config(name), f"{name}.")
    return found


def test_no_setting_is_left_out() -> None:
    groups = [name for name in VIEWS if name.startswith("views.")]
    assert sorted(settings()) == sorted([*(set(VIEWS) - set(groups)), *RUN, *APART])
    assert AUGMENT.keys() == set(names(View(), ""))
    assert {"views.local.size", "views.local.number"} < set(groups)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two classifiers of the ten textures."""
    found = {}
    for seed, name in enumerate(("MODEL", "OTHER")):
        torch.manual_seed(seed)
        network = backbone("conv4", width=2)
        folder = tmp_path_factory.mktemp("models") / name
        classes = tuple(open_source(TOY).classes)
        load.save_backbone(
            folder, {"teacher": network}, preprocessing=load.preprocessing(16, (0.5,) * 3, (0.3,) * 3),
            classifier=torch.nn.Linear(network.embed_dim, len(classes)), classes=classes,
        )  # fmt: skip
        found[name] = str(folder)
    return found


@pytest.fixture(autouse=True)
def _no_time_is_spent_on_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "peak_flops", lambda *_: 1e9)
    monkeypatch.setattr(throughput.Throughput, "counting", lambda self: nullcontext())


def base(name: str, teachers: dict[str, str], **changes: Any) -> Config:
    recipe, name = demo.config(TOY), type(changes.get("method", METHODS[name])).__module__.rpartition(".")[2]
    config = replace(
        recipe, val=None, method=METHODS[name], views=GROUPS[name], backbone_options={"width": 2}, steps=4, batch=8,
        workers=0, optim=optim.Config(lr=0.01, lr_warmup="0"), precision="float32", eval_images=0, report=False,
        cache="ram",
    )  # fmt: skip
    config = replace(config, **changes)
    if isinstance(config.method, distill.Config) and not config.method.teacher:
        config = replace(config, method=replace(config.method, teacher=teachers["MODEL"]))
    return config


def changed(config: Config, name: str, value: Any, teachers: dict[str, str]) -> Config:
    """With one setting changed."""
    value = teachers.get(value, value) if isinstance(value, str) else value
    part, *inner = name.split(".")
    if not inner:
        other = {"steps": None} if name == "epochs" else {"backbone_options": {}} if name == "backbone" else {}
        return replace(config, **{name: value}, **other)
    if part == "views":
        return replace(config, views=changed_views(config.views, {".".join(inner): value}))
    part = "optim" if part == "optim" else "method"
    owner = getattr(config, part)
    return replace(config, **{part: replace(owner, **{inner[0]: value})})


def seen_in_views(config: Config) -> list[Any]:
    """The views of a few batches, and how many of their images have labels for sure."""
    source = resolve.images(config)
    spec, found = configs.views(config), []
    batches = loader.Batches(DecodedImages(source, working_area_px(spec)), spec, config.seed, 8)
    for number in range(3):
        batch = batches[number]
        assert isinstance(batch, loader.Batch)
        views = multi_crop(batch.canvas, batch.draws, spec)
        found.append({name: hashlib.sha256(each.numpy().tobytes()).hexdigest() for name, each in views.items()})
    return [found, spec.num_labeled(8)]


def seen_in_run(config: Config, folder: Path) -> list[Any]:
    """All that a run leaves: files, metrics without speed, weights, and what was said."""
    out = folder / (config.out or "run")
    opendino.train(replace(config, out=str(out)))
    rows = [line for line in (out / "metrics.jsonl").read_text().splitlines() if "images_per_second" not in line]
    weights = {
        str(path.relative_to(out)): {key: value.sum().item() for key, value in load_file(path).items()}
        for path in sorted(out.rglob("*.safetensors"))
    }
    said = re.findall(r"^\S+ \S+ +([\w.]+ = [^:]*):", (out / "log.txt").read_text(), flags=re.MULTILINE)
    files = [re.sub(r"events.*", "events", str(path.relative_to(folder))) for path in sorted(out.rglob("*"))]
    return [files, rows, weights, [line for line in said if not line.startswith("memory")]]


def refused_or(see: Callable[..., list[Any]], *args: Any) -> list[Any]:
    try:
        return see(*args)
    except UserError as error:
        return ["refused", str(error)]


@pytest.mark.parametrize("name", [*VIEWS, *(f"views.global.{name}" for name in AUGMENT)])
def test_it_changes_what_is_drawn(name: str, teachers: dict[str, str]) -> None:
    method = name.partition(".")[0]
    config = base(method if method in METHODS else "dino", teachers, data=COLORED)
    augmentation, _, setting = name.removeprefix("views.global.").partition(".")
    value = VIEWS[name] if name in VIEWS else AUGMENT[f"{augmentation}.{setting}"]
    if name not in VIEWS and setting != "p" and augmentation != "crop":
        config = changed(config, f"views.global.{augmentation}.p", 1.0, teachers)
    other = changed(config, name, value, teachers)
    assert other != config
    assert refused_or(seen_in_views, other) != seen_in_views(config)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What is seen of runs with nothing changed, by their settings."""
    return {}


@pytest.mark.parametrize("name", RUN)
def test_it_changes_the_run_or_is_refused(
    name: str, tmp_path: Path, teachers: dict[str, str], plain: dict[str, list[Any]]
) -> None:
    owner = name.partition(".")[0]
    value, context = RUN[name] if isinstance(RUN[name], tuple) else (RUN[name], {})
    config = base(owner if owner in METHODS else "dino", teachers, **context)
    key = configs.dump(config)
    if key not in plain:
        plain[key] = seen_in_run(config, tmp_path / "plain")
        assert seen_in_run(config, tmp_path / "again") == plain[key], "what is compared does not change by itself"
    other = changed(config, name, value, teachers)
    assert other != config
    assert refused_or(seen_in_run, other, tmp_path / "other") != plain[key]


def test_workers_and_threads_are_those_that_were_asked_for(
    tmp_path: Path, teachers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def started(items: Any, numbers: range, count: int, pin: bool) -> Any:
        seen.append(count)
        return iter([items[number] for number in numbers])

    monkeypatch.setattr(workers, "_start", started)
    real = optim.step
    monkeypatch.setattr(optim, "step", lambda *args: (seen.append(torch.get_num_threads()), real(*args)))
    monkeypatch.setattr("opendino.engine.threads.cores", lambda: 4)
    before = torch.get_num_threads()
    opendino.train(base("dino", teachers, workers=2, threads=3, steps=1, out=str(tmp_path / "run")))
    assert seen[0] == 2 and seen[-1] == 3
    assert torch.get_num_threads() == before, "the number of a run ends with it"


def test_what_a_cache_keeps_is_decoded_once(
    tmp_path: Path, teachers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    real = cache.decode

    def recorded(*args: Any, **options: Any) -> Any:
        decoded.append(where)
        return real(*args, **options)

    monkeypatch.setattr(cache, "decode", recorded)
    for where in ("off", "ram", "disk"):
        opendino.train(base("dino", teachers, cache=where, steps=6, out=str(tmp_path / where)))
    # 24 images are looked at before the start, and seen twice in six steps of eight.
    assert [decoded.count(where) for where in ("off", "ram", "disk")] == [24 + 48, 24 + 24, 24 + 24]


def test_more_than_one_device_is_started(teachers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)

    def started(*words: str) -> Any:
        tree = configs.read_tree(words[2])
        raise UserError(f"{words[:2]} {tree['devices']} {tree['data']}")

    monkeypatch.setattr(launch, "command", started)
    with pytest.raises(UserError, match=r"'train', '--config'\) 2 toy:textures"):
        opendino.train(base("dino", teachers, devices=2, device="cpu"))


def test_a_device_that_is_not_there_is_refused(teachers: dict[str, str]) -> None:
    missing = next(name for name in ("cuda", "mps") if not getattr(torch, name).is_available())
    with pytest.raises(UserError, match=f"no {missing} device"):
        opendino.train(base("dino", teachers, device=missing))


def test_how_devices_share_the_work(teachers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With one device both settings mean nothing, and their help says so."""
    method = dino.build(METHODS["dino"], lambda role: backbone("conv4", width=2))
    found = {how: sizing.parallel(how, method, "adamw", 1.0, torch.device("cpu"))[0] for how in ("ddp", "fsdp")}
    assert found == {"ddp": "ddp", "fsdp": "fsdp"}
    called = []
    monkeypatch.setattr(parallel.dist, "is_distributed", lambda: True)
    monkeypatch.setattr(parallel.sync_batch_norm, "convert", lambda *given: called.append(given))
    monkeypatch.setattr(parallel, "_shard", lambda method, device: lambda: method)
    for synchronize in (False, True):
        parallel.prepare_distributed(method, torch.device("cpu"), "fsdp", synchronize)
        assert len(called) == synchronize


def test_less_memory_and_compilation_are_done_where_asked(
    tmp_path: Path, teachers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = activation_checkpointing.checkpoint_activations
    monkeypatch.setattr(
        resolve, "checkpoint_activations", lambda network: (asked.append("less memory"), real(network))[1]
    )
    monkeypatch.setattr(compilation, "compiler_works", lambda device: "no compiler")
    common = {**VIT, "steps": 1, "drop_path": 0.0}
    opendino.train(base("dino", teachers, out=str(tmp_path / "plain"), **common))
    assert asked == []
    opendino.train(base("dino", teachers, out=str(tmp_path / "less"), activation_checkpointing=True, **common))
    assert set(asked) == {"less memory"}
    with pytest.raises(UserError, match=r"torch\.compile does not work on this machine: no compiler"):
        opendino.train(base("dino", teachers, compile=True))


def test_limits_stop_a_run(tmp_path: Path, teachers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = noise_folder(tmp_path / "images", 16)
    for number in range(5):
        (folder / f"bad{number}.png").write_bytes(b"x")
    few = base("dino", teachers, data=str(folder), batch=4, steps=2)
    opendino.train(replace(few, out=str(tmp_path / "some")))
    with pytest.raises(UserError, match="cannot be read"):
        opendino.train(replace(few, out=str(tmp_path / "none"), max_bad_frac=0.01))
    real = dino.cross_entropy
    monkeypatch.setattr(dino, "cross_entropy", lambda *args, **kwargs: real(*args, **kwargs) * float("nan"))
    opendino.train(base("dino", teachers, out=str(tmp_path / "nan")))
    with pytest.raises(UserError, match="not finite for 2 steps"):
        opendino.train(base("dino", teachers, out=str(tmp_path / "stopped"), max_nonfinite=2))


def test_resume_decides_what_a_folder_in_use_means(tmp_path: Path, teachers: dict[str, str]) -> None:
    config = base("dino", teachers, out=str(tmp_path / "run"), steps=1)
    opendino.train(config)
    with pytest.raises(UserError, match="exists already"):
        opendino.train(config)
    assert opendino.train(replace(config, resume=True)).steps == 1


def test_facts_are_all_that_auto_may_depend_on() -> None:
    """A value that stays "auto" would be passed over."""
    auto = dino.Config(out_dim="auto", momentum="auto", momentum_end="auto", hidden_dim="auto", bottleneck_dim="auto")
    for convolutional in (False, True):
        facts = Facts(1000, 64, 0, 32, 100, 10, convolutional=convolutional)
        for part in (
            auto,
            optim.Config(lr="auto", weight_decay_end="auto", grad_accum_steps=1),
            byol.Config(momentum="auto"),
        ):
            assert "auto" not in vars(part.resolved(facts)[0]).values()
