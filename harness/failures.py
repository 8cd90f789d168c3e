"""What a stored run gets wrong: the worst queries, where their answers stand, and why the first is wrong.

Nothing is encoded: the run, the outcome of every query and the task's own data are read back.
"""

from __future__ import annotations

from collections.abc import Collection as Ids
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from harness.collection import Collection, Pool
from harness.content import Candidate, Query, modality
from harness.errors import HarnessError
from harness.exports import searched, source_of
from harness.likeness import near_duplicates
from harness.metrics import Metric
from harness.outcomes import SUFFIX
from harness.result import Result, Stored
from harness.run import Float32, Run
from harness.selection import matching
from harness.task import Task

Reason = Literal["tie", "wrong modality", "wrong data set", "near-duplicate", "other"]
Change = Literal["fixed", "broken", "both wrong"]
TOP = 5


@dataclass(frozen=True, slots=True)
class Ranked:
    """A result and what was stored beside it: the run over the task's pool, every query's headline."""

    result: Result
    run: Run
    outcomes: Mapping[str, float]
    places: Mapping[str, int]
    """The index in the run of each query."""

    def list(self, query: str) -> list[tuple[str, float]]:
        """The ids and scores of a query's answers, best first."""
        return self.run.ranking(self.places[query])


@dataclass(frozen=True, slots=True)
class Answer:
    """A candidate and its place in a run, from 1; None where the stored list does not reach it."""

    candidate: Candidate
    relevant: bool
    rank: int | None
    score: float | None


@dataclass(frozen=True, slots=True)
class Ranking:
    """How one model answers a query: the headline, its first answers, and the relevant candidates,
    best placed first. `reason` says what the first wrong answer is; None where the headline is full."""

    value: float
    answers: tuple[Answer, ...]
    relevant: tuple[Answer, ...]
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A query, how the model answers it, and how the other one does."""

    query: Query
    ranking: Ranking
    other: Ranking | None = None
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The failures that are shown, and how many queries of each change there are in all.

    `relevant_scores` and `wrong_scores` are those of the first model's run, each query's best placed
    relevant and wrong candidate.
    """

    task: Task
    metric: Metric
    queries: int
    wrong: int
    results: tuple[Result, ...]
    changes: Mapping[Change, int]
    failures: tuple[Failure, ...]
    relevant_scores: Float32
    wrong_scores: Float32


def inspect(
    task: Task, models: Sequence[str], stored: Iterable[Stored], *, data: Path, worst: int = 50
) -> Report:
    """The worst queries of a model on a task; of two, the worst of each change from one to the other.

    A query is wrong where its headline is below 1. From the first model to the second it is fixed
    where the headline rises, broken where it falls, both wrong where it stays below 1. Worst is the
    lowest headline, then the relevant candidate that stands deepest. A model may be MODEL@IDENTITY;
    of several results of it the newest is taken, a complete one if there is.
    Raises HarnessError where there is no result with outcomes, or two are not comparable, and
    DataInvalid where the data are not those that the result was made on.
    """
    of_task = [s for s in stored if s.result.task == task.name]
    chosen = [_newest(of_task, models[0], task.name)]
    chosen += [_newest(of_task, name, task.name, like=chosen[0].result) for name in models[1:]]
    source = source_of(chosen[0].result, task, data)
    collection = searched(source, chosen[0].result)
    ranked = [_ranked(each, collection) for each in chosen]
    return _report(task, collection, source.pool, ranked, worst)


def _newest(stored: Sequence[Stored], name: str, task: str, like: Result | None = None) -> Stored:
    """The newest scored result that a name stands for, made on the data of `like`."""
    if not any(s.result.model == name.partition("@")[0] for s in stored):
        raise HarnessError(
            f"there is no result of model {name!r} on {task}: run 'harness eval -m {name} -t {task}',"
            " or name its folder with --runs"
        )
    found = matching(stored, name)
    scored = [s for s in found if s.path.with_suffix(SUFFIX).exists()]
    if not scored:
        raise HarnessError(
            f"no result of model {name!r} on {task} has per-query outcomes beside it (status"
            f" {found[-1].result.status}): evaluate it again with --overwrite-strategy always"
        )
    alike = [s for s in scored if like is None or _data(s.result) == _data(like)]
    if not alike:
        raise HarnessError(f"no result of model {name!r} on {task} was made on the data of the first model's")
    return max(alike, key=lambda s: (s.result.status == "complete", s.started))


