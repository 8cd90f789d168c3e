"""Leaderboards: results and published numbers in a suite's columns; `harness.boards` shows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from harness.errors import HarnessError
from harness.exposure import STATUSES, Exposure, Spec, Status, exposure
from harness.metrics import Metric
from harness.published import Reported
from harness.result import Result
from harness.task import Column, Suite, Task

Format = Literal["markdown", "latex", "html", "csv", "json"]
Block = Literal["single model", "+ rerank"]
GAP = "–"
SETTINGS = ("split", "profile", "instructions", "seed", "limit", "skip_broken", "compat")
"""The keys of a result's protocol that a user chose; a row has one value of each."""


@dataclass(frozen=True, slots=True)
class Heading:
    """A column's place in the table."""

    group: str
    title: str
    metric: str
    key: str = ""
    """The metric's name in results."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the outcomes of the queries say of a score beside the others of its column and block.

    ci95: its interval where it is a mean of several tasks. tied: the best row's label, where this one
    cannot be told from it. rank: the best and the worst that tests of all pairs leave possible.
    """

    ci95: tuple[float, float] | None = None
    tied: str | None = None
    rank: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One model under one identity and one set of protocol choices, or one that a paper reports.

    Values lie in [0, 1]. `sources` say where a reported row was published; ours has none. `plugin`
    is our name of a reported model.
    """

    label: str
    model: str
    identity_id: str
    values: tuple[float | None, ...]
    average: float | None
    check: bool
    marked: bool
    block: Block = "single model"
    size: str | None = None
    plugin: str | None = None
    sources: tuple[str, ...] = ()
    oracle: bool = False
    """Fused with the weight that is best on what is scored: shown, not ranked."""
    exposures: tuple[Exposure, ...] = ()
    """For each column, whether the model was trained on its data."""
    averages: Mapping[Status, float | None] = field(default_factory=dict)
    """The averages over the columns of each status that occurs among them."""
    scored: tuple[tuple[Result, ...], ...] = ()
    """For each column the results behind its value; a published row has none."""
    published: tuple[Reported | None, ...] = ()
    """For each column the number behind its value; a row of ours has none."""
    standings: tuple[Standing | None, ...] = ()
    """For each column, then for the average; filled by `harness.standing`."""

    def interval(self, column: int, key: str) -> tuple[float, float] | None:
        """The 95 % interval of a column's value under its metric."""
        results = self.scored[column] if self.scored else ()
        if len(results) == 1 and key in results[0].metrics:
            return results[0].metrics[key].ci95
        standing = self.standing(column)
        return standing.ci95 if standing else None

    def standing(self, column: int) -> Standing | None:
        """Of a column, or after the last one of the average."""
        return self.standings[column] if column < len(self.standings) else None


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Rows best first (by average) in two blocks, re-ranked ones in the second, check models last.

    Published rows of a model of ours follow it at once. `notes` explain every mark and gap.
    """

    title: str
    headings: tuple[Heading, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def statuses(self) -> tuple[Status, ...]:
        """The kinds of exposure that have an average of their own; none where nothing is known."""
        found = {status for row in self.rows for status in row.averages}
        return tuple(s for s in STATUSES if s in found) if found - {"unknown"} else ()


def tasks_suite(tasks: Sequence[Task]) -> Suite:
    """A suite with one column for each of these tasks, grouped by data set."""
    columns = []
    for task in tasks:
        data_set, _, variant = task.name.partition("/")
        columns.append(Column(variant or data_set, data_set if variant else "", (task.name,)))
    return Suite("tasks", ", ".join(t.name for t in tasks), tuple(columns))


def leaderboard(
    suites: Sequence[Suite],
    tasks: Mapping[str, Task],
    results: Iterable[Result],
    *,
    models: Mapping[str, Spec] = MappingProxyType({}),
    limit: int | None = None,
    reported: Sequence[Reported] = (),
) -> Leaderboard:
    """The table of `suites` over `results`, only those made with this `limit`, beside `reported`.

    `models` say what they were trained on: each cell is marked by it, and has its share in the
    average over what was trained on, held out or unknown.

    A column never mixes data: of results that differ in task version, split or files, those that
    agree with the newest stay and the others are left out with a note.
    """
    columns = [
        replace(column, group=f"{suite.name} {column.group}".strip() if len(suites) > 1 else column.group)
        for suite in suites
        for column in suite.columns
    ]
    wanted = {name for column in columns for name in column.tasks}
    usable = [r for r in results if r.task in wanted and r.protocol.get("limit") == limit]
    newest: dict[str, Result] = {}
    for r in sorted(usable, key=_started):
        if not r.check or r.task not in newest:
            newest[r.task] = r
    alike = [r for r in usable if _data(r) == _data(newest[r.task])]
    cells: dict[tuple[str, str, str], dict[str, Result]] = {}
    averaged = {_row_key(r) for r in alike if r.protocol.get("instructions") == "all"}
    for r in sorted(alike, key=_started):
        single = str(r.protocol.get("instructions")).isdecimal()
        if not (single and _row_key(r, instructions="all") in averaged):
            cells.setdefault(_row_key(r), {})[r.task] = r
    rows = [_row(columns, tasks, found, cells, reported) for found in cells.values()]
    rows += _reported_rows(suites, columns, tasks, reported)
    rows = [_exposed(row, columns, tasks, models) for row in rows]
    rows.sort(
        key=lambda row: (
            row.check,
            row.block != "single model",
            row.oracle,
            row.average is None,
            -(row.average or 0.0),
            row.label,
        )
    )
    return Leaderboard(
        title=" + ".join(suite.title for suite in suites),
        headings=tuple(_heading(c, column_metric(c, tasks)) for c in columns),
        rows=tuple(_side_by_side(rows)),
        notes=tuple(_notes(columns, tasks, rows, alike, len(usable) - len(alike), limit)),
    )


def _heading(column: Column, metric: Metric) -> Heading:
    return Heading(column.group, column.title, metric.alias, metric.key)


def _started(result: Result) -> str:
    return str(result.provenance.get("started", ""))


def _data(result: Result) -> tuple[Any, ...]:
    protocol = result.protocol
    return (protocol.get("version"), protocol.get("split"), tuple(sorted(result.files.items())))


def _settings(result: Result) -> dict[str, Any]:
    return {name: result.protocol.get(name) for name in SETTINGS}


def _row_key(result: Result, **changed: str) -> tuple[str, str, str]:
    # A check model's identity holds the qrels of one task: its row goes by the name alone.
    identity = "" if result.check else result.identity_id
    return result.model, identity, json.dumps(_settings(result) | changed)


def _row(
    columns: Sequence[Column],
    tasks: Mapping[str, Task],
    found: Mapping[str, Result],
    cells: Mapping[tuple[str, str, str], Mapping[str, Result]],
    reported: Sequence[Reported],
) -> Row:
    any_result = next(iter(found.values()))
    values = tuple(_value(column, tasks, found) for column in columns)
    settings = _settings(any_result)
    marked = settings["profile"] != "default" or bool(settings["compat"]) or bool(settings["skip_broken"])
    return Row(
        label=_label(any_result, [next(iter(c.values())) for c in cells.values()]),
        model=any_result.model,
        identity_id=any_result.identity_id,
        values=values,
        average=_average(columns, values),
        check=any_result.check,
        marked=marked,
        block="+ rerank" if "+" in any_result.model else "single model",
        size=_size(any_result.model, reported),
        oracle="oracle" in any_result.identity,
        scored=tuple(tuple(found[t] for t in c.tasks if t in found) for c in columns),
    )


def _size(model: str, reported: Iterable[Reported]) -> str | None:
    """The size that papers print for a model of ours; None where they print several."""
    sizes = {number.size for number in reported if number.plugin == model and number.size}
    return sizes.pop() if len(sizes) == 1 else None


def _exposed(
    row: Row, columns: Sequence[Column], tasks: Mapping[str, Task], models: Mapping[str, Spec]
) -> Row:
    """The row with what is known of its model's training on each column's data."""
    name = row.plugin if row.sources else row.model
    found = tuple(
        exposure(models, name or "", [tasks[t] for t in column.tasks if t in tasks]) for column in columns
    )
    counted = [i for i, column in enumerate(columns) if column.in_average]
    averages = {}
    for status in dict.fromkeys(found[i].status for i in counted):
        chosen = [i for i in counted if found[i].status == status]
        averages[status] = _average([columns[i] for i in chosen], [row.values[i] for i in chosen])
    return replace(row, exposures=found, averages={} if row.check else averages)


def _average(columns: Sequence[Column], values: Sequence[float | None]) -> float | None:
    counted = [v for v, column in zip(values, columns, strict=True) if column.in_average]
    present = [v for v in counted if v is not None]
    return sum(present) / len(present) if present and len(present) == len(counted) else None


def _reported_rows(
    suites: Sequence[Suite],
    columns: Sequence[Column],
    tasks: Mapping[str, Task],
    reported: Sequence[Reported],
) -> list[Row]:
    """A row for each model and setting of each paper, from its tables about these suites.

    Where two tables of a paper disagree on a cell, the first stays. The average is the printed one
    where there is a single suite and the paper prints it.
    """
    names = {suite.name for suite in suites}
    found: dict[tuple[str, str, str], list[Reported]] = {}
    for number in reported:
        if names & set(number.suites):
            found.setdefault((number.paper, number.model, number.setting), []).append(number)
    rows = []
    for numbers in found.values():
        shown = [next(iter(published_for(column, tasks, numbers)), None) for column in columns]
        means = [n for n in numbers if n.metric is None and [n.task] == [suite.name for suite in suites]]
        printed = means[0] if means else None
        used = [number for number in (*shown, printed) if number is not None]
        if not used:
            continue
        values = tuple(None if number is None else number.value for number in shown)
        rows.append(
            Row(
                label=used[0].model,
                model=used[0].model,
                identity_id="",
                values=values,
                average=_average(columns, values) if printed is None else printed.value,
                check=False,
                marked=False,
                block="+ rerank" if used[0].reranked else "single model",
                size=used[0].size,
                plugin=used[0].plugin,
                sources=tuple(dict.fromkeys(number.citation for number in used)),
                published=tuple(shown),
            )
        )
    return rows


def published_for(column: Column, tasks: Mapping[str, Task], numbers: Iterable[Reported]) -> list[Reported]:
    """The published numbers that belong in this column: its task's, or its whole data set's."""
    data_sets = {name.partition("/")[0] for name in column.tasks}
    names = (data_sets if len(data_sets) == 1 else set()) | (
        set(column.tasks) if len(column.tasks) == 1 else set()
    )
    metric = column_metric(column, tasks)
    return [n for n in numbers if n.task in names and n.metric == metric]


def _side_by_side(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows in order, but what was published of a model of ours right below our first row of it."""
    ours = {(row.model, row.block) for row in rows if not row.sources}
    placed: set[tuple[str, str]] = set()
    for row in rows:
        if row.sources:
            if (row.plugin, row.block) not in ours:
                yield row
            continue
        yield row
        if (row.model, row.block) not in placed:
            placed.add((row.model, row.block))
            yield from (r for r in rows if r.sources and (r.plugin, r.block) == (row.model, row.block))


