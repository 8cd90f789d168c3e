"""Built-in plugins that are neither model nor task: search backends."""

from __future__ import annotations

from harness.hookspecs import hookimpl
from harness.run import Searcher
from harness.search import TORCH

from .faiss_flat import FAISS


@hookimpl
def harness_searchers() -> tuple[Searcher, ...]:
    return (TORCH, FAISS)
