"""A stage's surroundings for tests: two tasks of texts, and tables of lists that are written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import toys
from harness.collection import Collection, Pool
from harness.content import Candidate, Query, Text
from harness.encode import EngineOptions
from harness.models.training.corpus import Corpus, protocol_of
from harness.models.training.lists import MINED, SCORED, About, Ranked, write
from harness.ranks import Ranks
from harness.recipe import StageRun
from harness.run import Ragged
from harness.task import Task

SETTINGS = {"base": "the-base", "tasks": "toys/a,toys/b", "split": "train", "seed": 0, "dtype": "float32"}


def collection(name: str, queries: int, candidates: int) -> Collection:
    """Query i is answered by candidate i; the pools of all such collections have `both` alike."""
    pool = [
        Candidate(f"{name}{i}", (Text(f"{name} says {i * i} {'and so on ' * (i % 3)}"),))
        for i in range(candidates)
    ]
    pool.insert(2, Candidate("both", (Text("what both pools hold"),)))
    asked = [Query(f"q{i}", (Text(f"{name}, what is {i} times {i}?"),), "Find it.") for i in range(queries)]
    return Collection(asked, Pool(name, pool), {f"q{i}": {f"{name}{i}": 1} for i in range(queries)})


def task(name: str, queries: int = 5, candidates: int = 8) -> Task:
    return toys.task(lambda: collection(name, queries, candidates), f"toys/{name}")


TASKS = (task("a"), task("b", 4, 6))


def stage(
    folder: Path,
    tasks: Sequence[Task] = TASKS,
    *,
    inputs: Mapping[str, Path] | None = None,
    ranks: Ranks | None = None,
    **settings: Any,
) -> StageRun:
    """What a stage in `folder`/stage is given."""
    (folder / "stage").mkdir(exist_ok=True)
    return StageRun(
        settings={**SETTINGS, **settings},
        folder=folder / "stage",
        inputs=inputs or {},
        data=folder,
        output_dir=folder,
        cache_dir=folder / "cache",
        tasks=lambda globs: tasks,
        engine=EngineOptions(quiet=True, workers=0),
        chunk=4,
        ranks=ranks or Ranks(),
        tell=lambda line: None,
    )


def corpus(tasks: Sequence[Task] = TASKS, share: float = 1.0) -> Corpus:
    return Corpus.load(tasks, Path(), protocol_of("train", 0), share=share)


Listed = Mapping[str, Sequence[tuple[str, float]]]
"""Query → (candidate, score), best first; a candidate of another task's pool is toys/b:b3."""


def table(
    folder: Path, lists: Mapping[str, Listed], *, model: str = "the-base", pool: str = "global", **about: Any
) -> Path:
    """A finished mining stage's folder; the table flags no positive."""
    return _table(folder, MINED, lists, ("score",), model, pool, **about)


def scored(folder: Path, lists: Mapping[str, Listed], *, depth: int, model: str = "the-base") -> Path:
    """A finished scoring stage's folder: scores are the fused ones, ranks behind `depth` from depth + 1."""
    return _table(folder, SCORED, lists, ("cosine", "p_yes", "fused"), model, "local", depth=depth)


def _table(
    folder: Path,
    name: str,
    lists: Mapping[str, Listed],
    values: Sequence[str],
    model: str,
    pool: str,
    depth: int = 100,
) -> Path:
    union = Pool(
        "global", tuple(Pool(t.name, t.load(Path(), protocol_of("train", 0)).pool.candidates) for t in TASKS)
    )
    homes = [t.name for t in TASKS for _ in t.load(Path(), protocol_of("train", 0)).pool.candidates]
    row = {(home, id): i for i, (home, id) in enumerate(zip(homes, union.ids, strict=True))}

    def ranked_of(task: str, listed: Listed) -> Ranked:
        width = max(map(len, listed.values()))
        rows = np.full((len(listed), width), -1, np.int32)
        scores = np.full(rows.shape, -np.inf, np.float32)
        for q, ranked in enumerate(listed.values()):
            for k, (candidate, score) in enumerate(ranked):
                home, _, id = candidate.rpartition(":")
                rows[q, k], scores[q, k] = row[home or task, id], score
        ranks = np.broadcast_to(np.arange(1, width + 1, dtype=np.int32), rows.shape)
        none = Ragged.of([()] * len(listed))
        return Ranked(task, list(listed), union, rows, ranks, dict.fromkeys(values, scores), none)

    about = About(model, {}, {}, pool, depth)
    write(folder / name, about, [ranked_of(task, listed) for task, listed in lists.items()])
    return folder


def shuffled(path: Path) -> None:
    """The same table, its rows in another order."""
    import pyarrow.parquet as pq

    whole = pq.read_table(path)
    pq.write_table(whole.take(np.random.default_rng(3).permutation(len(whole))), path)
