"""A collection: queries, the pool they are asked of, and what is relevant to whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from harness.content import Candidate, Query
from harness.errors import DataInvalid

T = TypeVar("T")
Qrels = Mapping[str, Mapping[str, int]]
"""query id → candidate id → grade; a grade of 1 or more is relevant."""


@dataclass(frozen=True, slots=True)
class Chain(Sequence[T]):
    """Sequences one after another, as one; nothing is copied."""

    parts: tuple[Sequence[T], ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self.parts)

    def __getitem__(self, at: int) -> T:  # type: ignore[override]
        left = at if at >= 0 else at + len(self)
        for part in self.parts if left >= 0 else ():
            if left < len(part):
                return part[left]
            left -= len(part)
        raise IndexError(at)


@dataclass(frozen=True, slots=True, eq=False)
class Subset(Sequence[T]):
    """Some rows of a sequence, ascending, as one; nothing is copied."""

    base: Sequence[T]
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> T:  # type: ignore[override]
        return self.base[int(self.rows[at])]


@dataclass(frozen=True, slots=True)
class Pool:
    """The candidates searched, in their fixed order; a union of pools is a pool.

    A sequence of candidates may be a file: one that offers `ids` (a sequence of strings),
    `modalities` and a `fingerprint`, as `harness.table.Table` does, is never read more often than
    needed.
    """

    name: str
    candidates: Sequence[Candidate] | tuple[Pool, ...]

    def leaves(self) -> Iterator[Sequence[Candidate]]:
        """The plain sequences that the pool is made of, in order."""
        if self.candidates and isinstance(self.candidates[0], Pool):
            for pool in self.candidates:
                assert isinstance(pool, Pool)
                yield from pool.leaves()
        else:
            yield self.candidates  # type: ignore[misc]

    def __iter__(self) -> Iterator[Candidate]:
        for leaf in self.leaves():
            yield from leaf

    def __len__(self) -> int:
        return sum(map(len, self.leaves()))

    @property
    def sequence(self) -> Sequence[Candidate]:
        """All candidates in order, by integer index."""
        leaves = tuple(self.leaves())
        return leaves[0] if len(leaves) == 1 else Chain(leaves)

    @property
    def ids(self) -> Sequence[str]:
        """The ids of all candidates in order."""
        return _ids(self.sequence)

    def rows_of(self, ids: Container[str]) -> dict[str, int]:
        """The row of each of these ids that is in the pool."""
        return {name: row for row, name in enumerate(self.ids) if name in ids}

    def subset(self, rows: npt.NDArray[np.int64]) -> Pool:
        """The pool cut to these rows (ascending)."""
        return self if len(rows) == len(self) else Pool(self.name, Subset(self.sequence, rows))


def union(name: str, pools: Sequence[Pool]) -> Pool:
    """The pools one after another as one; of candidates with equal id and content the first stays.

    Raises DataInvalid where one id has two contents.
    """
    repeats = np.array(_repeats(Pool(name, tuple(pools))), np.int64)
    starts = np.cumsum([0, *map(len, pools)])
    kept = (
        pool.subset(np.setdiff1d(np.arange(len(pool)), repeats - start))
        for pool, start in zip(pools, starts, strict=False)
    )
    return Pool(name, tuple(kept))


def _ids(candidates: Sequence[Candidate]) -> Sequence[str]:
    if isinstance(candidates, Chain):
        return Chain(tuple(map(_ids, candidates.parts)))
    if isinstance(candidates, Subset):
        return Subset(_ids(candidates.base), candidates.rows)
    ids: Sequence[str] | None = getattr(candidates, "ids", None)
    return [c.id for c in candidates] if ids is None else ids


@dataclass(frozen=True, slots=True)
class Collection:
    """All that a task is: frozen, decoded nowhere, the same at every load.

    `qrels` None means that the truth is hidden: a run can be made and exported, not scored.
    `scope` limits a query to the listed candidates (a gallery); `exclude` takes candidates out
    of one query's ranking; `groups` are named subsets of query ids, scored separately.
    """

    queries: Sequence[Query]
    pool: Pool
    qrels: Qrels | None
    scope: Mapping[str, Sequence[str]] | None = None
    exclude: Mapping[str, Sequence[str]] | None = None
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def positives(self, query: str) -> dict[str, int]:
        """The relevant candidates of a query and their grades."""
        return {c: g for c, g in (self.qrels or {}).get(query, {}).items() if g > 0}

    def without(self, queries: Iterable[str], candidates: Iterable[str]) -> Collection:
        """The collection as if these queries and candidates had never been part of it.

        A query that loses all its positives goes too.
        """
        gone, lost = set(candidates), set(queries)
        qrels = self.qrels
        if qrels is not None:
            left = {q: {c: g for c, g in grades.items() if c not in gone} for q, grades in qrels.items()}
            lost |= {q for q in qrels if self.positives(q) and not any(g > 0 for g in left[q].values())}
            qrels = {q: grades for q, grades in left.items() if q not in lost}
        return self._keep(lambda query: query not in lost, lambda candidate: candidate not in gone, qrels)

    def limited(self, n: int) -> Collection:
        """A smoke test: the first `n` queries, and all they need plus the first `n` candidates."""
        queries = {q.id for q in islice(self.queries, n)}
        needed = set(islice(self.pool.ids, n))
        for named in (self.qrels, self.scope, self.exclude):
            for query in queries:
                needed.update((named or {}).get(query, ()))
        qrels = None if self.qrels is None else {q: g for q, g in self.qrels.items() if q in queries}
        return self._keep(queries.__contains__, needed.__contains__, qrels)

    def _keep(
        self, query: Callable[[str], bool], candidate: Callable[[str], bool], qrels: Qrels | None
    ) -> Collection:
        def narrowed(named: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]] | None:
            if named is None:
                return None
            return {q: list(filter(candidate, ids)) for q, ids in named.items() if query(q)}

        rows = [row for row, name in enumerate(self.pool.ids) if candidate(name)]
        return dataclasses.replace(
            self,
            queries=[q for q in self.queries if query(q.id)],
            pool=self.pool.subset(np.array(rows, dtype=np.int64)),
            qrels=qrels,
            scope=narrowed(self.scope),
            exclude=narrowed(self.exclude),
            groups={name: list(filter(query, ids)) for name, ids in self.groups.items()},
        )


def checked(collection: Collection) -> tuple[Collection, dict[str, int]]:
    """The collection with repeats dropped, and what was counted on the way.

    What published data sets really contain is counted: repeats of a candidate with equal content
    (dropped), positives outside the pool (kept in the qrels, never retrieved), queries without
    qrels (they score 0). Raises DataInvalid for what cannot be scored at all: one id with two
    contents, a repeated query id, an item without parts, qrels, scope or groups of queries that
    are not there, a scope or an exclusion naming unknown candidates, an empty pool.
    """
    pool = collection.pool
    queries = {}
    for query in collection.queries:
        if query.id in queries:
            raise DataInvalid(f"query id {query.id!r} occurs twice: query ids must be unique")
        queries[query.id] = query
        _require_parts("query", query)
    if not queries:
        raise DataInvalid("there are no queries")
    if not len(pool):
        raise DataInvalid(f"pool {pool.name!r} has no candidates")
    for leaf in pool.leaves():
        if getattr(leaf, "fingerprint", None) is None:  # a table has checked its rows
            for candidate in leaf:
                _require_parts("candidate", candidate)
    repeats = _repeats(pool)
    positives = {q: collection.positives(q) for q in collection.qrels or {}}
    limits = {"scope": collection.scope or {}, "exclude": collection.exclude or {}}
    named = {c for lists in (positives, *limits.values()) for ids in lists.values() for c in ids}
    present = pool.rows_of(named)
    for kind, lists in limits.items():
        for query_id, ids in lists.items():
            _known(kind, [query_id], queries, "query")
            _known(f"{kind} of query {query_id!r}", ids, present, "candidate")
    for group, ids in collection.groups.items():
        _known(f"group {group!r}", ids, queries, "query")
    counts = {
        "queries": len(queries),
        "candidates": len(pool) - len(repeats),
        "repeats_dropped": len(repeats),
    }
    if collection.qrels is not None:
        _known("qrels", collection.qrels, queries, "query")
        relevant = [c for grades in positives.values() for c in grades]
        outside = sum(c not in present for c in relevant)
        if relevant and outside == len(relevant):
            raise DataInvalid(
                f"none of the {outside} positives in the qrels is in pool {pool.name!r}"
                f" (first: {relevant[0]!r}): qrels and pool do not belong together"
            )
        counts |= {
            "qrels": len(relevant),
            "positives_outside_pool": outside,
            "queries_without_qrels": len(queries) - sum(map(bool, positives.values())),
        }
    if len(repeats):
        kept = np.delete(np.arange(len(pool), dtype=np.int64), repeats)
        collection = dataclasses.replace(collection, pool=pool.subset(kept))
    return collection, counts


def _repeats(pool: Pool) -> list[int]:
    """The rows whose candidate stands earlier in the pool too; raises DataInvalid where one id has
    two contents. Ids are compared by their hashes first: millions of them need not be kept."""
    ids = pool.ids
    hashes = np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))
    order = np.argsort(hashes, kind="stable")
    alike = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    suspects = np.unique(np.concatenate([order[alike], order[alike + 1]]))
    first: dict[str, Candidate] = {}
    repeats = []
    candidates = pool.sequence
    for row in suspects.tolist():
        candidate = candidates[row]
        known = first.get(candidate.id)
        if known is None:
            first[candidate.id] = candidate
        else:
            if known != candidate:
                raise DataInvalid(
                    f"candidate id {candidate.id!r} has two contents in pool {pool.name!r}:"
                    f" {_brief(known)} and {_brief(candidate)}"
                )
            repeats.append(row)
    return repeats


def _require_parts(kind: str, thing: Query | Candidate) -> None:
    if not thing.parts:
        raise DataInvalid(f"{kind} {thing.id!r} has no part: give it a text, a picture or a clip")


def _known(place: str, ids: Iterable[str], known: Mapping[str, object], kind: str) -> None:
    for i in ids:
        if i not in known:
            raise DataInvalid(f"{place} names {kind} {i!r}, which is not in the collection")


def _brief(candidate: Candidate) -> str:
    text = repr(candidate.parts)
    return text if len(text) <= 80 else text[:77] + "..."
