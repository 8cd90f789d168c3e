"""What is trained on: the queries of tasks, each visit with one of its positives and one of its wordings.

visit 17  ->  Visit(query=Item("query", (Text("A red car."),), "Find it."), positive=Item(…), negatives=(…))

The order is a pure function of the seed, so that a run that was stopped goes on with what it would have
seen, on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.collection import Collection, checked
from harness.content import Candidate, Image, Item, Query, item
from harness.errors import DataInvalid
from harness.media import picture_size
from harness.recipe import Use
from harness.run import Ragged
from harness.task import Protocol, Task

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Visit:
    """A query as it is shown once; `negatives` are mined ones."""

    task: str
    query_id: str
    query: Item
    positive: Item
    negatives: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Lesson:
    """A task to train on; its queries have a positive in the pool, all others are left out."""

    task: str
    queries: Sequence[Query]
    candidates: Sequence[Candidate]
    candidate_ids: Sequence[str]
    positives: Ragged
    """[Q] rows of the pool."""
    visits: npt.NDArray[np.int32]
    """Rows of `queries` in the order of the file, repeats and all."""
    wordings: tuple[str, ...]
    left_out: int
    outside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Query id → its positives that are not in the pool."""

    @classmethod
    def load(cls, task: Task, data: Path, protocol: Protocol) -> Lesson:
        """Raises DataInvalid for a task without a truth, or where no query has a positive in the pool."""
        collection, _ = checked(task.load(data, protocol))
        return cls.of(task, collection, data, protocol)

    @classmethod
    def of(cls, task: Task, collection: Collection, data: Path, protocol: Protocol) -> Lesson:
        """What `load` makes of the task's collection."""
        if collection.qrels is None:
            raise DataInvalid(f"the truth of {task.name} is hidden: nothing can be trained on it")
        wanted = {c for query in collection.queries for c in collection.positives(query.id)}
        row = collection.pool.rows_of(wanted)
        found = [[row[c] for c in collection.positives(q.id) if c in row] for q in collection.queries]
        kept = [at for at, rows in enumerate(found) if rows]
        if not kept:
            raise DataInvalid(f"no query of {task.name} has a positive in its pool: nothing to train on")
        queries = [collection.queries[at] for at in kept]
        place = {query.id: at for at, query in enumerate(queries)}
        order = task.rows(data, protocol) if task.rows is not None else [query.id for query in queries]
        return cls(
            task=task.name,
            queries=queries,
            candidates=collection.pool.sequence,
            candidate_ids=collection.pool.ids,
            positives=Ragged.of([found[at] for at in kept]),
            visits=np.array([place[name] for name in order if name in place], np.int32),
            wordings=task.wordings(data, protocol) if task.wordings is not None else (),
            left_out=len(found) - len(kept),
            outside={
                query.id: ids
                for query in queries
                if (ids := tuple(c for c in collection.positives(query.id) if c not in row))
            },
        )

    def labelled(self, at: int) -> set[str]:
        """The ids of all positives of the query of row `at`, in the pool or not."""
        inside = (self.candidate_ids[row] for row in self.positives[at].tolist())
        return {*inside, *self.outside.get(self.queries[at].id, ())}

    def drawn(self, share: float, seed: int) -> Int64:
        """Some of the visits, in their order: so many of all, drawn once."""
        count = len(self.visits)
        if share == 1:
            return np.arange(count)
        some = max(1, int(count * share))
        return np.sort(np.random.default_rng([seed, 10]).choice(count, some, replace=False))

    def visit(self, at: int, random: np.random.Generator) -> Visit:
        """The query of row `at` with one of its positives, and with one of the task's wordings."""
        query = self.queries[at]
        if query.instruction is not None and len(self.wordings) > 1:
            query = replace(query, instruction=self.wordings[int(random.integers(len(self.wordings)))])
        positive = self.candidates[int(random.choice(self.positives[at]))]
        return Visit(self.task, query.id, item(query), item(positive))


@dataclass(frozen=True, slots=True)
class Corpus:
    """All lessons one after another."""

    lessons: tuple[Lesson, ...]
    rows: tuple[Int64, ...]
    """Of each lesson, which of its visits are made."""

    @classmethod
    def load(cls, tasks: Sequence[Task], data: Path, protocol: Protocol, *, share: float = 1.0) -> Corpus:
        """`share`: of how many of each task's rows, drawn once, in their order; 0.1 in distillation."""
        lessons = tuple(Lesson.load(task, data, protocol) for task in tasks)
        return cls(lessons, tuple(lesson.drawn(share, protocol.seed) for lesson in lessons))

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def place(self, index: int) -> tuple[Lesson, int]:
        """The lesson of a row of the corpus, and the row of its query."""
        for lesson, rows in zip(self.lessons, self.rows, strict=True):
            if index < len(rows):
                return lesson, int(lesson.visits[rows[index]])
            index -= len(rows)
        raise IndexError(index)


def cropped(shown: Item, least: float, random: np.random.Generator) -> Item:
    """The item with a part of each of its pictures, of a random size from `least` of either side to all of
    it, at a random place. Raises DataInvalid for a picture that cannot be read."""
    if least == 1:
        return shown
    parts = (_cropped(part, least, random) if isinstance(part, Image) else part for part in shown.parts)
    return replace(shown, parts=tuple(parts))


def _cropped(image: Image, least: float, random: np.random.Generator) -> Image:
    width, height = picture_size(replace(image, max_pixels=None))
    left, upper = image.crop[:2] if image.crop is not None else (0, 0)
    wide, high = (max(1, round(side * random.uniform(least, 1))) for side in (width, height))
    left, upper = (
        left + int(random.integers(width - wide + 1)),
        upper + int(random.integers(height - high + 1)),
    )
    return replace(image, crop=(left, upper, left + wide, upper + high))


def protocol_of(split: str, seed: int) -> Protocol:
    """How tasks are loaded to be trained on; the instruction is drawn anew at each visit."""
    return Protocol(split=split, seed=seed)


def use(settings: Mapping[str, object]) -> Use:
    """The tasks that a stage's settings name."""
    return Use(str(settings["tasks"]), protocol_of(str(settings["split"]), int(str(settings["seed"]))))


def uses(settings: Mapping[str, object]) -> list[Use]:
    """All that a stage uses, as `Stage.uses` has it."""
    return [use(settings)]


def visit_at(number: int, count: int, seed: int) -> tuple[int, np.random.Generator]:
    """The row that visit `number` is to, of `count` that are shuffled anew in every epoch, and what the
    visit draws with."""
    epoch, at = divmod(number, count)
    return int(_shuffled(count, seed, epoch)[at]), np.random.default_rng([seed, number])


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> Int64:
    return np.random.default_rng([seed, epoch, 1]).permutation(count)


def content_number(shown: Item) -> int:
    """A whole number that equal contents share, for `losses.duplicates`."""
    return int.from_bytes(blake2b(repr(shown.parts).encode(), digest_size=8).digest(), "big", signed=True)
