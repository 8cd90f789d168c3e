"""Whether a model has seen a task's data in training: trained, held out or unknown, and how that is known.

A task says where its pictures and texts come from (`derived_from`), a model what it was trained on and
what was kept from it (`trained_on`, `held_out`); what a model leaves unsaid holds as its parent says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from harness.model import ModelSpec, RerankerSpec
from harness.task import Task

Status = Literal["trained", "held out", "unknown"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class Exposure:
    """`evidence`: for each source that something is said of, "COCO: M-BEIR's training queries"."""

    status: Status
    evidence: tuple[str, ...] = ()


Spec = ModelSpec | RerankerSpec


def exposure(models: Mapping[str, Spec], name: str, tasks: Iterable[Task]) -> Exposure:
    """What is known of the model (or `model+reranker`) on these tasks taken together.

    Trained on one source of one task is trained; held out is only what is held out in all of them.
    """
    sources = dict.fromkeys(source for task in tasks for source in task.derived_from)
    found = [_about(models, part, source) for part in name.split("+") for source in sources]
    statuses = {each.status for each in found}
    if "trained" in statuses:
        status: Status = "trained"
    else:
        status = "held out" if statuses == {"held out"} else "unknown"
    return Exposure(status, tuple(dict.fromkeys(e for each in found for e in each.evidence)))


def _about(models: Mapping[str, Spec], name: str, source: str) -> Exposure:
    for spec in _lineage(models, name):
        if source in spec.trained_on:
            return Exposure("trained", (f"{source}: {spec.trained_on[source]}",))
        if source in spec.held_out:
            return Exposure("held out", (f"{source}: {spec.held_out[source]}",))
    return Exposure("unknown")


def _lineage(models: Mapping[str, Spec], name: str | None) -> Iterator[Spec]:
    """The model, its parent, its parent's parent."""
    seen: set[str] = set()
    while name is not None and name in models and name not in seen:
        seen.add(name)
        yield models[name]
        name = models[name].parent
