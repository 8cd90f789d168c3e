"""`harness train`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import files
from harness.errors import HarnessError

from .app import app
from .shared import (
    GAP,
    BatchTokens,
    Data,
    Device,
    Quiet,
    Split,
    SuiteNames,
    TaskNames,
    Workers,
    batch_budget,
    chosen_suites,
    installed,
    print_board,
    say,
    usable_device,
    words,
)

if TYPE_CHECKING:
    from harness.recipe import Recipe, Setting
    from harness.registry import Catalog
    from harness.task import Protocol, Suite, Task
    from harness.train import Planned, TrainOptions


@dataclass(frozen=True, slots=True)
class _Board:
    """What the stages' retrievers are evaluated on."""

    tasks: Sequence[Task]
    suites: Sequence[Suite]
    protocol: Protocol


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
    batch_tokens: BatchTokens = None,
    workers: Workers = None,
    chunk: Annotated[
        int, typer.Option(min=1, help="Sequences on a device at a time: fewer need less memory, no more.")
    ] = 32,
    tasks: TaskNames = None,
    suite: SuiteNames = None,
    split: Split = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how the stages stand, what they lack and cost.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run the stages of a recipe in order; print the folder of the last one.

    With --tasks or --suite, and at the end of a preset, the retrievers of these stages and of what they
    started from are evaluated, and their leaderboard is printed first. What is finished is skipped, what
    was stopped goes on where it was. Delete a stage's folder to run it again; to free space, delete what
    it made but leave its manifest.json.
    """
    from harness import train as training
    from harness.encode import EngineOptions
    from harness.evaluate import require_data
    from harness.ranks import Ranks

    catalog, ranks = installed(), Ranks.of()
    recipe = _configured(catalog, name, preset, settings)
    names = training.chosen(recipe, stage=stage, first=first, last=last)
    if not dry_run:
        device = usable_device(device, ranks)
    alone = ranks.rank == 0
    board = _board(catalog, recipe, names, preset, tasks, suite, split)
    tokens, probe = batch_budget(batch_tokens, device)
    engine = EngineOptions(device, tokens, workers, quiet or not alone, probe=probe)
    options = training.TrainOptions(data, output_dir, files.cache_dir(), engine, catalog.tasks, chunk, ranks)
    try:
        planned = training.plan(recipe, names, options)
        if dry_run:
            _print_training(planned, data)
            return
        if board is not None:
            require_data(board.tasks, data, board.protocol)
        training.train(recipe, planned, options, tell=say if alone else lambda line: None)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    ranks.leave()
    if not alone:
        return
    if board is not None:
        _evaluate_stages(catalog, recipe, planned, options, board)
    typer.echo(planned[-1].folder)


def _board(
    catalog: Catalog,
    recipe: Recipe,
    names: Sequence[str],
    preset: str | None,
    tasks: Sequence[str] | None,
    suites: Sequence[str] | None,
    split: str | None,
) -> _Board | None:
    """What the stages are evaluated on: what is asked for, else what ends a whole preset."""
    from harness.task import Protocol

    use = catalog.recipe(recipe.name).boards.get(preset or "")
    if not tasks and not suites and use is not None and names[-1] == recipe.stages[-1].name:
        tasks, split = [use.tasks], split or use.protocol.split
    if not tasks and not suites:
        if split is not None:
            raise HarnessError("--split needs --tasks or --suite, to evaluate the stages on")
        return None
    chosen = catalog.select(words(tasks), words(suites))
    return _Board(chosen, chosen_suites(catalog, tasks, suites, chosen), Protocol(split=split))


def _evaluate_stages(
    catalog: Catalog, recipe: Recipe, planned: Sequence[Planned], options: TrainOptions, board: _Board
) -> None:
    from harness.evaluate import EvalOptions
    from harness.milestones import evaluate_stages

    evaluation = EvalOptions(
        data=options.data,
        output_dir=options.output_dir / "runs",
        cache_dir=options.cache_dir,
        protocol=board.protocol,
        engine=options.engine,
        shared_caches=files.shared_caches(),
        remote_caches=files.remote_caches(),
    )
    outcomes = evaluate_stages(catalog, recipe, planned, options, board.tasks, evaluation, tell=say)
    print_board(catalog, board.suites, evaluation)
    failed = sorted({o.task for o in outcomes if o.error})
    if failed:
        say(f"not evaluated on {', '.join(failed)}; the stages are finished")
        raise typer.Exit(1)


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
        inputs = "\n".join(_grouped(each.inputs)) or GAP
        rows.append(
            [
                *(each.stage.name, each.state, inputs, f"{cost.steps:,}", f"{cost.sequences:,}"),
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
    for reason in dict.fromkeys(each.baseless for each in planned if each.baseless):
        typer.echo(reason)


def _grouped(inputs: Mapping[str, str]) -> Iterator[str]:
    """A line for each stage that is read, and for the files in each top folder."""
    files: dict[str, list[str]] = {}
    for name, state in inputs.items():
        if state in ("there", "missing"):
            files.setdefault(name.partition("/")[0] or name, []).append(state)
        else:
            yield f"{name}: {state}"
    for name, states in files.items():
        gone = states.count("missing")
        some = f"{gone} of {len(states)} files and folders missing" if gone < len(states) else "missing"
        yield f"{name}: {some if gone else 'there'}"
