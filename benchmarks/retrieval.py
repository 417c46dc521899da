"""Retrieval at scale: images/s of multi-scale features, time and peak memory of mAP and near-duplicates.

Run: python benchmarks/retrieval.py [--images 24] [--device cpu] [--out FILE.json], or --help
About five minutes on two CPU cores. Each part runs in its own process, so that its peak memory is separate. Results
go to stderr; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from record import keep, machine

from opendino.data.open_source import open_source
from opendino.data.sources.toy import ToySource
from opendino.evals.retrieval import scores
from opendino.features.image_descriptors import describe_images
from opendino.features.near_duplicates import near_duplicates
from opendino.features.ranking_metrics import search
from opendino.models.build import backbone
from opendino.models.global_descriptor import SCALES, Descriptor
from opendino.models.load import Model, preprocessing

DIM, PER_CLASS, PLANTED = 384, 10, 100


def extraction(num_images: int, device: str) -> dict[str, Any]:
    """JPEG files of 480×360 px through a random ViT-S/16 at scales 1, 1/√2, 1/2 of 320×240."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = ToySource("colorful", n=num_images, size=480)
        for number in range(num_images):
            Image.fromarray(drawn.read(number)).crop((0, 0, 480, 360)).save(f"{folder}/{number}.jpg")
        model = Model(backbone("vit_small/16"), preprocessing(224), {}).to(device)
        sees = Descriptor(model, 320, scales=SCALES)
        source = open_source(folder)
        describe_images(sees, source, range(2))
        began = time.perf_counter()
        describe_images(sees, source, batch=8)
        seconds = time.perf_counter() - began
    return {"images": num_images, "seconds": seconds, "images_per_second": num_images / seconds}


def mean_average_precision(num_vectors: int, num_queries: int, device: str) -> dict[str, Any]:
    """Compute mAP of the first vectors as queries against all, ten vectors per class."""
    vectors = unit(num_vectors).to(device)
    labels = torch.arange(num_vectors, device=device) // PER_CLASS

    def relevance(query: int) -> torch.Tensor:
        alike = (labels == labels[query]).to(torch.int8)
        alike[query] = -1
        return alike

    began = time.perf_counter()
    found = scores(search(vectors[:num_queries], vectors, relevance), (1, 5, 10))
    seconds = time.perf_counter() - began
    return {"queries": found["queries"], "seconds": seconds, "ms_per_query": 1000 * seconds / num_queries}


def duplicates(num_vectors: int, device: str) -> dict[str, Any]:
    """Search all pairs; some vectors are slightly altered copies of others."""
    vectors = unit(num_vectors)
    vectors[-PLANTED:] = vectors[:PLANTED] + 0.001 * torch.randn(PLANTED, DIM)
    began = time.perf_counter()
    groups = near_duplicates(vectors.to(device), 0.95)
    seconds = time.perf_counter() - began
    assert len(groups) == PLANTED, f"{len(groups)} groups for {PLANTED} planted"
    return {"pairs": num_vectors * (num_vectors - 1) // 2, "groups": len(groups), "seconds": seconds}


def unit(num_vectors: int) -> torch.Tensor:
    """Random directions, the same every time."""
    return torch.nn.functional.normalize(
        torch.randn(num_vectors, DIM, generator=torch.Generator().manual_seed(0)), dim=1
    )


def part(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Run in this fresh process: the result, and the memory in addition to the imports."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = function(*args)
    scale = 1 if sys.platform == "darwin" else 1024
    return {**found, "peak_memory_bytes": scale * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def main() -> None:
    """Measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=24, help="images to describe (default 24)")
    parser.add_argument("--vectors", type=int, default=100_000, help="vectors in the database (default 100000)")
    parser.add_argument("--queries", type=int, default=2000, help="queries of mAP (default 2000)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()

    parts = {
        "extraction": (extraction, args.images, args.device),
        "mean_average_precision": (mean_average_precision, args.vectors, args.queries, args.device),
        "near_duplicates": (duplicates, args.vectors, args.device),
    }
    document: dict[str, Any] = {
        "what": f"multi-scale ViT-S/16 features at 320×240; mAP and near-duplicates of {args.vectors} × {DIM} vectors",
        "machine": machine(),
        "device": args.device,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # of other programs, beforehand
        "date": time.strftime("%Y-%m-%d"),
    }
    for name, call in parts.items():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            document[name] = fresh.submit(part, *call).result()
        print(f"{name}: {document[name]}", file=sys.stderr, flush=True)
    keep(document, args.out)


if __name__ == "__main__":
    main()
