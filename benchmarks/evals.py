"""What evaluations cost: exact k-NN compared with faiss's flat index, the linear probe, label-free measures.

Run: python benchmarks/evals.py [--bank 1000000] [--queries 10000] [--repeats 2] [--out FILE.json]. faiss (pip
install faiss-cpu) takes turns with ours in the same process, with as many threads; without it its column stays empty.
At full size about ten minutes and 4 GiB on two cores. A table goes to stderr; the last line of stdout is one JSON
document.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import keep, machine
from torch.nn.functional import normalize

from opendino.evals import label_free, linear
from opendino.features.nearest_neighbors import nearest
from opendino.models.build import backbone
from opendino.models.load import preprocessing, save_backbone


def main() -> None:
    """Measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bank", type=int, default=1_000_000, help="labeled features of the k-NN")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2, help="of both searches, in turn")
    parser.add_argument("--images", type=int, default=2000, help="of the linear probe and the label-free measures")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    document = {
        "what": "evaluations: seconds (wall and of all CPUs together), peak memory of the process so far in MiB",
        "machine": machine(),
        "load_before": os.getloadavg()[0],
        "threads": args.threads,
        "date": time.strftime("%Y-%m-%d"),
        "evals": _evals(args.images),  # first, because memory peaks in the search
        "knn": _knn(args),
        "load_after": os.getloadavg()[0],
    }
    keep(document, args.out)


def _evals(num: int) -> dict[str, Any]:
    """The linear probe with its features and the label-free measures, untrained ViT-Ti/16 on generated images."""
    data, found = f"toy:textures?n={num}&size=64", {}
    with tempfile.TemporaryDirectory() as folder:
        network = backbone("vit_tiny/16", image_px=64)
        save_backbone(Path(folder), {"teacher": network}, preprocessing=preprocessing(64))
        runs: dict[str, Callable[[], object]] = {
            "linear probe, 11 rates x 3 features, 100 epochs": lambda: linear.evaluate(
                linear.Config(folder, train=data, protocol="grid", device="cpu")
            ),
            "label-free, one pass": lambda: label_free.evaluate(
                label_free.Config(folder, data=data, images=num, views=0, device="cpu")
            ),
            "label-free, 4 views per image": lambda: label_free.evaluate(
                label_free.Config(folder, data=data, images=num, views=4, workers=1, device="cpu")
            ),
        }
        for name, run in runs.items():
            found[name] = {"images": num} | _timed(run)[1]
            _say(name, found[name])
    return found


def _knn(args: argparse.Namespace) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(0)
    bank, queries = (
        normalize(torch.randn(num, args.width, generator=chance), dim=1) for num in (args.bank, args.queries)
    )
    index = _faiss(args.threads)
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    same = None
    for _ in range(args.repeats):
        (_, found), figures = _timed(lambda: nearest(bank, queries, args.k))
        ours.append(figures)
        _say("ours", figures)
        if index is not None:
            flat = index(args.width)
            flat.add(bank.numpy())
            (_, others), figures = _timed(lambda flat=flat: flat.search(queries.numpy(), args.k))
            theirs.append(figures)
            _say("faiss", figures)
            same = float((torch.from_numpy(others) == found).float().mean())
            del flat
    best = {name: min(run["seconds"] for run in runs) for name, runs in (("ours", ours), ("faiss", theirs)) if runs}
    cpu = {name: min(run["cpu"] for run in runs) for name, runs in (("ours", ours), ("faiss", theirs)) if runs}
    return {
        "bank": args.bank, "queries": args.queries, "width": args.width, "k": args.k, "ours": ours, "faiss": theirs,
        "seconds": best, "cpu_seconds": cpu,
        "ratio": best["ours"] / best["faiss"] if theirs else None,
        "cpu_ratio": cpu["ours"] / cpu["faiss"] if theirs else None,
        "same_neighbors": same,
    }  # fmt: skip


def _faiss(threads: int) -> Callable[[int], Any] | None:
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(threads)
    return faiss.IndexFlatIP


def _timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    began, worked = time.perf_counter(), time.process_time()
    result = run()
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return result, {"seconds": round(seconds, 3), "cpu": round(cpu, 3), "peak_mib": round(peak)}


def _say(name: str, figures: dict[str, Any]) -> None:
    told = f"{figures['seconds']:9.2f} s  {figures['cpu']:9.2f} CPU s  {figures['peak_mib']:6.0f} MiB"
    print(f"{name:<50}{told}", file=sys.stderr)


if __name__ == "__main__":
    main()
