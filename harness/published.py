"""Published scores, read from one JSON file per paper.

A file names its paper and holds tables; a table's columns stand in the order of its rows' values,
which are in percent as printed (null: a gap):

    {"paper": "U-MARVEL", "ref": "arXiv 2507.14902", "url": "…", "plugins": ["umarvel"], "tables": [
      {"table": "Table 7", "source": "…", "grade": "A", "suites": ["mbeir-local"], "pool": "…",
       "columns": [{"task": "mbeir-local/cirr_task7", "metric": "Hit@5", "printed": "CIRR R@5",
                    "queries": 4170},
                   {"mean": "mbeir-local", "printed": "Avg."}],
       "rows": [{"model": "U-MARVEL (Qwen2-VL-7B)", "plugin": "umarvel", "size": "7B",
                 "setting": "single model", "values": [60.7, 63.2]}]}]}

results/README.md explains every key.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal, get_args

from harness.errors import DataInvalid, UnknownName
from harness.metrics import Metric

Grade = Literal["A", "B", "C"]
GRADES: tuple[Grade, ...] = get_args(Grade)


@dataclass(frozen=True, slots=True)
class Reported:
    """One published number, a share in [0, 1].

    task: one of ours, a data set ("genecis": the mean over its tasks), or a free name; for a printed
    mean (metric None) the suite that it is taken over.
    setting: "zero-shot", "single model" or "recall-then-rerank", or "held-out" (with or without
    "recall-then-rerank"): the model was trained without the tasks' data.
    grade: A read from the authors' own table or file, B from extracted or OCR text, C second-hand.
    accepts: the values of our protocol (or `identity.…`) under which a score of ours is comparable,
    where they are not the default ones. unlike: why no score of ours is.
    quoted: the file whose number this table repeats.
    """

    paper: str
    """The file's name without its suffix."""
    title: str
    table: str
    model: str
    task: str
    metric: Metric | None
    value: float
    setting: str
    grade: Grade
    source: str
    plugin: str | None = None
    """Our plugin's name; `model+reranker` for re-ranked scores."""
    size: str | None = None
    suites: tuple[str, ...] = ()
    """The suites in whose leaderboards the table belongs."""
    quoted: str | None = None
    own: bool = False
    """Whether the model is the paper's own."""
    queries: int | None = None
    accepts: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    unlike: str = ""
    note: str = ""

    @property
    def reranked(self) -> bool:
        return "rerank" in self.setting

    @property
    def held_out(self) -> bool:
        return "held-out" in self.setting

    @property
    def citation(self) -> str:
        """Where the number stands and what is to be known about it, for the foot of a table."""
        note = f"; {self.note}" if self.note else ""
        return f"{self.title}, {self.table}: {self.source}; grade {self.grade}{note}"


def read_reported(package: str) -> tuple[Reported, ...]:
    """All published numbers in the `*.json` files of an importable package, in file order.

    Raises DataInvalid naming file, table and row.
    """
    found: list[Reported] = []
    for file in sorted(resources.files(package).iterdir(), key=lambda f: f.name):
        if file.name.endswith(".json"):
            found += parse(file.read_text(encoding="utf-8"), file.name)
    return tuple(found)


def parse(text: str, name: str) -> list[Reported]:
    """The numbers of one file's text; `name` is the file's."""
    place = name
    found: list[Reported] = []
    try:
        paper = json.loads(text)
        for table in paper["tables"]:
            place = f"{name}, {table['table']}"
            for row in table["rows"]:
                place = f"{name}, {table['table']}, {row['model']}"
                found.extend(_numbers(name.removesuffix(".json"), paper, table, row))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataInvalid(
            f"{place}: not published numbers as results/README.md describes ({type(error).__name__}: {error})"
        ) from error
    return found


def _numbers(
    name: str, paper: Mapping[str, Any], table: Mapping[str, Any], row: Mapping[str, Any]
) -> Iterator[Reported]:
    for column, percent in zip(table["columns"], row["values"], strict=True):
        if percent is None or "unit" in column:  # seconds are carried in the file, they are no score
            continue
        mean = column.get("mean")
        yield Reported(
            paper=name,
            title=paper["paper"],
            table=table["table"],
            model=row["model"],
            task=mean or column["task"],
            metric=None if mean else Metric.parse(column["metric"]),
            value=_share(percent),
            setting=row["setting"],
            grade=_lowest(part.get("grade", "A") for part in (table, column, row)),
            source=row.get("source") or table["source"],
            plugin=row.get("plugin"),
            size=row.get("size"),
            suites=tuple(table.get("suites", ())),
            quoted=row.get("quoted"),
            own=row.get("plugin") in paper.get("plugins", ()),
            queries=column.get("queries"),
            accepts={**table.get("accepts", {}), **row.get("accepts", {})},
            unlike=row.get("unlike") or column.get("unlike") or "",
            note="; ".join(filter(None, (table.get("note"), row.get("note")))),
        )


def _share(percent: float) -> float:
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is not a percentage")
    # Two steps of decimal rounding bring 100 × value back to the printed digits.
    return round(percent / 100, 8)


def _lowest(grades: Iterable[str]) -> Grade:
    return GRADES[max(GRADES.index(grade) for grade in grades)]


def select(
    reported: Iterable[Reported], *, papers: Collection[str] = (), lowest: str = "B"
) -> tuple[Reported, ...]:
    """Those of these papers (none: of all) whose grade is at least `lowest`.

    A number that one paper repeats from another is left out where the original is there.
    Raises UnknownName.
    """
    if lowest not in GRADES:
        raise UnknownName("grade", lowest, GRADES)
    everything = tuple(reported)
    known = {r.paper for r in everything}
    for paper in papers:
        if paper not in known:
            raise UnknownName("paper", paper, known)
    chosen = [r for r in everything if (not papers or r.paper in papers) and r.grade <= lowest]
    there = {(r.paper, r.model, r.setting, r.task, r.metric) for r in chosen if r.quoted is None}
    return tuple(r for r in chosen if (r.quoted, r.model, r.setting, r.task, r.metric) not in there)
