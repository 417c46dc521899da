"""Our training compared with other ways, in parts and as a whole: loader, views, loss, step, files to changed weights.

Run: python benchmarks/speed.py [--images FOLDER] [--only loader views ...] [--turns 7] [--out FILE.json], or --help
Needs torchvision; kornia, albumentations and lightly are measured where they are installed, lightly-train where
`--lightly-train` names the Python of an environment with it and timm. "classic" is benchmarks/classic.py: the semantics
of the original with the same weights, views and loss, checked. All ways take turns at the same precision, lightly-train
in a process of its own; the table has median and quartiles of the turns after the first. With `--threads 1` the time is
that of the processor. The table goes to stderr in Markdown; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightly_train_dino
import numpy as np
import torch
from classic import Files, Pair
from other_libraries import installed, ways_to_make_views
from ours import CLOCK, PAPER, Ours, listed
from PIL import Image
from record import keep, machine
from torch import Tensor
from torch.utils.data import default_collate

from opendino import config as configs
from opendino.config import Config
from opendino.core.compilation import compiling
from opendino.data import loader
from opendino.data.cache import DecodedImages
from opendino.data.decode import working_area_px
from opendino.data.open_source import open_source
from opendino.engine import optim
from opendino.methods import dino
from opendino.models import build
from opendino.recipes import demo
from opendino.views.multi_crop import multi_crop
from opendino.views.settings import changed

CPU = torch.device("cpu")
Way = Callable[[], Any] | lightly_train_dino.Steps
PARTS = (
    "loader", "crops", "views", "loss", "step_demo", "step_vits16", "whole_demo", "whole_vits16", "whole_resnet18",
    "memory",
)  # fmt: skip


def main() -> None:
    """Measure, print, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="a folder of JPEG files; some are generated if absent")
    parser.add_argument(
        "--size-px", type=int, nargs=2, default=(500, 333), metavar=("W", "H"), help="of generated ones"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS[:-1])
    parser.add_argument("--passes", type=int, default=1000, help="of `memory` over the images")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=5, help="repetitions, after one to warm up")
    parser.add_argument("--batch", type=int, default=8, help="of steps of ViT-S/16 and ResNet-18")
    precisions = ("float32", "bfloat16")
    parser.add_argument("--precision", nargs="+", default=precisions, choices=precisions, help="of steps, of all ways")
    parser.add_argument("--compile", action="store_true", help="ours as with --compile True")
    parser.add_argument("--lightly-train", type=Path, metavar="PYTHON", help="of an environment with it")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as home, compiling(args.compile):
        args.images = args.images or made_images(Path(home), *args.size_px)
        for part in args.only:
            found[part] = globals()[f"of_{part}"](args)
            print(*table(part, found[part]), sep="\n", file=sys.stderr, flush=True)
    document = {
        "what": "milliseconds per image, of the processor if there is one thread: median and quartiles",
        "machine": f"{machine()}, {args.threads} threads",
        "turns": args.turns,
        "load": os.getloadavg()[0],
        "compiled": args.compile,
        "date": time.strftime("%Y-%m-%d"),
        "parts": found,
    }
    keep(document, args.out)


def table(part: str, found: dict[str, Any]) -> Iterator[str]:
    """The ways of a part as lines of Markdown, and the rest of what it found below."""
    rows = {name: row for name, row in found.items() if isinstance(row, dict) and "median_ms" in row}
    if rows:
        yield f"\n| {part} | ms per image | quartiles | images/s | speed; the first of its kind is 1 |"
        yield "|---|---|---|---|---|"
    for name, row in rows.items():
        low, high = row["quartiles_ms"]
        cells = [name, f"{row['median_ms']:.4g}", f"{low:.4g} to {high:.4g}", f"{1000 / row['median_ms']:.4g}"]
        yield f"| {' | '.join(cells)} | {row['times_as_fast']:.2f} |"
    rest = {name: value for name, value in found.items() if name not in rows}
    if rest:
        yield f"{part}: {', '.join(f'{name} {value}' for name, value in rest.items())}"


