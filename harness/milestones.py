"""What each stage of a recipe is worth: its retriever evaluated as any model is.

umarvel@base    umarvel@nli    umarvel@cc3m    …    rows of a leaderboard like any others
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.evaluate import EvalOptions, Outcome, evaluate
from harness.train import Planned, TrainOptions, stage_run

if TYPE_CHECKING:
    from harness.model import ModelSpec
    from harness.recipe import Recipe
    from harness.registry import Catalog
    from harness.task import Task

BASE = "base"


def retrievers(
    recipe: Recipe, planned: Sequence[Planned], options: TrainOptions
) -> Iterator[tuple[ModelSpec, str]]:
    """Models of finished stages with their paths, in order; first what the first of them started from."""
    found = [(each, each.stage.checkpoints) for each in planned if each.stage.checkpoints is not None]
    for each, checkpoints in found[:1]:
        start = checkpoints.start(stage_run(each, options, lambda line: None))
        yield replace(checkpoints.spec, name=f"{recipe.name}@{BASE}"), start
    for each, checkpoints in found:
        assert each.folder is not None
        place = str(each.folder / each.stage.makes[0])
        yield replace(checkpoints.spec, name=f"{recipe.name}@{each.stage.name}"), place


def evaluate_stages(
    catalog: Catalog,
    recipe: Recipe,
    planned: Sequence[Planned],
    training: TrainOptions,
    tasks: Sequence[Task],
    options: EvalOptions,
    *,
    tell: Callable[[str], None],
) -> list[Outcome]:
    """Evaluate the retriever of every stage on tasks, as `evaluate` does. Raises DataMissing."""
    outcomes: list[Outcome] = []
    for spec, path in retrievers(recipe, planned, training):
        outcomes += evaluate(catalog, spec, {"path": path}, tasks, options, tell=tell)
    return outcomes
