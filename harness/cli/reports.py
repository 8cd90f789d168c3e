"""`harness inspect` and `harness report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError

from .app import app
from .shared import (
    DEFAULT_RUNS,
    Data,
    LowestGrade,
    ModelName,
    Runs,
    SuiteNames,
    installed,
    say,
    stored,
    words,
)

NoImages = Annotated[
    bool, typer.Option("--no-images", help="Leave pictures and frames out, where they may not be passed on.")
]
Worst = Annotated[
    int, typer.Option("--worst", min=1, help="How many queries; with --vs, of each kind of change.")
]


@app.command()
def inspect(
    model: ModelName,
    task: Annotated[str, typer.Option("--task", "-t", help="One task; see 'harness list tasks'.")],
    vs: Annotated[
        str | None, typer.Option("--vs", help="Another model: what it fixes and what it breaks.")
    ] = None,
    worst: Worst = 50,
    runs: Runs = None,
    data: Data = Path("data"),
    no_images: NoImages = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page to write; default: gallery-MODEL-TASK.html.")
    ] = None,
) -> None:
    """Write a page that shows the worst queries of a model, their first answers and why they are wrong.

    It is made of stored runs and the task's data; nothing is encoded.
    """
    from harness.failures import inspect as find
    from harness.files import write_text
    from harness.gallery import gallery

    tasks = installed().select([task], [])
    if len(tasks) > 1:
        raise HarnessError(f"{task!r} names {len(tasks)} tasks, such as {tasks[0].name}: choose one")
    chosen = tasks[0]
    models = [model, *([vs] if vs else [])]
    report = find(chosen, models, stored(runs or [DEFAULT_RUNS]), data=data, worst=worst)
    path = out or Path(f"gallery-{'-'.join([*models, chosen.name]).replace('/', '-')}.html")
    write_text(path, gallery(report, pictures=not no_images))
    say(
        f"{path}: {len(report.failures)} of {report.queries} queries shown,"
        f" {report.wrong} of which {model} does not get fully right"
    )


@app.command()
def report(
    suite: SuiteNames = None,
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = Path("report"),
    runs: Runs = None,
    data: Data = Path("data"),
    reported: Annotated[
        bool, typer.Option("--reported", help="Published numbers too, in italics with their source.")
    ] = False,
    grade: LowestGrade = "B",
    worst: Annotated[
        int, typer.Option("--worst", min=0, help="How many queries each gallery shows; 0: no galleries.")
    ] = 20,
    no_images: NoImages = False,
    trec: Annotated[bool, typer.Option("--trec", help="TREC runs and qrels too; they are large.")] = False,
) -> None:
    """Write a folder to publish: leaderboards in every format, plots, galleries and provenance.

    Galleries are made for the tasks whose data is there. Open index.html in a browser.
    """
    from harness.ablations import ablations, averaged
    from harness.published import select
    from harness.report import Sources, write_report

    catalog = installed()
    names = words(suite)
    if not names:
        raise HarnessError("nothing to report on: name suites with --suite")
    suites = [catalog.suite(name) for name in names]
    found = stored(runs or [DEFAULT_RUNS])
    published = catalog.reported()
    ablated = averaged(catalog.suites, published)
    sources = Sources(
        suites=suites,
        tasks=catalog.tasks,
        models={**catalog.models, **catalog.rerankers},
        stored=found,
        data=data,
        reported=select(published, lowest=grade) if reported else (),
        variants=ablations(catalog.models, ablated, catalog.tasks, found, published),
        ablated=ablated,
        worst=worst,
        pictures=not no_images,
        trec=trec,
    )
    index = write_report(sources, out, say)
    say(f"{index}: open it in a browser, or publish the folder {out}")
