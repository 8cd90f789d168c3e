"""The plugin contract: the hooks that a module behind a `harness` entry point may implement.

A plugin is any module (or object) with functions of these names marked `@hookimpl`; a hook may
take any subset of the arguments. Return values are plain: models, tasks, suites, backends, recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from harness.model import ModelSpec, RerankerSpec
    from harness.published import Reported
    from harness.recipe import Recipe
    from harness.result import Result
    from harness.run import Run, Searcher
    from harness.task import Suite, Task

hookspec = pluggy.HookspecMarker("harness")
hookimpl = pluggy.HookimplMarker("harness")


@hookspec
def harness_models() -> Sequence[ModelSpec]:  # type: ignore[empty-body]
    """Models for `harness eval --model NAME`."""


@hookspec
def harness_rerankers() -> Sequence[RerankerSpec]:  # type: ignore[empty-body]
    """Rerankers for `harness eval --rerank NAME`."""


@hookspec
def harness_tasks() -> Sequence[Task]:  # type: ignore[empty-body]
    """Tasks for `harness eval --tasks NAME`."""


@hookspec
def harness_suites() -> Sequence[Suite]:  # type: ignore[empty-body]
    """Suites for `harness eval --suite NAME` and `harness leaderboard NAME`."""


@hookspec
def harness_searchers() -> Sequence[Searcher]:  # type: ignore[empty-body]
    """Search backends for `harness eval --searcher NAME`."""


@hookspec
def harness_recipes() -> Sequence[Recipe]:  # type: ignore[empty-body]
    """Recipes for `harness train NAME`."""


@hookspec
def harness_reported() -> Sequence[Reported]:  # type: ignore[empty-body]
    """Published numbers for `harness leaderboard --reported` and `harness reproduce`.

    Called only when they are asked for: reading files here is fine.
    """


@hookspec
def harness_evaluated(result: Result, run: Run, folder: Path) -> None:
    """Called after a task was evaluated and stored in `folder`: exporters live here."""
