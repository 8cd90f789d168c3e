"""`harness compare` and `harness bisect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import HarnessError

from .app import app
from .shared import (
    DEFAULT_RUNS,
    AsJson,
    Runs,
    SuiteNames,
    TaskNames,
    chosen_suites,
    installed,
    say,
    stored,
    words,
)

if TYPE_CHECKING:
    from harness.result import Stored

NAMES = "Models, as MODEL or MODEL@IDENTITY (its first digits do), or result files."


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(metavar="A B…", help=NAMES)],
    suite: SuiteNames = None,
    tasks: TaskNames = None,
    runs: Runs = None,
    metric: Annotated[
        str | None, typer.Option(help="Such as NDCG@10; default: what the suite's columns show.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare models on the queries they share: intervals, paired tests, effects, ranks.

    Works on stored per-query outcomes, from any number of result folders; nothing is encoded. Without
    --suite and --tasks: all tasks that they have in common.
    """
    from harness import comparison
    from harness.metrics import Metric
    from harness.selection import choose

    if len(models) < 2:
        raise HarnessError("a comparison takes two models or more")
    catalog = installed()
    chosen = catalog.select(words(tasks), words(suite))
    names = {task.name for task in chosen} or None
    choices = choose(_found(runs, models), models, names)
    if not chosen:
        chosen = catalog.select(choices[0].results, [])
    suites = chosen_suites(catalog, tasks, suite, chosen)
    parsed = None if metric is None else Metric.parse(metric)
    found = comparison.compare(choices, suites, catalog.tasks, metric=parsed)
    if as_json:
        typer.echo(comparison.as_json(found), nl=False)
        return
    where = f" on {', '.join(words(suite))}" if suite else ""
    title = f"{', '.join(found.models)}{where}"
    typer.echo(comparison.render(found, title=title), nl=False)


@app.command()
def bisect(
    first: Annotated[str, typer.Argument(metavar="A", help=NAMES)],
    second: Annotated[str, typer.Argument(metavar="B", help="The same, of the other result.")],
    task: Annotated[str | None, typer.Option("--task", "-t", help="Where models are named.")] = None,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Say what explains that two results of one task differ: model, protocol, data, machine, queries."""
    from harness import bisect as bisection

    results = _found(runs, [first, second])
    found = bisection.bisect(*(bisection.cell(results, name, task) for name in (first, second)))
    text = bisection.as_json(found) if as_json else bisection.render(found, first, second)
    typer.echo(text, nl=False)


def _found(runs: Sequence[Path] | None, names: Sequence[str]) -> list[Stored]:
    """What lies in the result folders; result files alone need none."""
    from harness.selection import disagreements

    if runs is None and all(name.endswith(".json") for name in names):
        return []
    folders = runs or [DEFAULT_RUNS]
    found = stored(folders)
    if not found:
        raise HarnessError(f"no results lie in {', '.join(map(str, folders))}")
    for line in disagreements(found):
        say(f"warning: {line}")
    return found
