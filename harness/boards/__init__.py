"""Leaderboards in every form: Markdown, LaTeX, CSV, JSON and a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from harness.leaderboard import Format, Leaderboard

from . import html, latex, text
from .ablations import ablation_table

__all__ = ["JOINED", "ablation_table", "document", "render"]

JOINED: tuple[Format, ...] = ("csv", "json")
"""Forms that hold a single table: several suites share one, side by side."""


def render(board: Leaderboard, form: Format) -> str:
    """The leaderboard as text that ends in a newline."""
    return document([board], form)


def document(boards: Sequence[Leaderboard], form: Format) -> str:
    """Leaderboards one below the other: as one page where the form is HTML."""
    if form == "html":
        return html.page(boards)
    one = {"markdown": text.markdown, "latex": latex.table, "csv": text.csv_, "json": text.json_}[form]
    return "\n".join(map(one, boards))
