"""Teacher scores: the best candidates of some queries, scored by the reranker, both scores fused.

results/training/score-3c5f…/scored.parquet, by id (lists.py), ranked by the fused score:

    rank  candidate_id  cosine  p_yes  fused   positive
    1     8:77          0.81    0.90   1.71    true         fused = cosine + weight · P(Yes)
    2     8:3           0.83    0.40   1.23    false

A labelled positive that was not retrieved is scored as well, and ranks behind all that were: what is
distilled may leave it out or take it in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from harness.collection import Collection, Pool
from harness.device import release_memory
from harness.digest import Digests
from harness.errors import UnknownName
from harness.evaluate import Retrieved
from harness.model import Reranker, RerankFrontend, full_identity
from harness.ranks import Ranks
from harness.recipe import StageRun
from harness.rerank import SCORES, Fusion, by_task, pair_scores
from harness.run import Float32, Int32, Int64, Ragged, Run
from harness.store import Store
from harness.task import Task

from ..input_spec import InputSpec
from ..qwen_rerank import open_reranker
from .corpus import Lesson, use
from .embedder import SAVED
from .lists import SCORED, Ranked, write
from .mining import Retriever, collections

LISTS = ("top", "last", "random")
DEEPEST = 100
"""Of so many retrieved candidates the last ones are `lists` last."""

Asked = Sequence[tuple[Task, Collection]]


def score(run: StageRun, spec: InputSpec) -> None:
    """Run a scoring stage; makes the table of fused scores. Under several ranks each encodes and scores
    its share. Raises DataInvalid, HarnessError, UnknownName."""
    settings, ranks = run.settings, run.ranks
    depth, lists = int(str(settings["depth"])), str(settings["lists"])
    if lists not in LISTS:
        raise UnknownName("lists", lists, LISTS)
    fusion = Fusion({}, by_task("setting weights", {}, str(settings["weights"]).split(","), float))
    teacher = Teacher.open(run)
    asked = collections(run, partial(_shared, run))
    retriever = Retriever.open(run, spec)
    retriever.encode(asked)
    found = [listed(each, depth, lists) for each in _retrieved(retriever, asked, depth, lists)]
    release_memory()
    if ranks.count > 1:
        for (task, collection), each in zip(asked, found, strict=True):
            teacher.scores(*_part(collection, each.run, ranks), title=task.name)
        ranks.wait(run.engine.device)
        teacher = Teacher.open(run)
    if ranks.rank == 0:
        about = retriever.about(asked, depth)
        write(run.folder / SCORED, about, _scored(asked, found, teacher, depth, fusion))


def _shared(run: StageRun, task: Task, collection: Collection) -> Collection:
    """The collection with the queries of the stage's share, which are those of a Corpus of that share."""
    protocol = use(run.settings).protocol
    lesson = Lesson.of(task, collection, run.data, protocol)
    rows = np.unique(lesson.visits[lesson.drawn(float(str(run.settings["share"])), protocol.seed)])
    return replace(collection, queries=[lesson.queries[row] for row in rows.tolist()])


def _retrieved(retriever: Retriever, asked: Asked, depth: int, lists: str) -> Iterator[Retrieved]:
    if lists != "random":
        yield from retriever.retrieve(asked, DEEPEST if lists == "last" else depth)
        return
    seed = retriever.options.protocol.seed
    scattered = [(task, _scattered(collection, depth, seed)) for task, collection in asked]
    drawn = retriever.retrieve(scattered, depth)
    for each, whole in zip(drawn, retriever.retrieve(asked, 1), strict=True):
        yield replace(each, found=replace(each.found, positive_scores=whole.found.positive_scores))


def _scattered(collection: Collection, depth: int, seed: int) -> Collection:
    """The collection with so many candidates at random for a scope, out of the scope that there was."""
    ids, scope = collection.pool.ids, {}
    for at, query in enumerate(collection.queries):
        known = ids if collection.scope is None else collection.scope[query.id]
        random = np.random.default_rng([seed, 11, at])
        drawn = random.choice(len(known), min(depth, len(known)), replace=False)
        scope[query.id] = [known[row] for row in drawn.tolist()]
    return replace(collection, scope=scope)


@dataclass(frozen=True, slots=True)
class Listed:
    """What is scored: the retrieved candidates and, behind them, positives that were not retrieved."""

    run: Run
    retrieved: int
    """Columns of the run that are retrieved."""
    positives: Ragged


