"""`harness data`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import files

from .app import data_app
from .shared import AsJson, Data, Split, installed, words

if TYPE_CHECKING:
    from harness.data import Status
    from harness.registry import Catalog
    from harness.task import Task


DataNames = Annotated[
    list[str] | None, typer.Argument(metavar="NAME…", help="Tasks, suites, data sets or globs; default: all.")
]
FetchNames = Annotated[list[str], typer.Argument(metavar="NAME…", help="Tasks, suites, data sets or globs.")]


@data_app.command("status")
def data_status(
    names: DataNames = None,
    data: Data = Path("data"),
    split: Split = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every file, and look at every picture and clip.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is there, what is missing and where to get it; with --deep, what is wrong in it.

    Counts are compared with the published ones. Exits with 1 where something is missing or wrong; a
    number known from the literature only gives a warning.
    """
    from harness.data import status
    from harness.task import Protocol

    found = status(data, _named(installed(), names), Protocol(split=split), deep=deep)
    bad = _print_states_as_json(list(found)) if as_json else _print_states(found)
    if bad:
        raise typer.Exit(1)


def _print_states(found: Iterable[Status]) -> bool:
    said: set[str] = set()
    bad = False
    for state in found:
        typer.echo(f"{state.task}: {_verdict(state)}")
        for finding in state.findings:
            line = f"warning: {finding.line}" if finding.level == "warning" else finding.line
            if line not in said:
                typer.echo(f"    {line}")
            said.add(line)
        bad = bad or bool(state.errors)
    return bad


def _verdict(state: Status) -> str:
    """ "ok: 5,000 queries, 1,000 candidates" """
    if state.errors:
        return f"{state.errors} problem{'s' if state.errors > 1 else ''}"
    if state.miniature:
        return "ok (miniature)"
    shown = [
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in state.counts.items()
        if name in ("queries", "candidates") or (count and name != "qrels")
    ]
    return "ok" + (f": {', '.join(shown)}" if shown else "")


def _print_states_as_json(found: Sequence[Status]) -> bool:
    from dataclasses import asdict

    rows = [
        {
            "name": state.task,
            "ok": not state.errors,
            "miniature": state.miniature,
            "counts": dict(state.counts),
            "findings": [asdict(finding) for finding in state.findings],
        }
        for state in found
    ]
    typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    return any(state.errors for state in found)


@data_app.command("fetch")
def data_fetch(
    names: FetchNames,
    data: Data = Path("data"),
    split: Split = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of the repository; default: as fetched before, else main."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be downloaded.")] = False,
) -> None:
    """Download from the Hugging Face hub what is missing; say where to get what is not on it.

    Exits with 1 where something is still missing afterwards. The same command goes on where an
    interrupted one stopped.
    """
    from harness.data import fetch, lacking
    from harness.task import Protocol

    tasks, protocol = _named(installed(), names), Protocol(split=split)
    for line in fetch(data, tasks, protocol, revision=revision, dry_run=dry_run):
        typer.echo(line)
    left = lacking(data, tasks, protocol)
    for need in left:
        if need.hub is not None and not dry_run:
            typer.echo(f"{(data / need.path).absolute()} is still missing: {need.source}")
    if left:
        raise typer.Exit(1)
    typer.echo(f"everything that {', '.join(words(names))} reads is there")


@data_app.command("convert")
def data_convert(names: FetchNames, data: Data = Path("data")) -> None:
    """Rewrite original files that are not read as they are (pickles) beside themselves."""
    from harness.data import converters

    catalog = installed()
    chosen = [
        convert
        for name in words(names)
        for convert in converters(name, _named(catalog, [name]), catalog.tasks.values())
    ]
    for convert in dict.fromkeys(chosen):
        for line in convert(data):
            typer.echo(line)


@data_app.command("make-mini")
def data_make_mini(
    name: Annotated[str, typer.Argument(help="A task, suite, data set or glob.")],
    out: Annotated[Path, typer.Argument(help="The data root to write it below.")],
) -> None:
    """Write a small faithful copy of a data set's layout, to try things on."""
    tasks = _named(installed(), [name])
    try:
        out.mkdir(parents=True, exist_ok=True)
        for mini in dict.fromkeys(task.mini for task in tasks):
            mini(out)
    except OSError as error:
        raise files.storage_error(out, error) from error
    more = f" and {len(tasks) - 1} more tasks" if len(tasks) > 1 else ""
    typer.echo(f"{out} holds the miniature of {tasks[0].name}{more}: use it with --data {out}")


def _named(catalog: Catalog, names: Sequence[str] | None) -> list[Task]:
    """Tasks by name, glob or suite, or by the first word of their names (mbeir for mbeir-local/…)."""
    chosen: dict[str, Task] = {}
    for name in words(names) or ["*"]:
        family = re.compile(re.escape(name) + "[-/]")
        found = [task for task in catalog.tasks.values() if family.match(task.name)]
        if name in catalog.suites:
            found = catalog.select([], [name])
        chosen |= {task.name: task for task in found or catalog.select([name], [])}
    return list(chosen.values())