def of_loader(args: argparse.Namespace) -> dict[str, Any]:
    """JPEG files to the batch that a worker returns: float32 views there, a uint8 canvas and view parameters here."""
    spec, source = configs.views(PAPER), open_source(str(args.images))
    num = min(64, len(source))  # the paper's batch per GPU
    torch.set_num_threads(1)
    classic = Files([args.images / source.key(i) for i in range(num)], spec)
    ours = loader.Batches(DecodedImages(source, working_area_px(spec)), spec, 0, num)

    def first() -> None:
        default_collate([classic[i] for i in range(num)])

    def second() -> None:
        ours[0]

    result = compare({"classic": first, "ours": second}, args.turns, num)
    torch.set_num_threads(args.threads)
    return result


def of_memory(args: argparse.Namespace) -> dict[str, Any]:
    """A loader process over many passes over the images: does its memory grow?"""
    spec, source = configs.views(PAPER), open_source(str(args.images))
    dataset = loader.Batches(DecodedImages(source, working_area_px(spec)), spec, 0, 16)
    total, resident, began = args.passes * dataset.steps_per_epoch, {}, time.monotonic()
    for number, _ in enumerate(loader.batches(dataset, 0, total, 1, pin=False), start=1):
        if number * 20 % total < 20:  # private memory only; shared memory varies with the canvases
            (child,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
            status = Path(f"/proc/{child}/status").read_text(encoding="ascii")
            resident[number * 16] = int(status.partition("RssAnon:")[2].split()[0]) / 1024
    return {"images": total * 16, "seconds": time.monotonic() - began, "worker_mib_after_images": resident}


def of_crops(args: argparse.Namespace) -> dict[str, Any]:
    """From decoded images to views, of the size at which they are stored."""
    spec = configs.views(PAPER)
    source = open_source(str(args.images))
    batch = loader.Batches(DecodedImages(source, working_area_px(spec)), spec, 0, 16)[0]
    assert isinstance(batch, loader.Batch)
    classic = Files([], spec)
    images = [Image.open(args.images / source.key(i)).convert("RGB") for i in range(16)]

    def first() -> None:
        for image in images:
            classic._crop(image)

    return compare({"classic": first, "ours": lambda: multi_crop(batch.canvas, batch.draws, spec)}, args.turns, 16)


def of_views(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per image of the views of square images: by ours, by the kernels of a GPU, and by other libraries.

    "paper": 2 x 224 + 10 x 96 px from 256 px, batch 16. "small": 2 x 64 + 4 x 32 px from 128 px, batch 64, which
    `opendino train` chooses on a CPU for images of 128 px.
    """
    blurs = {"global.blur.p": 0.2, "second.blur.p": 0.1, "local.blur.p": 0.1}
    small = changed(dino.VIEWS, {"global.size": 64, "local.size": 32, "local.number": 4} | blurs)
    source, found = open_source(str(args.images)), dict[str, Any]()
    for name, num, side, config in (("paper", 16, 256, PAPER), ("small", 64, 128, replace(PAPER, views=small))):
        spec = configs.views(config)
        files = [args.images / source.key(i % len(source)) for i in range(num)]
        images = [Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for file in files]
        canvas = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()
        for what, functions in ways_to_make_views(images, canvas, spec).items():
            rows = compare(functions, args.turns, num)
            found |= {f"{name} {what}: {way}": row for way, row in rows.items()}
    return found


def timed(function: Way) -> float:
    """Seconds; of one thread, its CPU time, which other work on the machine hardly changes."""
    if isinstance(function, lightly_train_dino.Steps):  # a process of its own has a clock of its own
        return function.seconds()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    function()
    return clock() - began


def of_loss(args: argparse.Namespace) -> dict[str, Any]:
    """Head and loss of 32 images in 2 + 10 views against 65,536 prototypes: time, and what autograd keeps."""
    torch.manual_seed(0)
    method = Ours("vit_small/16", PAPER, optim.ResolvedConfig(), 1, torch.float32, CPU).method
    pair = Pair(method)
    views, num = 32, 12
    rows = torch.randn(num * views, 384, requires_grad=True)
    with torch.no_grad():
        teacher = pair.teacher["head"](torch.randn(2 * views, 384))
        targets = (teacher / 0.04).softmax(-1).unflatten(0, (2, views))
    head = method.student["head"]
    kept: dict[str, int] = {}

    def first() -> Tensor:
        return pair._loss(pair.student["head"](rows), teacher, num, 0.04)

    def second() -> Tensor:
        found = head.bottleneck(rows).unflatten(0, (num, views))
        return dino.cross_entropy(found, head.last_layer.weight, targets, 0.1, same_views=True)

    for name, function in (("classic", first), ("ours", second)):
        storages: dict[int, int] = {}

        def note(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        pair.center.zero_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            function()
        kept[f"{name}_saved_mib"] = round(sum(storages.values()) / 2**20)
    ways = {"classic": lambda: first().backward(), "ours": lambda: second().backward()}
    result = compare(ways, args.turns, views)
    return result | kept | {"saved_share": kept["ours_saved_mib"] / kept["classic_saved_mib"]}


def of_step_demo(args: argparse.Namespace) -> dict[str, Any]:
    """A training step of the demo on prepared views."""
    return steps(args, *demo_parts())


def of_step_vits16(args: argparse.Namespace) -> dict[str, Any]:
    """A training step of ViT-S/16 on prepared views of 2 x 224 + 10 x 96 px."""
    return steps(args, "vit_small/16", PAPER, args.batch, optim.ResolvedConfig())


def of_whole_demo(args: argparse.Namespace) -> dict[str, Any]:
    """From files to updated weights, the demo's recipe; in one process, so that no work is hidden."""
    return whole(args, *demo_parts())


def demo_parts() -> tuple[str, Config, int, optim.ResolvedConfig]:
    """Network, settings, batch and optimizer of the demo, with the centering of the classic way."""
    config = demo.config()
    config = replace(config, method=replace(config.method, centering="mean"))
    assert isinstance(config.batch, int)
    return config.backbone, config, config.batch, configs.resolved_optim(config.optim, grad_accum_steps=1)


def of_whole_vits16(args: argparse.Namespace) -> dict[str, Any]:
    """The same for ViT-S/16 and the paper's crops."""
    return whole(args, "vit_small/16", PAPER, args.batch, optim.ResolvedConfig())


def of_whole_resnet18(args: argparse.Namespace) -> dict[str, Any]:
    """The same for ResNet-18."""
    return whole(args, "resnet18", PAPER, args.batch, optim.ResolvedConfig())


def steps(
    args: argparse.Namespace, backbone: str, config: Config, batch: int, settings: optim.ResolvedConfig
) -> dict[str, Any]:
    """Both ways on the same views at each precision; the losses of the first steps must agree."""
    found: dict[str, Any] = {}
    for name, dtype, ours in at_each_precision(args, backbone, config, batch, settings):
        pair, views = Pair(ours.method), ours.noise()

        def first(ours: Ours = ours, pair: Pair = pair, views: Any = views, dtype: torch.dtype = dtype) -> float:
            return ours.classic(pair, listed(views), dtype)

        def second(ours: Ours = ours, views: Any = views) -> float:
            return float(ours.step(views))

        found[f"{name} loss_difference"] = agree(first, second)
        rows = compare({"classic": first, "ours": second}, args.turns, batch)
        found |= {f"{name}: {way}": row for way, row in rows.items()}
    return found


def whole(
    args: argparse.Namespace, backbone: str, config: Config, batch: int, settings: optim.ResolvedConfig
) -> dict[str, Any]:
    """Files, views, step at each precision: the classic way, ours, and lightly's pieces with our network."""
    source, found = open_source(str(args.images)), dict[str, Any]()
    for name, dtype, ours in at_each_precision(args, backbone, config, batch, settings):
        batches = loader.Batches(DecodedImages(source, working_area_px(ours.spec)), ours.spec, 0, batch)
        paths = [args.images / source.key(i) for i in range(batch)]
        files, pair = Files(paths, ours.spec), Pair(ours.method)

        def first(ours: Ours = ours, pair: Pair = pair, files: Files = files, dtype: torch.dtype = dtype) -> float:
            return ours.classic(pair, default_collate([files[i] for i in range(batch)]), dtype)

        def second(ours: Ours = ours, batches: loader.Batches = batches) -> float:
            item = batches[0]
            assert isinstance(item, loader.Batch)
            return float(ours.step(multi_crop(item.canvas, item.draws, ours.spec)))

        ways: dict[str, Way] = {"classic": first, "ours": second}
        with installed("lightly"):
            ways["lightly"] = with_lightly(backbone, config, settings, paths, dtype)
        with contextlib.ExitStack() as stack:
            if args.lightly_train and backbone in lightly_train_dino.NETWORKS:
                other = lightly_train_dino.Steps(args.lightly_train, backbone, args.images, batch, args.threads, name)
                ways["lightly-train"] = other
                stack.callback(other.end)
            found |= {f"{name}: {way}": row for way, row in compare(ways, args.turns, batch).items()}
    return found


def with_lightly(
    backbone: str, config: Config, settings: optim.ResolvedConfig, paths: list[Path], dtype: torch.dtype
) -> Callable[[], None]:
    """A step of lightly's pieces from files, with the network and the sizes of ours."""
    from lightly_dino import LightlyStep, transform

    views, spec = config.views, configs.views(config)
    make = transform(views, spec.mean, spec.std)
    step = LightlyStep(lambda: build.backbone(backbone, image_px=spec.groups[0].short_px), config.method, settings)

    def run() -> None:
        images = [Image.open(path).convert("RGB") for path in paths]
        step(default_collate([make(image) for image in images]), 1e-4, 0.996, CLOCK.step + 1, dtype)

    return run


def at_each_precision(
    args: argparse.Namespace, backbone: str, config: Config, batch: int, settings: optim.ResolvedConfig
) -> Iterator[tuple[str, torch.dtype, Ours]]:
    """Our side, with prototypes trained from the first step, once for each precision."""
    config = replace(config, method=replace(config.method, freeze_last_layer="0"))
    for name in args.precision:
        dtype = getattr(torch, name)
        yield name, dtype, Ours(backbone, config, settings, batch, dtype, CPU)


def agree(first: Callable[[], float], second: Callable[[], float], num: int = 3) -> float:
    """Largest relative difference of the losses of some steps side by side."""
    pairs = [(first(), second()) for _ in range(num)]
    worst = max(abs(a - b) / abs(a) for a, b in pairs)
    assert worst < 0.01, f"the two ways have different losses: {pairs}"
    return worst


def compare(ways: Mapping[str, Way], turns: int, images: int) -> dict[str, Any]:
    """Each way once per turn, in turn, after one to warm up; all are compared with the first way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, function in ways.items():
            took = timed(function)
            if turn:
                seconds[name].append(took)
    ms = {name: 1000 * np.array(each) / images for name, each in seconds.items()}
    medians = {name: float(np.median(each)) for name, each in ms.items()}
    return {
        name: {
            "median_ms": medians[name], "quartiles_ms": np.quantile(each, (0.25, 0.75)).tolist(),
            "all_ms": each.round(4).tolist(), "times_as_fast": next(iter(medians.values())) / medians[name],
        }
        for name, each in ms.items()
    }  # fmt: skip


def made_images(home: Path, width: int, height: int) -> Path:
    """JPEG files with the spectrum of photographs: 64, or 16 of more than a megapixel."""
    rng = np.random.default_rng(0)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falloff = 1 / np.maximum(np.hypot(fy, fx), 1 / max(width, height))
    for number in range(64 if width * height < 10**6 else 16):
        noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(3, height, width))) * falloff, s=(height, width))
        noise = (noise - noise.mean()) / noise.std() * 50 + 128
        Image.fromarray(noise.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(home / f"{number}.jpg", quality=88)
    return home


if __name__ == "__main__":
    main()