def listed(found: Retrieved, depth: int, lists: str) -> Listed:
    """At most `depth` candidates of each query, the last ones where `lists` says so, and its positives."""
    run = found.run
    if lists == "last":
        there = (run.rows >= 0).sum(1, keepdims=True)
        at = np.maximum(there - depth, 0) + np.arange(min(depth, run.rows.shape[1]))
        inside = at < there
        at = np.minimum(at, run.rows.shape[1] - 1)
        rows = np.where(inside, np.take_along_axis(run.rows, at, 1), -1)
        scores = np.where(inside, np.take_along_axis(run.scores, at, 1), -np.inf)
        run = replace(run, rows=rows, scores=scores)
    query, values, scores = (
        found.request.positives.query,
        found.request.positives.values,
        found.found.positive_scores,
    )
    more = (scores > -np.inf) & ~_held(run.rows, query, values)
    rows, scores = _columns(len(run.rows), query[more], values[more], scores[more])
    width = run.rows.shape[1]
    run = replace(run, rows=np.hstack([run.rows, rows]), scores=np.hstack([run.scores, scores]))
    return Listed(run, width, found.request.positives)


def _held(rows: Int32, query: Int64, values: Int32) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each value is among the rows of its query."""
    size = int(max(rows.max(initial=0), values.max(initial=0))) + 1
    pairs = np.arange(len(rows))[:, None] * size + rows
    return np.isin(query * size + values, pairs[rows >= 0])


def _columns(count: int, query: Int64, values: Int32, scores: Float32) -> tuple[Int32, Float32]:
    """Lists of (query, value, score), by query, as [count, longest], padded with -1 and -inf."""
    sizes = np.bincount(query, minlength=count)
    place = np.arange(len(query)) - (np.cumsum(sizes) - sizes)[query]
    rows = np.full((count, int(sizes.max(initial=0))), -1, np.int32)
    padded = np.full(rows.shape, -np.inf, np.float32)
    rows[query, place], padded[query, place] = values, scores
    return rows, padded


@dataclass(slots=True)
class Teacher:
    """The reranker of the stage that plays "reranker", and the scores that it gave."""

    run: StageRun
    frontend: RerankFrontend
    store: Store
    digests: Digests
    loaded: Reranker | None = None

    @classmethod
    def open(cls, run: StageRun) -> Teacher:
        """Raises CheckpointMissing."""
        place = str(run.inputs["reranker"] / SAVED)
        frontend = open_reranker("teacher", "", None, {"path": place, "mode": "pointwise"})
        identity = full_identity("teacher", frontend, {"score_dtype": SCORES})
        store = Store(run.cache_dir, identity, kind="pairs", dtype=SCORES)
        return cls(run, frontend, store, Digests(run.cache_dir / "digests.sqlite"))

    def _load(self) -> Reranker:
        if self.loaded is None:
            self.loaded = self.frontend.load(self.run.engine.device)
        return self.loaded

    def scores(self, collection: Collection, run: Run, *, title: str) -> Float32:
        """P(Yes) of everything in the run, [Q, K]; NaN where there is nothing."""
        values, _ = pair_scores(
            collection,
            run,
            run.rows.shape[1],
            self.frontend,
            self._load,
            self.store,
            self.digests,
            self.run.engine,
            title=title,
        )
        return values


def _part(collection: Collection, run: Run, ranks: Ranks) -> tuple[Collection, Run]:
    """The queries that a rank has scored."""
    part = slice(ranks.rank, None, ranks.count)
    run = replace(run, query_ids=run.query_ids[part], rows=run.rows[part], scores=run.scores[part])
    return replace(collection, queries=collection.queries[part]), run


def _scored(
    asked: Asked, found: Sequence[Listed], teacher: Teacher, depth: int, fusion: Fusion
) -> Iterator[Ranked]:
    for (task, collection), lists in zip(asked, found, strict=True):
        p_yes = teacher.scores(collection, lists.run, title=task.name)
        yield fused(lists, task.name, collection.pool, depth, p_yes, fusion.weight(task.name))


def fused(lists: Listed, task: str, pool: Pool, depth: int, p_yes: Float32, weight: float) -> Ranked:
    """The lists with their fused scores: what was retrieved ranks from 1, what was not behind `depth`."""
    run = lists.run
    weighed = (run.scores.astype(np.float64) + weight * p_yes).astype(np.float32)
    weighed = np.where(run.rows < 0, -np.inf, weighed).astype(np.float32)
    behind = np.arange(run.rows.shape[1]) >= lists.retrieved
    order = np.lexsort((run.rows, -weighed, np.broadcast_to(behind, run.rows.shape)), axis=1)
    ranks = np.empty(run.rows.shape, np.int32)
    np.put_along_axis(ranks, order, np.arange(1, run.rows.shape[1] + 1, dtype=np.int32)[None], 1)
    ranks[:, behind] += depth - lists.retrieved
    values = {"cosine": run.scores, "p_yes": p_yes, "fused": weighed}
    return Ranked(task, run.query_ids, pool, run.rows, ranks, values, lists.positives)
