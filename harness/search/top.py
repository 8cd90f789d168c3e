"""The running best k of a block of queries on a CPU.

In numpy, whose partial sorts and lists of indices take a tenth of the time of torch's on a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.run import Float32, Int32, Int64, SearchRequest
from harness.search.plan import Plan
from harness.search.rows import Vectors
from harness.search.scores import LAST, NOTHING, exact_pairs, keys_of, rows_of, scores_of, tolerance
from harness.search.tile import GROUP, Int16, Scored, Sieve, order, single

if TYPE_CHECKING:
    from torch import Tensor

_LOWEST = np.float32(-4)
"""Below every score of unit rows, and above -inf, which marks pairs that are no candidates."""


class Top:
    """What can still be among the best k of each query, by rough scores.

    A rough score is within eps of the canonical one, and rounded: the k-th best rough score seen tells
    what the k-th best canonical one is at least, and what lies too far below it is out: `_bound`. Where
    more are within reach than there is room for, their canonical scores decide (`_settle`); behind a
    sieve, float32 ones do (`_sharpen`).
    """

    def __init__(
        self, request: SearchRequest, plan: Plan, k: int, queries: Tensor, sieve: Sieve | None
    ) -> None:
        b = len(queries)
        self._k, self._queries, self._gather = k, queries, plan.gather
        self._pool = Vectors(request.pool, request.device)
        self._sharp = np.full(b, tolerance(request.pool.dim, request.device), np.float32)
        self._eps: Float32 = self._sharp if sieve is None else sieve.eps.numpy()
        self._rounding = np.float32(0 if sieve is None else sieve.ROUNDING)
        self._crowded = False
        self._primed = False
        self._bound = np.full(b, _LOWEST)
        self._keys = np.full((b, plan.width), NOTHING)
        self._fill = np.zeros(b, np.int64)
        self._exact = np.zeros(b, np.bool_)
        self._due = 0  # how many may be kept before what they leave one another is worth a look

    def offer(self, scored: Scored) -> bool:
        ordered = scored.ordered().numpy()
        if not self._primed and ordered.shape[1] >= self._k:
            least = ordered.shape[1] - self._k
            self._raise(slice(None), single(np.partition(ordered, least, axis=1)[:, least]))
            self._primed = True
        # Nothing orders what bfloat16 has below 0.
        self._crowded = bool(self._rounding) and bool((self._bound <= 0).any())
        bound = order(self._bound, ordered)
        groups = scored.maxima().numpy() >= bound[:, None]
        # Lists of hits of all scores of a tile at once would take several times its memory.
        step = len(groups) if groups.sum() * 4 <= groups.size else max(1, len(groups) // 8)
        for a in range(0, len(groups), step):
            if not self._crowded:
                self._add(scored, ordered, groups[a : a + step], bound, a)
        if self._crowded:
            self._sharpen(scored)
            return False
        if self._fill.sum() > self._due:
            self._compress()
        return True

    def _add(
        self,
        scored: Scored,
        ordered: Float32 | Int16,
        groups: npt.NDArray[np.bool_],
        bound: Float32 | Int16,
        first: int,
    ) -> None:
        """Keep the scores of these groups, of the queries from `first` on, that reach the bound."""
        per_query = groups.shape[1]
        index = np.flatnonzero(groups)
        query = index // per_query + first
        values = ordered.reshape(-1, GROUP).take(index + first * per_query, axis=0)
        hit = np.flatnonzero(values >= bound[query][:, None])
        group = hit // GROUP
        row = index[group] % per_query * GROUP + hit % GROUP + scored.start
        self._append(scored, query[group], keys_of(single(values.reshape(-1)[hit]), row))

    def _append(self, scored: Scored, query: Int64, keys: Int64) -> None:
        count = self._count(query)
        if (self._fill + count).max() > self._keys.shape[1]:
            query, keys = self._make_room(scored, query, keys)
            count = self._count(query)
        self._keys[query, self._fill[query] + _places(query, count)] = keys
        self._fill += count
        self._exact &= count == 0

    def _count(self, query: Int64) -> Int64:
        return np.bincount(query, minlength=len(self._fill))

    def _make_room(self, scored: Scored, query: Int64, keys: Int64) -> tuple[Int64, Int64]:
        """The hits that are left, and fit, once bounds are raised and crowded queries merged."""
        self._compress()
        keep = keys <= self._limit(slice(None))[query]
        query, keys = query[keep], keys[keep]
        crowded = self._fill + self._count(query) > self._keys.shape[1]
        if crowded.any():
            inside = crowded[query]
            self._merge(scored, np.flatnonzero(crowded), query[inside], keys[inside])
            query, keys = query[~inside], keys[~inside]
        return query, keys

    def _merge(self, scored: Scored, which: Int64, query: Int64, keys: Int64) -> None:
        """Keep of these queries' kept ones and hits what they leave one another."""
        count, kept, width = self._count(query)[which], int(self._fill.max()), self._keys.shape[1]
        line = np.searchsorted(which, query)
        both = np.full((len(which), max(width, kept + int(count.max()))), NOTHING)
        both[:, :kept] = self._keys[which, :kept]
        both[line, kept + _places(line, count)] = keys
        both.sort(axis=1)
        self._raise(which, scores_of(both[:, self._k - 1]))
        left = (both <= self._limit(which)[:, None]).sum(1)
        tight = left > width
        if tight.any():
            if self._rounding:
                self._crowded = True
                return
            both[tight] = self._settle(scored, which[tight], both[tight])
            left[tight] = self._k
        self._exact[which] = tight
        both[np.arange(both.shape[1]) >= left[:, None]] = NOTHING
        self._keys[which], self._fill[which] = both[:, :width], left

    def _settle(self, scored: Scored, which: Int64, keys: Int64) -> Int64:
        """The canonical keys instead of these rough ones, of kept ones and hits, in order."""
        line, place = np.nonzero(keys <= self._limit(which)[:, None])
        query, rows, score = which[line], rows_of(keys[line, place]), scores_of(keys[line, place])
        inside = (rows >= scored.start) & (rows < scored.start + scored.count)
        score[inside] = scored.exact(query[inside], rows[inside] - scored.start)
        rough = ~inside & ~self._exact[query]
        score[rough] = self._scores(query[rough], rows[rough])
        settled = np.full_like(keys, NOTHING)
        settled[line, place] = keys_of(score, rows)
        settled.sort(axis=1)
        least = scores_of(settled[:, self._k - 1]) - self._eps[which]
        self._bound[which] = np.maximum(self._bound[which], least)
        return settled

    def _scores(self, query: Int64, rows: Int64) -> Float32:
        return exact_pairs(self._queries, self._pool, query, rows, self._gather)

    def _raise(self, which: Int64 | slice, kth: Float32) -> None:
        """Raise the bounds to what the k-th best rough scores allow."""
        least = np.maximum(kth, _LOWEST)
        least = least - self._rounding * abs(least) - 2 * self._eps[which]
        least -= self._rounding * abs(least)
        self._bound[which] = np.maximum(self._bound[which], least)

    def _limit(self, which: Int64 | slice) -> Int64:
        """The last key that reaches the bound."""
        return keys_of(self._bound[which], LAST)

    def _compress(self) -> None:
        """Drop what is below the bound that the kept ones give one another."""
        kept = self._keys[:, : int(self._fill.max())]
        kept.sort(axis=1)
        if kept.shape[1] >= self._k:
            self._raise(slice(None), scores_of(kept[:, self._k - 1]))
        out = kept > self._limit(slice(None))[:, None]
        kept[out] = NOTHING
        self._fill = kept.shape[1] - out.sum(1)
        self._due = self._fill.sum() * 3 // 2 + 32 * len(self._fill)

    def _score_kept(self, which: npt.NDArray[np.bool_]) -> None:
        """Replace the rough keys that these queries have kept by canonical ones."""
        kept = self._keys[:, : int(self._fill.max())]
        query, place = np.nonzero((kept < NOTHING) & which[:, None])
        rows = rows_of(kept[query, place])
        kept[query, place] = keys_of(self._scores(query, rows), rows)
        kept.sort(axis=1)
        kept[:, self._k :] = NOTHING
        self._fill = (kept < NOTHING).sum(1)

    def _sharpen(self, scored: Scored) -> None:
        """From here on the scores are float32, those of this tile once more."""
        rows = rows_of(self._keys)
        self._keys[(rows >= scored.start) & (rows < scored.start + scored.count)] = NOTHING
        self._score_kept(~self._exact)
        self._exact[:] = True
        self._eps, self._rounding, self._crowded = self._sharp, np.float32(0), False
        self._bound = np.maximum(_LOWEST, scores_of(self._keys[:, self._k - 1]) - self._eps)

    def result(self) -> tuple[Int32, Float32, npt.NDArray[np.bool_]]:
        """rows, scores: [B, k], and whether they are certain, [B]: always."""
        self._compress()
        self._score_kept(~self._exact)
        keys = self._keys[:, : self._k]
        rows = np.where(keys == NOTHING, -1, rows_of(keys)).astype(np.int32)
        return rows, scores_of(keys), np.ones(len(keys), np.bool_)


def _places(query: Int64, count: Int64) -> Int64:
    """The place of each hit among those of its query; `query` ascends."""
    places: Int64 = np.arange(len(query)) - (np.cumsum(count) - count)[query]
    return places
