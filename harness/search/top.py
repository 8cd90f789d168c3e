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
from harness.search.scores import LAST, NOTHING, keys_of, rows_of, score_pairs, scores_of, tolerance
from harness.search.tile import Scored, Sieve, order, single

if TYPE_CHECKING:
    from torch import Tensor

_GROUP = 16
"""Scores per maximum."""
_NONE: Int64 = np.zeros(0, np.int64)
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
        self._primed = False
        self._waiting: list[tuple[Int64, Int64]] = []  # queries and keys of hits
        self._count_waiting = 0
        self._room = b * max(4, k // 4)  # how many may wait to be kept together
        self._bound = np.full(b, _LOWEST)
        self._keys = np.full((b, plan.width), NOTHING)
        self._fill = np.zeros(b, np.int64)
        self._exact = np.zeros(b, np.bool_)
        self._due = 0  # how many may be kept before what they leave one another is worth a look

    def offer(self, scored: Scored) -> bool:
        ordered = scored.ordered().T  # [C, B], the scores of a candidate side by side
        if not self._primed and len(ordered) >= self._k:
            self._prime(ordered)
        if self._rounding and (self._bound <= 0).any():  # nothing orders what bfloat16 has below 0
            return self._sharpen(scored)
        groups = ordered.view(-1, _GROUP, len(self._bound))
        bound = order(self._bound, groups.numpy())
        reached = groups.amax(1).numpy() >= bound
        # Lists of hits of all scores of a tile at once would take several times its memory.
        step = len(reached) if np.count_nonzero(reached) * 4 <= reached.size else max(1, len(reached) // 8)
        for a in range(0, len(reached), step):
            group, query = np.divmod(np.flatnonzero(reached[a : a + step]), len(bound))
            scores = groups.numpy()[group + a, :, query]
            hit = np.flatnonzero(scores >= bound[query][:, None])
            which = hit // _GROUP
            row = (group[which] + a) * _GROUP + hit % _GROUP + scored.start
            self._waiting.append((query[which], keys_of(single(scores.reshape(-1)[hit]), row)))
            self._count_waiting += len(hit)
            if self._count_waiting > self._room and not self._keep(scored):
                return False
        return True

    def _prime(self, ordered: Tensor) -> None:
        """Raise the bounds to what the k-th best of a first tile allows, or of the maxima of every four."""
        if len(ordered) >= 8 * self._k:
            ordered = ordered.view(-1, 4, len(self._bound)).amax(1)
        by_query = np.array(ordered.T.numpy(), order="C")
        least = by_query.shape[1] - self._k
        by_query.partition(least, axis=1)
        self._raise(slice(None), single(by_query[:, least]))
        self._primed = True

    def _keep(self, scored: Scored | None = None) -> bool:
        """Keep the hits that wait; False as `offer` says it."""
        if not self._waiting:
            return True
        query, keys = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self._count_waiting = 0
        by_query = np.argsort(query.astype(np.int16), kind="stable")
        return self._append(scored, query[by_query], keys[by_query])

    def _append(self, scored: Scored | None, query: Int64, keys: Int64) -> bool:
        if (self._fill + self._count(query)).max() > self._keys.shape[1]:
            self._compress()
            fit = self._fitting(scored, query, keys)
            if fit is None:
                return self._sharpen(scored, query, keys)
            query, keys = fit
        count = self._count(query)
        self._keys[query, self._fill[query] + _places(query, count)] = keys
        self._fill += count
        self._exact &= count == 0
        if self._fill.sum() > self._due:
            self._compress()
        return True

    def _count(self, query: Int64) -> Int64:
        return np.bincount(query, minlength=len(self._fill))

    def _fitting(self, scored: Scored | None, query: Int64, keys: Int64) -> tuple[Int64, Int64] | None:
        """The hits that reach the bound and fit, once crowded queries are merged with theirs; None where
        those, behind a sieve, cannot be told apart."""
        keep = keys <= self._limit(slice(None))[query]
        query, keys = query[keep], keys[keep]
        crowded = self._fill + self._count(query) > self._keys.shape[1]
        inside = crowded[query]
        if crowded.any() and not self._merge(scored, np.flatnonzero(crowded), query[inside], keys[inside]):
            return None
        return query[~inside], keys[~inside]

    def _merge(self, scored: Scored | None, which: Int64, query: Int64, keys: Int64) -> bool:
        """Keep of these queries' kept ones and hits what they leave one another; False where that is too
        much, and rough."""
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
                return False
            both[tight] = self._settle(scored, which[tight], both[tight])
            left[tight] = self._k
        self._exact[which] = tight
        both[np.arange(both.shape[1]) >= left[:, None]] = NOTHING
        self._keys[which], self._fill[which] = both[:, :width], left
        return True

    def _settle(self, scored: Scored | None, which: Int64, keys: Int64) -> Int64:
        """The canonical keys instead of these rough ones, of kept ones and hits, in order."""
        line, place = np.nonzero(keys <= self._limit(which)[:, None])
        query, rows, score = which[line], rows_of(keys[line, place]), scores_of(keys[line, place])
        rough = ~self._exact[query]
        if scored is not None:
            inside = scored.holds(rows)
            score[inside] = scored.exact(query[inside], rows[inside] - scored.start)
            rough &= ~inside
        score[rough] = self._scores(query[rough], rows[rough])
        settled = np.full_like(keys, NOTHING)
        settled[line, place] = keys_of(score, rows)
        settled.sort(axis=1)
        least = scores_of(settled[:, self._k - 1]) - self._eps[which]
        self._bound[which] = np.maximum(self._bound[which], least)
        return settled

    def _scores(self, query: Int64, rows: Int64) -> Float32:
        return score_pairs(self._queries, self._pool, query, rows, self._gather)

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

    def _sharpen(self, scored: Scored | None, query: Int64 = _NONE, keys: Int64 = _NONE) -> bool:
        """From here on the scores are float32, those of this tile once more: False."""
        self._decide(scored, query, keys)
        self._eps, self._rounding, self._primed = self._sharp, np.float32(0), False
        self._bound = np.maximum(_LOWEST, scores_of(self._keys[:, self._k - 1]) - self._eps)
        return False

    def _decide(self, scored: Scored | None, query: Int64, keys: Int64) -> None:
        """Keep the best k by canonical scores, of what is kept and these hits, this tile's left out."""
        kept, place = np.nonzero(self._keys < NOTHING)
        query, rows = np.append(kept, query), rows_of(np.append(self._keys[kept, place], keys))
        if scored is not None:
            earlier = ~scored.holds(rows)
            query, rows = query[earlier], rows[earlier]
        by_query = np.argsort(query, kind="stable")
        query, rows = query[by_query], rows[by_query]
        count = self._count(query)
        both = np.full((len(count), max(self._k, int(count.max()))), NOTHING)
        both[query, _places(query, count)] = keys_of(self._scores(query, rows), rows)
        both.sort(axis=1)
        self._keys[:] = NOTHING
        self._keys[:, : self._k] = both[:, : self._k]
        self._fill = np.minimum(count, self._k)
        self._exact[:] = True

    def result(self) -> tuple[Int32, Float32, npt.NDArray[np.bool_]]:
        """rows, scores: [B, k], and whether they are certain, [B]: always."""
        if self._keep():
            self._compress()
            self._decide(None, _NONE, _NONE)
        keys = self._keys[:, : self._k]
        rows = np.where(keys == NOTHING, -1, rows_of(keys)).astype(np.int32)
        return rows, scores_of(keys), np.ones(len(keys), np.bool_)


def _places(query: Int64, count: Int64) -> Int64:
    """The place of each hit among those of its query; `query` ascends."""
    places: Int64 = np.arange(len(query)) - (np.cumsum(count) - count)[query]
    return places
