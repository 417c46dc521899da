"""Our training compared with the classic way, in parts and as a whole: loader, crops, loss, step, end to end.

Run: python benchmarks/speed.py [--images FOLDER] [--only loader step ...] [--device cuda] [--out FILE.json]. Needs
torchvision. The classic way is benchmarks/classic.py: the same weights, views and loss, checked. The two take
turns, and the best of several turns counts. A table goes to stderr; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from classic import Files, Pair
from gpu import with_torchvision
from ours import PAPER, Ours, listed
from PIL import Image
from record import keep
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import default_collate

from opendino import config as configs
from opendino.config import Config
from opendino.core.compilation import compiling
from opendino.core.types import ViewSpec
from opendino.data import loader
from opendino.data.cache import DecodedImages
from opendino.data.decode import working_area_px
from opendino.data.open_source import open_source
from opendino.engine import optim, precision
from opendino.methods import dino
from opendino.recipes import demo
from opendino.views import kernels
from opendino.views.crop_resize import crop_resize
from opendino.views.multi_crop import multi_crop
from opendino.views.sampling import sample_views
from opendino.views.settings import changed

CPU = torch.device("cpu")
PARTS = ("loader", "crops", "views", "loss", "step_demo", "step_vits16", "whole_demo", "whole_vits16", "memory")


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
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="of ViT-S/16 steps")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="ours as with --compile True")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as home, compiling(args.compile):
        args.images = args.images or made_images(Path(home), *args.size_px)
        found = {part: globals()[f"of_{part}"](args) for part in args.only}
    document = {
        "what": "seconds of the classic way and of ours, and their ratio",
        "machine": f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}",
        "compiled": args.compile,
        "date": time.strftime("%Y-%m-%d"),
        "parts": found,
    }
    for part, each in found.items():
        told = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in each.items()
        )
        print(f"{part:<14}{told}", file=sys.stderr)
    keep(document, args.out)


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

    result = compare(first, second, args.turns, num)
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

    return compare(first, lambda: multi_crop(batch.canvas, batch.draws, spec), args.turns, 16)


def of_views(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per image of the views of square images: by ours, by the kernels of a GPU, and by other libraries.

    "paper": 2 x 224 + 10 x 96 px from 256 px, batch 16. "small": 2 x 64 + 4 x 32 px from 128 px, batch 64, which
    `opendino train` chooses on a CPU for images of 128 px.
    """
    blurs = {"global.blur.p": 0.2, "second.blur.p": 0.1, "local.blur.p": 0.1}
    small = changed(dino.VIEWS, {"global.size": 64, "local.size": 32, "local.number": 4} | blurs)
    source, found = open_source(str(args.images)), {}
    for name, num, side, config in (("paper", 16, 256, PAPER), ("small", 64, 128, replace(PAPER, views=small))):
        spec = configs.views(config)
        files = [args.images / source.key(i % len(source)) for i in range(num)]
        images = [Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for file in files]
        canvas = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()
        for what, function in ways_to_make_views(images, canvas, spec).items():
            found[f"{name}_{what}"] = 1000 * min(timed(function) for _ in range(args.turns + 1)) / num
    return found


def ways_to_make_views(images: list[Image.Image], canvas: Tensor, spec: ViewSpec) -> dict[str, Callable[[], Any]]:
    """Functions that make the views of all images, or only their crops."""
    draws = sample_views(spec, 0, 0, range(len(canvas)), [tuple(canvas.shape[-2:])] * len(canvas))
    cuts = [
        (group.view_px, draws[group.name]["crop"]["box"], draws[group.name]["flip"]["flip"]) for group in spec.groups
    ]
    classic = Files([], spec)

    def dense(function: Callable[[], Any]) -> None:
        with mock.patch.object(kernels, "by_index", return_value=False):
            function()

    def views() -> None:
        multi_crop(canvas, draws, spec)

    def crops() -> None:
        for size, box, flip in cuts:
            crop_resize(canvas, box, flip, size)

    def pillow_crops() -> None:
        for (height, width), boxes, _ in cuts:
            for row in boxes.tolist():
                for image, (top, left, h, w) in zip(images, row, strict=True):
                    part = image.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BICUBIC)
                    torch.from_numpy(np.array(part))

    def torch_crops() -> None:
        last = canvas.contiguous(memory_format=torch.channels_last)
        for size, boxes, _ in cuts:
            for row in boxes.tolist():
                for b, (top, left, h, w) in enumerate(row):
                    part = last[b : b + 1, :, top : top + h, left : left + w]
                    interpolate(part, size, mode="bicubic", antialias=True)

    return {
        "crops": crops, "crops_dense": lambda: dense(crops), "crops_pillow": pillow_crops, "crops_torch": torch_crops,
        "views": views, "views_dense": lambda: dense(views),
        "views_pillow": lambda: [classic._crop(image) for image in images],
        "views_torchvision_v2": with_torchvision(canvas, spec),
    }  # fmt: skip


