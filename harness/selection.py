"""Selection: which stored results a name stands for, and which of them may be compared.

random              the model, where its results have one identity
random@3fa2         that of its identities whose id begins so
runs/…/0f3c.json    one result
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, ResultConflict, UnknownName
from harness.leaderboard import SETTINGS
from harness.result import Result, Stored
from harness.task import Protocol

USUAL: Mapping[str, Any] = {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in ((name, getattr(Protocol(), name)) for name in SETTINGS)
}
"""The protocol choices that are made where nobody chooses."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the compared systems: its label, and its result of each common task."""

    label: str
    results: Mapping[str, Stored]


def matching(stored: Iterable[Stored], name: str) -> list[Stored]:
    """The results that a name stands for, one for each model, identity, task and protocol: the newest.

    Raises UnknownName, and ResultConflict where a path holds no result.
    """
    if name.endswith(".json"):
        return [Stored.read(Path(name))]
    everything = list(stored)
    model, _, prefix = name.partition("@")
    of_model = [s for s in everything if s.result.model == model]
    if not of_model:
        raise UnknownName("model", model, {s.result.model for s in everything}, hint="see --runs")
    found = [s for s in of_model if s.result.identity_id.startswith(prefix)]
    if not found:
        raise UnknownName("identity", name, {f"{model}@{s.result.identity_id}" for s in of_model})
    newest: dict[tuple[str, str, str], Stored] = {}
    for s in sorted(found, key=lambda s: s.started):
        newest[s.result.identity_id, s.result.task, s.result.protocol_id] = s
    return list(newest.values())


def choose(
    stored: Sequence[Stored], names: Sequence[str], tasks: Collection[str] | None = None
) -> list[Choice]:
    """For each name its results of the tasks (None: of all) that every name has, scored alike.

    Raises HarnessError where a name stands for several identities, where there is no common task,
    and ResultConflict where a task was not scored under one protocol for all.
    """
    if len(set(names)) < len(names):
        raise HarnessError(f"{_twice(names)} is named twice: a comparison needs different systems")
    found = [matching(stored, name) for name in names]
    complete = [
        [s for s in each if s.result.status == "complete" and (tasks is None or s.result.task in tasks)]
        for each in found
    ]
    for name, each in zip(names, complete, strict=True):
        _require_one_identity(name, each)
    common = [
        task
        for task in dict.fromkeys(s.result.task for s in complete[0])
        if all(any(s.result.task == task for s in each) for each in complete)
    ]
    if not common:
        has = "; ".join(f"{name} has {_tasks(each)}" for name, each in zip(names, found, strict=True))
        asked = "a common task" if tasks is None else f"a task that all have among {_some(sorted(tasks))}"
        raise HarnessError(f"there is no complete result of {asked}: {has}")
    picks = {task: _alike(task, names, complete) for task in common}
    labels = _labels(names, complete)
    return [Choice(label, {task: picks[task][i] for task in common}) for i, label in enumerate(labels)]


def is_usual(result: Result) -> bool:
    """Whether it was scored under the protocol choices of a plain `harness eval`."""
    return {name: result.protocol.get(name) for name in SETTINGS} == USUAL


def _twice(names: Sequence[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])


def _require_one_identity(name: str, found: Sequence[Stored]) -> None:
    by_id: dict[str, list[Stored]] = {}
    for s in found:  # a check model's identity holds the qrels of one task
        by_id.setdefault("" if s.result.check else s.result.identity_id, []).append(s)
    if len(by_id) > 1:
        apart = _apart([each[0].result.identity for each in by_id.values()])
        listed = "; ".join(
            f"{name}@{key[:8]} ({_brief({k: each[0].result.identity.get(k) for k in apart})}, {_tasks(each)})"
            for key, each in by_id.items()
        )
        raise HarnessError(f"{name} has {len(by_id)} identities, name one: {listed}")


