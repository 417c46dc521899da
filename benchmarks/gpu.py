"""Training on a GPU compared with the classic way, in nine minutes at most: waits, crops, step, JPEG files to weights.

Run on a machine with a CUDA device: python benchmarks/gpu.py [--images FOLDER] [--workers N] [--out FILE.json].
Needs torchvision; the crops of torchvision's v2, and of kornia where it is installed, are measured too. All is
measured on one device; the classic way (benchmarks/classic.py) runs under bfloat16 autocast too, so that the ratio does
not include the precision. A table goes to stderr, the last line of stdout is one JSON document. `--device cpu
--small` runs the same lines in three minutes anywhere; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classic import Files, Pair
from other_libraries import with_kornia, with_torchvision
from ours import PAPER, Ours, listed
from PIL import Image
from record import keep, machine
from torch import Tensor

from opendino import config as configs
from opendino import training
from opendino.core.compilation import compiling
from opendino.data import loader
from opendino.data.cache import DecodedImages
from opendino.data.decode import working_area_px
from opendino.data.open_source import open_source
from opendino.engine import optim
from opendino.engine.throughput import peak_flops
from opendino.views.multi_crop import multi_crop
from opendino.views.settings import changed

SMALL = replace(
    PAPER,
    method=replace(PAPER.method, out_dim=256),
    views=changed(PAPER.views, {"local.number": 2, "global.size": 64, "local.size": 32}),
)
PARTS = ("waits", "crops", "step_vits16", "step_vitb16", "end_to_end")


def main() -> None:
    """Measure, print, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "--images", type=Path, help="a folder of JPEG files; default: 2,048 generated ones, 500 x 333 px"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1))
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each end-to-end run")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny network and few images, to try the program")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.small:
        args.batch, args.seconds, args.workers = 8, 5.0, 1
    with tempfile.TemporaryDirectory() as home, compiling(device.type == "cuda"):
        args.home = Path(home)
        args.images = args.images or made_images(args.home / "images", 64 if args.small else 2048)
        found: dict[str, Any] = {}
        for part in args.only:
            began = time.monotonic()
            found[part] = globals()[f"of_{part}"](args, device)
            found[part]["took_seconds"] = round(time.monotonic() - began)
            told = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found[part].items())
            print(f"{part:<14}{told}", file=sys.stderr, flush=True)
    document = {
        "what": "the classic way and ours on one device",
        "machine": f"{machine(device)}, {args.workers} workers",
        "date": time.strftime("%Y-%m-%d"),
        "batch": args.batch,
        "parts": found,
    }
    keep(document, args.out)