def _label(result: Result, others: Sequence[Result]) -> str:
    """The model's name, and what sets this row apart from the model's other rows."""
    same = [r for r in others if r.model == result.model]
    apart = []
    for mine, key in ((result.identity, "identity"), (_settings(result), "settings")):
        theirs = [dict(r.identity) if key == "identity" else _settings(r) for r in same]
        for name in () if result.check and key == "identity" else mine:
            if any(t.get(name) != mine[name] for t in theirs):
                value = mine[name]
                shown = (",".join(value) or "none") if isinstance(value, list) else value
                apart.append(f"{name}={shown}")
    return f"{result.model} ({', '.join(apart)})" if apart else result.model


def column_metric(column: Column, tasks: Mapping[str, Task]) -> Metric:
    """The metric that the column shows; raises HarnessError where nobody offers its task."""
    if column.metric is not None:
        return column.metric
    if column.tasks[0] not in tasks:
        raise HarnessError(f"column {column.title!r} names task {column.tasks[0]!r}, which no plugin offers")
    return tasks[column.tasks[0]].headline


def _value(column: Column, tasks: Mapping[str, Task], found: Mapping[str, Result]) -> float | None:
    key = column_metric(column, tasks).key
    scores = [found[t].metrics.get(key) if t in found else None for t in column.tasks]
    values = [s.value for s in scores if s is not None]
    return sum(values) / len(values) if values and len(values) == len(scores) else None


