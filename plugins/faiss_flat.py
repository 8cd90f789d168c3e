"""Search by faiss: a flat inner-product index proposes, canonical scores decide.

faiss ranks by float32 sums and breaks ties as it likes, so it is asked for more than k candidates;
an answer counts once nothing that faiss left out can belong to it. The whole pool is held in
float32: on the GPUs where faiss has some, else in memory.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from harness.run import Float32, Found, Int32, Int64, Ragged, Searcher, SearchRequest
from harness.search import best, check, only, placed, rescore, scoped, tolerance
from harness.search import search as exhaustive

_SPARE = 32
"""Candidates beyond k: enough unless scores crowd at the k-th place."""
_WIDEST = 2048
"""What a GPU index can return; where that does not decide, scores are degenerate."""
_BLOCK = 1 << 14


def search(request: SearchRequest) -> Found:
    """Equal in every field to `harness.search.search`.

    Raises HarnessError without faiss, and where the pool does not fit the memory budget.
    """
    faiss = _faiss()
    check(request)
    if request.scope is not None:
        return scoped(request)
    on_gpu = hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() > 0
    eps = tolerance(request.pool.dim, "cuda" if on_gpu else "cpu")
    index = _index(faiss, request, on_gpu)
    queries, size = len(request.queries), len(request.pool)
    k = request.k + 1  # one more than asked: it tells whether a tie goes on
    rows = np.full((queries, k), -1, dtype=np.int32)
    scores = np.full((queries, k), -np.inf, dtype=np.float32)
    left = np.arange(queries)
    excluded = 0 if request.exclude is None else int(np.diff(request.exclude.indptr).max(initial=0))
    width = k + excluded + _SPARE
    while size and len(left) and width <= _WIDEST:
        certain = np.zeros(len(left), dtype=bool)
        step = max(1, request.memory // 4 // (64 * width + 8 * request.pool.dim))
        for a in range(0, len(left), step):
            part = left[a : a + step]
            rows[part], scores[part], low = _propose(index, request, part, k, min(width, size))
            certain[a : a + step] = (width >= size) | (low + eps < scores[part, -1])
        left, width = left[~certain], 2 * width
    if len(left):
        rest = exhaustive(replace(only(request, left, Ragged.of([()] * len(left))), k=k))
        rows[left], scores[left] = rest.rows, rest.scores
    return placed(request, rows, scores)


FAISS = Searcher("faiss", "faiss flat index, its proposals rescored exactly", search)


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise HarnessError("searcher 'faiss' needs faiss: pip install 'umr-harness[faiss]'") from error


def _index(faiss: Any, request: SearchRequest, on_gpu: bool) -> Any:
    size, dim = len(request.pool), request.pool.dim
    need = size * dim * 4
    if need > request.memory and not on_gpu:
        raise HarnessError(
            f"searcher 'faiss' holds the pool of {size} rows in {-(-need // 2**20)} MiB and the budget is"
            f" {request.memory // 2**20} MiB: raise --search-memory, or use --searcher torch"
        )
    index = faiss.IndexFlatIP(dim)
    if on_gpu:
        index = faiss.index_cpu_to_all_gpus(index)
    for start in range(0, size, _BLOCK):
        block = request.pool.block(start, min(size, start + _BLOCK))
        index.add(np.ascontiguousarray(block, dtype=np.float32))
    return index


def _propose(
    index: Any, request: SearchRequest, part: Int64, k: int, width: int
) -> tuple[Int32, Float32, Float32]:
    """Rows and canonical scores [P, k] of these queries, and the lowest score that faiss gave, [P]."""
    asked = np.ascontiguousarray(request.queries.take(part), dtype=np.float32)
    rough: Float32
    proposed: Int64
    rough, proposed = index.search(asked, width)
    query = np.repeat(np.arange(len(part), dtype=np.int64), width)
    keep = ~_excluded(request, part, query, proposed.ravel())
    query, row = query[keep], proposed.ravel()[keep]
    rows, scores = best(query, row, rescore(request, part[query], row), queries=len(part), k=k)
    return rows, scores, rough[:, -1]


def _excluded(request: SearchRequest, part: Int64, query: Int64, rows: Int64) -> npt.NDArray[np.bool_]:
    if request.exclude is None:
        return np.zeros(len(rows), dtype=bool)
    size = len(request.pool)
    pairs = [i * size + request.exclude[q].astype(np.int64) for i, q in enumerate(part.tolist())]
    return np.isin(query * size + rows, np.concatenate(pairs))
