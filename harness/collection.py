"""A collection: queries, the pool they are asked of, and what is relevant to whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from harness.content import Candidate, Query
from harness.errors import DataInvalid

Qrels = Mapping[str, Mapping[str, int]]
"""query id → candidate id → grade; a grade of 1 or more is relevant."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The candidates searched, in their fixed order; a union of pools is a pool."""

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
        return self._keep({q.id for q in self.queries} - lost, {c.id for c in self.pool} - gone, qrels)

    def limited(self, n: int) -> Collection:
        """A smoke test: the first `n` queries, and all they need plus the first `n` candidates."""
        queries = {q.id for q in islice(self.queries, n)}
        needed = {c.id for c in islice(self.pool, n)}
        for named in (self.qrels, self.scope, self.exclude):
            for query in queries:
                needed.update((named or {}).get(query, ()))
        qrels = None if self.qrels is None else {q: g for q, g in self.qrels.items() if q in queries}
        return self._keep(queries, needed, qrels)

    def _keep(self, queries: set[str], candidates: set[str], qrels: Qrels | None) -> Collection:
        def narrowed(named: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]] | None:
            if named is None:
                return None
            return {q: [c for c in ids if c in candidates] for q, ids in named.items() if q in queries}

        return dataclasses.replace(
            self,
            queries=[q for q in self.queries if q.id in queries],
            pool=Pool(self.pool.name, [c for c in self.pool if c.id in candidates]),
            qrels=qrels,
            scope=narrowed(self.scope),
            exclude=narrowed(self.exclude),
            groups={name: [q for q in ids if q in queries] for name, ids in self.groups.items()},
        )


def checked(collection: Collection) -> tuple[Collection, dict[str, int]]:
    """The collection with repeats dropped, and what was counted on the way.

    What published data sets really contain is counted: repeats of a candidate with equal content
    (dropped), positives outside the pool (kept in the qrels, never retrieved), queries without
    qrels (they score 0). Raises DataInvalid for what cannot be scored at all: one id with two
    contents, a repeated query id, an item without parts, qrels, scope or groups of queries that
    are not there, a scope or an exclusion naming unknown candidates, an empty pool.
    """
    queries = {}
    for query in collection.queries:
        if query.id in queries:
            raise DataInvalid(f"query id {query.id!r} occurs twice: query ids must be unique")
        queries[query.id] = query
    candidates: dict[str, Candidate] = {}
    repeats = 0
    for candidate in collection.pool:
        first = candidates.setdefault(candidate.id, candidate)
        if first is not candidate:
            if first != candidate:
                raise DataInvalid(
                    f"candidate id {candidate.id!r} has two contents in pool {collection.pool.name!r}:"
                    f" {_brief(first)} and {_brief(candidate)}"
                )
            repeats += 1
    for kind, things in (("query", queries), ("candidate", candidates)):
        for thing in things.values():
            if not thing.parts:
                raise DataInvalid(f"{kind} {thing.id!r} has no part: give it a text, a picture or a clip")
    if not queries:
        raise DataInvalid("there are no queries")
    if not candidates:
        raise DataInvalid(f"pool {collection.pool.name!r} has no candidates")
    for kind, named in (("scope", collection.scope), ("exclude", collection.exclude)):
        for query_id, ids in (named or {}).items():
            _known(kind, [query_id], queries, "query")
            _known(f"{kind} of query {query_id!r}", ids, candidates, "candidate")
    for group, ids in collection.groups.items():
        _known(f"group {group!r}", ids, queries, "query")
    counts = {"queries": len(queries), "candidates": len(candidates), "repeats_dropped": repeats}
    if collection.qrels is not None:
        _known("qrels", collection.qrels, queries, "query")
        relevant = [(q, c) for q in collection.qrels for c in collection.positives(q)]
        outside = sum(c not in candidates for _, c in relevant)
        if relevant and outside == len(relevant):
            raise DataInvalid(
                f"none of the {outside} positives in the qrels is in pool {collection.pool.name!r}"
                f" (first: {relevant[0][1]!r}): qrels and pool do not belong together"
            )
        judged = {q for q, _ in relevant}
        counts |= {
            "qrels": len(relevant),
            "positives_outside_pool": outside,
            "queries_without_qrels": len(queries) - len(judged),
        }
    if repeats:
        pool = Pool(collection.pool.name, list(candidates.values()))
        collection = dataclasses.replace(collection, pool=pool)
    return collection, counts


def _known(place: str, ids: Iterable[str], known: Mapping[str, object], kind: str) -> None:
    for i in ids:
        if i not in known:
            raise DataInvalid(f"{place} names {kind} {i!r}, which is not in the collection")


def _brief(candidate: Candidate) -> str:
    text = repr(candidate.parts)
    return text if len(text) <= 80 else text[:77] + "..."
