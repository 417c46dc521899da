"""Label propagation through a video: seconds per frame and peak memory, compared with the original's dense form.

Run: python benchmarks/video.py [--device cuda] [--grid 30 54] [--frames 4] [--out FILE.json]. Features are
random, as wide as a ViT-S/16's on frames of 480p; seven frames and the first are the context. Both forms use the same
numbers, each in its own process. A table goes to stderr; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import keep
from torch import Tensor
from torch.nn.functional import normalize

from opendino.evals.video_segmentation import propagate

RADIUS, TOP_K, TEMPERATURE, NUM_CONTEXT = 12, 5, 0.1, 8


def dense(target: Tensor, context: Tensor, labels: Tensor) -> Tensor:
    """The same by one matrix of all patches against all of the context, most of which a mask removes."""
    height, width = target.shape[:2]
    near = neighbors(height, width, str(target.device))
    queries, keys = normalize(target, dim=-1).flatten(0, 1), normalize(context, dim=-1).flatten(1, 2)
    affinity = (keys @ queries.T / TEMPERATURE).exp() * near
    affinity = affinity.flatten(0, 1)
    weakest = affinity.topk(TOP_K, dim=0).values[-1]
    affinity = torch.where(affinity < weakest, 0, affinity)
    affinity = affinity / affinity.sum(0)
    return (labels.transpose(0, 1).flatten(1) @ affinity).unflatten(1, (height, width))


@functools.cache
def neighbors(height: int, width: int, device: str) -> Tensor:
    """Which patches are within the radius of each other, bool `[N N]`; computed once, as in the original."""
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(device)
    return ((places[:, None] - places).abs() <= RADIUS).all(-1)


def local(target: Tensor, context: Tensor, labels: Tensor) -> Tensor:
    """Ours."""
    return propagate(target, context, labels, RADIUS, TOP_K, TEMPERATURE)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"local": local, "dense": dense}


def measure(form: str, args: argparse.Namespace, results: multiprocessing.Queue) -> None:
    """Time one form in a fresh process, so that the peak is its own."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    height, width = args.grid
    context = torch.randn(NUM_CONTEXT, height, width, args.dim, device=args.device)
    target = context[-1] + torch.randn_like(context[-1])
    labels = torch.rand(NUM_CONTEXT, args.objects + 1, height, width, device=args.device)
    on_gpu = target.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else _peak_rss()
    out, seconds = torch.empty(0), []
    for _ in range(1 + args.frames):
        began = time.perf_counter()
        out = FORMS[form](target, context, labels)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if on_gpu else _peak_rss()
    found = {"seconds_per_frame": sorted(seconds[1:])[args.frames // 2], "peak_memory_mib": (peak - before) / 2**20}
    results.put((found, out.cpu().numpy()))  # an array: a tensor would be passed as a file of this process


def main() -> None:
    """Measure, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--grid", type=int, nargs=2, default=(30, 54), help="rows and columns of patches")
    parser.add_argument("--dim", type=int, default=384, help="width of the features")
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--frames", type=int, default=4, help="number of runs; the median counts, after one warm-up")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()

    forms, outputs = {}, {}
    for name in FORMS:
        spawn = multiprocessing.get_context("spawn")
        results = spawn.Queue()
        process = spawn.Process(target=measure, args=(name, args, results))
        process.start()
        forms[name], outputs[name] = results.get()
        process.join()
        figures = forms[name]
        print(
            f"{name:<6} {figures['seconds_per_frame']:.3f} s a frame, {figures['peak_memory_mib']:.0f} MiB at most",
            file=sys.stderr,
        )
    on_gpu = args.device.startswith("cuda")
    device = torch.cuda.get_device_name(args.device) if on_gpu else f"{platform.machine()}, {args.threads} threads"
    document = {
        "what": f"label propagation, grid {args.grid[0]}x{args.grid[1]}, {args.dim} dims, {NUM_CONTEXT} context "
        f"frames, radius {RADIUS}, top {TOP_K}, {args.objects} objects",
        "machine": device,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        **forms,
        "speedup": forms["dense"]["seconds_per_frame"] / forms["local"]["seconds_per_frame"],
        "memory_ratio": forms["dense"]["peak_memory_mib"] / forms["local"]["peak_memory_mib"],
        "max_difference": float(abs(outputs["dense"] - outputs["local"]).max()),
    }
    keep(document, args.out)


def _peak_rss() -> int:
    """Bytes; the system counts KiB on Linux, bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
