"""Requests over one pool as one, so that it is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.run import Found, Int64, Ragged, Rows, Search, SearchRequest
from harness.search.counts import Counts


def search_together(requests: Sequence[SearchRequest], search: Search) -> list[Found]:
    """The answer to each request; the first one's pool is that of all, and none has a scope."""
    if len(requests) == 1:
        return [search(requests[0])]
    excludes = any(request.exclude is not None for request in requests)
    found = search(
        replace(
            requests[0],
            queries=_Chained([request.queries for request in requests]),
            k=max(request.k for request in requests),
            positives=_chained([request.positives for request in requests]),
            exclude=_chained([_excluded(request) for request in requests]) if excludes else None,
        )
    )
    answers = []
    query = positive = 0
    for request in requests:
        queries = slice(query, query := query + len(request.queries))
        positives = slice(positive, positive := positive + len(request.positives.values))
        counts = Counts(
            found.positive_scores[positives],
            found.greater[positives],
            found.equal[positives],
            found.before[positives],
        )
        answers.append(counts.answer(found.rows[queries, : request.k], found.scores[queries, : request.k]))
    return answers


def _excluded(request: SearchRequest) -> Ragged:
    return Ragged.of([()] * len(request.queries)) if request.exclude is None else request.exclude


def _chained(lists: Sequence[Ragged]) -> Ragged:
    starts = np.cumsum([0, *(len(each.values) for each in lists)])
    ends = [each.indptr[1:] + start for each, start in zip(lists, starts, strict=False)]
    return Ragged(np.concatenate([[0], *ends]), np.concatenate([each.values for each in lists]))


@dataclass(frozen=True, slots=True)
class _Chained:
    """Rows one after another."""

    parts: Sequence[Rows]

    @property
    def dim(self) -> int:
        return self.parts[0].dim

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def block(self, start: int, stop: int) -> npt.NDArray[np.floating[Any]]:
        blocks = [
            part.block(max(0, start - first), min(len(part), stop - first))
            for part, first in zip(self.parts, self._starts(), strict=False)
            if start < first + len(part) and first < stop
        ]
        return np.concatenate(blocks) if blocks else self.parts[0].block(0, 0)

    def take(self, rows: Int64) -> npt.NDArray[np.floating[Any]]:
        starts = self._starts()
        owner = np.searchsorted(starts, rows, side="right") - 1
        out = np.empty((len(rows), self.dim), self.parts[0].block(0, 0).dtype)
        for number in np.unique(owner).tolist():
            here = owner == number
            out[here] = self.parts[number].take(rows[here] - starts[number])
        return out

    def _starts(self) -> Int64:
        return np.cumsum([0, *map(len, self.parts)])
