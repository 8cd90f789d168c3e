"""Mining: what a checkpoint retrieves for the queries that are trained on, out of their own pool or all.

results/training/mine-3c5f…/mined.parquet   the best 100 of each query, best first, by id (lists.py)

Mining is the harness's own encoding and search: exact, and nothing is encoded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.collection import Collection, Pool, Subset, checked, union
from harness.device import release_memory
from harness.digest import digest
from harness.encode import Keyed
from harness.errors import UnknownName
from harness.evaluate import (
    EvalOptions,
    Opened,
    Retrieved,
    Session,
    Things,
    embed,
    joined,
    retrieve,
    task_files,
)
from harness.recipe import StageRun
from harness.task import Task

from ..input_spec import InputSpec
from .corpus import use
from .embedder import open_frontend, start_of
from .lists import MINED, About, Ranked, model_of, write

POOLS = ("local", "global")


def mine(run: StageRun, spec: InputSpec) -> None:
    """Run a mining stage; makes the table of what is retrieved. Under several ranks each encodes its
    share, and the first one searches. Raises DataInvalid, UnknownName."""
    depth = int(str(run.settings["depth"]))
    asked = collections(run)
    retriever = Retriever.open(run, spec)
    retriever.encode(asked)
    if run.ranks.rank == 0:
        found = zip(asked, retriever.retrieve(asked, depth), strict=True)
        lists = (_ranked(task, collection, retrieved) for (task, collection), retrieved in found)
        write(run.folder / MINED, retriever.about(asked, depth), lists)


def collections(
    run: StageRun, narrowed: Callable[[Task, Collection], Collection] = lambda task, collection: collection
) -> list[tuple[Task, Collection]]:
    """The tasks of a stage by name, each with its queries and the pool that they are asked of.

    Every pool is a union of tasks' pools, each named like its task: of one, or (global) of all. `narrowed`
    is the task's own collection with fewer queries.
    """
    settings, uses = run.settings, use(run.settings)
    pool = str(settings["pools"])
    if pool not in POOLS:
        raise UnknownName("pools", pool, POOLS)
    tasks = sorted(run.tasks(uses.tasks), key=lambda task: task.name)
    loaded = [(task, narrowed(task, checked(task.load(run.data, uses.protocol))[0])) for task in tasks]
    own = [Pool(task.name, collection.pool.candidates) for task, collection in loaded]
    if pool == "local":
        return [
            (task, replace(collection, pool=Pool(task.name, (part,))))
            for (task, collection), part in zip(loaded, own, strict=True)
        ]
    every = union("global", own)
    return [(task, replace(collection, pool=every)) for task, collection in loaded]


@dataclass(frozen=True, slots=True)
class Retriever:
    """A stage's checkpoint as what encodes and searches."""

    run: StageRun
    opened: Opened
    options: EvalOptions

    @classmethod
    def open(cls, run: StageRun, spec: InputSpec) -> Retriever:
        """The checkpoint of the stage that plays MODEL, or the base."""
        frontend = open_frontend(start_of(run), run.settings, spec)
        protocol = use(run.settings).protocol
        options = EvalOptions(run.data, run.output_dir, run.cache_dir, protocol, run.engine)
        return cls(run, Opened.of("training", frontend), options)

    def about(self, asked: Sequence[tuple[Task, Collection]], depth: int) -> About:
        """What a table of its lists was made of."""
        digests = Session.start(self.options).digests
        protocol = self.options.protocol
        tasks = {
            task.name: digest(task.fingerprint(protocol, task_files(task, self.options, digests)))
            for task, _ in asked
        }
        pool = str(self.run.settings["pools"])
        return About(model_of(self.run), self.opened.identity, tasks, pool, depth)

    def encode(self, asked: Sequence[tuple[Task, Collection]]) -> None:
        """Encode this rank's share into the store, and return when all ranks have; alone, nothing."""
        ranks = self.run.ranks
        if ranks.count == 1:
            return
        leaves = {id(leaf): leaf for _, collection in asked for leaf in collection.pool.leaves()}
        parts: list[Things] = [*(collection.queries for _, collection in asked), *leaves.values()]
        shares = [
            Subset(part, np.arange(ranks.rank, len(part), ranks.count, dtype=np.int64)) for part in parts
        ]
        embed(Session.start(self.options), self.opened, shares, title=self.run.folder.name)
        release_memory()
        ranks.wait(self.run.engine.device)

    def retrieve(self, asked: Sequence[tuple[Task, Collection]], depth: int) -> Iterator[Retrieved]:
        """The best candidates of each collection's queries; a pool that the next one has too is looked up
        once."""
        session = Session.start(self.options)
        pool: Pool | None = None
        keys: list[Keyed] = []
        for task, collection in asked:
            if collection.pool is not pool:
                pool = collection.pool
                keys = embed(session, self.opened, list(pool.leaves()), title=pool.name)[0]
            (queries,), _ = embed(session, self.opened, [collection.queries], title=task.name)
            yield retrieve(session, self.opened, collection, queries, joined(keys), depth)


def _ranked(task: Task, collection: Collection, retrieved: Retrieved) -> Ranked:
    run = retrieved.run
    ranks = np.broadcast_to(np.arange(1, run.rows.shape[1] + 1, dtype=np.int32), run.rows.shape)
    return Ranked(
        task.name,
        run.query_ids,
        collection.pool,
        run.rows,
        ranks,
        {"score": run.scores},
        retrieved.request.positives,
    )
