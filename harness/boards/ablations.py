"""The ablation report in every form: the page and the LaTeX table indent what varies what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.ablations import Average, Variant, render, shown_average
from harness.leaderboard import Format
from harness.page import page
from harness.task import Suite

from . import latex

TITLE = "Ablations"
NOTE = (
    "In brackets: the difference from the model that it varies, in points; measured ones with the 95 %"
    " interval of a bootstrap over the queries of both."
)


def ablation_table(variants: Sequence[Variant], suites: Sequence[Suite], form: Format) -> str:
    """The report as text that ends in a newline."""
    if form == "latex":
        return _latex(variants, suites)
    if form == "html":
        return page(
            "ablations",
            title=TITLE,
            head=["Variant", "Change", "Paper", *_titles(variants, suites)],
            rows=[(v, _cells(v, variants, suites)) for v in variants],
            note=NOTE,
        )
    return render(variants, suites, form)


def _latex(variants: Sequence[Variant], suites: Sequence[Suite]) -> str:
    titles = [*map(latex.escape, ("Variant", "Change", *_titles(variants, suites)))]
    body = []
    for v in variants:
        name = rf"\hspace*{{{v.depth}em}}{latex.escape(v.name)}"
        cells = [name, latex.escape(v.change or ""), *map(latex.escape, _cells(v, variants, suites))]
        body.append(" & ".join(cells) + r" \\")
    columns = "ll" + "r" * (len(titles) - 2)
    head = [" & ".join(titles) + r" \\"]
    return latex.floating(head, body, [latex.escape(NOTE)], caption=TITLE, label="ablations", columns=columns)


def _kinds(variants: Sequence[Variant]) -> list[str]:
    return [kind for kind in ("published", "measured") if any(getattr(v, kind) for v in variants)]


def _titles(variants: Sequence[Variant], suites: Sequence[Suite]) -> list[str]:
    return [f"{suite.name}, {kind}" for kind in _kinds(variants) for suite in suites]


def _cells(variant: Variant, variants: Sequence[Variant], suites: Sequence[Suite]) -> list[str]:
    averages: list[Mapping[str, Average]] = [getattr(variant, kind) for kind in _kinds(variants)]
    return [shown_average(found.get(suite.name)).replace("-", "−") for found in averages for suite in suites]
