"""The command line: `harness list`, `eval`, `plan`, `leaderboard`, `reproduce`, `train` and `data`."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from harness import __version__, files
from harness.errors import HarnessError, UnknownName

if TYPE_CHECKING:
    from harness.data import Status
    from harness.evaluate import EvalOptions, Outcome, Reranking
    from harness.model import ModelSpec
    from harness.recipe import Recipe, Setting, Stage
    from harness.registry import Catalog
    from harness.result import Result
    from harness.task import Suite, Task
    from harness.train import Planned

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Evaluate multimodal retrieval models: exact protocols, cached embeddings, leaderboards.",
)
list_app = typer.Typer(
    no_args_is_help=True, help="What is installed: models, tasks, suites, recipes, plugins."
)
data_app = typer.Typer(no_args_is_help=True, help="The data sets below the data root.")
app.add_typer(list_app, name="list")
app.add_typer(data_app, name="data")

Number = TypeVar("Number", int, float)
GAP = "–"
REPEATED = ("--model-arg", "--rerank-arg", "--set")
DEFAULT_RUNS = Path("results/runs")
INSTRUCTIONS = ("hash", "first", "none", "1", "2", "3", "4", "all")


class Overwrite(StrEnum):
    """What to do about a cell whose result file is already there."""

    always = "always"
    never = "never"
    only_missing = "only-missing"
    only_cache = "only-cache"


class Form(StrEnum):
    """Output formats of a leaderboard."""

    markdown = "markdown"
    csv = "csv"
    json = "json"


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
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes a GPU where there is one.")]
BatchTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Budget of a batch: items × the longest one's tokens; default by the device."),
]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that decode and tokenise; default by the machine.")
]
SearcherName = Annotated[str, typer.Option("--searcher", help="Search backend: torch, faiss, or a plugin's.")]
SearchMemory = Annotated[str, typer.Option(help="Memory budget of the search, such as 512M or 2G.")]
Split = Annotated[str | None, typer.Option(help="The split; default: the one that the task is published on.")]
Profile = Annotated[str, typer.Option("--prompt-profile", help="Whose prompts.")]
Instructions = Annotated[
    str,
    typer.Option(
        help="Which of several instructions a query gets: hash, first, none, 1 to 4, or all (their mean)."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn (instructions).")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="A smoke test: so many queries, a cut pool; never a real score.")
]
SkipBroken = Annotated[
    bool,
    typer.Option(
        "--skip-broken", help="Leave out items whose media cannot be read; counted, in the protocol."
    ),
]
Compat = Annotated[
    list[str] | None,
    typer.Option("--compat", help="Reproduce a published evaluator's quirk by name; see tasks/README.md."),
]
Rerank = Annotated[
    str | None,
    typer.Option("--rerank", help="A reranker for the best candidates; see 'harness list models'."),
]
RerankArgs = Annotated[
    list[str] | None,
    typer.Option("--rerank-arg", metavar="KEY=VALUE", help="An option of the reranker; repeatable."),
]
Depth = Annotated[
    list[str] | None,
    typer.Option("--depth", help="How many candidates to re-rank: N, or TASKS=N; default: as published."),
]
FusionWeight = Annotated[
    list[str] | None,
    typer.Option(
        "--fusion-weight",
        help="Score + weight · reranker's: W, TASKS=W, or tune:SPLIT, the best on that split of each task;"
        " repeatable; default: as published.",
    ),
]
Oracle = Annotated[
    bool, typer.Option("--oracle", help="Let tune: use the split that is scored; such rows are not ranked.")
]
Strategy = Annotated[
    Overwrite, typer.Option("--overwrite-strategy", help="About results that are already there.")
]
Timings = Annotated[bool, typer.Option("--timings", help="Print where the time went.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done (the same as 'plan').")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no closing remarks.")]
PlanJson = Annotated[bool, typer.Option("--json", help="The plan as JSON.")]
DataNames = Annotated[
    list[str] | None, typer.Argument(metavar="NAME…", help="Tasks, suites, data sets or globs; default: all.")
]
FetchNames = Annotated[list[str], typer.Argument(metavar="NAME…", help="Tasks, suites, data sets or globs.")]
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


def _version(show: bool) -> None:
    if show:
        typer.echo(f"umr-harness {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("eval")
def evaluate(
    model: ModelName,
    model_arg: ModelArgs = None,
    tasks: TaskNames = None,
    suite: SuiteNames = None,
    data: Data = Path("data"),
    output_dir: OutputDir = Path("results/runs"),
    cache_dir: CacheDir = None,
    device: Device = "auto",
    batch_tokens: BatchTokens = None,
    workers: Workers = None,
    searcher: SearcherName = "torch",
    search_memory: SearchMemory = "1G",
    split: Split = None,
    prompt_profile: Profile = "default",
    instructions: Instructions = "hash",
    seed: Seed = 0,
    limit: Limit = None,
    skip_broken: SkipBroken = False,
    compat: Compat = None,
    rerank: Rerank = None,
    rerank_arg: RerankArgs = None,
    depth: Depth = None,
    fusion_weight: FusionWeight = None,
    oracle: Oracle = False,
    overwrite_strategy: Strategy = Overwrite.only_missing,
    timings: Timings = False,
    dry_run: DryRun = False,
    as_json: PlanJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a model on tasks or suites, store the results and print their leaderboard.

    Only what the cache lacks is encoded; a run that was stopped goes on where it was.
    """
    from harness.encode import EngineOptions, default_batch_tokens
    from harness.evaluate import EvalOptions
    from harness.evaluate import evaluate as run_evaluation
    from harness.task import Protocol

    catalog = _catalog()
    spec = catalog.model(model)
    chosen = _chosen(catalog, tasks, suite)
    given = _model_options(model_arg)
    reranking = _reranking(catalog, rerank, rerank_arg, depth, fusion_weight, oracle)
    if instructions not in INSTRUCTIONS:
        raise UnknownName("instruction policy", instructions, INSTRUCTIONS)
    device = _device(device)
    if cache_dir is not None:
        os.environ["HARNESS_CACHE"] = str(cache_dir)  # tables of candidates are built there too
    options = EvalOptions(
        data=data,
        output_dir=output_dir,
        cache_dir=files.cache_dir(),
        protocol=Protocol(
            split, prompt_profile, instructions, seed, limit, skip_broken, tuple(sorted(set(_split(compat))))
        ),
        engine=EngineOptions(device, batch_tokens or default_batch_tokens(device), workers, quiet),
        searcher=searcher,
        search_memory=_bytes(search_memory),
        overwrite=overwrite_strategy.value,
    )
    if dry_run:
        _print_plan(catalog, spec, given, chosen, options, as_json)
        return
    try:
        outcomes = run_evaluation(catalog, spec, given, chosen, options, reranking=reranking, tell=_say)
    except KeyboardInterrupt:
        _say("interrupted: finished results and embeddings are kept; the same command goes on from there")
        raise typer.Exit(130) from None
    if timings:
        _print_timings(outcomes)
    if verbose:
        _print_files(outcomes, options)
    _print_board(catalog, _suites(catalog, tasks, suite, chosen), options)
    if not quiet:
        made = sum(o.fresh for o in outcomes)
        kept = sum(o.result is not None for o in outcomes) - made
        _say(f"{made} results made, {kept} already there; files in {output_dir}")
    failed = [o for o in outcomes if o.error]
    if failed:
        _say(f"{len(failed)} of {len(outcomes)} tasks failed: {', '.join(o.task for o in failed)}")
        raise typer.Exit(1)


