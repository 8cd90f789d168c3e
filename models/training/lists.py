"""Candidates per query, as one stage writes them into a table and another reads them, joined by id.

task                    query_id  rank  home                    candidate_id  score   positive
mbeir-local/cirr_task7  8:12      1     mbeir-local/cirr_task7  8:77          0.8125  false

`home` is the task in whose pool the candidate lies. A table of scores has cosine, p_yes and fused in the
place of score, and ranks by the latter. Rows may stand in any order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.collection import Pool
from harness.content import Candidate
from harness.errors import DataInvalid
from harness.files import write_atomic
from harness.recipe import MODEL, StageRun
from harness.run import Float32, Int32, Int64, Ragged
from harness.train import lineage

from .corpus import Corpus
from .embedder import RETRIEVER
from .joining import Bool, Join, Places, numbered

if TYPE_CHECKING:
    import pyarrow as pa

MINED = "mined.parquet"
SCORED = "scored.parquet"
_ABOUT = b"harness"
_BLOCK = 1 << 20
"""Rows that are read or written at a time."""


@dataclass(frozen=True, slots=True)
class About:
    """What a table was made of, kept in its metadata."""

    model: str
    """The artefact whose checkpoint retrieved, or the base model."""
    identity: Mapping[str, str]
    tasks: Mapping[str, str]
    """Task → the digest of its protocol and files."""
    pool: str
    """local or global."""
    depth: int


def model_of(run: StageRun) -> str:
    """The artefact whose checkpoint a stage starts from or retrieves with, or the base model."""
    return run.inputs[MODEL].name if MODEL in run.inputs else str(run.settings["base"])


@dataclass(frozen=True, slots=True)
class Ranked:
    """Lists of some queries of a task, [Q, K] of everything: rows of the pool, -1 where there is none."""

    task: str
    query_ids: Sequence[str]
    pool: Pool
    """A union of pools, one for each task and named like it."""
    rows: Int32
    ranks: Int32
    values: Mapping[str, Float32]
    positives: Ragged
    """[Q] rows of the pool, -1: outside of it."""


def write(path: Path, about: About, found: Iterable[Ranked]) -> None:
    """The table of all tasks' lists, sorted by task (as they come), query and rank."""
    import pyarrow.parquet as pq

    def fill(file: Any) -> None:
        writer = None
        for each in found:
            for block in _blocks(each):
                if writer is None:
                    described = {_ABOUT: json.dumps(asdict(about), sort_keys=True)}
                    schema = block.schema.with_metadata(described)
                    writer = pq.ParquetWriter(file, schema, compression="zstd")
                writer.write_table(block, row_group_size=_BLOCK)
        if writer is None:
            raise DataInvalid(f"{path.parent.name}: no query retrieved a candidate")
        writer.close()

    write_atomic(path, fill)


def _blocks(found: Ranked) -> Iterator[pa.Table]:
    import pyarrow as pa

    size = len(found.pool)
    inside = found.positives.values >= 0
    right = np.unique(found.positives.query[inside] * size + found.positives.values[inside])
    ids, homes = found.pool.ids, _homes(found.pool)
    order = np.array(sorted(range(len(found.query_ids)), key=found.query_ids.__getitem__), np.int64)
    step = max(1, _BLOCK // found.rows.shape[1])
    for start in range(0, len(order), step):
        part = order[start : start + step]
        here = part[:, None], np.argsort(found.ranks[part], axis=1)
        rows = found.rows[here]
        there = rows >= 0
        of_query = np.broadcast_to(np.arange(len(part))[:, None], rows.shape)[there]
        used, at = np.unique(rows[there], return_inverse=True)
        if not len(used):
            continue
        columns = {
            "task": _coded(np.zeros(len(at), np.int32), [found.task]),
            "query_id": _coded(of_query, [found.query_ids[q] for q in part.tolist()]),
            "rank": pa.array(found.ranks[here][there], pa.int32()),
            "home": _coded(np.searchsorted(homes.ends, used, side="right")[at], homes.names),
            "candidate_id": _coded(at, [ids[row] for row in used.tolist()]),
            **{name: pa.array(value[here][there], pa.float32()) for name, value in found.values.items()},
            "positive": pa.array(np.isin(part[of_query] * size + rows[there], right)),
        }
        yield pa.table(columns)


def _coded(codes: npt.NDArray[Any], names: Sequence[str]) -> pa.DictionaryArray:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names, pa.string()))