def _notes(
    columns: Sequence[Column],
    tasks: Mapping[str, Task],
    rows: Sequence[Row],
    results: Sequence[Result],
    left_out: int,
    limit: int | None,
) -> list[str]:
    notes = []
    metrics = {column_metric(column, tasks) for column in columns}
    if any(m.kind == "Hit" for m in metrics):
        notes.append("R@k is hit@k: the share of queries with a relevant candidate among the first k.")
    if any(None in row.values for row in rows):
        unsupported = sorted({r.model for r in results if r.status == "unsupported"})
        reason = f" (unsupported by {', '.join(unsupported)} where it has a gap)" if unsupported else ""
        notes.append(f"{GAP}: no score{reason}; a row with a gap has no average.")
    if any(row.sources for row in rows):
        notes.append(
            "Italics: published, not measured here; the average is the printed one where there is one."
        )
    if any(row.marked for row in rows):
        notes.append("†: made under another prompt profile, a compat switch or without broken items.")
    notes += _exposure_notes(rows)
    if any(row.oracle for row in rows):
        notes.append("oracle: fused with the weight that is best on the scored queries; not ranked.")
    if any(row.check for row in rows):
        notes.append("check: built from the task's own answers to test it; not ranked.")
    if limit is not None:
        notes.append(
            f"PARTIAL: a smoke test on {limit} queries and a cut pool; not comparable with anything."
        )
    else:
        other = sorted(
            {r.task for r in results if r.task in tasks and tasks[r.task].unlike_published(r.counts)}
        )
        if other:
            more = f" and {len(other) - 3} more" if len(other) > 3 else ""
            notes.append(
                f"Not the published data, by their counts: {', '.join(other[:3])}{more};"
                " not comparable with published numbers."
            )
    if left_out:
        notes.append(f"Left out, as made on other data (task version, split or files): {left_out}.")
    return notes


def _exposure_notes(rows: Sequence[Row]) -> Iterator[str]:
    known: dict[str, dict[str, None]] = {}
    for row in rows:
        name = (row.plugin if row.sources else row.model) or ""
        if not row.check:
            known.setdefault(name, {}).update(dict.fromkeys(e for x in row.exposures for e in x.evidence))
    if not any(known.values()):
        return
    yield "t: trained on data of this column, h: held out of its training, unmarked: not known."
    for name, evidence in known.items():
        if evidence:
            yield f"{name}: {'; '.join(evidence)}."


def percent(value: float | None) -> str:
    """A share as tables show it: percent with one decimal, or a gap."""
    return GAP if value is None else f"{100 * value:.1f}"


def plain(text: str) -> str:
    """Text that cannot break out of a table cell or turn into markup."""
    for mark in "\\`*_|<>[]":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