def _data(result: Result) -> tuple[object, ...]:
    protocol = result.protocol
    return (protocol.get("version"), protocol.get("split"), protocol.get("limit"), dict(result.files))


def _ranked(stored: Stored, collection: Collection) -> Ranked:
    outcomes = stored.outcomes()
    headline = outcomes.values[stored.result.headline or ""].tolist()
    places = {query: at for at, query in enumerate(outcomes.queries)}
    run = stored.run().within(outcomes.queries, collection.pool)
    return Ranked(stored.result, run, dict(zip(outcomes.queries, headline, strict=True)), places)


def _report(task: Task, collection: Collection, pool: Pool, ranked: Sequence[Ranked], worst: int) -> Report:
    first = ranked[0]
    metric = Metric.parse(first.result.headline or "")
    queries = {q.id: q for q in collection.queries if all(q.id in s.outcomes for s in ranked)}
    wrong = [q for q in queries if first.outcomes[q] < 1]
    changes: dict[Change, list[str]] = {}
    chosen: list[tuple[str, Change | None]]
    if len(ranked) == 1:
        chosen = [(q, None) for q in _worst(wrong, collection, first)[:worst]]
    else:
        changes = _changes(list(queries), first, ranked[1])
        judges: Mapping[Change, Ranked] = {"broken": ranked[1], "fixed": first, "both wrong": first}
        chosen = [
            (q, change)
            for change, names in changes.items()
            for q in _worst(names, collection, judges[change])[:worst]
        ]
    listed = [[_listed(collection, s, q, metric) for q, _ in chosen] for s in ranked]
    there = _Candidates.of(collection, pool, {name for lists in listed for one in lists for name in one.ids})
    rankings = [[_ranking(one, there) for one in lists] for lists in listed]
    failures = tuple(
        Failure(queries[q], rankings[0][i], rankings[1][i] if len(ranked) > 1 else None, change)
        for i, (q, change) in enumerate(chosen)
    )
    return Report(
        task=task,
        metric=metric,
        queries=len(queries),
        wrong=len(wrong),
        results=tuple(s.result for s in ranked),
        changes={change: len(names) for change, names in changes.items()},
        failures=failures,
        relevant_scores=_best_scores(collection, first, True),
        wrong_scores=_best_scores(collection, first, False),
    )


def _best_scores(collection: Collection, ranked: Ranked, relevant: bool) -> Float32:
    """The score of each query's best placed relevant (or wrong) candidate, where its list has one."""
    found = []
    for query in ranked.outcomes:
        positives = collection.positives(query)
        scores = (score for name, score in ranked.list(query) if (name in positives) == relevant)
        found.append(next(scores, None))
    return np.array([score for score in found if score is not None], dtype=np.float32)


def _changes(queries: Sequence[str], first: Ranked, second: Ranked) -> dict[Change, list[str]]:
    found: dict[Change, list[str]] = {"broken": [], "fixed": [], "both wrong": []}
    for q in queries:
        before, after = first.outcomes[q], second.outcomes[q]
        if after != before:
            found["fixed" if after > before else "broken"].append(q)
        elif before < 1:
            found["both wrong"].append(q)
    return found


def _worst(queries: Sequence[str], collection: Collection, ranked: Ranked) -> list[str]:
    """The queries, the worst first."""

    def badness(query: str) -> tuple[float, int]:
        relevant = collection.positives(query)
        names = [name for name, _ in ranked.list(query)]
        depth = next((rank for rank, name in enumerate(names) if name in relevant), len(names))
        return ranked.outcomes[query], -depth

    return sorted(queries, key=badness)


