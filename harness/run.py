"""A run: ranked candidates and scores per query, and the exact place of every positive."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

from harness.collection import Pool
from harness.errors import DataInvalid
from harness.files import write_atomic

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Ragged:
    """A list of pool rows per query: those of query q are `values[indptr[q]:indptr[q + 1]]`."""

    indptr: Int64
    values: Int32

    @classmethod
    def of(cls, lists: Iterable[Sequence[int] | Int32]) -> Ragged:
        rows = [np.asarray(x, dtype=np.int32) for x in lists]
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(r) for r in rows], out=indptr[1:])
        return cls(indptr, np.concatenate(rows) if rows else np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, query: int) -> Int32:
        return self.values[self.indptr[query] : self.indptr[query + 1]]

    @property
    def query(self) -> Int64:
        """The query index of every value."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.indptr))


class Rows(Protocol):
    """Unit vectors that need not be in memory: [N, D] float16, bfloat16 or float32, read block by block."""

    @property
    def dim(self) -> int: ...

    def __len__(self) -> int: ...

    def block(self, start: int, stop: int) -> npt.NDArray[np.floating[Any]]:
        """Rows start to stop, [stop - start, D]."""
        ...

    def take(self, rows: Int64) -> npt.NDArray[np.floating[Any]]:
        """These rows, in this order, [len(rows), D]."""
        ...


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What a search backend is asked: the top `k` of the pool for each query.

    `scope`, where given, limits each query to the listed rows; `exclude` takes rows out. The
    places of all `positives` are wanted as well, as far as the best `k` reach; a positive that is
    -1 (outside the pool), outside the scope or excluded is unreachable. `memory` is the budget in
    bytes beyond queries and results. `sieve` allows bfloat16 products to come first, where that is
    faster; answers are the same.
    """

    queries: Rows
    pool: Rows
    k: int
    positives: Ragged
    scope: Ragged | None = None
    exclude: Ragged | None = None
    device: str = "cpu"
    memory: int = 1 << 30
    sieve: bool = True


@dataclass(frozen=True, slots=True)
class Found:
    """What a search backend answers. Scores are exact: the float64 dot product of the stored
    rows, rounded to float32; order is score descending, then pool row ascending.

    rows, scores: [Q, k], padded with -1 and -inf where a query has fewer candidates.
    For each positive in order of `request.positives`: its score (-inf: unreachable), how many
    candidates in scope score higher (`greater`), how many others score the same, however deep
    (`equal`), and how many of those stand before it in the pool (`before`). Where k or more score
    higher, `greater` is BEYOND and the others are 0: no cut-off up to k can tell the place.
    """

    rows: Int32
    scores: Float32
    positive_scores: Float32
    greater: Int32
    equal: Int32
    before: Int32


BEYOND = 2**31 - 1
"""`greater` of a positive that none of the best k ties with or stands below."""


class Search(Protocol):
    """The function that a search plugin offers."""

    def __call__(self, request: SearchRequest, /) -> Found: ...


@dataclass(frozen=True, slots=True)
class Searcher:
    """A search backend as `--searcher` names it."""

    name: str
    title: str
    search: Search


@dataclass(frozen=True, slots=True)
class Run:
    """The ranking of every query: `rows` index `candidate_ids`, the pool in its order.

    rows: [Q, k] int32, -1 where a query has fewer candidates. scores: [Q, k] float32.
    """

    query_ids: Sequence[str]
    candidate_ids: Sequence[str]
    pool: str
    rows: Int32
    scores: Float32

    def within(self, query_ids: Sequence[str], pool: Pool) -> Run:
        """The run of these queries over the whole pool: rows are the pool's. A query that the run
        does not hold has an empty list; raises DataInvalid for a candidate that is not in the pool."""
        retrieved = {self.candidate_ids[row] for row in np.unique(self.rows).tolist() if row >= 0}
        place = pool.rows_of(retrieved)
        if len(place) < len(retrieved):
            unknown = sorted(retrieved - place.keys())[0]
            raise DataInvalid(f"the run retrieved {unknown!r}, which is not in pool {pool.name!r}")
        row_of = np.array([place.get(c, -1) for c in self.candidate_ids] + [-1], dtype=np.int32)
        at = {query: i for i, query in enumerate(self.query_ids)}
        rows = np.full((len(query_ids), self.rows.shape[1]), -1, np.int32)
        scores = np.full(rows.shape, -np.inf, np.float32)
        for i, query in enumerate(query_ids):
            if query in at:
                rows[i], scores[i] = row_of[self.rows[at[query]]], self.scores[at[query]]
        return Run(query_ids, pool.ids, pool.name, rows, scores)

    def ranking(self, query: int) -> list[tuple[str, float]]:
        """(candidate id, score) of the query at this index, best first."""
        return [
            (self.candidate_ids[row], float(score))
            for row, score in zip(self.rows[query].tolist(), self.scores[query].tolist(), strict=True)
            if row >= 0
        ]

    def write(self, path: Path, tag: str) -> None:
        """A TREC run, six columns, gzipped; equal runs give equal bytes.

        Ids are percent-encoded where they hold white space or a percent sign, scores are the
        shortest decimals that read back as the same float32.
        """
        names = {row: quoted(self.candidate_ids[row]) for row in np.unique(self.rows).tolist() if row >= 0}
        tag = quoted(tag)

        def fill(file: io.BufferedIOBase) -> None:
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as out:
                for q, query in enumerate(self.query_ids):
                    name = quoted(query)
                    lines = [
                        f"{name} Q0 {names[row]} {rank} {score!s} {tag}\n"
                        for rank, (row, score) in enumerate(
                            zip(self.rows[q].tolist(), self.scores[q], strict=True), 1
                        )
                        if row >= 0
                    ]
                    out.write("".join(lines).encode())

        write_atomic(path, fill)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read a run back; its pool holds only the candidates that some query retrieved.

        Raises DataInvalid naming file and line.
        """
        rows_of: dict[str, int] = {}
        lists: dict[str, list[tuple[int, np.float32]]] = {}
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                columns = line.split()
                try:
                    query, _, candidate, rank, score, _ = columns
                    place = int(rank)
                    value = np.float32(score)
                except ValueError:
                    raise DataInvalid(f"{path}, line {number}: not a TREC run line of six columns") from None
                ranked = lists.setdefault(unquote(query), [])
                ranked.append((rows_of.setdefault(unquote(candidate), len(rows_of)), value))
                if place != len(ranked):
                    raise DataInvalid(
                        f"{path}, line {number}: rank {place} where {len(ranked)} should follow"
                    )
        k = max(map(len, lists.values()), default=0)
        rows = np.full((len(lists), k), -1, np.int32)
        scores = np.full((len(lists), k), -np.inf, np.float32)
        for q, ranked in enumerate(lists.values()):
            rows[q, : len(ranked)] = [row for row, _ in ranked]
            scores[q, : len(ranked)] = [score for _, score in ranked]
        return cls(list(lists), list(rows_of), "retrieved", rows, scores)


def quoted(name: str) -> str:
    """An id as one word: percent-encoded where it holds white space or a percent sign."""
    if name and "%" not in name and len(name.split()) == 1 and name == name.strip():
        return name
    return quote(name, safe="/:,@+=!$&'()*;?#[]")
