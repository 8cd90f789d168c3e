"""Canonical scores: the float64 dot product of the stored rows, rounded to float32.

The product of two float16 numbers is a multiple of 2^-48, and so is every partial sum; for unit rows
none exceeds 2, so that 50 bits hold it and float64 adds without any rounding. The order of
summation, the tile, the thread count and the device therefore cannot show in a score. Products of
float32 numbers are longer, and those of bfloat16 lie farther apart: their sums are made in one order
whatever the tile and the threads, and only another device may round one score in some ten million the
other way.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from harness.run import Float32, Int32, Int64, SearchRequest
from harness.search.rows import Vectors, on_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Read = Callable[[int, int], Tensor]
    """From the pair a to the pair b: their candidates' rows, [b - a, D]."""
    Score = Callable[[Tensor, Read, Int64, int], Float32]
    """`exact` or `rough`."""

_NEAR = 1 << 19
"""Numbers of gathered rows that are scored while they are in a processor's cache."""

LAST = 2**31 - 1
"""Above every row."""


def tolerance(dim: int, device: str) -> float:
    """How far a float32 matrix product of unit rows can lie from the canonical score.

    Products of float16 or bfloat16 numbers are exact in float32, those of float32 are rounded once;
    `dim` additions in any order then err by at most dim · 2^-24 · sum|q_i x_i|, and the sum is at most 1
    (Higham, Accuracy and Stability of Numerical Algorithms, §3.1). Sums of equal terms, as in constant
    vectors, come within a factor of 20 of it, so that nothing smaller is safe. Tensor cores truncate
    where a CPU rounds, and align the terms of a block before they add them: four times as much (Fasi et
    al. 2021, Numerical behavior of NVIDIA tensor cores). The 8 cover the roundings of products, of the
    canonical score and of the comparisons, 1.01 the norms of rounded rows.
    """
    return 1.01 * 2.0**-24 * (8 + dim * (4 if device.startswith("cuda") else 1))


def keys_of(scores: Float32, rows: Int64 | Int32 | int) -> Int64:
    """Numbers that ascend from the best pair to the worst: by falling score, then rising row."""
    bits = (np.float32(0) - scores).view(np.int32)  # 0 and -0 are one score
    bits = bits ^ ((bits >> 31) & LAST)
    return (bits.astype(np.int64) << 32) | rows


def scores_of(keys: Int64) -> Float32:
    bits = (keys >> 32).astype(np.int32)
    scores: Float32 = np.float32(0) - (bits ^ ((bits >> 31) & LAST)).view(np.float32)
    return scores


def rows_of(keys: Int64) -> Int64:
    return keys & LAST


NOTHING = int(keys_of(np.full(1, -np.inf, np.float32), LAST)[0])
"""The key of no pair, after every other."""


def exact(queries: Tensor, read: Read, query: Int64, step: int) -> Float32:
    """Canonical scores of the pairs of queries[query] and what `read` gives, `step` of them at a time, [P].

    queries: [B, D]; fastest where `query` ascends.
    """
    import torch

    return (_sums if queries.is_cuda else _dots)(queries, read, query, step, torch.float64)


def rough(queries: Tensor, read: Read, query: Int64, step: int) -> Float32:
    """Sums in float32, within `tolerance` of the canonical scores of the same pairs."""
    import torch

    return (_sums if queries.is_cuda else _dots)(queries, read, query, step, torch.float32)