def plan(**asked: Any) -> None:
    """Say what `eval` would do: what is cached, what is left to encode. Loads no weights."""
    evaluate(**asked, dry_run=True)


_only_eval = ("dry_run", "timings", "overwrite_strategy", "verbose", "quiet", "oracle")
_shared = [p for n, p in inspect.signature(evaluate, eval_str=True).parameters.items() if n not in _only_eval]
plan.__signature__ = inspect.Signature(_shared)  # type: ignore[attr-defined]
plan.__annotations__ = {p.name: p.annotation for p in _shared}
app.command()(plan)


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

    Markdown has a table for each suite; CSV and JSON have one with all columns.
    """
    from harness.ablations import NAME as ABLATIONS
    from harness.files import write_text
    from harness.leaderboard import leaderboard as make_board
    from harness.leaderboard import render
    from harness.published import select

    catalog = _catalog()
    names = _split(suites)
    if ABLATIONS in names:
        if names != [ABLATIONS]:
            raise HarnessError(f"{ABLATIONS} is a table of its own: ask for it alone")
        text = _ablations(catalog, runs, format)
        typer.echo(text, nl=False) if out is None else write_text(out, text)
        return
    chosen = [catalog.suite(name) for name in names]
    published = select(catalog.reported(), papers=_split(paper), lowest=grade) if reported or paper else ()
    none_yet = runs is None and published and not DEFAULT_RUNS.is_dir()
    results = [] if none_yet else _read_results(runs or [DEFAULT_RUNS])
    tables = [[suite] for suite in chosen] if format is Form.markdown else [chosen]
    boards = [
        make_board(
            table, catalog.tasks, results, models={**catalog.models, **catalog.rerankers}, reported=published
        )
        for table in tables
    ]
    if none_yet and not any(board.rows for board in boards):
        raise HarnessError(
            f"nothing is published for {', '.join(board.title for board in boards)}, and there is no"
            f" results folder {DEFAULT_RUNS}: run 'harness eval', or name one with --runs"
        )
    text = "\n".join(render(board, format.value) for board in boards)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)


def _ablations(catalog: Catalog, runs: Sequence[Path] | None, format: Form) -> str:
    from harness.ablations import ablations, averaged, render

    reported = catalog.reported()
    suites = averaged(catalog.suites, reported)
    folders = runs or ([DEFAULT_RUNS] if DEFAULT_RUNS.is_dir() else [])
    variants = ablations(catalog.models, suites, catalog.tasks, _read_results(folders), reported)
    return render(variants, suites, format.value)


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

    catalog = _catalog()
    chosen = [catalog.suite(name) for name in _split(suite)]
    if not chosen:
        raise HarnessError("nothing to compare: name suites with --suite")
    title = f"{model} on {', '.join(s.name for s in chosen)}, beside what was published"
    results = _read_results(runs or [DEFAULT_RUNS])
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


@app.command()
def train(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The recipe; see 'harness list recipes'.")],
    stage: Annotated[str | None, typer.Option(help="Only this stage.")] = None,
    first: Annotated[str | None, typer.Option("--from", help="From this stage on.")] = None,
    last: Annotated[str | None, typer.Option("--until", help="Up to this stage.")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings for another scale, such as tiny.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.KEY=VALUE", help="A setting of a stage; repeatable."),
    ] = None,
    data: Data = Path("data"),
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Where the artefacts of stages go.")
    ] = Path("results/training"),
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how the stages stand, what they lack and cost.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run the stages of a recipe in order; print the folder of the last one.

    What is finished is skipped, what was stopped goes on where it was. Delete a stage's folder to run it
    again; to free space, delete what it made but leave its manifest.json.
    """
    from harness import train as training

    recipe = _configured(_catalog(), name, preset, settings)
    names = training.chosen(recipe, stage=stage, first=first, last=last)
    options = training.TrainOptions(
        data, output_dir, files.cache_dir(), device if dry_run else _device(device), quiet
    )
    try:
        planned = training.plan(recipe, names, options)
        if dry_run:
            _print_training(planned, data)
            return
        training.train(recipe, planned, options, tell=_say)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    typer.echo(planned[-1].folder)


