"""A plan: what an evaluation would do, how long it would take and what it would cost, before it starts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from harness.collection import Collection, Subset
from harness.content import Item
from harness.device import at_work
from harness.digest import digest
from harness.encode import Local, encode, key_items, missing_rows
from harness.errors import NoSuchInstruction
from harness.evaluate import (
    INSTRUCTIONS,
    EvalOptions,
    Opened,
    Session,
    load_collection,
    not_taken,
    open_model,
    parts_of,
    require_data,
    segments,
    task_files,
)
from harness.model import ModelSpec
from harness.registry import Catalog
from harness.rerank import DEPTH
from harness.result import result_path
from harness.search import peak_memory
from harness.speed import Speed, actual, probed
from harness.store import Keys, Store, row_bytes
from harness.task import Task

PROBE = 64
"""Items of a model's probe."""
FEW = 8
"""Items of it that are timed by themselves too."""
ASSUMED_DIM = 1024
"""Columns of rows, for the time of a search, where nothing is known of them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one task would cost once the tasks before it are done.

    modalities: items to encode. disk: bytes of their vectors, None where the dimension is not
    known. search_memory: bytes at most. seconds: load, encode and search on one device; `within`
    is the factor by which they may err, `source` where they come from.
    """

    task: str
    queries: int
    candidates: int
    to_encode: int
    tokens: int
    state: str
    modalities: Mapping[str, int]
    disk: int | None
    search_memory: int | None
    seconds: Mapping[str, float]
    within: float
    source: str

    def on(self, devices: int) -> float:
        """Seconds when so many devices encode; one searches."""
        return self.seconds["load"] + self.seconds["encode"] / devices + self.seconds["search"]


@dataclass(frozen=True, slots=True)
class _Left:
    """What a task leaves to encode, and the model that would."""

    name: str
    task: Task
    opened: Opened
    collection: Collection
    state: str
    parts: Sequence[Sequence[Item]]
    tokens: Mapping[str, int]
    counts: Mapping[str, int]


def plan(
    catalog: Catalog,
    spec: ModelSpec,
    model_options: Mapping[str, str],
    tasks: Sequence[Task],
    options: EvalOptions,
    *,
    probe: bool = False,
) -> list[Plan]:
    """What `evaluate` would do and how long it would take, without writing anything.

    Weights are loaded for a `probe` alone, which embeds a few of the items that are left.
    """
    catalog.searcher(options.searcher)
    require_data(tasks, options.data, options.protocol)
    session = Session.start(options)
    shared = None if spec.check else open_model(spec, model_options, dtype=options.engine.store_dtype)
    claimed: dict[str, Keys] = {}
    left = [each for task in tasks for each in _lefts(session, spec, shared, task, claimed)]
    speeds: dict[str, Speed] = {}
    for each in left if probe else ():
        if each.counts and each.opened.id not in speeds:
            parts = [part for e in left if e.opened.id == each.opened.id for part in e.parts]
            with at_work(options.engine.device):
                speeds[each.opened.id] = _probe(session, each.opened, _evenly(parts, PROBE))
    loaded: set[str] = set()
    return [_planned(session, each, speeds.get(each.opened.id), loaded) for each in left]


def _lefts(
    session: Session, spec: ModelSpec, shared: Opened | None, task: Task, claimed: dict[str, Keys]
) -> Iterator[_Left]:
    """A task, or one with each of its instructions where all are asked for."""
    options = session.options
    if options.protocol.instructions != "all":
        yield _left(session, spec, shared, task, claimed)
        return
    for number in INSTRUCTIONS:
        protocol = replace(options.protocol, instructions=number)
        single = replace(session, options=replace(options, protocol=protocol))
        try:
            left = _left(single, spec, shared, task, claimed)
        except NoSuchInstruction:
            return
        yield replace(left, name=f"{task.name} (instruction {number})")