def _dots(queries: Tensor, read: Read, query: Int64, step: int, kind: torch.dtype) -> Float32:
    """By a matrix-vector product for each run of one query, while its rows are in the processor's cache."""
    import torch

    any_order = kind == torch.float32 or queries.dtype == torch.float16
    count, dim = len(query), queries.shape[1]
    if not count:
        return np.zeros(0, dtype=np.float32)
    step = max(1, min(step, _NEAR // dim))
    # float16 becomes float64 fastest by way of float32.
    single = torch.empty(min(step, count), dim)
    wide = single if kind == single.dtype else torch.empty(single.shape, dtype=kind)
    first, last = int(query.min()), int(query.max())
    rows, asked = wide.numpy(), queries[first : last + 1].to(kind).numpy()
    scores = np.empty(count, rows.dtype)
    starts = np.diff(query, prepend=-1) != 0
    starts[::step] = True
    bounds = np.flatnonzero(starts)
    owners = (query[bounds] - first).tolist()
    for (a, b), owner in zip(pairwise([*bounds.tolist(), count]), owners, strict=True):
        at = a % step
        if not at:
            n = min(step, count - a)
            single[:n].copy_(read(a, a + n))
            if wide is not single:
                wide[:n].copy_(single[:n])
        if any_order:
            np.dot(rows[at : at + b - a], asked[owner], out=scores[a:b])
        else:  # a sum for each row by itself, whatever stands beside it
            np.sum(rows[at : at + b - a] * asked[owner], axis=1, out=scores[a:b])
    return scores.astype(np.float32) + np.float32(0)  # -0.0 becomes 0.0


def _sums(queries: Tensor, read: Read, query: Int64, step: int, kind: torch.dtype) -> Float32:
    """By sums of products: those of float16 numbers are exact in float32."""
    import torch

    products = torch.float32 if queries.dtype == torch.float16 else kind
    own = torch.from_numpy(query).to(queries.device)
    scores = torch.empty(len(query), dtype=torch.float32, device=queries.device)
    for a in range(0, len(query), step):
        b = min(len(query), a + step)
        scores[a:b] = (read(a, b).to(products) * queries[own[a:b]].to(products)).sum(1, dtype=kind)
    return scores.add_(0.0).cpu().numpy()


def score_pairs(
    queries: Tensor, pool: Vectors, query: Int64, rows: Int64, step: int, score: Score = exact
) -> Float32:
    """Canonical scores of pairs of a query and a row of the pool, which is read `step` rows at a time, or
    `rough` ones."""
    return score(queries, lambda a, b: pool.take(rows[a:b]), query, step)


def rescore(request: SearchRequest, query: Int64, rows: Int64, score: Score = exact) -> Float32:
    """Canonical scores of pairs, or `rough` ones, [P] float32; fastest where `query` ascends."""
    pool, asked = (Vectors(x, on_device(request.device)) for x in (request.pool, request.queries))
    scores = np.empty(len(query), dtype=np.float32)
    step = gathered_rows(request)
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    ends = [*starts[step::step].tolist(), len(query)]
    for a, b in pairwise([0, *ends]):
        new = np.diff(query[a:b], prepend=-1) != 0
        some = asked.take(query[a:b][new])
        scores[a:b] = score_pairs(some, pool, np.cumsum(new) - 1, rows[a:b], step, score)
    return scores


def gathered_rows(request: SearchRequest) -> int:
    """How many rows to gather at a time: few enough to stay near the processor while they are scored."""
    return max(1, min(request.memory // 8 // 16, 1 << 20) // request.pool.dim)


def best(query: Int64, rows: Int64, scores: Float32, *, queries: int, k: int) -> tuple[Int32, Float32]:
    """The best `k` of scored pairs per query: rows and scores [Q, k], padded with -1 and -inf."""
    order = np.lexsort((rows, -scores, query))
    return best_sorted(query[order], rows[order], scores[order], queries, k)


def best_sorted(query: Int64, rows: Int64, scores: Float32, queries: int, k: int) -> tuple[Int32, Float32]:
    """The same of pairs that are sorted by query and rank."""
    count = np.bincount(query, minlength=queries)
    place = np.arange(len(query)) - (np.cumsum(count) - count)[query]
    keep = place < k
    top_rows = np.full((queries, k), -1, dtype=np.int32)
    top_scores = np.full((queries, k), -np.inf, dtype=np.float32)
    top_rows[query[keep], place[keep]] = rows[keep]
    top_scores[query[keep], place[keep]] = scores[keep]
    return top_rows, top_scores
