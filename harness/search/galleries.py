"""Search within a scope per query: its rows are gathered and scored one by one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from harness.run import Found, Int64, SearchRequest
from harness.search.counts import Counts
from harness.search.rows import pairs_of, set_of, spans, within
from harness.search.scores import LAST, best_sorted, keys_of, rescore, rows_of, scores_of


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
        query, row = np.divmod(pairs, max(1, size))
        keys = keys_of(rescore(request, query + a, row), row)
        wanted = pairs_of(positives, a, b, size)
        reached = np.flatnonzero(within(pairs, wanted))
        mine = keys[np.searchsorted(pairs, wanted[reached])]
        ends = np.searchsorted(query, np.arange(b - a + 1)).tolist()
        for first, last in pairwise(ends):
            keys[first:last].sort()
        rows[a:b], scores[a:b] = best_sorted(query, rows_of(keys), scores_of(keys), b - a, k)
        owner = np.searchsorted(positives.indptr, reached + positives.indptr[a], side="right") - 1 - a
        at = reached + int(positives.indptr[a])
        found.put(at, _places(keys, ends, mine, owner))
    return found.answer(rows, scores)


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
