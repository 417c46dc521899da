"""Search in a table of vectors: exact against brute force, recall and speed of the index; duplicates, k-center.

Run: python benchmarks/search.py [--vectors 200000] [--out FILE.json], or --help
About ten minutes on one CPU core, most of it for duplicates: all pairs are compared. Two sets of vectors: `mixture`,
1,000 Gaussians in 48 dimensions with a little noise in all 384, similar to features; and `gaussian`, where all vectors
are about equally far apart, the hardest case for any index. Results go to stderr; the last line of stdout is
one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import torch
from record import keep, machine
from torch import Tensor
from torch.nn.functional import normalize

from opendino.embeddings import embed_images, table_schema
from opendino.embeddings.diverse_selection import k_center
from opendino.embeddings.lance_table import LanceTable, optimize
from opendino.features.near_duplicates import near_duplicates

DIM, K, PLANTED, CHOSEN = 384, 10, 100, 100


def mixture(num: int, seed: int) -> Tensor:
    """Similar to features: few dimensions matter, and many images are alike."""
    world = torch.Generator().manual_seed(0)
    axes, centers = torch.linalg.qr(torch.randn(DIM, 48, generator=world))[0], torch.randn(1000, 48, generator=world)
    chance = torch.Generator().manual_seed(seed)
    low = centers[torch.randint(1000, (num,), generator=chance)] + 0.5 * torch.randn(num, 48, generator=chance)
    return low @ axes.T + 0.02 * torch.randn(num, DIM, generator=chance)


def gaussian(num: int, seed: int) -> Tensor:
    """Without any structure."""
    return torch.randn(num, DIM, generator=torch.Generator().manual_seed(seed))


def written(folder: Path, vectors: Tensor) -> LanceTable:
    """A table of them; keys are row numbers."""
    about = {"model": "", "which": None, "fingerprint": "", "preprocessing": {}, "data": "", "images": len(vectors)}
    columns = table_schema.arrow(DIM, None, about)

    def batches() -> Iterator[Any]:
        for first in range(0, len(vectors), 10_000):
            part = vectors[first : first + 10_000]
            keys = [str(first + row) for row in range(len(part))]
            yield table_schema.batch(
                embed_images.Rows([*range(len(keys))], keys, part, [(1, 1)] * len(keys), None, []), columns
            )

    lancedb.connect(folder).create_table("vectors", batches(), schema=columns)
    return LanceTable(str(folder / "vectors.lance"))


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a function, and the seconds it took."""
    began = time.perf_counter()
    result = function()
    return result, time.perf_counter() - began


def searches(vectors: Tensor, queries: Tensor) -> dict[str, Any]:
    """Exact search before and after the index is built, and search by the index."""
    truth = (normalize(queries.double(), dim=1) @ normalize(vectors, dim=1).double().T).topk(K + 1)
    best = [[str(row) for row in rows] for rows in truth.indices[:, :K].tolist()]
    with tempfile.TemporaryDirectory() as folder:
        table = written(Path(folder), vectors)
        exact, exact_seconds = timed(lambda: table.nearest(queries, K, exact=True))
        _, build = timed(lambda: optimize(table._table, 0, changed=False))
        table = LanceTable(table.name)
        table.nearest(queries[:1], K)  # the index is read
        fast, seconds = [], []
        for query in queries:
            found, took = timed(lambda query=query: table.nearest(query[None], K))
            fast.append(found)
            seconds.append(took)
        assert not fast[0].exact
    return {
        "exact_is_brute_force": exact.keys == best,
        "queries_with_another_order": sum(a != b for a, b in zip(exact.keys, best, strict=True)),
        "smallest_gap_of_scores": float((truth.values[:, :-1] - truth.values[:, 1:]).min()),
        "recall_at_10": sum(len({*a.keys[0]} & {*b}) for a, b in zip(fast, best, strict=True)) / (K * len(queries)),
        "exact_ms_per_query": 1000 * exact_seconds / len(queries),
        "index_ms_per_query": 1000 * statistics.median(seconds),
        "index_build_seconds": build,
    }


def main() -> None:
    """Measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vectors", type=int, default=200_000, help="rows of the table (default 200000)")
    parser.add_argument("--queries", type=int, default=100, help="queries (default 100)")
    parser.add_argument("--skip-duplicates", action="store_true", help="they take most of the time")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    args = parser.parse_args()
    document: dict[str, Any] = {
        "what": f"search in {args.vectors} × {DIM} float32 vectors, {args.queries} queries, k = {K}",
        "machine": f"{machine()}, lancedb {lancedb.__version__}",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # of other programs, beforehand
        "date": time.strftime("%Y-%m-%d"),
    }

    def note(name: str, value: dict[str, Any]) -> None:
        document[name] = value
        print(f"{name}: {value}", file=sys.stderr, flush=True)

    for draw in (mixture, gaussian):
        note(draw.__name__, searches(draw(args.vectors, 1), draw(args.queries, 2)))
    vectors = normalize(mixture(args.vectors, 1), dim=1)
    chosen, seconds = timed(lambda: list(itertools.islice(k_center(vectors), CHOSEN)))
    note("select", {"chosen": len(chosen), "radius": chosen[-1][1], "seconds": seconds})
    if not args.skip_duplicates:
        vectors = normalize(gaussian(args.vectors, 1), dim=1)
        vectors[-PLANTED:] = vectors[:PLANTED] + 0.001 * torch.randn(PLANTED, DIM)
        groups, seconds = timed(lambda: near_duplicates(vectors, 0.95))
        assert len(groups) == PLANTED, f"{len(groups)} groups for {PLANTED} planted"
        note("duplicates", {"pairs": len(vectors) * (len(vectors) - 1) // 2, "groups": len(groups), "seconds": seconds})
    keep(document, args.out)


if __name__ == "__main__":
    main()
