"""The running best k of a block of queries on CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.run import Float32, Int32, SearchRequest
from harness.search.plan import Plan
from harness.search.rows import Vectors, on_device
from harness.search.scores import LAST, NOTHING, keys_of, rows_of, score_pairs, scores_of, tolerance
from harness.search.tile import GROUP, Scored, Sieve

if TYPE_CHECKING:
    from torch import Tensor


class DeviceTop:
    """The `plan.width` best of each query by rough scores.

    They lie in as many groups of the largest maxima, so that a tile costs no list of hits, whose
    length the host would have to wait for. Whether all of the best k are among them turns out in the end.
    """

    def __init__(
        self, request: SearchRequest, plan: Plan, k: int, queries: Tensor, sieve: Sieve | None
    ) -> None:
        import torch

        self._k, self._queries, self._gather = k, queries, plan.gather
        self._pool = Vectors(request.pool, on_device(request.device))
        self._eps = np.float32(tolerance(request.pool.dim, request.device))
        shape, device = (len(queries), plan.width), queries.device
        self._scores = torch.full(shape, -torch.inf, device=device)
        self._rows = torch.full(shape, LAST, dtype=torch.int32, device=device)
        self._inner = torch.arange(GROUP, device=device)

    def offer(self, scored: Scored) -> bool:
        import torch

        width, scores = self._scores.shape[1], scored.scores
        maxima = scores.reshape(len(scores), -1, GROUP).amax(2)
        if width < maxima.shape[1]:
            groups = maxima.topk(width, sorted=False).indices
            column = (groups[:, :, None] * GROUP + self._inner).flatten(1)
            scores = scores.gather(1, column)
            scores, at = scores.topk(width, sorted=False)
            column = column.gather(1, at)
        else:
            scores, column = scores.topk(min(width, scores.shape[1]), sorted=False)
        rows = torch.cat([self._rows, (column + scored.start).int()], 1)
        self._scores, at = torch.cat([self._scores, scores], 1).topk(width)
        self._rows = rows.gather(1, at)
        return True

    def result(self) -> tuple[Int32, Float32, npt.NDArray[np.bool_]]:
        """rows, scores: [B, k], and whether they are certain, [B]: all that was left out scores less."""
        rough, rows = self._scores.cpu().numpy(), self._rows.cpu().numpy()
        query, place = np.nonzero(rough > -np.inf)
        keys = np.full(rough.shape, NOTHING)
        found = rows[query, place].astype(np.int64)
        score = score_pairs(self._queries, self._pool, query, found, self._gather)
        keys[query, place] = keys_of(score, found)
        keys.sort(axis=1)
        keys = keys[:, : self._k]
        scores = scores_of(keys)
        certain = (rough[:, -1] == -np.inf) | (rough[:, -1] + self._eps < scores[:, -1])
        return np.where(keys == NOTHING, -1, rows_of(keys)).astype(np.int32), scores, certain
