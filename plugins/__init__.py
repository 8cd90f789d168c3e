"""Built-in plugins that are neither model nor task: search backends, published numbers, exporters."""

from __future__ import annotations

from pathlib import Path

from harness.hookspecs import hookimpl
from harness.published import Reported, read_reported
from harness.result import Result
from harness.run import Run, Searcher
from harness.search import TORCH

from . import circo_submission
from .faiss_flat import FAISS


@hookimpl
def harness_searchers() -> tuple[Searcher, ...]:
    return (TORCH, FAISS)


@hookimpl
def harness_reported() -> tuple[Reported, ...]:
    return read_reported("harness.reported")


@hookimpl
def harness_evaluated(result: Result, run: Run, folder: Path) -> None:
    circo_submission.export(result, run, folder)
