"""Search within a scope per query: its rows are gathered and scored one by one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from harness.run import Found, Int64, SearchRequest
from harness.search.counts import Counts
from harness.search.rows import pairs_of, set_of, spans, within
from harness.search.scores import (
    LAST,
    best_sorted,
    keys_of,
    rescore,
    rough,
    rows_of,
    scores_of,
    tolerance,
)


def scoped(request: SearchRequest) -> Found:
    """Search limited to a scope per query."""
    assert request.scope is not None
    k, size, positives = request.k, len(request.pool), request.positives
    rows = np.full((len(positives), k), -1, dtype=np.int32)
    scores = np.full((len(positives), k), -np.inf, dtype=np.float32)
    found = Counts.empty(len(positives.values))
    for a, b in spans(request.scope.indptr, max(1, request.memory // 256)):
        # One int64 per pair: sorted, without repeats, and ready for the set operations.
        pairs = set_of(request.scope, a, b, size)
        pairs = pairs[~within(set_of(request.exclude, a, b, size), pairs)]
        wanted = pairs_of(positives, a, b, size)
        reached = np.flatnonzero(within(pairs, wanted))
        wanted = wanted[reached]
        pairs = _within_reach(request, pairs, a, b)
        query, row = np.divmod(pairs, max(1, size))
        keys = keys_of(rescore(request, query + a, row), row)
        kept = within(pairs, wanted)
        owner, place = np.divmod(wanted, max(1, size))
        mine = np.empty(len(wanted), np.int64)
        mine[kept] = keys[np.searchsorted(pairs, wanted[kept])]
        mine[~kept] = keys_of(rescore(request, owner[~kept] + a, place[~kept]), place[~kept])
        ends = _ends(query, b - a)
        for first, last in pairwise(ends):
            keys[first:last].sort()
        rows[a:b], scores[a:b] = best_sorted(query, rows_of(keys), scores_of(keys), b - a, k)
        at = reached + int(positives.indptr[a])
        found.put(at, _places(keys, ends, mine, owner))
    return found.answer(rows, scores)


def _within_reach(request: SearchRequest, pairs: Int64, start: int, stop: int) -> Int64:
    """Of the pairs of these queries and what is in their scopes, those that their float32 products do not
    rule out of the best k, whatever ties with the last of them included."""
    if len(pairs) < 2 * request.k * (stop - start):
        return pairs
    query, row = np.divmod(pairs, max(1, len(request.pool)))
    scores = rescore(request, query + start, row, rough)
    least = np.full(stop - start, -np.inf, np.float32)
    for i, (first, last) in enumerate(pairwise(_ends(query, stop - start))):
        if last - first > request.k:
            kth = last - first - request.k
            least[i] = np.partition(scores[first:last], kth)[kth]
    kept: Int64 = pairs[scores >= (least - 2 * tolerance(request.pool.dim, request.device))[query]]
    return kept


def _ends(query: Int64, count: int) -> list[int]:
    """Where the pairs of each query begin, and where the last one's end."""
    ends: list[int] = np.searchsorted(query, np.arange(count + 1)).tolist()
    return ends


def _places(keys: Int64, ends: list[int], mine: Int64, owner: Int64) -> Counts:
    """The places of `mine` among the sorted keys of their queries, `owner`."""
    score = scores_of(mine)
    found = Counts(score, *(np.zeros(len(mine), np.int32) for _ in range(3)))
    above, below = keys_of(score, 0), keys_of(score, LAST)
    for i, query in enumerate(owner.tolist()):
        ranked = keys[ends[query] : ends[query + 1]]
        first, place, last = (np.searchsorted(ranked, key) for key in (above[i], mine[i], below[i]))
        found.greater[i], found.equal[i], found.before[i] = first, last - first - 1, place - first
    return found
