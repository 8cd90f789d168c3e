"""Compiled models: torch.compile for the modules of an embedder or reranker, whatever their names."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import HarnessError

if TYPE_CHECKING:
    from torch.nn import Module

E = TypeVar("E")

DEEP = 3
"""So many attributes lie at most between an embedder and a module of it."""
BACKEND = "inductor"


def compiled(embedder: E) -> E:
    """The same embedder, whose torch modules compile themselves when they are first called.

    What is compiled are the repeated blocks of each module (its module lists), once for all and for
    batches of any shape, and a module without such lists as a whole: models are called by other
    methods than `forward`, blocks are not. Rows differ by rounding alone, as between two batch
    budgets: within 1e-5 in float32. So it is no part of a model's identity; a result's provenance
    has it. Raises HarnessError for an embedder without modules, and without a C++ compiler.
    """
    found = {id(module): module for module in _modules(embedder, DEEP)}
    if not found:
        raise HarnessError(f"{type(embedder).__name__} has no torch module to compile: leave --compile out")
    _require_compiler()
    for module in found.values():
        for block in _blocks(module):
            block.compile(dynamic=True, backend=BACKEND)
    return embedder


def _modules(thing: Any, deep: int) -> Iterator[Module]:
    import torch

    if isinstance(thing, torch.nn.Module):
        yield thing
    elif deep and not isinstance(thing, type):
        named = getattr(thing, "__dict__", {}).values()
        slots = (getattr(thing, name, None) for name in getattr(type(thing), "__slots__", ()))
        for each in (*named, *slots):
            yield from _modules(each, deep - 1)


def _blocks(module: Module) -> list[Module]:
    """The elements of its outermost module lists; without any, the module."""
    import torch

    found: list[Module] = []
    left = list(module.children())
    while left:
        child = left.pop(0)
        if isinstance(child, torch.nn.ModuleList):
            found += child
        else:
            left += child.children()
    return found or [module]


def _require_compiler() -> None:
    wanted = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(wanted) is None:
        raise HarnessError(
            f"--compile needs a C++ compiler, and there is no {wanted}: install one, name another in $CXX,"
            " or leave --compile out"
        )
