"""Re-ranking: the best candidates of a run are scored again, each pair once, and both scores fused.

run 0.71 a, 0.70 b, 0.52 c   scores of the reranker at depth 2: a 0.2, b 0.9   weight 0.1
->  0.79 b, 0.73 a, 0.52 c
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from harness.collection import Collection
from harness.content import Ask, Item, item
from harness.device import out_of_memory, release_memory
from harness.digest import Digests
from harness.encode import EngineOptions, broken_items, key_items
from harness.errors import BadEmbedding, HarnessError
from harness.model import Batch, Reranker, RerankFrontend
from harness.progress import progress
from harness.run import BEYOND, Float32, Found, Ragged, Run
from harness.store import Keys, Store, as_keys
from harness.workers import in_workers, worker_count

if TYPE_CHECKING:
    from torch import Tensor

N = TypeVar("N", int, float)

DEPTH = 50
"""Candidates kept per query in a run, more where a metric looks deeper; none deeper is re-ranked."""
SHARD_PAIRS = 4096
SCORES = "float32"
GRID = tuple(round(0.1 * step, 1) for step in range(21))
"""The weights that a tuned fusion chooses from, as in the released code's sweep."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """How deep to re-rank and how to weigh, by globs of task names; the last that matches holds.

    `tuned_on` names the split whose best weight is taken instead; `oracle` says that this may be
    the one that is scored.
    """

    depths: Mapping[str, int]
    weights: Mapping[str, float]
    tuned_on: str | None = None
    oracle: bool = False

    def depth(self, task: str) -> int:
        return _last(self.depths, task, DEPTH)

    def weight(self, task: str) -> float:
        return _last(self.weights, task, 1.0)

    @property
    def identity(self) -> dict[str, str]:
        """The rule, not what it gives for a task: one model has one identity on all of them."""
        weights = f"tuned on {self.tuned_on}" if self.tuned_on else _rule(self.weights)
        fused = {"depth": _rule(self.depths), "fusion_weight": weights}
        return {**fused, "oracle": "true"} if self.oracle else fused


def by_task(
    what: str, published: Mapping[str, N], given: Iterable[str], read: Callable[[str], N]
) -> dict[str, N]:
    """The published settings by task glob, and what is given after them, such as 0.1 or circo/*=0.5, where
    it wins. Raises HarnessError."""
    rule = {}
    for text in given:
        tasks, equals, value = text.rpartition("=")
        try:
            rule[tasks if equals else "*"] = read(value)
        except ValueError:
            raise HarnessError(f"{what} {text!r} is not a number, nor TASKS=NUMBER") from None
    return {**{glob: value for glob, value in published.items() if glob not in rule}, **rule}


def _last(rule: Mapping[str, N], task: str, otherwise: N) -> N:
    found = [value for glob, value in rule.items() if fnmatch.fnmatchcase(task, glob)]
    return found[-1] if found else otherwise


def _rule(rule: Mapping[str, Any]) -> str:
    return ", ".join(f"{value}" if glob == "*" else f"{glob}={value}" for glob, value in rule.items())


@dataclass(frozen=True, slots=True)
class _Asked:
    """The best candidates of every query: `rows` [Q, depth] index `candidates`, -1: there is none."""

    queries: Sequence[Item]
    candidates: Sequence[Item]
    rows: npt.NDArray[np.int64]


def pair_scores(
    collection: Collection,
    run: Run,
    depth: int,
    frontend: RerankFrontend,
    load: Callable[[], Reranker],
    store: Store,
    digests: Digests,
    options: EngineOptions,
    *,
    title: str,
) -> tuple[Float32, dict[str, int]]:
    """The reranker's scores of the first `depth` candidates of each query, [Q, depth], NaN where there
    is none, and counts of pairs and of those newly scored.

    A pair (or, for a listwise reranker, an ordered list) is scored once and kept by its content.
    `load` is called only when something is missing. Raises DataInvalid for media that cannot be
    read, BadEmbedding for scores that are not finite or wrong in number.
    """
    asked = _asked(collection, run, depth, getattr(frontend, "reads_instructions", True))
    keys = _keys(asked, frontend.listwise, digests)
    there = asked.rows >= 0
    wanted = keys[there]
    unknown = np.zeros(there.shape, dtype=bool)
    unknown[there] = _first_missing(wanted, store)
    if unknown.any():
        plan = _Plan(asked, keys, unknown, frontend)
        _score_all(plan, load, store, options, title)
    scores = np.full(there.shape, np.nan, np.float32)
    if len(wanted):
        stored = store.rows(wanted)
        scores[there] = stored.block(0, len(wanted))[:, 0]
    return scores, {"pairs": len(wanted), "scored": int(unknown.sum())}


def _asked(collection: Collection, run: Run, depth: int, instructed: bool) -> _Asked:
    best = run.rows[:, :depth].astype(np.int64)
    used, at = np.unique(best, return_inverse=True)
    at = at.reshape(best.shape)
    if len(used) and used[0] < 0:
        used, at = used[1:], at - 1
    pool = collection.pool.sequence
    return _Asked(
        [item(q.reranked or q, instructed=instructed) for q in collection.queries],
        [item(c.reranked or c, instructed=instructed) for c in map(pool.__getitem__, used.tolist())],
        at,
    )


def _keys(asked: _Asked, listwise: bool, digests: Digests) -> Keys:
    """[Q, depth] of 16 bytes: of query and candidate, or of the whole list and the place in it."""
    queries, candidates = key_items(asked.queries, digests), key_items(asked.candidates, digests)
    broken = [*queries.broken.values(), *candidates.broken.values()]
    if broken:
        raise broken_items(broken)

    def of(query: bytes, rows: Sequence[int]) -> Iterator[bytes]:
        each = [candidates.keys[row].ljust(16, b"\0") if row >= 0 else b"" for row in rows]
        base = b"".join([query.ljust(16, b"\0"), *each]) if listwise else query.ljust(16, b"\0")
        for place, candidate in enumerate(each):
            last = place.to_bytes(4, "big") if listwise else candidate
            yield blake2b(base + last, digest_size=16).digest()

    rows = asked.rows.tolist()
    flat = as_keys(k for q, listed in enumerate(rows) for k in of(bytes(queries.keys[q]), listed))
    return flat.reshape(asked.rows.shape)


def _first_missing(keys: Keys, store: Store) -> npt.NDArray[np.bool_]:
    """Where each distinct key that the store lacks stands first."""
    _, first = np.unique(keys, return_index=True)
    found = np.zeros(len(keys), dtype=bool)
    found[first] = store.missing(keys[first])
    return found


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is left to score; as a source it prepares a planned batch: (query, its places) pairs."""

    asked: _Asked
    keys: Keys
    unknown: npt.NDArray[np.bool_]
    frontend: RerankFrontend

    def ask(self, query: int, places: Sequence[int]) -> Ask:
        rows = self.asked.rows[query, list(places)].tolist()
        return Ask(self.asked.queries[query], tuple(self.asked.candidates[row] for row in rows))

    def __getitem__(self, batch: list[tuple[int, list[int]]]) -> tuple[list[tuple[int, list[int]]], Batch]:
        return batch, self.frontend.prepare([self.ask(*part) for part in batch])

    def batches(self, budget: int) -> Iterator[list[tuple[int, list[int]]]]:
        """Asks in query order, cut and packed so that a batch costs at most the budget where it can."""
        batch: list[tuple[int, list[int]]] = []
        left = budget
        for query in np.flatnonzero(self.unknown.any(axis=1)).tolist():
            for places, cost in self._parts(query, budget):
                if batch and cost > left:
                    yield batch
                    batch, left = [], budget
                batch.append((query, places))
                left -= cost
        if batch:
            yield batch

    def _parts(self, query: int, budget: int) -> Iterator[tuple[list[int], int]]:
        if self.frontend.listwise:
            places = np.flatnonzero(self.asked.rows[query] >= 0).tolist()
            yield places, self._cost(query, places)
            return
        part: list[int] = []
        total = first = 0
        for place in np.flatnonzero(self.unknown[query]).tolist():
            # What all candidates share may be run once: a further one costs what it adds to the first
            cost = self._cost(query, [part[0], place]) - first if part else self._cost(query, [place])
            if part and total + cost > budget:
                yield part, total
                part, total, cost = [], 0, self._cost(query, [place])
            first = first if part else cost
            part.append(place)
            total += cost
        if part:
            yield part, total

    def _cost(self, query: int, places: Sequence[int]) -> int:
        return self.frontend.cost(self.ask(query, places))


def _score_all(
    plan: _Plan, load: Callable[[], Reranker], store: Store, options: EngineOptions, title: str
) -> None:
    reranker = load()
    media = [*plan.asked.queries, *plan.asked.candidates]
    workers = worker_count(media, options.workers)
    keys: list[bytes] = []
    values: list[npt.NDArray[np.float32]] = []

    def finish() -> None:
        if keys:
            store.add(as_keys(keys), np.concatenate(values)[:, None])
            keys.clear()
            values.clear()

    with progress(f"{title} pairs", int(plan.unknown.sum()), quiet=options.quiet) as advance:
        for batch, prepared in in_workers(plan, plan.batches(options.batch_tokens), workers, options.device):
            values.append(_scores(plan, batch, prepared, reranker))
            for query, places in batch:
                keys += [bytes(plan.keys[query, place]) for place in places]
            advance(sum(len(places) for _, places in batch))
            if len(keys) >= SHARD_PAIRS:
                finish()
    finish()


def _scores(
    plan: _Plan, batch: list[tuple[int, list[int]]], prepared: Batch, reranker: Reranker
) -> npt.NDArray[np.float32]:
    """The scores of a batch; what does not fit in memory is halved."""
    try:
        return _checked(reranker.score(prepared), sum(len(places) for _, places in batch), plan.frontend)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        halves = _halves(batch, plan.frontend.listwise)
        if halves is None:
            remedy = "use a smaller dtype or a bigger device"
            raise HarnessError(f"one pair does not fit in memory: {remedy}") from error
    release_memory()
    return np.concatenate([_scores(plan, half, plan[half][1], reranker) for half in halves])


def _halves(
    batch: list[tuple[int, list[int]]], listwise: bool
) -> tuple[list[tuple[int, list[int]]], list[tuple[int, list[int]]]] | None:
    if len(batch) > 1:
        middle = len(batch) // 2
        return batch[:middle], batch[middle:]
    query, places = batch[0]
    if listwise or len(places) == 1:
        return None
    middle = len(places) // 2
    return [(query, places[:middle])], [(query, places[middle:])]


def _checked(scores: Tensor, count: int, frontend: RerankFrontend) -> npt.NDArray[np.float32]:
    if scores.ndim != 1 or len(scores) != count:
        raise BadEmbedding(
            f"the reranker returned shape {tuple(scores.shape)} for {count} candidates, not [{count}]"
        )
    values: npt.NDArray[np.float32] = scores.detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise BadEmbedding(f"the reranker returned a score that is not finite ({dict(frontend.identity)})")
    return values


def fuse(run: Run, scores: Float32, weight: float) -> Run:
    """The run with its first candidates in the order of score + weight · reranker's score.

    Equal fused scores stand in pool order, as everywhere. The rest keeps its order below them; its
    scores are lowered by a constant where they would not be lower.
    """
    depth = scores.shape[1]
    fused = (run.scores[:, :depth].astype(np.float64) + weight * scores).astype(np.float32)
    fused[run.rows[:, :depth] < 0] = -np.inf
    order = np.lexsort((run.rows[:, :depth], -fused), axis=1)
    rows, all_scores = run.rows.copy(), run.scores.copy()
    rows[:, :depth] = np.take_along_axis(run.rows[:, :depth], order, axis=1)
    all_scores[:, :depth] = np.take_along_axis(fused, order, axis=1)
    if run.rows.shape[1] > depth:
        excess = all_scores[:, depth] - all_scores[:, depth - 1]
        lower = np.where(np.isfinite(excess) & (excess >= 0), excess + np.float32(1e-3), 0)
        all_scores[:, depth:] -= lower[:, None].astype(np.float32)
    return replace(run, rows=rows, scores=all_scores)


def places(run: Run, positives: Ragged) -> Found:
    """Where the positives (rows of the run's candidates, -1: none of them) stand in the run's lists.

    A positive that a list does not hold is beyond every cut-off.
    """
    query, size = positives.query, len(positives.values)
    score = np.full(size, -np.inf, np.float32)
    greater = np.full(size, BEYOND, np.int32)
    equal, before = np.zeros(size, np.int32), np.zeros(size, np.int32)
    for i, (q, row) in enumerate(zip(query.tolist(), positives.values.tolist(), strict=True)):
        at = np.flatnonzero(run.rows[q] == row)
        if row >= 0 and len(at):
            score[i] = run.scores[q, at[0]]
            tied = run.scores[q] == score[i]
            greater[i] = (run.scores[q] > score[i]).sum()
            equal[i] = tied.sum() - 1
            before[i] = (tied & (run.rows[q] < row)).sum()
    return Found(run.rows, run.scores, score, greater, equal, before)
