"""What is resolved before a run: backbone, length, image sizes, threads."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from tests.factories import model_folder, noise_folder
from torch import nn

from opendino import config as configs
from opendino import resolve, run_images
from opendino.cli.train_command import parse
from opendino.config import Config
from opendino.core.errors import BadImage, UserError
from opendino.engine import sizing, threads
from opendino.methods import dino
from opendino.models import build
from opendino.recipes import demo, small
from opendino.views.settings import changed

CPU = torch.device("cpu")


@pytest.mark.parametrize(("side", "size"), [(300, 64), (128, 64), (64, 48), (32, 32)])
def test_on_a_cpu_a_small_convolutional_network_is_trained(side: int, size: int) -> None:
    config, _ = resolve.resolve_config(replace(small.config(f"toy:colorful?n=500&size={side}"), workers=0), CPU)
    assert (config.backbone, config.backbone_options, config.drop_path) == ("conv4", {"width": 16}, 0.0)
    assert (config.views["global"].size, config.views["local"].size) == (size, size // 2)
    assert config.steps is not None and isinstance(config.batch, int) and config.epochs is None
    assert config.optim.lr * config.batch / 256 == pytest.approx(3e-3)


def test_the_small_network_has_its_settings_however_it_is_chosen(tmp_path: Path) -> None:
    data = "toy:colorful?n=100&size=64"
    by_itself, _ = resolve.resolve_config(replace(small.config(data), workers=0, epochs=None, steps=8), CPU)
    assert isinstance(by_itself.method, dino.Config) and by_itself.method.out_dim == 256
    model = model_folder(tmp_path / "model", build.backbone("conv4", width=16), image_px=64)
    for chosen in ({"backbone": "conv4", "backbone_options": {"width": 16}}, {"init": model}):
        found, _ = resolve.resolve_config(replace(small.config(data), workers=0, epochs=None, steps=8, **chosen), CPU)
        assert (found.method, found.views, found.optim) == (by_itself.method, by_itself.views, by_itself.optim)


def test_a_gpu_and_what_was_asked_for_are_as_before() -> None:
    gpu = resolve._with_backbone(small.config("x"), torch.device("cuda"), 64)
    assert (gpu[0].backbone, gpu[0].drop_path) == ("vit_small/16", 0.1)
    asked = resolve._with_backbone(replace(small.config("x"), backbone="resnet18/3x3"), CPU, 64)
    assert asked[0].backbone == "resnet18/3x3"
    config, _ = resolve.resolve_config(replace(parse(["toy:textures?n=40&size=32", "--epochs", "3"]), workers=0), CPU)
    assert config.steps == 3 * (40 // config.batch)


@pytest.mark.parametrize(("side", "patch"), [(300, 16), (96, 16), (64, 8), (32, 4)])
def test_a_vit_without_a_patch_size_gets_one_for_the_images(side: int, patch: int) -> None:
    asked = replace(small.config("x"), backbone="vit_tiny")
    config, (reason,) = resolve._with_backbone(asked, CPU, side)
    assert config.backbone == f"vit_tiny/{patch}"
    assert reason.startswith(f"backbone = vit_tiny/{patch}: no patch size was given, images of about {side} px")


def test_a_vit_that_starts_from_a_model_has_its_patch_size(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", build.backbone("vit_tiny/8", image_px=32, depth=1), image_px=32)
    config, _ = resolve._with_backbone(replace(small.config("x"), backbone="vit_tiny", init=model), CPU, 300)
    assert config.backbone == "vit_tiny/8" and config.backbone_options["depth"] == 1


@pytest.mark.parametrize("given", [False, True])
def test_given_statistics_are_kept_with_a_model_to_start_from(tmp_path: Path, given: bool) -> None:
    model = model_folder(tmp_path / "model", build.backbone("vit_tiny/8", image_px=32, depth=1), image_px=32)
    own = replace(small.config("x"), init=model, mean=(0.5,) * 3, std=(0.25,) * 3)
    config, _ = resolve._with_backbone(own, CPU, 300, given)
    assert (config.mean == (0.5,) * 3) == given and (config.std == (0.25,) * 3) == given


def with_network(backbone: str, options: dict[str, Any], local_px: int = 16) -> Config:
    config = demo.config("toy:textures?n=16&size=32")
    views = changed(config.views, {"local.number": 1, "local.size": local_px})
    return replace(config, backbone=backbone, backbone_options=options, views=views, batch=8, steps=1, workers=0)


@pytest.mark.parametrize("backbone", ["vit/8", "resnet10t"])
def test_a_network_that_cannot_take_the_images_is_refused_in_one_line(backbone: str) -> None:
    options: dict[str, Any] = {"in_chans": 1}
    if backbone == "vit/8":
        options |= {"embed_dim": 12, "depth": 1, "num_heads": 2}
    with pytest.raises(UserError, match=r"'in_chans': 1.* cannot take images of 3 channels at 32×32, 16×16 px"):
        resolve.resolve_config(with_network(backbone, options), CPU)


def test_one_local_crop_whose_map_is_a_single_place_is_estimated_as_it_trains() -> None:
    config, _ = resolve.resolve_config(with_network("resnet10t", {}), CPU)
    assert config.optim.grad_accum_steps == 1


@pytest.mark.parametrize("limit", [0, 10**9])
def test_small_networks_are_measured_without_loading_what_meta_needs(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    where: list[str] = []
    real = sizing.activation_bytes
    monkeypatch.setattr(resolve, "_SMALL_NETWORK", limit)

    def recorded(network: nn.Module, *args: Any) -> Any:
        where.append(next(network.parameters()).device.type)
        return real(network, *args)

    monkeypatch.setattr(sizing, "activation_bytes", recorded)
    config = with_network("conv4", {"width": 4})
    before = torch.get_rng_state()
    found = resolve.activation_bytes(config, resolve.configs.views(config))
    assert where == ["cpu" if limit else "meta"]
    assert torch.equal(torch.get_rng_state(), before), "what is measured changes no run"
    assert found > 100_000


def test_a_resumed_run_keeps_its_threads_on_the_same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(resolve.ranges, "cores", lambda: 8)
    monkeypatch.setattr(threads, "machine", lambda: "this")
    monkeypatch.setattr(threads, "choose", lambda *_: (5, "measured"))
    config = configs.resolved(
        with_network("conv4", {"width": 4}),
        bits=8,
        batch=8,
        workers=0,
        threads=1,
        precision="float32",
        compile=False,
        cache="off",
        eval_images=0,
        optim=configs.resolved_optim(demo.config("x").optim, grad_accum_steps=1),
    )

    def resumed(known: dict[str, Any] | None, asked: int = 1) -> int | str:
        return resolve.resumed_threads(replace(config, threads=asked), known, CPU).threads

    assert resumed({"number": 3, "machine": "this"}) == 3, "of the checkpoint: it may have changed since the start"
    assert resumed({"number": 3, "machine": "another"}) == 5
    assert resumed(None) == 1, "asked for"
    assert resumed(None, asked=16) == 5, "more than there are here"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert resumed({"number": 3, "machine": "this"}) == 5, "the environment decides"
    assert resumed(None) == 1


def test_the_checkpoint_of_a_run_names_its_threads(tmp_path: Path) -> None:
    import opendino
    from opendino.engine import checkpoint

    for asked, known in (("auto", threads.to_state(1)), (1, None)):
        config = replace(
            with_network("conv4", {"width": 4}), threads=asked, out=str(tmp_path / str(asked)), val=None,
            eval_images=0, report=False,
        )  # fmt: skip
        run = Path(opendino.train(config).run)
        newest = checkpoint.newest(run)
        assert newest is not None and checkpoint.state(newest)["threads"] == known


@pytest.mark.parametrize("top", [255, 40])
def test_the_images_said_not_to_be_trained_on_are_those_that_cannot_be_read_with_the_others(
    tmp_path: Path, top: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    shapes = [(9, 9, 3)] * 5 + [(9, 9), (9, 9, 2)]
    for n, shape in enumerate(shapes):
        photometric = "rgb" if shape[2:] == (3,) else "minisblack"
        pixels = rng.integers(0, top + 1, shape, np.uint8)
        tifffile.imwrite(tmp_path / f"{n}.tif", pixels, photometric=photometric, planarconfig="contig")
    config = small.config(str(tmp_path))
    files = run_images.open_images(config, config.data)
    run_images.resolve_intensity(config, files)
    told = re.search(r"(\d) more surveyed but not trained on", capsys.readouterr().err)

    def trains(index: int) -> bool:
        with contextlib.suppress(BadImage):
            return bool(len(files.read(index)))
        return False

    unused = [index for index in range(len(files)) if not trains(index)]
    assert told and int(told[1]) == len(unused) == 2


@pytest.mark.parametrize(
    ("folders", "val"), [("train val", "val"), ("Train test", "test"), ("train cats", None), ("test val", None)]
)
def test_a_folder_to_evaluate_on_beside_the_training_images_is_said_to_be_trained_on(
    tmp_path: Path, folders: str, val: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in folders.split():
        noise_folder(tmp_path / name, 2, 8, 8)
    config = small.config(str(tmp_path))
    run_images.resolve_intensity(config, run_images.open_images(config, config.data))
    told = capsys.readouterr().err
    assert ("all trained on" in told) == bool(val)
    train = folders.split()[0]
    assert val is None or f"opendino train {tmp_path}/{train} --val {tmp_path}/{val}" in told