@dataclass(frozen=True, slots=True)
class _Listed:
    """The ids and scores of a ranking's answers and relevant candidates, before their contents are read."""

    value: float
    answers: tuple[tuple[str, float], ...]
    relevant: tuple[tuple[str, int | None, float | None], ...]
    positives: Ids[str]
    tied: bool

    @property
    def ids(self) -> Iterator[str]:
        yield from (name for name, _ in self.answers)
        yield from (name for name, _, _ in self.relevant)


def _listed(collection: Collection, ranked: Ranked, query: str, metric: Metric) -> _Listed:
    listed = ranked.list(query)
    positives = collection.positives(query)
    found = [(name, rank, score) for rank, (name, score) in enumerate(listed, 1) if name in positives]
    missing = [(name, None, None) for name in positives if name not in {n for n, _, _ in found}]
    return _Listed(
        ranked.outcomes[query],
        tuple(listed[:TOP]),
        (*found, *missing),
        positives,
        bool(found) and _tied(listed, positives, found[0][2], metric.k or 1),
    )


def _tied(listed: Sequence[tuple[str, float]], positives: Ids[str], score: float, k: int) -> bool:
    higher = sum(s > score for _, s in listed)
    return higher < k and any(s == score and name not in positives for name, s in listed)


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Some candidates of a pool, and the part of a union that each is from."""

    contents: Mapping[str, Candidate]
    homes: Mapping[str, str]

    @classmethod
    def of(cls, collection: Collection, pool: Pool, ids: Ids[str]) -> _Candidates:
        rows = collection.pool.rows_of(ids)
        sequence = collection.pool.sequence
        homes: dict[str, str] = {}
        for part in _parts(pool):
            homes |= dict.fromkeys(part.rows_of(ids), part.name)
        return cls({name: sequence[row] for name, row in rows.items()}, homes)


def _parts(pool: Pool) -> Iterator[Pool]:
    if pool.candidates and isinstance(pool.candidates[0], Pool):
        for part in pool.candidates:
            assert isinstance(part, Pool)
            yield from _parts(part)
    else:
        yield pool


def _ranking(listed: _Listed, there: _Candidates) -> Ranking:
    answers = tuple(
        Answer(there.contents[name], name in listed.positives, rank, score)
        for rank, (name, score) in enumerate(listed.answers, 1)
    )
    relevant = tuple(
        Answer(there.contents[name], True, rank, score)
        for name, rank, score in listed.relevant
        if name in there.contents
    )
    reason = None if listed.value >= 1 else _reason(listed, answers, relevant, there)
    return Ranking(listed.value, answers, relevant[:TOP], reason)


def _reason(
    listed: _Listed, answers: Sequence[Answer], relevant: Sequence[Answer], there: _Candidates
) -> Reason:
    """Why a query fails, the first of these that holds; the wrong answer is the best placed one.

    tie: fewer than k candidates score higher than the best placed relevant one, and a wrong one scores
    exactly the same: the tie rule decides, not the model.
    wrong modality: no relevant candidate has the modality of the wrong answer.
    wrong data set: in a union of pools, no relevant candidate is from the pool of the wrong answer.
    near-duplicate: the wrong answer shows the same as one of the first relevant candidates (`likeness`).
    other: anything else, a query without a reachable relevant candidate included.
    """
    wrong = next((a.candidate for a in answers if not a.relevant), None)
    right = [a.candidate for a in relevant]
    if listed.tied:
        return "tie"
    if wrong is None or not right:
        return "other"
    if modality(wrong.parts) not in {modality(c.parts) for c in right}:
        return "wrong modality"
    if there.homes.get(wrong.id) not in {there.homes.get(c.id) for c in right}:
        return "wrong data set"
    if any(near_duplicates(wrong.parts, c.parts) for c in right[:TOP]):
        return "near-duplicate"
    return "other"
