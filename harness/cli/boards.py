"""`harness leaderboard` and `harness reproduce`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from harness.errors import HarnessError

from .app import app
from .shared import (
    DEFAULT_RUNS,
    AsJson,
    LowestGrade,
    ModelName,
    Runs,
    SuiteNames,
    installed,
    make_board,
    stored,
    stored_results,
    words,
)

if TYPE_CHECKING:
    from harness.registry import Catalog
    from harness.result import Stored
    from harness.task import Suite


class Form(StrEnum):
    """Output formats of a leaderboard."""

    markdown = "markdown"
    latex = "latex"
    html = "html"
    csv = "csv"
    json = "json"


@app.command()
def leaderboard(
    suites: Annotated[list[str], typer.Argument(metavar="SUITE…", help="Suites; see 'harness list suites'.")],
    runs: Runs = None,
    reported: Annotated[
        bool, typer.Option("--reported", help="Published numbers too, in italics with their source.")
    ] = False,
    paper: Annotated[
        list[str] | None,
        typer.Option("--paper", help="Only what these papers print, such as umarvel; implies --reported."),
    ] = None,
    grade: LowestGrade = "B",
    format: Annotated[Form, typer.Option("--format", help="Output format.")] = Form.markdown,
    out: Annotated[Path | None, typer.Option("--out", help="Write to this file.")] = None,
) -> None:
    """Print the leaderboard of one or more suites from stored results and published numbers.

    CSV and JSON have one table with all columns, the other formats one for each suite. HTML is a
    page that needs no other file: write it with --out and open it in a browser.
    """
    from harness.ablations import NAME as ABLATIONS
    from harness.boards import JOINED, document
    from harness.files import write_text
    from harness.published import select

    catalog = installed()
    names = words(suites)
    if ABLATIONS in names:
        if names != [ABLATIONS]:
            raise HarnessError(f"{ABLATIONS} is a table of its own: ask for it alone")
        text = _ablations(catalog, runs, format)
        typer.echo(text, nl=False) if out is None else write_text(out, text)
        return
    chosen = [catalog.suite(name) for name in names]
    published = select(catalog.reported(), papers=words(paper), lowest=grade) if reported or paper else ()
    none_yet = runs is None and published and not DEFAULT_RUNS.is_dir()
    found = [] if none_yet else stored(runs or [DEFAULT_RUNS])
    tables = [chosen] if format.value in JOINED else [[suite] for suite in chosen]
    boards = [make_board(catalog, table, found, reported=published) for table in tables]
    if not any(board.rows for board in boards):
        nothing = "nothing is published" if reported or paper else ""
        _refuse_empty(chosen, found, runs or [DEFAULT_RUNS], nothing)
    text = document(boards, format.value)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)


def _refuse_empty(
    suites: Sequence[Suite], found: Sequence[Stored], runs: Sequence[Path], nothing: str
) -> NoReturn:
    """One line on why there is nothing to show."""
    names = ", ".join(suite.name for suite in suites)
    wanted = {task for suite in suites for task in suite.tasks}
    partial = sum(each.result.status == "partial" for each in found if each.result.task in wanted)
    raise HarnessError(
        (f"{nothing} for {names}, and there" if nothing else "there")
        + f" is no complete result of {names} in {', '.join(map(str, runs))}"
        + (f" ({partial} made with --limit)" if partial else "")
        + ": run 'harness eval', or name a folder with --runs"
    )


def _ablations(catalog: Catalog, runs: Sequence[Path] | None, format: Form) -> str:
    from harness.ablations import ablations, averaged
    from harness.boards import ablation_table

    reported = catalog.reported()
    suites = averaged(catalog.suites, reported)
    folders = runs or ([DEFAULT_RUNS] if DEFAULT_RUNS.is_dir() else [])
    variants = ablations(catalog.models, suites, catalog.tasks, stored(folders), reported)
    return ablation_table(variants, suites, format.value)


@app.command()
def reproduce(
    model: ModelName,
    suite: SuiteNames = None,
    runs: Runs = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="How many points a score may differ and still match.")
    ] = 0.2,
    grade: LowestGrade = "B",
    as_json: AsJson = False,
) -> None:
    """Compare stored results with the published numbers, cell by cell; exit status 1 where one is out."""
    from dataclasses import asdict

    from harness.published import select
    from harness.reproduce import OUT, render
    from harness.reproduce import reproduce as compare

    catalog = installed()
    chosen = [catalog.suite(name) for name in words(suite)]
    if not chosen:
        raise HarnessError("nothing to compare: name suites with --suite")
    title = f"{model} on {', '.join(s.name for s in chosen)}, beside what was published"
    results = stored_results(runs or [DEFAULT_RUNS])
    published = select(catalog.reported(), lowest=grade)
    cells = compare(chosen, catalog.tasks, results, published, model=model, tolerance=tolerance)
    if all(cell.ours is None for cell in cells):
        raise HarnessError(
            f"there is no result of model {model!r} for {', '.join(s.name for s in chosen)}:"
            f" run 'harness eval -m {model} -s {chosen[0].name}', or name its folder with --runs"
        )
    if not any(cell.comparisons for cell in cells):
        raise HarnessError(
            f"nothing is published for model {model!r} in {', '.join(s.name for s in chosen)} with grade"
            f" {grade} or better; known: {', '.join(sorted({n.plugin for n in published if n.plugin}))}"
        )
    if as_json:
        typer.echo(json.dumps([asdict(cell) for cell in cells], indent=2, ensure_ascii=False))
    else:
        typer.echo(render(cells, title=title, tolerance=tolerance), nl=False)
    if any(cell.verdict in OUT for cell in cells):
        raise typer.Exit(1)
