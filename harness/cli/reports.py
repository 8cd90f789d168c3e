"""`harness inspect` and `harness report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError

from .app import app
from .shared import DEFAULT_RUNS, CacheDir, Data, ModelName, Runs, installed, say

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
    cache_dir: CacheDir = None,
    no_images: NoImages = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page to write; default: gallery-MODEL-TASK.html.")
    ] = None,
) -> None:
    """Write a page that shows the worst queries of a model, their first answers and why they are wrong.

    It is made of stored runs and the task's data; nothing is encoded.
    """
    from harness.failures import inspect as find
    from harness.files import cache_dir as default_cache
    from harness.files import write_text
    from harness.gallery import gallery

    tasks = installed().select([task], [])
    if len(tasks) > 1:
        raise HarnessError(f"{task!r} names {len(tasks)} tasks, such as {tasks[0].name}: choose one")
    chosen = tasks[0]
    models = [model, *([vs] if vs else [])]
    report = find(
        chosen, models, runs or [DEFAULT_RUNS], data=data, cache=cache_dir or default_cache(), worst=worst
    )
    path = out or Path(f"gallery-{'-'.join([*models, chosen.name]).replace('/', '-')}.html")
    write_text(path, gallery(report, pictures=not no_images))
    say(
        f"{path}: {len(report.failures)} of {report.queries} queries shown,"
        f" {report.wrong} of which {model} does not get fully right"
    )
