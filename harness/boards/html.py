"""Leaderboards as one self-contained HTML page, to be sorted, filtered and grouped by whoever reads it.

Every cell names the lines of its explanation (score and interval, protocol, identity, exposure, what was
published) by number: thousands of cells share a few hundred lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby

from harness.leaderboard import GAP, SETTINGS, Leaderboard, Row, Standing, percent
from harness.page import page as make_page
from harness.published import Reported
from harness.reproduce import against
from harness.result import Result, Score

from .table import Place, Shown, averages, blocks, evidence, numbers, shown, sources

MARKS = {"trained": "t", "held out": "h"}
SIZES = ((1e9, "below 1B"), (4e9, "1B to 4B"), (10e9, "4B to 10B"), (float("inf"), "10B and more"))
UNKNOWN_SIZE = "size not known"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([MBT])", re.IGNORECASE)


@dataclass(slots=True)
class Explanations:
    """Explanations, each kept once and named by its place."""

    texts: dict[str, int] = field(default_factory=dict)

    def place(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))


@dataclass(frozen=True, slots=True)
class Beside:
    """What was published of a model of ours: a share, and what stands against comparing the two."""

    value: float
    citation: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the page. `sort` is the value, "" for a gap; `lines` are the places of its explanation."""

    text: str
    sort: str
    place: Place = ""
    mark: str = ""
    tied: bool = False
    interval: str = ""
    difference: str = ""
    unlike: bool = False
    lines: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the page."""

    label: str
    mark: str
    notes: tuple[int, ...]
    block: str
    size: str
    size_group: str
    parameters: str
    reported: bool
    cells: tuple[Cell, ...]
    lines: str


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring columns of one group: its title and how many they are."""

    title: str
    width: int


