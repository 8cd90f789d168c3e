"""`harness train`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import files
from harness.errors import HarnessError

from .app import app
from .shared import GAP, BatchTokens, Data, Device, Quiet, Workers, installed, say, usable_device

if TYPE_CHECKING:
    from harness.recipe import Recipe, Setting
    from harness.registry import Catalog
    from harness.train import Planned


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
    from harness.encode import EngineOptions, default_batch_tokens
    from harness.ranks import Ranks

    catalog, ranks = installed(), Ranks.of()
    recipe = _configured(catalog, name, preset, settings)
    names = training.chosen(recipe, stage=stage, first=first, last=last)
    if not dry_run:
        device = usable_device(device, ranks)
    alone = ranks.rank == 0
    engine = EngineOptions(device, batch_tokens or default_batch_tokens(device), workers, quiet or not alone)
    options = training.TrainOptions(data, output_dir, files.cache_dir(), engine, catalog.tasks, chunk, ranks)
    try:
        planned = training.plan(recipe, names, options)
        if dry_run:
            _print_training(planned, data)
            return
        training.train(recipe, planned, options, tell=say if alone else lambda line: None)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if alone:
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
