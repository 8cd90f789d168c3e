"""How many candidates stand above, beside and before each positive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.run import BEYOND, Float32, Found, Int32, Int64, SearchRequest
from harness.search.rows import on_device, pairs_of, set_of, within
from harness.search.scores import rescore, tolerance
from harness.search.tile import Scored

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Counts:
    """What is known about each positive, [P]."""

    score: Float32
    greater: Int32
    equal: Int32
    before: Int32

    @classmethod
    def empty(cls, n: int) -> Counts:
        zeros = (np.zeros(n, dtype=np.int32) for _ in range(3))
        return cls(np.full(n, -np.inf, dtype=np.float32), *zeros)

    def put(self, at: slice | Int64, part: Counts) -> None:
        self.score[at], self.greater[at] = part.score, part.greater
        self.equal[at], self.before[at] = part.equal, part.before

    def answer(self, rows: Int32, scores: Float32) -> Found:
        """With the best k, [Q, k]: a positive that k or more candidates beat is BEYOND."""
        beyond = self.greater >= rows.shape[1]
        greater, equal, before = (
            np.where(beyond, np.int32(value), counts)
            for value, counts in ((BEYOND, self.greater), (0, self.equal), (0, self.before))
        )
        return Found(rows, scores, self.score, greater, equal, before)


class Places:
    """The counts for all reachable positives of a block of queries.

    Scores more than eps above or below a positive's are settled; those within are scored exactly.
    """

    def __init__(self, request: SearchRequest, start: int, stop: int) -> None:
        import torch

        size, positives = len(request.pool), request.positives
        pairs = pairs_of(positives, start, stop, size)
        reached = (pairs >= 0) & ~within(set_of(request.exclude, start, stop, size), pairs)
        query, row = np.divmod(pairs[reached], max(1, size))
        # The first positives of all queries, then the second ones, and so on: within each level a
        # query stands once, so that a level is a comparison of rows with one number each.
        level = np.arange(len(query)) - np.searchsorted(query, query)
        order = np.lexsort((query, level))
        self._scores = rescore(request, query + start, row)[order]
        self.index: Int64 = (np.flatnonzero(reached) + int(positives.indptr[start]))[order]
        device = on_device(request.device)
        self._eps = tolerance(request.pool.dim, request.device)
        self._query = torch.from_numpy(query[order]).to(device)
        self._row = torch.from_numpy(row[order]).to(device)
        self._score = torch.from_numpy(self._scores).to(device)
        self._ends = np.cumsum(np.bincount(level)).tolist() if len(level) else []
        self._counts = torch.zeros(3, len(query), dtype=torch.int64, device=device)

    def offer(self, scored: Scored) -> bool:
        best = scored.scores.amax(1)
        for a, b in zip([0, *self._ends], self._ends, strict=False):
            self._level(scored, best, a, b)
        return True

    def _level(self, scored: Scored, best: Tensor, a: int, b: int) -> None:
        import torch

        query, score = self._query[a:b], self._score[a:b]
        low, high = score - self._eps, score + self._eps
        if not bool((best[query] >= low).any()):
            return
        scores = scored.scores if b - a == len(scored.scores) else scored.scores.index_select(0, query)
        above = torch.gt(scores, high[:, None], out=scored.compared(scores)).sum(1).long()
        reached = torch.ge(scores, low[:, None], out=scored.compared(scores)).sum(1).long()
        self._counts[0, a:b] += above
        near = reached - above
        some = near.nonzero().view(-1)
        # As in `_Top.offer`: lists of all pairs of a tile at once would not fit.
        step = max(1, len(scores) if int(near.sum()) * 8 <= scores.numel() else len(scores) // 8)
        for i in range(0, len(some), step):
            self._near(scored, scores, some[i : i + step], a)

    def _near(self, scored: Scored, scores: Tensor, part: Tensor, first: int) -> None:
        """Count the pairs whose rough score decides nothing."""
        import torch

        at = part + first
        score, scores = self._score[at], scores[part]
        near = (scores >= (score - self._eps)[:, None]) & (scores <= (score + self._eps)[:, None])
        which, column = near.nonzero(as_tuple=True)
        pairs = self._query[at][which].cpu().numpy(), column.cpu().numpy()
        exact = torch.from_numpy(scored.exact(*pairs)).to(column.device)
        row, mine, equal = column + scored.start, self._row[at][which], exact == score[which]
        kinds = exact > score[which], equal & (row != mine), equal & (row < mine)
        for counts, kind in zip(self._counts, kinds, strict=True):
            counts[at] += torch.bincount(which[kind], minlength=len(at))

    def result(self) -> Counts:
        greater, equal, before = self._counts.int().cpu().numpy()
        return Counts(self._scores, greater, equal, before)
