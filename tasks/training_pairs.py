"""Pairs to train on: rows of a text that asks, what answers it and what does not, as a collection.

    Row(Query("17", "Two dogs run."), Candidate("17/sent1", "Animals move."), (Candidate("17/hard_neg", …),))

asks for 17/sent1 among the answers and negatives of all rows. Rows that ask the same share their
answers, so that none of them is mined as a negative of another; what shows the same is one
candidate, named after the row where it stands first. A row of the file is a query in every case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.collection import Collection, Pool
from harness.content import Candidate, Part, Query
from harness.errors import DataInvalid
from harness.files import escapes
from harness.metrics import MRR, Hit, Metric

SPLITS = ("train",)
METRICS: tuple[Metric, ...] = (Hit(1), Hit(5), Hit(10), MRR(10))
"""How well a model knows what it is trained on."""


@dataclass(frozen=True, slots=True)
class Row:
    """A query, the candidate that answers it, and candidates that do not."""

    query: Query
    answer: Candidate
    negatives: tuple[Candidate, ...] = ()


def collected(name: str, rows: Iterable[Row], source: Path) -> Collection:
    """The collection of the rows of the file `source`; raises DataInvalid where there are none."""
    queries = []
    pool: dict[tuple[Part, ...], Candidate] = {}
    answers: dict[tuple[str | None, tuple[Part, ...]], dict[str, int]] = {}
    for row in rows:
        queries.append(row.query)
        for candidate in (row.answer, *row.negatives):
            pool.setdefault(candidate.parts, candidate)
        answers.setdefault(_asked(row.query), {})[pool[row.answer.parts].id] = 1
    if not queries:
        raise DataInvalid(f"{source} holds no row")
    return Collection(
        queries=queries,
        pool=Pool(name, list(pool.values())),
        qrels={query.id: answers[_asked(query)] for query in queries},
    )


def _asked(query: Query) -> tuple[str | None, tuple[Part, ...]]:
    return query.instruction, query.parts


def picture_name(folder: Path, path: str, place: str) -> str:
    """Where a picture lies below `folder`, from its path in a file that another machine wrote.

    A relative path is that. Of an absolute one counts what follows the last folder of that name,
    `sam/1.jpg` of `/mnt/data/sam/1.jpg` below `data`, or else the file's own name. Raises
    DataInvalid for what leads out of the folder.
    """
    name = path
    if path.startswith("/"):
        _, there, behind = path.rpartition(f"/{folder.name}/")
        name = behind if there else path.rpartition("/")[2]
    if not name or escapes(name):
        raise DataInvalid(f"{place}: picture {path!r} leads out of {folder}")
    return name
