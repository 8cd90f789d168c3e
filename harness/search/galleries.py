"""Search within a scope per query: its rows are gathered and scored one by one."""

from __future__ import annotations

import numpy as np

from harness.run import Float32, Found, Int64, SearchRequest
from harness.search.counts import Counts
from harness.search.rows import pairs_of, set_of, spans
from harness.search.scores import best_sorted, rescore


def scoped(request: SearchRequest) -> Found:
    """Search limited to a scope per query: its rows are gathered and scored one by one."""
    assert request.scope is not None
    k = request.k
    size, positives = len(request.pool), request.positives
    rows = np.full((len(positives), k), -1, dtype=np.int32)
    scores = np.full((len(positives), k), -np.inf, dtype=np.float32)
    found = Counts.empty(len(positives.values))
    for a, b in spans(request.scope.indptr, max(1, request.memory // 256)):
        # One int64 per pair: sorted, without repeats, and ready for the set operations.
        excluded = set_of(request.exclude, a, b, size)
        pairs = np.setdiff1d(set_of(request.scope, a, b, size), excluded, assume_unique=True)
        query, row = np.divmod(pairs, max(1, size))
        score = rescore(request, query + a, row)
        order = np.lexsort((-score, query))  # stable, and pairs ascend by row
        rows[a:b], scores[a:b] = best_sorted(query[order], row[order], score[order], b - a, k)
        at = slice(int(positives.indptr[a]), int(positives.indptr[b]))
        found.put(at, _places(pairs, query, score, order, pairs_of(positives, a, b, size)))
    return found.answer(rows, scores)


def _places(pairs: Int64, query: Int64, score: Float32, order: Int64, wanted: Int64) -> Counts:
    """The places of `wanted` pairs among all `pairs` (ascending; `order` ranks them)."""
    found = Counts.empty(len(wanted))
    if not len(pairs) or not len(wanted):
        return found
    index = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
    reached = np.flatnonzero(pairs[index] == wanted)
    q, s = query[order], score[order]
    first = np.flatnonzero(np.concatenate(([True], (q[1:] != q[:-1]) | (s[1:] != s[:-1]))))
    length = np.diff(first, append=len(order))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    mine = place[index[reached]]
    run = np.searchsorted(first, mine, side="right") - 1
    part = Counts(
        score[index[reached]],
        (first[run] - np.searchsorted(query, query[index[reached]])).astype(np.int32),
        (length[run] - 1).astype(np.int32),
        (mine - first[run]).astype(np.int32),
    )
    found.put(reached, part)
    return found
