"""Our scores against the published ones, cell by cell, with a verdict for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from harness.leaderboard import GAP, SETTINGS, column_metric, percent, published_for
from harness.published import Reported
from harness.result import Result
from harness.task import Column, Suite, Task

Verdict = Literal["match", "higher", "lower", "not comparable", "not run", "not published"]
COMPARED: tuple[Verdict, ...] = ("match", "higher", "lower")
OUT: tuple[Verdict, ...] = ("higher", "lower")
ROUNDING = 1e-9

USUAL: Mapping[str, Sequence[Any]] = {
    "split": (None, "test"),
    "profile": ("default",),
    # Papers draw one of the instructions at random; so does "hash", and "all" is what a draw expects.
    "instructions": ("hash", "all"),
    "limit": (None,),
    "skip_broken": (False,),
    "compat": ([],),
}
"""The protocol choices under which published scores were made, where `Reported.accepts` names no other."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One published number (a share) beside ours. `difference` is ours minus theirs, in points.

    `reasons` say what stands against comparing the two; without any the verdict is about the numbers.
    """

    paper: str
    table: str
    model: str
    citation: str
    value: float
    difference: float | None
    verdict: Verdict
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """A column: our score, a share in [0, 1], and what was published, the one that decides first."""

    group: str
    title: str
    metric: str
    ours: float | None
    verdict: Verdict
    comparisons: tuple[Comparison, ...] = ()
    identities: tuple[str, ...] = ()


def reproduce(
    suites: Sequence[Suite],
    tasks: Mapping[str, Task],
    results: Iterable[Result],
    reported: Iterable[Reported],
    *,
    model: str,
    tolerance: float = 0.2,
) -> list[Cell]:
    """One cell for each column of the suites, and one for each suite's average; tolerance in points.

    The number that decides is the first comparable one by grade, then the paper's own model before
    a baseline, then the order of the files. Ours is the newest result that is comparable with it,
    else the newest.
    """
    found: dict[str, list[Result]] = {}
    for r in sorted(results, key=lambda r: str(r.provenance.get("started", "")), reverse=True):
        if r.model == model:
            found.setdefault(r.task, []).append(r)
    numbers = _distinct([n for n in reported if n.plugin == model])
    cells = []
    for suite in suites:
        columns = [_cell(column, tasks, found, numbers, tolerance) for column in suite.columns]
        counted = [cell for cell, column in zip(columns, suite.columns, strict=True) if column.in_average]
        cells += [*columns, _average(suite, counted, numbers, tolerance)]
    return cells


def _distinct(numbers: Sequence[Reported]) -> list[Reported]:
    """Without what a paper repeats, from another one or from a table of its own."""
    kept: dict[tuple[Any, ...], Reported] = {}
    for n in sorted(numbers, key=lambda n: n.quoted is not None):
        paper = n.quoted or n.paper
        kept.setdefault((paper, n.task, n.metric, n.setting, n.value), n)
    return list(kept.values())


def _cell(
    column: Column,
    tasks: Mapping[str, Task],
    found: Mapping[str, Sequence[Result]],
    numbers: Sequence[Reported],
    tolerance: float,
) -> Cell:
    metric = column_metric(column, tasks)
    blank = Cell(column.group, column.title, metric.alias, None, "not run")
    runs = [[r for r in found.get(name, ()) if metric.key in r.metrics] for name in column.tasks]
    published = published_for(column, tasks, numbers)
    if not all(runs):
        return replace(blank, comparisons=tuple(_compare(n, None, (), tolerance) for n in published))
    picks = [(n, [_pick(n, candidates) for candidates in runs]) for n in published]
    picks.sort(key=lambda pick: (bool(against(*pick)), pick[0].grade, not pick[0].own))
    ours = picks[0][1] if picks else [candidates[0] for candidates in runs]
    value = sum(r.metrics[metric.key].value for r in ours) / len(ours)
    comparisons = tuple(_compare(n, value, against(n, ours), tolerance) for n, _ in picks)
    return replace(
        blank,
        ours=value,
        verdict=comparisons[0].verdict if comparisons else "not published",
        comparisons=comparisons,
        identities=tuple(dict.fromkeys(r.identity_id for r in ours)),
    )


def _pick(number: Reported, candidates: Sequence[Result]) -> Result:
    return next((r for r in candidates if not against(number, [r])), candidates[0])


def _compare(number: Reported, ours: float | None, reasons: tuple[str, ...], tolerance: float) -> Comparison:
    difference = None if ours is None else 100 * (ours - number.value)
    verdict: Verdict = "match"
    if difference is None:
        verdict = "not run"
    elif reasons:
        verdict = "not comparable"
    elif abs(difference) > tolerance + ROUNDING:
        verdict = "higher" if difference > 0 else "lower"
    about = (number.paper, number.table, number.model, number.citation)
    return Comparison(*about, number.value, difference, verdict, reasons)


def against(number: Reported, results: Sequence[Result]) -> tuple[str, ...]:
    """Everything that stands against comparing a published number with these results."""
    reasons = [number.unlike] if number.unlike else []
    if number.held_out:
        reasons.append("published for a model trained without these tasks (held-out)")
    for r in results:
        if number.reranked != ("+" in r.model):
            reasons.append("published with re-ranking" if number.reranked else "published without re-ranking")
        reasons += _protocol_against(number, r)
    return tuple(dict.fromkeys(reasons))


def _protocol_against(number: Reported, result: Result) -> list[str]:
    reasons = []
    for key in SETTINGS:
        accepted = number.accepts.get(key, USUAL.get(key))
        value = result.protocol.get(key)
        if accepted is not None and value not in accepted:
            reasons.append(f"{key} {_shown(value)}, published with {_shown(accepted[0])}")
    for key, accepted in number.accepts.items():
        name = key.removeprefix("identity.")
        if name != key and result.identity.get(name) not in accepted:
            reasons.append(
                f"{name} {_shown(result.identity.get(name))}, published with {_shown(accepted[0])}"
            )
    n = max((score.n for score in result.metrics.values()), default=0)
    if number.queries not in (None, n) and result.protocol.get("limit") is None:
        reasons.append(f"{n:,} queries, published on {number.queries:,}")
    return reasons


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _average(suite: Suite, cells: Sequence[Cell], numbers: Sequence[Reported], tolerance: float) -> Cell:
    """The suite's mean, comparable where each of its cells is, with the same paper."""
    published = [n for n in numbers if n.metric is None and n.task == suite.name]
    blank = Cell("", "Avg", "", None, "not run")
    values = [cell.ours for cell in cells if cell.ours is not None]
    if len(values) < len(cells) or not values:
        return replace(blank, comparisons=tuple(_compare(n, None, (), tolerance) for n in published))
    ours = sum(values) / len(values)
    comparisons: list[Comparison] = []
    for n in published:
        row = (n.paper, n.table, n.model)
        alike = [[c for c in cell.comparisons if (c.paper, c.table, c.model) == row] for cell in cells]
        reasons = [reason for theirs in alike for c in theirs for reason in c.reasons]
        lacking = [cell.title for cell, theirs in zip(cells, alike, strict=True) if not theirs]
        if lacking:
            reasons.append(f"the paper's cells are not there for {', '.join(lacking)}")
        comparisons.append(_compare(n, ours, tuple(dict.fromkeys(reasons)), tolerance))
    comparisons.sort(key=lambda c: c.verdict == "not comparable")
    return replace(
        blank,
        ours=ours,
        verdict=comparisons[0].verdict if comparisons else "not published",
        comparisons=tuple(comparisons),
        identities=tuple(dict.fromkeys(i for cell in cells for i in cell.identities)),
    )