def of_waits(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Whether a step ever waits for the device: CUDA raises an error at each wait."""
    ours = made("vit_small/16", args, device)
    for _ in range(3):
        ours.step(ours.noise())
    views = ours.noise()
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        ours.step(views)
        waits = "none"
    except RuntimeError as error:
        waits = str(error).splitlines()[0]
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return {"waits": waits}


def of_crops(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """2 + 10 views of whole images; the lower bound is reading the images and writing the views once."""
    spec = configs.views(PAPER)
    batch = first_batch(args).to(device)
    seconds = timed(lambda: multi_crop(batch.canvas, batch.draws, spec), device)
    written = sum(len(g.views) * len(batch.labels) * 3 * g.size_px**2 * 4 for g in spec.groups)
    moved = written + batch.canvas.nbytes
    copied = torch.empty(2**28, dtype=torch.uint8, device=device)
    bandwidth = 2 * copied.nbytes / timed(copied.clone, device)
    found = {"ours_us_an_image": 1e6 * seconds / len(batch.labels), "times_the_floor": seconds * bandwidth / moved}
    for name, others in (("torchvision_v2", with_torchvision), ("kornia", with_kornia)):
        with contextlib.suppress(ImportError):
            few = batch.canvas[:8]
            found[f"{name}_us_an_image"] = 1e6 * timed(others(few, spec), device) / len(few)
    return found


def of_step_vits16(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """A training step on prepared views, both ways."""
    return of_step("vit_small/16", args, device)


def of_step_vitb16(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The same for ViT-B/16 with half the images."""
    return of_step("vit_base/16", argparse.Namespace(**{**vars(args), "batch": args.batch // 2}), device)


def of_step(name: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Images per second of both, and model FLOPs utilization of ours relative to a large matrix product."""
    from torch.utils.flop_counter import FlopCounterMode

    ours = made(name, args, device)
    pair, views = Pair(ours.method), ours.noise()

    def classic() -> float:
        return ours.classic(pair, listed(views), torch.bfloat16)

    losses = [(classic(), float(ours.step(views))) for _ in range(2)]
    assert all(abs(a - b) < 0.02 * abs(a) for a, b in losses), f"the two ways have different losses: {losses}"
    with FlopCounterMode(display=False) as counter, compiling(False):
        ours.step(views)
    first, second = timed(classic, device), timed(lambda: ours.step(views), device)
    peak = peak_flops(device, torch.bfloat16)
    return {
        "classic_images_per_second": args.batch / first,
        "ours_images_per_second": args.batch / second,
        "ratio": first / second,
        "gflop_an_image": counter.get_total_flops() / args.batch / 1e9,
        "mfu": counter.get_total_flops() / second / peak,
        "peak_tflops": peak / 1e12,
    }


def of_end_to_end(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """From JPEG files to updated weights: `opendino train` with nothing cached, and the classic loop."""
    settings, name = (SMALL, "vit_tiny/16") if args.small else (PAPER, "vit_small/16")

    def trained(steps: int) -> Any:
        return training(configs.Config(
            data=str(args.images), backbone=name, method=settings.method, views=settings.views, steps=steps,
            batch=args.batch,
            optim=optim.Config(grad_accum_steps=1), workers=args.workers, eval_images=0, device=str(device),
            precision="bfloat16", cache="off", compile=device.type == "cuda", report=False, checkpoint_every="100%",
            out=str(args.home / f"run-{steps}"),
        ))  # fmt: skip

    trained(20)  # compiles
    steps = max(61, int(args.seconds * trained(60).images_per_second / args.batch))
    result = trained(steps)
    spec, paths = configs.views(settings), sorted(args.images.glob("*.jpg"))
    ours = made(name, args, device)
    pair, seen, began = Pair(ours.method), 0, 0.0
    for number, views in enumerate(classic_batches(paths, spec, args)):
        ours.classic(pair, [view.to(device, non_blocking=True) for view in views], torch.bfloat16)
        if number == 2:  # loader and kernels are warm
            began = time.monotonic()
        elif number > 2:
            seen += len(views[0])
            if time.monotonic() - began > args.seconds:
                break
    classic = seen / (time.monotonic() - began)
    return {
        "classic_images_per_second": classic,
        "ours_images_per_second": result.images_per_second,
        "ratio": result.images_per_second / classic,
        "data_wait": result.data_wait,
        "mfu": result.mfu,
        "peak_memory_gib": result.peak_memory_bytes / 2**30,
        "steps": steps,
    }


def classic_batches(paths: list[Path], spec: Any, args: argparse.Namespace) -> Iterator[list[Tensor]]:
    """Batches of float32 views, epoch after epoch."""
    while True:
        yield from torch.utils.data.DataLoader(
            Files(paths, spec), args.batch, shuffle=True, drop_last=True, num_workers=args.workers, pin_memory=True
        )


def made(name: str, args: argparse.Namespace, device: torch.device) -> Ours:
    """Our side under bfloat16."""
    config, name = (SMALL, "vit_tiny/16") if args.small else (PAPER, name)
    return Ours(name, config, optim.ResolvedConfig(), args.batch, torch.bfloat16, device)


def first_batch(args: argparse.Namespace) -> loader.Batch:
    """Decoded images and view parameters for the paper's crops."""
    spec = configs.views(PAPER)
    batch = loader.Batches(DecodedImages(open_source(str(args.images)), working_area_px(spec)), spec, 0, args.batch)[0]
    assert isinstance(batch, loader.Batch)
    return batch


def timed(function: Callable[[], Any], device: torch.device, least: float = 2.0) -> float:
    """Seconds per call, over at least that many seconds, after three warm-up calls."""
    for _ in range(3):
        function()
    number, began = 0, settled(device)
    while (took := settled(device) - began) < least or number < 3:
        for _ in range(3):
            function()
        number += 3
    return took / number


def settled(device: torch.device) -> float:
    """The time after the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def made_images(home: Path, num: int) -> Path:
    """JPEG files of 500 x 333 px, cut from noise with the spectrum of photographs."""
    home.mkdir()
    rng, side = np.random.default_rng(0), 1200
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    falloff = 1 / np.maximum(np.hypot(fy, fx), 1 / side)
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(3, side, side))) * falloff, s=(side, side))
    pixels = ((noise - noise.mean()) / noise.std() * 50 + 128).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    for number in range(num):
        y, x = rng.integers(0, side - 333), rng.integers(0, side - 500)
        Image.fromarray(pixels[y : y + 333, x : x + 500]).save(home / f"{number:05d}.jpg", quality=88)
    return home


if __name__ == "__main__":
    main()
