"""What every form of a leaderboard shows of it: cells with their marks, blocks, sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.exposure import Status
from harness.leaderboard import Block, Leaderboard, Row, percent

Place = Literal["best", "second", ""]


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell: percent or a gap, its place in the column, and what the model saw of the data.

    `status` is None for averages, gaps and check models. `tied`: the best row cannot be told from it.
    """

    text: str
    place: Place = ""
    status: Status | None = None
    tied: bool = False


def blocks(board: Leaderboard) -> list[tuple[Block, list[Row]]]:
    """The rows of each block, in order."""
    names = dict.fromkeys(row.block for row in board.rows)
    return [(name, [row for row in board.rows if row.block == name]) for name in names]


def averages(board: Leaderboard) -> list[str]:
    """The titles of the columns after the last task's."""
    return ["Avg", *(f"Avg {status}" for status in board.statuses)]


def sources(board: Leaderboard) -> list[str]:
    """What the published rows are taken from, each once, in the order of their numbers."""
    return list(dict.fromkeys(source for row in board.rows for source in row.sources))


def evidence(board: Leaderboard) -> list[str]:
    """The notes on what single models were trained on: long, and for whoever asks."""
    names = tuple(f"{row.plugin or row.model}: " for row in board.rows)
    return [note for note in board.notes if note.startswith(names)]


def numbers(row: Row, known: Sequence[str]) -> list[int]:
    """The numbers of a row's sources, from 1."""
    return [known.index(source) + 1 for source in row.sources]


def shown(rows: Sequence[Row], statuses: Sequence[Status]) -> list[list[Shown]]:
    """The cells of one block, averages last, with the best and the second best of each column marked."""
    values = [[*row.values, row.average, *(row.averages.get(s) for s in statuses)] for row in rows]
    ranked = [v for v, row in zip(values, rows, strict=True) if not (row.check or row.oracle)]
    firsts = [_first_two([v[c] for v in ranked]) for c in range(len(values[0]))]
    return [
        [_cell(value, c, row, firsts[c]) for c, value in enumerate(cells)]
        for row, cells in zip(rows, values, strict=True)
    ]


def _first_two(values: Sequence[float | None]) -> list[str]:
    """The best and the second best of a column, as shown; none where there is nothing to compare."""
    present = [percent(v) for v in values if v is not None]
    return sorted(set(present), key=float, reverse=True)[:2] if len(present) > 1 else []


def _cell(value: float | None, column: int, row: Row, firsts: Sequence[str]) -> Shown:
    text = percent(value)
    place: Place = ""
    if text in firsts and not (row.check or row.oracle):
        place = "best" if text == firsts[0] else "second"
    known = value is not None and column < len(row.exposures) and not row.check
    standing = row.standing(column)
    return Shown(
        text,
        place,
        row.exposures[column].status if known else None,
        bool(standing and standing.tied),
    )