def render(cells: Sequence[Cell], *, title: str, tolerance: float) -> str:
    """Markdown: a line for each published number, the one that decides first, and a summary."""
    from tabulate import tabulate

    sources = list(dict.fromkeys(c.citation for cell in cells for c in cell.comparisons))
    body = [line for cell in cells for line in _lines(cell, sources)]
    headers = ["Group", "Column", "Ours", "Published", "Difference", "Verdict", "Source", "Why"]
    align = ("left", "left", "right", "right", "right", "left", "right", "left")
    table = tabulate(body, headers=headers, tablefmt="pipe", colalign=align, disable_numparse=True)
    counts = {verdict: sum(cell.verdict == verdict for cell in cells) for verdict in get_args(Verdict)}
    summary = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    below = [f"{summary} (tolerance {tolerance:g} points).", *_mixed(cells)]
    below += [f"[{i}] {source}" for i, source in enumerate(sources, 1)]
    return f"### {title}\n\n{table}\n\n" + "".join(f"{line}  \n" for line in below)


def _lines(cell: Cell, sources: Sequence[str]) -> list[list[str]]:
    name = f"{cell.title} {cell.metric}".strip()
    if not cell.comparisons:
        return [[cell.group, name, percent(cell.ours), GAP, GAP, cell.verdict, "", ""]]
    lines = []
    for place, c in enumerate(cell.comparisons):
        decides = place == 0
        lines.append(
            [
                cell.group if decides else "",
                name if decides else "",
                percent(cell.ours) if decides else "",
                percent(c.value),
                GAP if c.difference is None else f"{c.difference:+.2f}",
                c.verdict if decides else f"({c.verdict})",
                f"[{sources.index(c.citation) + 1}]",
                "; ".join(c.reasons),
            ]
        )
    return lines


def _mixed(cells: Sequence[Cell]) -> list[str]:
    identities = {identity for cell in cells for identity in cell.identities}
    if len(identities) < 2:
        return []
    return [
        f"Our scores come from {len(identities)} identities of the model: {', '.join(sorted(identities))}."
    ]