def _configured(catalog: Catalog, name: str, preset: str | None, given: Sequence[str] | None) -> Recipe:
    """The recipe with these settings, which must not undo what it changes of its parent."""
    from harness.recipe import alike, configured, parsed

    recipe = catalog.recipe(name)
    settings: dict[str, dict[str, Setting]] = {}
    for text in given or ():
        match = re.fullmatch(r"([\w-]+)\.([\w-]+)=(.*)", text, re.DOTALL)
        if match is None:
            raise HarnessError(f"--set {text!r} is not of the form STAGE.KEY=VALUE")
        stage, key = recipe.stage(match[1].replace("_", "-")), match[2].replace("-", "_")
        settings.setdefault(stage.name, {})[key] = parsed(match[3], stage.settings.get(key))
    made = configured(recipe, preset, settings)
    parent = catalog.recipes.get(recipe.parent or "")
    if parent is None or alike(recipe, parent):
        return made
    if alike(made, configured(parent, preset if preset in parent.presets else None)):
        raise HarnessError(
            f"with these settings {name} trains what {parent.name} does: they undo what it changes"
            f" ({recipe.change})"
        )
    return made


def _print_training(planned: Sequence[Planned], data: Path) -> None:
    from tabulate import tabulate

    from harness.task import missing

    rows = []
    for each in planned:
        cost = each.stage.estimate(each.stage.settings)
        inputs = "\n".join(f"{name}: {state}" for name, state in each.inputs.items())
        rows.append(
            [
                *(each.stage.name, each.state, inputs or GAP, f"{cost.steps:,}", f"{cost.sequences:,}"),
                *(f"{cost.gpu_hours:,.1f}", f"{cost.memory_gib:,.0f} GiB"),
            ]
        )
    head = ["stage", "state", "inputs", "steps", "sequences", "GPU hours", "memory"]
    align = ["left", "left", "left", *["right"] * 4]
    typer.echo(tabulate(rows, headers=head, tablefmt="simple", colalign=align, disable_numparse=True))
    left = [each.stage for each in planned if each.state != "done"]
    hours = sum(stage.estimate(stage.settings).gpu_hours for stage in left)
    typer.echo(f"{len(left)} of {len(planned)} stages to run, about {hours:,.1f} GPU hours")
    line = missing((need for each in planned if each.state != "done" for need in each.missing), data)
    if line is not None:
        typer.echo(line)