@dataclass(frozen=True, slots=True)
class _Homes:
    names: list[str]
    ends: Int64


def _homes(pool: Pool) -> _Homes:
    parts = [part for part in pool.candidates if isinstance(part, Pool)]
    return _Homes([part.name for part in parts], np.cumsum([len(part) for part in parts], dtype=np.int64))


@dataclass(frozen=True)
class Lists:
    """The candidates of a corpus's queries, in the order of their ranks."""

    corpus: Corpus
    about: About
    places: Places
    indptr: Int64
    """Those of query number q are `places[indptr[q]:indptr[q + 1]]`."""

    @cached_property
    def _numbers(self) -> dict[str, tuple[int, int]]:
        return numbered(self.corpus)

    def of(self, task: str, row: int) -> Places:
        """The list of the query of this row of a task's lesson."""
        number = self._numbers[task][1] + row
        return self.places[self.indptr[number] : self.indptr[number + 1]]

    def candidates(self, places: Places) -> list[Candidate]:
        """What the places hold."""
        lessons = self.corpus.lessons
        found = zip(places.home.tolist(), places.row.tolist(), strict=True)
        return [lessons[home].candidates[row] for home, row in found]


def read(
    folder: Path,
    corpus: Corpus,
    run: StageRun,
    *,
    kept: Callable[[Places], Bool] = lambda places: np.ones(len(places.query), np.bool_),
    most: int | None = None,
    backwards: Bool | None = None,
) -> Lists:
    """The lists of a finished stage, of those places that are `kept` the first `most` of each query; of
    the queries that `backwards` [Q] marks the last ones, last first.

    Raises DataInvalid for a table of another model, or one that lacks a query that the corpus visits, or
    names a candidate that its pools do not have.
    """
    import pyarrow.parquet as pq

    path = folder / (SCORED if (folder / SCORED).exists() else MINED)
    table = pq.ParquetFile(path)
    about = About(**json.loads(table.schema_arrow.metadata[_ABOUT]))
    _require_lineage(about, path, run)
    join = Join(corpus, path)
    total = len(join.wanted)
    turned = np.zeros(total, np.bool_) if backwards is None else backwards
    parts = [Places.none()]
    for batch in table.iter_batches(_BLOCK):
        found = join.places(batch)
        parts.append(_first(found[kept(found)], most, turned))
    join.require_all()
    places = _first(Places.joined(parts), most, turned)
    indptr = np.zeros(total + 1, np.int64)
    np.cumsum(np.bincount(places.query, minlength=total), out=indptr[1:])
    return Lists(corpus, about, places, indptr)


def _first(places: Places, most: int | None, backwards: Bool) -> Places:
    """In order of query and rank, of each query so many."""
    rank = np.where(backwards[places.query], -places.rank, places.rank)
    places = places[np.lexsort((rank, places.query))]
    if most is None:
        return places
    _, first, counts = np.unique(places.query, return_index=True, return_counts=True)
    return places[np.arange(len(places.query)) - np.repeat(first, counts) < most]


def _require_lineage(about: About, path: Path, run: StageRun) -> None:
    """The table must be of the model that a stage starts from or whose lists it reads, or of one that this
    came of."""
    known = [str(run.settings.get("base"))]
    for role in {MODEL, RETRIEVER} & set(run.inputs):
        known = [*lineage(run.inputs[role]), *known]
    if about.model not in known:
        raise DataInvalid(
            f"{path} is a mining table of another model: {about.model} retrieved it, and this stage starts"
            f" from {model_of(run)}; let its mining stage need the same model"
        )
