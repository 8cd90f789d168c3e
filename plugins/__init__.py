"""Built-in plugins that are neither model nor task: search backends, published numbers."""

from __future__ import annotations

from harness.hookspecs import hookimpl
from harness.published import Reported, read_reported
from harness.run import Searcher
from harness.search import TORCH

from .faiss_flat import FAISS


@hookimpl
def harness_searchers() -> tuple[Searcher, ...]:
    return (TORCH, FAISS)


@hookimpl
def harness_reported() -> tuple[Reported, ...]:
    return read_reported("harness.reported")