def timed(function: Callable[[], Any]) -> float:
    """Seconds; of one thread, its CPU time, which other work on the machine hardly changes."""
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
    result = compare(lambda: first().backward(), lambda: second().backward(), args.turns, views)
    return result | kept | {"saved_share": kept["ours_saved_mib"] / kept["classic_saved_mib"]}


def of_step_demo(args: argparse.Namespace) -> dict[str, Any]:
    """A training step of the demo on prepared views."""
    config = demo.config()
    return steps(args, config.backbone, config, config.batch, config.optim)


def of_step_vits16(args: argparse.Namespace) -> dict[str, Any]:
    """A training step of ViT-S/16 on prepared views of 2 x 224 + 10 x 96 px."""
    return steps(args, "vit_small/16", PAPER, args.batch, optim.ResolvedConfig())


def of_whole_demo(args: argparse.Namespace) -> dict[str, Any]:
    """From files to updated weights, the demo's recipe; in one process, so that no work is hidden."""
    config = demo.config()
    return whole(args, config.backbone, config, config.batch, config.optim)


def of_whole_vits16(args: argparse.Namespace) -> dict[str, Any]:
    """The same for ViT-S/16 and the paper's crops."""
    return whole(args, "vit_small/16", PAPER, args.batch, optim.ResolvedConfig())


def steps(
    args: argparse.Namespace, backbone: str, config: Config, batch: int, settings: optim.Config
) -> dict[str, Any]:
    """Both ways on the same views; the losses of the first steps must agree."""
    ours, dtype = made(args, backbone, config, batch, settings)
    pair, views = Pair(ours.method), ours.noise()

    def first() -> float:
        return ours.classic(pair, listed(views))

    def second() -> float:
        return float(ours.step(views))

    same = agree(first, second)
    return compare(first, second, args.turns, batch) | same | {"precision": dtype}


def whole(
    args: argparse.Namespace, backbone: str, config: Config, batch: int, settings: optim.Config
) -> dict[str, Any]:
    """Files, crops, step."""
    ours, dtype = made(args, backbone, config, batch, settings)
    source = open_source(str(args.images))
    batches = loader.Batches(DecodedImages(source, working_area_px(ours.spec)), ours.spec, 0, batch)
    files = Files([args.images / source.key(i) for i in range(batch)], ours.spec)
    pair = Pair(ours.method)

    def first() -> float:
        return ours.classic(pair, [torch.stack(view) for view in zip(*(files[i] for i in range(batch)), strict=True)])

    def second() -> float:
        item = batches[0]
        assert isinstance(item, loader.Batch)
        return float(ours.step(multi_crop(item.canvas, item.draws, ours.spec)))

    return compare(first, second, args.turns, batch) | {"precision": dtype}


def made(
    args: argparse.Namespace, backbone: str, config: Config, batch: int, settings: optim.Config
) -> tuple[Ours, str]:
    """Our side, with prototypes trained from the first step, and the precision it chooses."""
    dtype, _ = precision.choose(args.precision, CPU)
    ours = Ours(backbone, replace(config, freeze_last_layer="0"), settings, batch, dtype, CPU)
    return ours, str(dtype).removeprefix("torch.")


def agree(first: Callable[[], float], second: Callable[[], float], num: int = 3) -> dict[str, Any]:
    """The losses of some steps side by side."""
    pairs = [(first(), second()) for _ in range(num)]
    worst = max(abs(a - b) / abs(a) for a, b in pairs)
    assert worst < 0.01, f"the two ways have different losses: {pairs}"
    return {"loss_difference": worst}


def compare(first: Callable[[], Any], second: Callable[[], Any], turns: int, images: int) -> dict[str, Any]:
    """Best of several turns each, after one warm-up turn."""
    best = [float("inf"), float("inf")]
    for turn in range(turns + 1):
        for which, function in enumerate((first, second)):
            seconds = timed(function)
            if turn:
                best[which] = min(best[which], seconds)
    return {
        "classic_seconds": best[0], "ours_seconds": best[1], "ratio": best[0] / best[1],
        "classic_images_per_second": images / best[0], "ours_images_per_second": images / best[1],
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
