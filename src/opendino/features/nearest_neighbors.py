"""Exact k-nearest-neighbor search by cosine similarity."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import torch
from torch import Tensor
from torch.nn.functional import normalize

from opendino.core.progress import track

_QUERIES, _BANK = 1024, 2048  # sides of a block of similarities, 8 MiB in float32: fits the last-level CPU cache
_SLAB = 16 * _BANK  # bank rows normalized at a time
_GROUP = 16  # bank rows per group; a group is searched only if its maximum is good enough
_QUERY_SLAB = 64 * _QUERIES  # queries normalized at a time
_MIN_NORM = 1e-12  # `normalize` does not reach unit length below this


@torch.no_grad()
def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k features of a bank with the largest cosine to each query, exactly; ties are ordered by position.

    Vectors without direction (zeros, NaN, infinity: see `directed`) have no neighbors and are never neighbors: their
    cosines are -inf, and the positions of cosine -inf are meaningless.

    The search runs block by block: apart from the result it needs about 150 MiB at D = 384, for any number of features.
    On a CPU it uses `torch.get_num_threads()` threads.

    Args:
        bank: `[M D]`, any floating-point dtype; compared in float64 if it is float64, else in float32.
        queries: `[Q D]`, on the same device.
        k: Number of neighbors, 1 to M.

    Returns:
        Cosines `[Q k]`, descending, and their positions in the bank, int64 `[Q k]`.
    """
    assert 1 <= k <= len(bank)
    dtype = torch.float64 if bank.dtype == torch.float64 else torch.float32
    values = torch.full((len(queries), k), -torch.inf, dtype=dtype, device=bank.device)
    found = torch.zeros(len(queries), k, dtype=torch.int64, device=bank.device)
    threads, thread_data = torch.get_num_threads(), threading.local()

    def start_thread() -> None:
        torch.set_num_threads(1)  # per thread: each computes its own matrix products without waiting for others
        torch.set_grad_enabled(False)  # this setting is per thread too
        thread_data.buffer = torch.empty(_BANK * _QUERIES, dtype=dtype, device=bank.device)

    def search_slab(part: Tensor, start: int, slab: Tensor, first: int, all_valid: bool) -> None:
        rows = slice(start, start + len(part))
        for offset in range(0, len(slab), _BANK):
            similarity = _similarity(slab[offset : offset + _BANK], part, thread_data.buffer)
            if not all_valid:
                similarity.masked_fill_(similarity.isnan(), -torch.inf)
            _merge(similarity, first + offset, values[rows], found[rows])

    try:
        with ThreadPoolExecutor(threads if bank.device.type == "cpu" else 1, initializer=start_thread) as pool:
            for begin in range(0, len(queries), _QUERY_SLAB):
                unit_queries, queries_valid = _unit(queries[begin : begin + _QUERY_SLAB].to(dtype))
                parts = unit_queries.split(min(_QUERIES, -(-len(unit_queries) // threads)))
                starts = [begin + offset for offset in range(0, len(unit_queries), len(parts[0]))]
                for first in track(range(0, len(bank), _SLAB), "images compared", len(bank), _SLAB):
                    slab, slab_valid = _unit(bank[first : first + _SLAB].to(dtype))
                    valid = queries_valid and slab_valid
                    for _ in pool.map(search_slab, parts, starts, repeat(slab), repeat(first), repeat(valid)):
                        pass
    finally:
        torch.set_num_threads(threads)
    return values, found


def directed(vectors: Tensor) -> Tensor:
    """Whether each of the vectors `[M D]` has a direction: bool `[M]`, False for zeros, NaN and infinity."""
    length = vectors.norm(dim=1, dtype=torch.promote_types(vectors.dtype, torch.float32))
    return (length > _MIN_NORM) & length.isfinite()


def _unit(vectors: Tensor) -> tuple[Tensor, bool]:
    """L2-normalized vectors, NaN for those without direction, and whether all have a direction."""
    valid = directed(vectors)
    if valid.all():
        return normalize(vectors, dim=1), True
    return normalize(vectors, dim=1).masked_fill_(~valid[:, None], torch.nan), False


def _similarity(block: Tensor, queries: Tensor, buffer: Tensor) -> Tensor:
    """Cosines `[groups _GROUP q]` of a bank block and queries, the last group padded with -inf."""
    rows, columns = -(-len(block) // _GROUP) * _GROUP, len(queries)
    table = buffer[: rows * columns].view(rows, columns)
    torch.mm(block, queries.T, out=table[: len(block)])
    table[len(block) :] = -torch.inf
    return table.view(-1, _GROUP, columns)


def _merge(similarity: Tensor, first: int, values: Tensor, found: Tensor) -> None:
    """Merge the neighbors of a block `[groups _GROUP q]` into the k best so far (`values`, `found`), in place.

    After the first blocks few neighbors qualify, so mostly only the maxima of groups are compared. A tie with the k-th
    best does not qualify: it has a larger position in the bank.
    """
    k, last = values.shape[1], values[:, -1]
    if not first:  # no neighbors so far
        by_query = similarity.flatten(0, 1).T  # [q bank]
        best = _top(by_query, min(k, by_query.shape[1]))
        values[:, : best.shape[1]], found[:, : best.shape[1]] = by_query.gather(1, best), best
        return
    rows, groups = (last[:, None] < similarity.amax(1).T).nonzero(as_tuple=True)
    near = similarity[groups, :, rows]  # [pairs _GROUP]
    pairs, offsets = (near > last[rows, None]).nonzero(as_tuple=True)
    if not len(pairs):
        return
    rows, which, counts = rows[pairs].unique_consecutive(return_inverse=True, return_counts=True)
    columns = k + torch.arange(len(which), device=rows.device) - (counts.cumsum(0) - counts)[which]
    # Columns: the k best so far, then new candidates in bank order; rows are padded with -inf.
    width = k + int(counts.max())
    candidates = torch.cat([values[rows], values.new_full((len(rows), width - k), -torch.inf)], 1)
    positions = torch.cat([found[rows], found.new_zeros(len(rows), width - k)], 1)
    candidates[which, columns] = near[pairs, offsets]
    positions[which, columns] = first + groups[pairs] * _GROUP + offsets
    best = _top(candidates, k)
    values[rows], found[rows] = candidates.gather(1, best), positions.gather(1, best)


def _top(values: Tensor, k: int) -> Tensor:
    """Columns `[r k]` of the k largest values of each row of `[r n]`, descending, ties in column order."""
    best, where = values.topk(min(k + 1, values.shape[1]), dim=1)
    where = where[:, :k]
    tied = (best[:, 1:] == best[:, :-1]).any(1)
    if tied.any():  # topk orders ties arbitrarily; a stable sort is exact but slow
        where[tied] = values[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return where
