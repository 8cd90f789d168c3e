"""Built-in tasks, found through the `harness` entry point like any other plugin."""

from __future__ import annotations

from harness.hookspecs import hookimpl
from harness.task import Suite, Task

from . import demo, stamps


@hookimpl
def harness_tasks() -> tuple[Task, ...]:
    return (*demo.TASKS, *stamps.TASKS)


@hookimpl
def harness_suites() -> tuple[Suite, ...]:
    return (demo.SUITE, stamps.SUITE)