@list_app.command("models")
def list_models(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Models and rerankers: where each comes from, its parent and its licence."""
    from harness.model import ModelSpec, RerankerSpec

    catalog = _catalog()
    specs: list[ModelSpec | RerankerSpec] = [*catalog.models.values(), *catalog.rerankers.values()]
    rows = [
        {
            "name": m.name,
            "title": m.title,
            "kind": "reranker" if isinstance(m, RerankerSpec) else "model",
            "source": m.source,
            "parent": m.parent,
            "change": m.change,
            "paper_ref": m.paper_ref,
            "licence": m.licence,
            "check": isinstance(m, ModelSpec) and m.check is not None,
            "trained_on": dict(m.trained_on),
            "held_out": dict(m.held_out),
            "input_spec": dict(m.input_spec),
        }
        for m in specs
    ]
    _print_rows(rows, as_json, verbose, ("name", "kind", "title", "source", "parent", "licence"))


@list_app.command("tasks")
def list_tasks(as_json: AsJson = False, verbose: Verbose = False, data: Data = Path("data")) -> None:
    """Tasks: what each needs below the data root, and whether it is there."""
    from harness.task import Protocol

    catalog = _catalog()
    rows = []
    for task in catalog.tasks.values():
        needs = task.needs(Protocol())
        missing = [need for need in needs if need.find(data) is None]
        rows.append(
            {
                "name": task.name,
                "title": task.title,
                "suites": [s.name for s in catalog.suites.values() if task.name in s.tasks],
                "needs": [
                    {"path": str(n.path), "source": n.remedy, "present": n not in missing} for n in needs
                ],
                "present": not missing,
                "metrics": [str(m) for m in task.metrics],
                "source": task.source,
                "licence": task.licence,
                "data": "there"
                if not missing
                else f"missing: {_some([str(data / n.path) for n in missing])}",
            }
        )
    _print_rows(rows, as_json, verbose, ("name", "title", "data"))


@list_app.command("suites")
def list_suites(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Suites and the tasks in them."""
    rows = [
        {"name": s.name, "title": s.title, "count": f"{len(s.tasks)} tasks", "tasks": list(s.tasks)}
        for s in _catalog().suites.values()
    ]
    _print_rows(rows, as_json, verbose, ("name", "title", "count"))


@list_app.command("recipes")
def list_recipes(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Recipes and their stages; -v: the data, settings, artefacts and cost of each stage."""
    rows: list[dict[str, Any]] = []
    for r in _catalog().recipes.values():
        stages = [_stage_row(r, stage) for stage in r.stages]
        row: dict[str, Any] = {
            "name": r.name,
            "title": r.title,
            "parent": r.parent,
            "change": r.change,
            "paper_ref": r.paper_ref,
            "presets": list(r.presets),
        }
        if as_json:
            rows.append(row | {"stages": stages})
        elif verbose:
            details = "\n".join(map(_details, stages))
            typer.echo(f"{_details(row)}\n{textwrap.indent(details, ' ' * 4)}")
        else:
            rows.append(row | {"stages": " → ".join(stage.name for stage in r.stages)})
    if as_json or not verbose:
        _print_rows(rows, as_json, False, ("name", "title", "parent", "stages"))


def _stage_row(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "name": stage.name,
        "title": stage.title,
        "data": [{"path": str(need.path), "source": need.remedy} for need in stage.data(stage.settings)],
        "objective": stage.objective,
        "settings": dict(stage.settings),
        "needs": dict(stage.needs),
        "artefacts": list(stage.makes),
        "expected": dict(stage.expected),
        "estimate": asdict(stage.estimate(stage.settings)),
        "paper_ref": stage.paper_ref,
        "command": f"harness train {recipe.name} --stage {stage.name}",
        "doc": inspect.cleandoc(stage.doc),
    }


@list_app.command("plugins")
def list_plugins(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Plugins, what each offers, and the traceback of those that could not be loaded."""
    rows = []
    for p in _catalog(warn=False).plugins:
        counts = [f"{len(names)} {kind}" for kind, names in p.offers.items() if names]
        rows.append(
            {
                "name": p.name,
                "module": p.module,
                "version": p.version,
                "offers": {kind: list(names) for kind, names in p.offers.items()},
                "summary": ", ".join(counts) if p.error is None else "BROKEN: see the traceback below",
                "error": p.error,
            }
        )
    _print_rows(rows, as_json, verbose, ("name", "version", "summary"))
    if not as_json:
        for row in rows:
            if row["error"]:
                typer.echo(f"\n{row['name']}:\n{row['error']}")


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

    found = status(data, _named(_catalog(), names), Protocol(split=split), deep=deep)
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

    tasks, protocol = _named(_catalog(), names), Protocol(split=split)
    for line in fetch(data, tasks, protocol, revision=revision, dry_run=dry_run):
        typer.echo(line)
    left = lacking(data, tasks, protocol)
    for need in left:
        if need.hub is not None and not dry_run:
            typer.echo(f"{(data / need.path).absolute()} is still missing: {need.source}")
    if left:
        raise typer.Exit(1)
    typer.echo(f"everything that {', '.join(_split(names))} reads is there")


@data_app.command("convert")
def data_convert(names: FetchNames, data: Data = Path("data")) -> None:
    """Rewrite original files that are not read as they are (pickles) beside themselves."""
    from harness.data import converters

    catalog = _catalog()
    chosen = [
        convert
        for name in _split(names)
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
    tasks = _named(_catalog(), [name])
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
    for name in _split(names) or ["*"]:
        family = re.compile(re.escape(name) + "[-/]")
        found = [task for task in catalog.tasks.values() if family.match(task.name)]
        if name in catalog.suites:
            found = catalog.select([], [name])
        chosen |= {task.name: task for task in found or catalog.select([name], [])}
    return list(chosen.values())


def main() -> None:
    """The console script: 0 done, 1 some tasks failed, 2 one clear error, 130 interrupted."""
    arguments = _normal(sys.argv[1:])
    command = typer.main.get_command(app)
    try:
        command.main(args=arguments, prog_name="harness")
    except HarnessError as error:
        _say(f"harness: {error}")
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _normal(arguments: Sequence[str]) -> list[str]:
    """`--model_arg` for `--model-arg`, and several KEY=VALUE after one flag that takes them."""
    normal: list[str] = []
    for argument in arguments:
        if match := re.match(r"--[A-Za-z][\w-]*", argument):
            argument = match.group().replace("_", "-") + argument[match.end() :]
        elif normal[-2:-1] and normal[-2] in REPEATED and re.match(r"[\w.-]+=", argument):
            normal.append(normal[-2])
        normal.append(argument)
    return normal


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _catalog(*, warn: bool = True) -> Catalog:
    from harness.registry import load_catalog

    catalog = load_catalog()
    for plugin in catalog.plugins if warn else ():
        if plugin.error:
            last = plugin.error.strip().splitlines()[-1]
            _say(f"warning: plugin {plugin.name} could not be loaded ({last}); see 'harness list plugins'")
    return catalog


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise HarnessError(f"device {name!r} cannot be used ({reason}): choose cpu, or auto") from error
    return name


def _bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", size.strip(), re.IGNORECASE)
    if not match:
        raise HarnessError(f"--search-memory {size!r} is not a size: write 512M or 2G")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _split(names: Sequence[str] | None) -> list[str]:
    return [part.strip() for name in names or () for part in name.split(",") if part.strip()]


def _reranking(
    catalog: Catalog,
    name: str | None,
    given: Sequence[str] | None,
    depth: Sequence[str] | None,
    weight: Sequence[str] | None,
    oracle: bool,
) -> Reranking | None:
    if name is None:
        if given or depth or weight or oracle:
            raise HarnessError("--rerank-arg, --depth, --fusion-weight and --oracle need --rerank NAME")
        return None
    from harness.evaluate import open_reranker
    from harness.rerank import Fusion

    spec = catalog.reranker(name)
    weights = _split(weight)
    tuned = [text.partition(":")[2] for text in weights if text.startswith("tune:")]
    if (tuned and len(weights) > 1) or tuned == [""]:
        raise HarnessError("--fusion-weight tune:SPLIT stands alone and names a split, such as tune:val")
    if oracle and not tuned:
        raise HarnessError("--oracle goes with --fusion-weight tune:SPLIT")
    fusion = Fusion(
        _by_task("--depth", spec.depths, _split(depth), int),
        _by_task("--fusion-weight", spec.weights, [] if tuned else weights, float),
        tuned[0] if tuned else None,
        oracle,
    )
    return open_reranker(spec, _model_options(given, "--rerank-arg"), fusion)


def _by_task(
    flag: str, published: Mapping[str, Number], given: Sequence[str], read: Callable[[str], Number]
) -> dict[str, Number]:
    """The published settings by task glob, and what is given after them, where it wins."""
    rule = {}
    for text in given:
        tasks, equals, value = text.rpartition("=")
        try:
            rule[tasks if equals else "*"] = read(value)
        except ValueError:
            raise HarnessError(f"{flag} {text!r} is not a number, nor TASKS=NUMBER") from None
    return {**{glob: value for glob, value in published.items() if glob not in rule}, **rule}


def _model_options(given: Sequence[str] | None, flag: str = "--model-arg") -> dict[str, str]:
    pairs = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise HarnessError(f"{flag} {text!r} is not of the form KEY=VALUE")
        pairs[name.strip().replace("_", "-")] = value
    return pairs


def _chosen(catalog: Catalog, tasks: Sequence[str] | None, suites: Sequence[str] | None) -> list[Task]:
    chosen = catalog.select(_split(tasks), _split(suites))
    if not chosen:
        raise HarnessError("nothing to evaluate: name tasks with --tasks or suites with --suite")
    return chosen


def _suites(
    catalog: Catalog, tasks: Sequence[str] | None, suites: Sequence[str] | None, chosen: Sequence[Task]
) -> list[Suite]:
    from harness.leaderboard import tasks_suite

    named = [catalog.suite(name) for name in _split(suites)]
    covered = {name for suite in named for name in suite.tasks}
    loose = [task for task in chosen if task.name not in covered]
    return [*named, tasks_suite(loose)] if loose else named


def _read_results(folders: Sequence[Path]) -> list[Result]:
    from harness.result import read_results

    results = []
    for folder in folders:
        if not folder.is_dir():
            raise HarnessError(
                f"there is no results folder {folder}: run 'harness eval', or name one with --runs"
            )
        results += read_results(folder)
    return results


def _print_board(catalog: Catalog, suites: Sequence[Suite], options: EvalOptions) -> None:
    from harness.leaderboard import leaderboard as make_board
    from harness.leaderboard import render

    results = _read_results([options.output_dir]) if options.output_dir.is_dir() else []
    limit = options.protocol.limit
    boards = [
        make_board(
            [suite], catalog.tasks, results, models={**catalog.models, **catalog.rerankers}, limit=limit
        )
        for suite in suites
    ]
    typer.echo("\n".join(render(board, "markdown") for board in boards), nl=False)


def _print_files(outcomes: Sequence[Outcome], options: EvalOptions) -> None:
    for outcome in outcomes:
        if outcome.result is not None:
            _say(f"{outcome.task}: {options.output_dir / outcome.result.path}")


def _print_timings(outcomes: Sequence[Outcome]) -> None:
    from tabulate import tabulate

    made = [o.result for o in outcomes if o.result is not None and o.fresh]
    stages = list(dict.fromkeys(s for r in made for s in r.provenance.get("seconds", {})))
    rows = [[r.task, *(r.provenance["seconds"].get(s, 0.0) for s in stages)] for r in made]
    _say(tabulate(rows, headers=["seconds", *stages], tablefmt="plain", floatfmt=".2f"))


def _print_plan(
    catalog: Catalog,
    spec: ModelSpec,
    given: dict[str, str],
    tasks: Sequence[Task],
    options: EvalOptions,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from harness.evaluate import plan as make_plan

    rows = [asdict(p) for p in make_plan(catalog, spec, given, tasks, options)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from tabulate import tabulate

    typer.echo(tabulate(rows, headers="keys", tablefmt="simple", intfmt=","))


def _print_rows(rows: Sequence[dict[str, Any]], as_json: bool, verbose: bool, brief: Sequence[str]) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if verbose:
        for row in rows:
            typer.echo(_details(row))
        return
    from tabulate import tabulate

    table = [[GAP if row[name] is None else row[name] for name in brief] for row in rows]
    typer.echo(tabulate(table, headers=list(brief), tablefmt="simple", disable_numparse=True))


def _details(row: Mapping[str, Any]) -> str:
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


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
