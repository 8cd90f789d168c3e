"""Built-in tasks, found through the `harness` entry point like any other plugin."""

from __future__ import annotations

from harness.hookspecs import hookimpl
from harness.task import Suite, Task

from . import demo, mbeir, stamps


@hookimpl
def harness_tasks() -> tuple[Task, ...]:
    return (*demo.TASKS, *stamps.TASKS, *mbeir.TASKS)


@hookimpl
def harness_suites() -> tuple[Suite, ...]:
    return (demo.SUITE, stamps.SUITE, *mbeir.SUITES)