def _left(
    session: Session, spec: ModelSpec, shared: Opened | None, task: Task, claimed: dict[str, Keys]
) -> _Left:
    """What a task leaves to encode beside what those before it have `claimed`."""
    options = session.options
    protocol_id = digest(task.fingerprint(options.protocol, task_files(task, options, session.digests)))
    collection, _ = load_collection(task, options)
    opened = shared or open_model(spec, {}, collection, dtype=options.engine.store_dtype)
    path = options.output_dir / result_path(spec.name, opened.id, task.name, protocol_id)
    lacking = not_taken(collection, opened.frontend.modalities)
    done = options.overwrite != "always" and path.exists()
    parts: list[Sequence[Item]] = []
    tokens: dict[str, int] = {}
    counts: dict[str, int] = {}
    for segment in [] if lacking or done else segments(parts_of(collection), opened.frontend):
        keyed = session.keyed(segment)
        before = claimed.get(opened.id, np.zeros(0, "S16"))
        rows = missing_rows(keyed, session.store(opened))
        rows = rows[~np.isin(keyed.keys[rows], before)]
        claimed[opened.id] = np.concatenate([before, keyed.keys[rows]])
        parts.append(Subset(segment, rows))
        for item in parts[-1]:
            counts[item.modality] = counts.get(item.modality, 0) + 1
            tokens[item.modality] = tokens.get(item.modality, 0) + max(1, opened.frontend.cost(item))
    state = "unsupported" if lacking else "done" if done else "to do"
    return _Left(task.name, task, opened, collection, state, parts, tokens, counts)


def _planned(session: Session, left: _Left, probed: Speed | None, loaded: set[str]) -> Plan:
    collection, options = left.collection, session.options
    dtype = options.engine.store_dtype
    known = session.speed(left.opened)
    speed = probed or known
    dim = session.store(left.opened).dim or speed.dim or known.dim
    queries, candidates = len(collection.queries), len(collection.pool)
    pairs = queries * candidates
    if collection.scope is not None:
        pairs = sum(len(collection.scope.get(q.id, ())) or candidates for q in collection.queries)
    if left.state != "to do":
        pairs = 0
    load = bool(left.counts) and left.opened.id not in loaded
    if load:
        loaded.add(left.opened.id)
    count = sum(left.counts.values())
    deepest = min(candidates, max([DEPTH, *(m.k or 1 for m in left.task.metrics)]))
    return Plan(
        task=left.name,
        queries=queries,
        candidates=candidates,
        to_encode=count,
        tokens=sum(left.tokens.values()),
        state=left.state,
        modalities=left.counts,
        disk=None if dim is None else count * row_bytes(dim, dtype),
        search_memory=peak_memory(queries, candidates, dim, deepest, options.search_memory, dtype)
        if dim and pairs
        else None,
        seconds=speed.seconds(
            left.tokens, pairs * (dim or ASSUMED_DIM), parts=sum(len(p) > 0 for p in left.parts), load=load
        ),
        within=speed.within,
        source=speed.source,
    )


def _evenly(parts: Sequence[Sequence[Item]], count: int) -> list[Item]:
    """So many items, spread evenly over all parts."""
    ends = np.cumsum([len(part) for part in parts])
    places = np.unique(np.linspace(0, ends[-1] - 1, min(count, int(ends[-1]))).round().astype(int))
    of = np.searchsorted(ends, places, side="right")
    return [parts[p][i - ends[p] + len(parts[p])] for p, i in zip(of.tolist(), places.tolist(), strict=True)]


def _probe(session: Session, opened: Opened, items: Sequence[Item]) -> Speed:
    """Embed a few items, each modality by itself, and forget them: one, which warms up unmeasured, then
    FEW, which show what any part costs, then all."""
    clock = time.perf_counter()
    embedder = session.embedder(opened)
    load = time.perf_counter() - clock
    engine = replace(session.options.engine, quiet=True)
    by_modality: dict[str, list[Item]] = {}
    for each in items:
        by_modality.setdefault(each.modality, []).append(each)
    parts: list[tuple[Mapping[str, int], float]] = []
    dim = None
    for group in by_modality.values():
        for count in (1, FEW, PROBE):
            chosen = group[:count]
            keyed = key_items(chosen, session.digests)
            with tempfile.TemporaryDirectory() as scratch:
                store = Store(Path(scratch), opened.identity, dtype=engine.store_dtype)
                _, stats = encode(
                    chosen,
                    keyed,
                    opened.frontend,
                    Local(lambda: embedder),
                    store,
                    engine,
                    title="probe",
                    check=True,
                )
                dim = store.dim
            if count > 1:
                parts.append((stats.tokens, actual(stats.seconds)["encode"]))
    return probed(parts, load=load, dim=dim, device=session.options.engine.device)