def _tasks(found: Sequence[Stored]) -> str:
    """ "demo/composed, demo/text-to-image (partial)" """
    words: dict[str, None] = {}
    for s in sorted(found, key=lambda s: s.result.task):
        complete = s.result.status == "complete"
        words[s.result.task if complete else f"{s.result.task} ({s.result.status})"] = None
    return _some(list(words))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _alike(task: str, names: Sequence[str], complete: Sequence[Sequence[Stored]]) -> list[Stored]:
    """One result of each name, all under one protocol: of several the usual one."""
    each = [{s.result.protocol_id: s for s in found if s.result.task == task} for found in complete]
    shared = [key for key in each[0] if all(key in other for other in each)]
    if not shared:
        newest = [max(found.values(), key=lambda s: s.started) for found in each]
        other = next(i for i, s in enumerate(newest) if s.result.protocol_id != newest[0].result.protocol_id)
        gaps = differing(newest[0].result.protocol, newest[other].result.protocol)
        raise ResultConflict(
            f"{task}: {names[0]} and {names[other]} were not scored under one protocol, they differ in"
            f" {_gaps(gaps)}: evaluate one of them again, or see 'harness bisect'"
        )
    usual = [key for key in shared if is_usual(each[0][key].result)]
    chosen = usual if len(shared) > 1 else shared
    if len(chosen) != 1:
        apart = _apart([each[0][key].result.protocol for key in shared])
        listed = "; ".join(
            f"{each[0][key].path} ({_brief({k: each[0][key].result.protocol.get(k) for k in apart})})"
            for key in shared
        )
        raise HarnessError(f"{task} was scored under {len(shared)} protocols, name result files: {listed}")
    picked = [found[chosen[0]] for found in each]
    for i, stored in enumerate(picked):
        if stored in picked[:i]:
            raise HarnessError(f"{names[picked.index(stored)]} and {names[i]} are the same: {stored.path}")
    return picked


def _labels(names: Sequence[str], complete: Sequence[Sequence[Stored]]) -> list[str]:
    """The models' names, with as much of the identity as sets equal ones apart, else the names given."""
    models = [each[0].result.model for each in complete]
    labels = [
        model if models.count(model) == 1 else f"{model}@{each[0].result.identity_id[:8]}"
        for model, each in zip(models, complete, strict=True)
    ]
    return labels if len(set(labels)) == len(labels) else list(names)


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two nested mappings: "files.a.jsonl" → both values, None where there is none."""
    gaps: dict[str, tuple[Any, Any]] = {}
    for key in {**first, **second}:
        a, b = first.get(key), second.get(key)
        if isinstance(a, Mapping) or isinstance(b, Mapping):
            nested = differing(a if isinstance(a, Mapping) else {}, b if isinstance(b, Mapping) else {})
            gaps |= {f"{key}.{name}": values for name, values in nested.items()}
        elif a != b:
            gaps[key] = a, b
    return gaps


def _apart(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which any differs from the first."""
    return list(dict.fromkeys(key for m in mappings[1:] for key in differing(mappings[0], m)))


def _gaps(gaps: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} ({shown(a)} and {shown(b)})" for key, (a, b) in gaps.items())


def _brief(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={shown(value)}" for key, value in values.items())


def shown(value: Any) -> str:
    """A value of an identity or a protocol on one short line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"


def disagreements(stored: Iterable[Stored]) -> list[str]:
    """A line for each cell that has several results with unequal scores, as merged folders may."""
    cells: dict[tuple[str, str, str, str], Stored] = {}
    lines = []
    for s in sorted(stored, key=lambda s: s.started):
        r = s.result
        key = (r.model, r.identity_id, r.task, r.protocol_id)
        other = cells.get(key)
        if other is not None and other.result.metrics != r.metrics:
            lines.append(
                f"{r.task} of {r.model} has two results that differ, the newer is taken:"
                f" see 'harness bisect {other.path} {s.path}'"
            )
        cells[key] = s
    return lines