@dataclass(frozen=True, slots=True)
class Table:
    """One leaderboard as the page shows it. `columns` are groups, titles and metrics; `evidence` are the
    notes on what single models were trained on."""

    title: str
    groups: tuple[Group, ...]
    averages: tuple[str, ...]
    columns: tuple[tuple[str, str, str], ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    notes: tuple[str, ...]
    evidence: tuple[str, ...]
    sources: tuple[str, ...]


def page(boards: Sequence[Leaderboard]) -> str:
    """The page of these leaderboards, one below the other."""
    lines = Explanations()
    tables = [_table(board, lines) for board in boards]
    rows = [row for board in boards for row in board.rows]
    return make_page(
        "board",
        title=boards[0].title if len(boards) == 1 else "Leaderboards",
        tables=tables,
        details=list(lines.texts),
        size_order=[*(name for _, name in SIZES), UNKNOWN_SIZE],
        has_reported=any(row.sources for row in rows),
        has_own=any(not row.sources for row in rows),
        has_marks=any(board.statuses for board in boards),
        has_sizes=any(row.size for row in rows),
    )


def _table(board: Leaderboard, lines: Explanations) -> Table:
    known = sources(board)
    aside = evidence(board)
    rows = []
    for block, members in blocks(board):
        cells = shown(members, board.statuses)
        made = tuple(_entry(row, mine, board, known, lines) for row, mine in zip(members, cells, strict=True))
        rows.append((block, made))
    return Table(
        title=board.title,
        groups=tuple(
            Group(title, len(list(g))) for title, g in groupby(heading.group for heading in board.headings)
        ),
        averages=tuple(averages(board)),
        columns=tuple((h.group, h.title, h.metric) for h in board.headings),
        rows=tuple(rows),
        notes=tuple(note for note in board.notes if note not in aside),
        evidence=tuple(aside),
        sources=tuple(known),
    )


def _entry(
    row: Row, cells: Sequence[Shown], board: Leaderboard, known: Sequence[str], lines: Explanations
) -> Entry:
    theirs = [
        r
        for r in board.rows
        if r.sources and not row.sources and (r.plugin, r.block) == (row.model, row.block)
    ]
    made = [_score(row, column, cells[column], board, theirs, lines) for column in range(len(row.values))]
    unlike = any(cell.unlike for cell in made)
    means = [row.average, *(row.averages.get(s) for s in board.statuses)]
    shown_means = [
        _mean(value, cell, row.standing(len(row.values) + i), theirs if i == 0 else [], unlike, lines)
        for i, (value, cell) in enumerate(zip(means, cells[len(row.values) :], strict=True))
    ]
    size = _parameters(row.size)
    return Entry(
        label=row.label,
        mark="check" if row.check else "oracle" if row.oracle else "",
        notes=tuple(numbers(row, known)),
        block=row.block,
        size=row.size or "",
        size_group=UNKNOWN_SIZE if size is None else next(name for top, name in SIZES if size < top),
        parameters="" if size is None else f"{size:.0f}",
        reported=bool(row.sources),
        cells=(*shown_means, *made),
        lines=_places(_about_row(row), lines),
    )


def _parameters(size: str | None) -> float | None:
    """7e9 of "7B"."""
    found = _SIZE.search(size or "")
    return float(found[1]) * {"M": 1e6, "B": 1e9, "T": 1e12}[found[2].upper()] if found else None


def _places(texts: Iterator[str], lines: Explanations) -> str:
    return " ".join(str(lines.place(text)) for text in texts)


def _score(
    row: Row, column: int, cell: Shown, board: Leaderboard, theirs: Sequence[Row], lines: Explanations
) -> Cell:
    value = row.values[column]
    if value is None:
        return Cell(GAP, "", lines=_places(_why_no_score(row, column), lines))
    heading = board.headings[column]
    results = row.scored[column] if row.scored else ()
    score = results[0].metrics.get(heading.key) if len(results) == 1 else None
    interval = _interval(row.interval(column, heading.key))
    beside = _beside(results, [r.published[column] for r in theirs])
    explained = _about_score(row, column, f"{heading.title} {heading.metric}", score, interval, beside)
    return Cell(
        text=cell.text,
        sort=f"{value:.6f}",
        place=cell.place,
        mark=MARKS.get(cell.status or "", "") + ("†" if row.marked else ""),
        tied=cell.tied,
        interval=interval,
        difference=_difference(value, beside),
        unlike=bool(beside and beside.reasons),
        lines=_places(explained, lines),
    )


def _mean(
    value: float | None,
    cell: Shown,
    standing: Standing | None,
    theirs: Sequence[Row],
    unlike: bool,
    lines: Explanations,
) -> Cell:
    if value is None:
        return Cell(GAP, "", lines=_places(iter(["A row with a gap has no average."]), lines))
    printed = next((r for r in theirs if r.average is not None), None)
    beside = None
    if printed is not None and printed.average is not None:
        reasons = ("some of its columns are not comparable",) if unlike else ()
        beside = Beside(printed.average, printed.sources[0], reasons)
    interval = _interval(standing.ci95 if standing else None)
    about = [f"Average: {cell.text}, 95 % interval {interval}."] if interval else []
    explained = chain(about, _about_standing(standing), _about_published(beside))
    return Cell(
        cell.text,
        f"{value:.6f}",
        cell.place,
        tied=cell.tied,
        interval=interval,
        difference=_difference(value, beside),
        unlike=bool(beside and beside.reasons),
        lines=_places(explained, lines),
    )


def _beside(results: Sequence[Result], numbers: Sequence[Reported | None]) -> Beside | None:
    """The published number that decides: the first comparable one by grade, the paper's own model first."""
    judged = [(n, against(n, results)) for n in numbers if n is not None]
    judged.sort(key=lambda pair: (bool(pair[1]), pair[0].grade, not pair[0].own))
    return Beside(judged[0][0].value, judged[0][0].citation, judged[0][1]) if judged else None


def _difference(value: float, beside: Beside | None) -> str:
    """Ours minus theirs in points, with a true minus sign."""
    return "" if beside is None else f"{100 * (value - beside.value):+.1f}".replace("-", "−")


def _interval(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return ""
    low, high = ends
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _about_row(row: Row) -> Iterator[str]:
    if row.sources:
        yield f"Published as {row.model}" + (f", our model {row.plugin}." if row.plugin else ".")
        yield from row.sources
        return
    yield f"Model {row.model}, identity {row.identity_id}."
    results = [r for found in row.scored for r in found]
    if results:
        yield ", ".join(f"{k} {v}" for k, v in results[0].identity.items() if k != "model")
        yield "Settings: " + _settings(results[0])


def _settings(result: Result) -> str:
    chosen = {name: result.protocol.get(name) for name in SETTINGS}
    return ", ".join(
        f"{name} {','.join(value) if isinstance(value, list) else value}"
        for name, value in chosen.items()
        if value not in (None, [], False)
    )


def _about_score(
    row: Row,
    column: int,
    name: str,
    score: Score | None,
    interval: str,
    beside: Beside | None,
) -> Iterator[str]:
    results = row.scored[column] if row.scored else ()
    number = row.published[column] if row.published else None
    value = row.values[column]
    if number is not None:
        yield f"{name}: {percent(value)}, published."
        yield f"{number.citation}."
    elif score is not None:
        yield f"{name}: {percent(value)}, 95 % interval {interval}, {score.n:,} queries."
    else:
        known = f", 95 % interval {interval}" if interval else ""
        yield f"{name}: {percent(value)}{known}, the mean of {len(results)} tasks."
    yield from _about_standing(row.standing(column))
    for result in results:
        about = [f"{result.task}, protocol {result.protocol_id}"]
        about += [_settings(result), f"ties {result.protocol.get('ties', 'not said')}"]
        if "candidates" in result.counts:
            about.append(f"{result.counts['candidates']:,} candidates")
        yield f"{', '.join(filter(None, about))}."
    exposed = row.exposures[column] if row.exposures else None
    if exposed is not None and exposed.evidence:
        yield f"{exposed.status.capitalize()}: {'; '.join(exposed.evidence)}."
    yield from _about_published(beside)


def _about_standing(standing: Standing | None) -> Iterator[str]:
    if standing is None:
        return
    if standing.tied:
        yield f"≈ Tied with {standing.tied}: a paired test does not tell the two apart."
    if standing.rank:
        best, worst = standing.rank
        ranks = f"Rank {best}" if best == worst else f"Ranks {best} to {worst} possible"
        yield f"{ranks} among our rows, by corrected tests of all pairs."


def _about_published(beside: Beside | None) -> Iterator[str]:
    if beside is not None:
        yield f"Published {percent(beside.value)}: {beside.citation}."
        if beside.reasons:
            yield f"Not comparable: {'; '.join(beside.reasons)}."


def _why_no_score(row: Row, column: int) -> Iterator[str]:
    statuses = {r.status for r in row.scored[column]} if row.scored else set()
    if "unsupported" in statuses:
        yield "The model cannot take this task's modalities."
    elif row.sources:
        yield "Not published."
    else:
        yield "No result of this task."
