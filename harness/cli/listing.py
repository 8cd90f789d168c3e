"""`harness list`."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .app import list_app
from .shared import AsJson, Data, Verbose, details, installed, print_rows, some

if TYPE_CHECKING:
    from harness.recipe import Recipe, Stage


@list_app.command("models")
def list_models(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Models and rerankers: where each comes from, its parent and its licence."""
    from harness.model import ModelSpec, RerankerSpec

    catalog = installed()
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
    print_rows(rows, as_json, verbose, ("name", "kind", "title", "source", "parent", "licence"))


@list_app.command("tasks")
def list_tasks(as_json: AsJson = False, verbose: Verbose = False, data: Data = Path("data")) -> None:
    """Tasks: what each needs below the data root, and whether it is there."""
    from harness.task import Protocol

    catalog = installed()
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
                "data": "there" if not missing else f"missing: {some([str(data / n.path) for n in missing])}",
            }
        )
    print_rows(rows, as_json, verbose, ("name", "title", "data"))


@list_app.command("suites")
def list_suites(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Suites and the tasks in them."""
    rows = [
        {"name": s.name, "title": s.title, "count": f"{len(s.tasks)} tasks", "tasks": list(s.tasks)}
        for s in installed().suites.values()
    ]
    print_rows(rows, as_json, verbose, ("name", "title", "count"))


@list_app.command("recipes")
def list_recipes(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Recipes and their stages; -v: the data, settings, artefacts and cost of each stage."""
    rows: list[dict[str, Any]] = []
    for r in installed().recipes.values():
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
            said = "\n".join(map(details, stages))
            typer.echo(f"{details(row)}\n{textwrap.indent(said, ' ' * 4)}")
        else:
            rows.append(row | {"stages": " → ".join(stage.name for stage in r.stages)})
    if as_json or not verbose:
        print_rows(rows, as_json, False, ("name", "title", "parent", "stages"))


def _stage_row(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "name": stage.name,
        "title": stage.title,
        "tasks": [f"{use.tasks} ({use.protocol.split})" for use in stage.uses(stage.settings)],
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
    for p in installed(warn=False).plugins:
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
    print_rows(rows, as_json, verbose, ("name", "version", "summary"))
    if not as_json:
        for row in rows:
            if row["error"]:
                typer.echo(f"\n{row['name']}:\n{row['error']}")
