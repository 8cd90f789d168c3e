"""What several commands share: options, the catalog of plugins, and how rows are printed."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.evaluate import EvalOptions
    from harness.leaderboard import Leaderboard
    from harness.published import Reported
    from harness.ranks import Ranks
    from harness.registry import Catalog
    from harness.result import Result, Stored
    from harness.task import Suite, Task

GAP = "–"
DEFAULT_RUNS = Path("results/runs")

ModelName = Annotated[str, typer.Option("--model", "-m", help="The model; see 'harness list models'.")]
ModelArgs = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="KEY=VALUE", help="An option of the model; repeatable."),
]
TaskNames = Annotated[
    list[str] | None,
    typer.Option("--tasks", "-t", help="Tasks: names or globs, separated by commas; repeatable."),
]
SuiteNames = Annotated[
    list[str] | None, typer.Option("--suite", "-s", help="Suites, separated by commas; repeatable.")
]
Data = Annotated[Path, typer.Option("--data", envvar="HARNESS_DATA", help="The data root.")]
OutputDir = Annotated[Path, typer.Option("--output-dir", "-o", help="Where results go.")]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        envvar="HARNESS_CACHE",
        help="For embeddings, file digests and tables; default: ~/.cache/umr-harness.",
    ),
]
SharedCache = Annotated[
    list[str] | None,
    typer.Option(
        "--shared-cache",
        metavar="FOLDER_OR_URL",
        help="A cache of others, read after one's own and never written; also s3://bucket/cache and other"
        " URLs of fsspec; repeatable. Else $HARNESS_SHARED_CACHE.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes a GPU where there is one.")]
BatchTokens = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Budget of a batch: items × the longest one's tokens; auto looks for the fastest, and remembers"
        " it; default by the device.",
    ),
]
StoreDtype = Annotated[
    Literal["float16", "bfloat16", "float32"],
    typer.Option(
        help="Of stored embeddings: float16 keeps scores to 1e-4, bfloat16 to 1e-3, and float32, for twice"
        " the disk, to 1e-7."
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that decode and tokenise; default by the machine.")
]
Split = Annotated[str | None, typer.Option(help="The split; default: the one that the task is published on.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no closing remarks.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Runs = Annotated[
    list[Path] | None, typer.Option("--runs", help="Result folders; repeatable. Default: results/runs.")
]
LowestGrade = Annotated[
    str,
    typer.Option(
        "--grade", help="Lowest grade of published numbers: A first-hand, B extracted, C second-hand."
    ),
]


def say(line: str) -> None:
    typer.echo(line, err=True)


def installed(*, warn: bool = True) -> Catalog:
    from harness.registry import load_catalog

    catalog = load_catalog()
    for plugin in catalog.plugins if warn else ():
        if plugin.error:
            last = plugin.error.strip().splitlines()[-1]
            say(f"warning: plugin {plugin.name} could not be loaded ({last}); see 'harness list plugins'")
    return catalog


def usable_device(name: str, ranks: Ranks | None = None) -> str:
    """The device that a name means, of several ranks this one's own. Raises HarnessError."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks is not None and ranks.count > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', ranks.rank)}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise HarnessError(f"device {name!r} cannot be used ({reason}): choose cpu, or auto") from error
    return name


def use_caches(own: Path | None, shared: Sequence[str] | None = None) -> None:
    """Make these the caches of this process: tables of candidates are kept there too."""
    if own is not None:
        os.environ["HARNESS_CACHE"] = str(own)
    if shared:
        os.environ["HARNESS_SHARED_CACHE"] = os.pathsep.join(shared)


def size_in_bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", size.strip(), re.IGNORECASE)
    if not match:
        raise HarnessError(f"--search-memory {size!r} is not a size: write 512M or 2G")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def batch_budget(given: str | None, device: str) -> tuple[int, bool]:
    """The budget of a batch on a device, and whether a better one is to be looked for."""
    from harness.encode import default_batch_tokens

    if given is None or given == "auto":
        return default_batch_tokens(device), given == "auto"
    if not given.isdecimal() or int(given) < 1:
        raise HarnessError(f"--batch-tokens {given!r} is neither a number of tokens, 1 or more, nor auto")
    return int(given), False


def words(names: Sequence[str] | None) -> list[str]:
    return [part.strip() for name in names or () for part in name.split(",") if part.strip()]


def options_of(given: Sequence[str] | None, flag: str = "--model-arg") -> dict[str, str]:
    pairs = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise HarnessError(f"{flag} {text!r} is not of the form KEY=VALUE")
        pairs[name.strip().replace("_", "-")] = value
    return pairs


def chosen_suites(
    catalog: Catalog, tasks: Sequence[str] | None, suites: Sequence[str] | None, chosen: Sequence[Task]
) -> list[Suite]:
    from harness.leaderboard import tasks_suite

    named = [catalog.suite(name) for name in words(suites)]
    covered = {name for suite in named for name in suite.tasks}
    loose = [task for task in chosen if task.name not in covered]
    return [*named, tasks_suite(loose)] if loose else named


def stored(folders: Sequence[Path]) -> list[Stored]:
    from harness.result import read_stored

    found = []
    for folder in folders:
        if not folder.is_dir():
            raise HarnessError(
                f"there is no results folder {folder}: run 'harness eval', or name one with --runs"
            )
        found += read_stored(folder)
    return found


def make_board(
    catalog: Catalog,
    suites: Sequence[Suite],
    found: Sequence[Stored],
    *,
    reported: Sequence[Reported] = (),
    limit: int | None = None,
) -> Leaderboard:
    """The leaderboard, with the standings of our rows where they are whole."""
    from harness.leaderboard import leaderboard
    from harness.standing import standing

    board = leaderboard(
        suites,
        catalog.tasks,
        [each.result for each in found],
        models={**catalog.models, **catalog.rerankers},
        limit=limit,
        reported=reported,
    )
    return board if limit is not None else standing(board, suites, catalog.tasks, found)


def print_board(catalog: Catalog, suites: Sequence[Suite], options: EvalOptions) -> None:
    """The leaderboards of what an evaluation has stored."""
    from harness.boards import render

    found = stored([options.output_dir]) if options.output_dir.is_dir() else []
    limit = options.protocol.limit
    boards = [make_board(catalog, [suite], found, limit=limit) for suite in suites]
    typer.echo("\n".join(render(board, "markdown") for board in boards), nl=False)


def stored_results(folders: Sequence[Path]) -> list[Result]:
    return [each.result for each in stored(folders)]


def print_rows(rows: Sequence[dict[str, Any]], as_json: bool, verbose: bool, brief: Sequence[str]) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if verbose:
        for row in rows:
            typer.echo(details(row))
        return
    from tabulate import tabulate

    table = [[GAP if row[name] is None else row[name] for name in brief] for row in rows]
    typer.echo(tabulate(table, headers=list(brief), tablefmt="simple", disable_numparse=True))


def details(row: Mapping[str, Any]) -> str:
    """The name of a row, and below it all that it says."""
    said = {name: value for name, value in row.items() if name != "name" and value not in (None, {}, [], "")}
    lines = (f"    {name}: {_shown(value)}".replace(": \n", ":\n") for name, value in said.items())
    return "\n".join([row["name"], *lines])


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "".join(f"\n        {json.dumps(v, ensure_ascii=False)}" for v in value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return textwrap.indent(str(value).rstrip(), " " * 8).lstrip()


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
