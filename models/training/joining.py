"""A table of lists joined with a corpus: ids in, numbers out, without a Python object for each row.

task     query_id  home     candidate_id          query  home  row
toys/b   q3        toys/a   a7              ->    8      0     7        (toys/a has five queries)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.errors import DataInvalid
from harness.run import Float32, Int32, Int64

from .corpus import Corpus, Lesson

if TYPE_CHECKING:
    import pyarrow as pa

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Places:
    """Rows of a table, [N], in numbers of a corpus."""

    query: Int64
    """Queries of all lessons, numbered through."""
    rank: Int32
    home: npt.NDArray[np.int16]
    """Which lesson's pool."""
    row: Int32
    """Which of its candidates."""
    cosine: Float32
    value: Float32
    """The fused score, where there is one; else the cosine."""
    positive: Bool
    """As the table or the qrels say."""

    def __getitem__(self, at: Any) -> Places:
        return Places(*(getattr(self, f.name)[at] for f in fields(self)))

    @classmethod
    def none(cls) -> Places:
        whole, exact = np.zeros(0, np.int32), np.zeros(0, np.float32)
        return cls(whole.astype(np.int64), whole, whole.astype(np.int16), whole, exact, exact, whole > 0)

    @classmethod
    def joined(cls, parts: Sequence[Places]) -> Places:
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def numbered(corpus: Corpus) -> dict[str, tuple[int, int]]:
    """Task → the number of its lesson, and of its first query."""
    starts = np.cumsum([0, *(len(lesson.queries) for lesson in corpus.lessons)]).tolist()
    return {lesson.task: (i, starts[i]) for i, lesson in enumerate(corpus.lessons)}


class Join:
    """From ids to numbers, a batch of rows at a time."""

    def __init__(self, corpus: Corpus, path: Path) -> None:
        import pyarrow as pa

        self.corpus = corpus
        self.path = path
        lessons = corpus.lessons
        self.first = np.array([first for _, first in numbered(corpus).values()], np.int64)
        self.queries = [pa.array([query.id for query in lesson.queries], pa.string()) for lesson in lessons]
        self.candidates = [pa.array(list(lesson.candidate_ids), pa.string()) for lesson in lessons]
        self.wanted = np.zeros(sum(map(len, self.queries)), np.bool_)
        for first, lesson, visits in zip(self.first, lessons, corpus.rows, strict=True):
            self.wanted[first + lesson.visits[visits]] = True
        self.seen = np.zeros_like(self.wanted)
        self.labels, self.labelled = self._labelled()

    def _labelled(self) -> tuple[pa.Array, Int64]:
        """The distinct ids of all positives, and the pairs of query and place there, as single numbers."""
        import pyarrow as pa

        ids: list[str] = []
        numbers: list[int] = []
        for number in np.flatnonzero(self.wanted).tolist():
            lesson, row = self._query(number)
            found = lesson.labelled(row)
            ids += found
            numbers += [number] * len(found)
        coded = pa.array(ids, pa.string()).dictionary_encode()
        codes = coded.indices.to_numpy().astype(np.int64)
        return coded.dictionary, np.unique(
            np.array(numbers, np.int64) * max(1, len(coded.dictionary)) + codes
        )

    def _query(self, number: int) -> tuple[Lesson, int]:
        at = int(np.searchsorted(self.first, number, side="right")) - 1
        return self.corpus.lessons[at], int(number - self.first[at])

    def places(self, batch: pa.RecordBatch) -> Places:
        """The places of the queries that are visited. Raises DataInvalid for an unknown candidate."""
        tasks, names = _codes(batch, "task"), [lesson.task for lesson in self.corpus.lessons]
        query = tasks.among(_codes(batch, "query_id"), names, self.queries)
        query = np.where(query < 0, -1, query + self.first[tasks.numbers(names)])
        here = np.flatnonzero((query >= 0) & self.wanted[query])
        self.seen[query[here]] = True
        batch, query = batch.take(here), query[here]
        homes, candidates = _codes(batch, "home"), _codes(batch, "candidate_id")
        row = homes.among(candidates, names, self.candidates)
        if (row < 0).any():
            at = int(np.flatnonzero(row < 0)[0])
            lesson, asked = self._query(int(query[at]))
            raise DataInvalid(
                f"{self.path}: candidate {candidates[at]!r} of query {lesson.queries[asked].id!r} of"
                f" {lesson.task} is not in the pool of {homes[at]}, or that is no task of this stage: mine"
                " again with this stage's tasks and data"
            )
        label = candidates.numbers(self.labels)
        pairs = query * max(1, len(self.labels)) + label
        cosine = _exact(batch, "score" if "score" in batch.schema.names else "cosine")
        return Places(
            query=query,
            rank=batch.column("rank").to_numpy().astype(np.int32),
            home=homes.numbers(names).astype(np.int16),
            row=row.astype(np.int32),
            cosine=cosine,
            value=_exact(batch, "fused") if "fused" in batch.schema.names else cosine,
            positive=batch.column("positive").to_numpy(zero_copy_only=False)
            | ((label >= 0) & np.isin(pairs, self.labelled)),
        )

    def require_all(self) -> None:
        """Raise DataInvalid where the table lacks a query that is visited."""
        lacking = np.flatnonzero(self.wanted & ~self.seen)
        if len(lacking):
            lesson, row = self._query(int(lacking[0]))
            raise DataInvalid(
                f"{self.path} has nothing for {len(lacking):,} of {int(self.wanted.sum()):,} queries, such as"
                f" {lesson.queries[row].id!r} of {lesson.task}: give both stages the same tasks, split, seed"
                " and share"
            )


@dataclass(frozen=True, slots=True)
class _Codes:
    """A column of names: `names[codes[i]]`."""

    codes: Int64
    names: pa.Array

    def __getitem__(self, at: int) -> str:
        return str(self.names[int(self.codes[at])])

    def numbers(self, known: Sequence[str] | pa.Array) -> Int64:
        """Of each row, where its name stands among these; -1: nowhere."""
        import pyarrow as pa
        from pyarrow import compute

        among = known if isinstance(known, pa.Array) else pa.array(known, pa.string())
        found = compute.index_in(self.names, value_set=among)
        numbers: Int64 = found.fill_null(-1).to_numpy().astype(np.int64)
        return numbers[self.codes]

    def among(self, ids: _Codes, names: Sequence[str], known: Sequence[pa.Array]) -> Int64:
        """Of each row, where its id stands among those `known` to what this column names; -1: nowhere."""
        place = self.numbers(names)
        found = np.full(len(place), -1, np.int64)
        for number in np.unique(place[place >= 0]).tolist():
            here = place == number
            found[here] = ids.numbers(known[number])[here]
        return found


def _codes(batch: pa.RecordBatch, name: str) -> _Codes:
    import pyarrow as pa

    column = batch.column(name)
    coded = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
    return _Codes(coded.indices.to_numpy().astype(np.int64), coded.dictionary)


def _exact(batch: pa.RecordBatch, name: str) -> Float32:
    values: Float32 = batch.column(name).to_numpy().astype(np.float32)
    return values
