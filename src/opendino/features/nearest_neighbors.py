"""Exact search for the most similar features."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import torch
from torch import Tensor
from torch.nn.functional import normalize

_QUERIES, _BANK = 1024, 2048  # sides of a block of similarities, 8 MiB in float32: it stays in a CPU's last cache
_SLAB = 16 * _BANK
_GROUP = 16  # neighbors that are looked at one by one only if the best of them is good enough
_AT_ONCE = 64 * _QUERIES
_SHORTEST = 1e-12  # below that `normalize` does not reach unit length


@torch.no_grad()
def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k features of a bank with the largest cosine to each query, exactly; equal ones in the order of the bank.

    What has no direction (zeros, NaN, infinity: see `directed`) has no neighbors and is nobody's: its cosines are
    -inf, and the positions that go with these mean nothing.

    Works block by block: beside the result it holds some 150 MiB at D = 384, whatever the number of features. On a CPU
    it takes as many threads as torch is set to.

    Args:
        bank: `[M D]` of any floating-point type; compared in float64 if that is what it is, else in float32.
        queries: `[Q D]`, on the same device.
        k: From 1 to M.

    Returns:
        Cosines `[Q k]` from large to small, and int64 `[Q k]`, positions in the bank.
    """
    assert 1 <= k <= len(bank)
    dtype = torch.float64 if bank.dtype == torch.float64 else torch.float32
    values = torch.full((len(queries), k), -torch.inf, dtype=dtype, device=bank.device)
    found = torch.zeros(len(queries), k, dtype=torch.int64, device=bank.device)
    threads, own = torch.get_num_threads(), threading.local()

    def start() -> None:
        torch.set_num_threads(1)  # of this thread; each works by itself, and none waits for the others in every product
        torch.set_grad_enabled(False)  # this too is a thread's own
        own.buffer = torch.empty(_BANK * _QUERIES, dtype=dtype, device=bank.device)

    def look(part: Tensor, place: int, slab: Tensor, first: int, whole: bool) -> None:
        rows = slice(place, place + len(part))
        for offset in range(0, len(slab), _BANK):
            table = _similarity(slab[offset : offset + _BANK], part, own.buffer)
            if not whole:
                table.masked_fill_(table.isnan(), -torch.inf)
            _merge(table, first + offset, values[rows], found[rows])

    try:
        with ThreadPoolExecutor(threads if bank.device.type == "cpu" else 1, initializer=start) as pool:
            for begin in range(0, len(queries), _AT_ONCE):
                asked, all_asked = _unit(queries[begin : begin + _AT_ONCE].to(dtype))
                parts = asked.split(min(_QUERIES, -(-len(asked) // threads)))
                places = [begin + place for place in range(0, len(asked), len(parts[0]))]
                for first in range(0, len(bank), _SLAB):
                    slab, all_there = _unit(bank[first : first + _SLAB].to(dtype))
                    whole = all_asked and all_there
                    for _ in pool.map(look, parts, places, repeat(slab), repeat(first), repeat(whole)):
                        pass
    finally:
        torch.set_num_threads(threads)
    return values, found


def directed(vectors: Tensor) -> Tensor:
    """Which of the vectors `[M D]` can be compared with others: bool `[M]`, False for zeros, NaN and infinity."""
    length = vectors.norm(dim=1, dtype=torch.promote_types(vectors.dtype, torch.float32))
    return (length > _SHORTEST) & length.isfinite()


def _unit(vectors: Tensor) -> tuple[Tensor, bool]:
    """Of unit length, NaN where there is no direction; and whether all have one."""
    known = directed(vectors)
    if known.all():
        return normalize(vectors, dim=1), True
    return normalize(vectors, dim=1).masked_fill_(~known[:, None], torch.nan), False


def _similarity(block: Tensor, queries: Tensor, buffer: Tensor) -> Tensor:
    """`[groups _GROUP q]`, the last group filled up with -inf."""
    rows, columns = -(-len(block) // _GROUP) * _GROUP, len(queries)
    table = buffer[: rows * columns].view(rows, columns)
    torch.mm(block, queries.T, out=table[: len(block)])
    table[len(block) :] = -torch.inf
    return table.view(-1, _GROUP, columns)


def _merge(similarity: Tensor, first: int, values: Tensor, found: Tensor) -> None:
    """Let the neighbors of a block take their places among the k best so far, which are changed in place.

    After the first blocks hardly any can, and little but the groups' maxima is looked at. One that equals the k-th best
    comes too late: it is further on in the bank.
    """
    k, last = values.shape[1], values[:, -1]
    if not first:  # nothing to compare with yet
        whole = similarity.flatten(0, 1).T
        best = _top(whole, min(k, whole.shape[1]))
        values[:, : best.shape[1]], found[:, : best.shape[1]] = whole.gather(1, best), best
        return
    rows, groups = (last[:, None] < similarity.amax(1).T).nonzero(as_tuple=True)
    near = similarity[groups, :, rows]
    pairs, offsets = (near > last[rows, None]).nonzero(as_tuple=True)
    if not len(pairs):
        return
    rows, which, counts = rows[pairs].unique_consecutive(return_inverse=True, return_counts=True)
    turns = k + torch.arange(len(which), device=rows.device) - (counts.cumsum(0) - counts)[which]
    # The best so far, then what may join them in the order of the bank, each row filled up with -inf.
    width = k + int(counts.max())
    candidates = torch.cat([values[rows], values.new_full((len(rows), width - k), -torch.inf)], 1)
    positions = torch.cat([found[rows], found.new_zeros(len(rows), width - k)], 1)
    candidates[which, turns] = near[pairs, offsets]
    positions[which, turns] = first + groups[pairs] * _GROUP + offsets
    best = _top(candidates, k)
    values[rows], found[rows] = candidates.gather(1, best), positions.gather(1, best)


def _top(values: Tensor, k: int) -> Tensor:
    """Positions `[r k]` of the k largest of each row `[r n]`, from large to small, equal ones in their order."""
    best, where = values.topk(min(k + 1, values.shape[1]), dim=1)
    where = where[:, :k]
    tied = (best[:, 1:] == best[:, :-1]).any(1)
    if tied.any():  # topk takes any of them; a stable sort is slow and exact
        where[tied] = values[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return where
