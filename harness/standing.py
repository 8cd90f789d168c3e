"""Standings: what per-query outcomes say of a leaderboard's own rows: ties with the best, intervals, ranks.

conse    35.0   [30.1, 39.8], the best
random   33.9≈  tied with conse: a paired test does not tell the two apart
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from harness.comparison import average
from harness.errors import ResultConflict
from harness.leaderboard import Leaderboard, Row, Standing
from harness.outcomes import Outcomes
from harness.result import Result, Stored
from harness.statistics import Strata, corrected, paired, rank_intervals, score, sum_ci, tied
from harness.task import Suite, Task

RANKED = 10
"""Ranks take a test of every pair: they are given where no more rows than this are beside each other."""
Outcome = Mapping[str, Outcomes]
"""A row's outcomes by task, sorted by query."""


def standing(
    board: Leaderboard, suites: Sequence[Suite], tasks: Mapping[str, Task], stored: Sequence[Stored]
) -> Leaderboard:
    """The leaderboard of `suites`, made of the results of `stored`, with the standings of its own rows.

    Rows are tested within their block. One whose outcomes are missing, changed or of other queries than
    the best row's is not tested, and a note says what is missing.
    """
    places = {id(each.result): each for each in stored}
    found: dict[int, Outcome] = {}
    lost: list[str] = []
    for at, row in enumerate(board.rows):
        if row.scored and not row.check:
            found[at] = _outcomes([r for results in row.scored for r in results], places, lost)
    if not found:
        return board
    columns = tuple(column for suite in suites for column in suite.columns)
    each = [replace(suites[0], columns=(replace(column, in_average=True),)) for column in columns]
    by_column = [
        _standings(scope, column, board.rows, tasks, found)
        for column, scope in enumerate([*each, replace(suites[0], columns=columns)])
    ]
    rows = tuple(
        replace(row, standings=tuple(column.get(at) for column in by_column)) if at in found else row
        for at, row in enumerate(board.rows)
    )
    return replace(board, rows=rows, notes=(*board.notes, *_notes(rows, lost)))


def _outcomes(
    results: Sequence[Result], places: Mapping[int, Stored], lost: list[str]
) -> dict[str, Outcomes]:
    """By task; what cannot be read is put into `lost`."""
    found = {}
    for result in {r.task: r for r in results if r.metrics}.values():
        try:
            found[result.task] = places[id(result)].outcomes().sorted()
        except ResultConflict as error:
            lost.append(str(error))
    return found


def _standings(
    scope: Suite,
    column: int,
    rows: Sequence[Row],
    tasks: Mapping[str, Task],
    outcomes: Mapping[int, Outcome],
) -> dict[int, Standing]:
    """Of each row that has a value in the column, by the row's place; the column after the last is the
    average over `scope`."""
    values = {
        at: rows[at].average if column == len(rows[at].values) else rows[at].values[column] for at in outcomes
    }
    strata: dict[int, Strata] = {}
    for at, value in values.items():
        mine = None if value is None else average(scope, tasks, outcomes[at])
        if mine is not None:
            strata[at] = mine
    many = len(scope.tasks) > 1
    found = {at: Standing(sum_ci(mine) if many else None) for at, mine in strata.items()}
    for block in dict.fromkeys(rows[at].block for at in strata):
        beside = [at for at in strata if rows[at].block == block and not rows[at].oracle]
        if len(beside) > 1:
            found |= _beside({at: strata[at] for at in beside}, scope, rows, outcomes, found, many)
    return found


def _beside(
    strata: Mapping[int, Strata],
    scope: Suite,
    rows: Sequence[Row],
    outcomes: Mapping[int, Outcome],
    found: Mapping[int, Standing],
    ranked: bool,
) -> dict[int, Standing]:
    best = max(strata, key=lambda at: score(strata[at]))
    counted = {task for column in scope.columns if column.in_average for task in column.tasks}
    alike = {
        at: mine
        for at, mine in strata.items()
        if all(outcomes[at][task].queries == outcomes[best][task].queries for task in counted)
    }
    ranks: Mapping[int, tuple[int, int]] = {}
    if ranked and 1 < len(alike) <= RANKED:
        pairs = list(combinations(alike, 2))
        tests = corrected([paired(alike[a], alike[b]) for a, b in pairs])
        ranks = rank_intervals(list(alike), dict(zip(pairs, tests, strict=True)))
    equals = tied(alike) - {best}
    return {
        at: replace(found[at], tied=rows[best].label if at in equals else None, rank=ranks.get(at))
        for at in alike
    }


def _notes(rows: Sequence[Row], lost: Sequence[str]) -> list[str]:
    notes = []
    if any(standing and standing.tied for row in rows for standing in row.standings):
        notes.append(
            "≈: tied with the best of our rows in its column and setting (paired randomisation test on the"
            " same queries, Holm's correction, p > 0.05)."
        )
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        notes.append(f"Not tested for ties: {lost[0]}{more}.")
    return notes
