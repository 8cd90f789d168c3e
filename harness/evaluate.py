"""From tasks to results: load, encode, search, score, store, one task after another; those in a row that
ask one pool are searched together."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness import __version__
from harness.collection import Collection, checked
from harness.compiled import compiled
from harness.content import Candidate, Item, Query, item, modality
from harness.device import Budget, at_work
from harness.digest import Digests, digest, file_digest
from harness.dtypes import DTYPE
from harness.encode import (
    Engine,
    EngineOptions,
    Keyed,
    Local,
    Stats,
    broken_items,
    encode,
    key_items,
)
from harness.errors import (
    CheckpointMissing,
    DataMissing,
    DeviceLost,
    HarnessError,
    NoSuchInstruction,
    ResultConflict,
    StorageError,
    Unsupported,
)
from harness.files import require_writable
from harness.metrics import UNREACHED, Ranks, TieRule, ranks
from harness.model import (
    Embedder,
    Frontend,
    ModelSpec,
    Reranker,
    RerankerSpec,
    RerankFrontend,
    full_identity,
    identity_id,
    library_versions,
)
from harness.outcomes import SUFFIX, Outcomes
from harness.passes import Loaded, Steps, in_passes
from harness.registry import Catalog
from harness.rerank import DEPTH, GRID, Fusion, fuse, pair_scores, places
from harness.rerank import SCORES as PAIR_DTYPE
from harness.result import RUN_SUFFIX, Result, Score, Status, Stored, result_path
from harness.run import Found, Ragged, Run, Searcher, SearchRequest
from harness.scaled import scaled, split
from harness.search import TORCH
from harness.speed import Speed, actual, assumed, recorded
from harness.statistics import mean_ci
from harness.store import Keys, Store, StoredRows
from harness.task import Protocol, Task, missing
from harness.tripwires import CHANCE, FIRST, Check, against_chance, chance, reachable, vectors

Things = Sequence[Query | Candidate]
Overwrite = Literal["always", "never", "only-missing", "only-cache"]
OVERWRITE: tuple[Overwrite, ...] = ("always", "never", "only-missing", "only-cache")
INSTRUCTIONS = ("1", "2", "3", "4")
"""The policies that `all` averages over."""
RULES: tuple[TieRule, ...] = ("pessimistic", "optimistic", "pool-order")


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """The run-side choices of `harness eval`; only `protocol` and the model change a score."""

    data: Path
    output_dir: Path
    cache_dir: Path
    protocol: Protocol = field(default_factory=Protocol)
    engine: EngineOptions = field(default_factory=EngineOptions)
    searcher: str = "torch"
    search_memory: int = 1 << 30
    overwrite: Overwrite = "only-missing"
    shared_caches: tuple[Path, ...] = ()
    remote_caches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one task: a result (`fresh` when made now), an error, or neither."""

    task: str
    result: Result | None = None
    fresh: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A model as one evaluation sees it."""

    name: str
    frontend: Frontend
    identity: Mapping[str, str]
    check: bool = False

    @classmethod
    def of(cls, name: str, frontend: Frontend, *, check: bool = False, dtype: str = DTYPE) -> Opened:
        return cls(name, frontend, full_identity(name, frontend, {"store_dtype": dtype}), check)

    @property
    def id(self) -> str:
        return identity_id(self.identity)


@dataclass(frozen=True, slots=True)
class Reranking:
    """A reranker as one evaluation sees it."""

    spec: RerankerSpec
    frontend: RerankFrontend
    identity: Mapping[str, str]
    fusion: Fusion

    @property
    def id(self) -> str:
        return identity_id(self.identity)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is evaluated: one model, perhaps re-ranked; a check model opens for each task anew."""

    catalog: Catalog
    searcher: Searcher
    spec: ModelSpec
    opened: Opened | None
    reranking: Reranking | None
    tell: Callable[[str], None]


@dataclass(slots=True)
class Session:
    """What the tasks of one evaluation share: digests, stores and the loaded weights.

    `remote` is the engine that encodes elsewhere; without one this process does.
    """

    options: EvalOptions
    digests: Digests
    tell: Callable[[str], None]
    remote: Engine | None = None
    _keyed: dict[tuple[str, bool], Keyed] = field(default_factory=dict)
    _embedders: dict[str, Embedder] = field(default_factory=dict)
    _rerankers: dict[str, Reranker] = field(default_factory=dict)
    _stores: dict[str, Store] = field(default_factory=dict)
    _budgets: dict[str, Budget] = field(default_factory=dict)
    _pool: tuple[str, Keys, StoredRows] | None = None

    @classmethod
    def start(
        cls,
        options: EvalOptions,
        tell: Callable[[str], None] = lambda line: None,
        remote: Engine | None = None,
    ) -> Session:
        return cls(options, Digests.of(options.cache_dir, options.shared_caches), tell, remote)

    def keyed(self, items: _Items) -> Keyed:
        """The keys of items; those of a table are found once for all its tasks."""
        fingerprint = getattr(items.things, "fingerprint", None)
        if fingerprint is None:
            return key_items(items, self.digests)
        place = (fingerprint, items.instructed)
        if place not in self._keyed:
            self._keyed[place] = key_items(items, self.digests)
        return self._keyed[place]

    def store(self, opened: Opened) -> Store:
        return self._store(opened.id, opened.identity, dtype=opened.identity["store_dtype"])

    def pool(self, opened: Opened, keys: Keys) -> StoredRows:
        """The rows of a pool; for the pool that was asked for last they are the same object."""
        if self._pool is None or self._pool[0] != opened.id or not np.array_equal(self._pool[1], keys):
            self._pool = opened.id, keys, self.store(opened).rows(keys)
        return self._pool[2]

    def speed(self, opened: Opened) -> Speed:
        """What the results so far tell of this model on this device, else a rule of thumb."""
        device = self.options.engine.device
        a_result = self.options.output_dir / result_path(opened.name, opened.id, "task", "protocol")
        folder, compiles = a_result.parent.parent, self.options.engine.compile
        return recorded(folder, device_name(device), compiled=compiles) or assumed(device)

    def budget(self, opened: Opened) -> Budget:
        """That of a model's batches, for all tasks: given, or found by this evaluation or one before."""
        if opened.id not in self._budgets:
            engine = self.options.engine
            known = self.speed(opened).batch_tokens if engine.probe else None
            self._budgets[opened.id] = Budget(known or engine.batch_tokens, engine.probe and known is None)
        return self._budgets[opened.id]

    def loaded(self, opened: Opened) -> bool:
        """Whether the weights are there already."""
        return opened.id in self._embedders

    def embedder(self, opened: Opened) -> Embedder:
        if opened.id not in self._embedders:
            engine = self.options.engine
            embedder = opened.frontend.load(engine.device)
            self._embedders[opened.id] = compiled(embedder) if engine.compile else embedder
        return self._embedders[opened.id]

    def engine(self, opened: Opened) -> Engine:
        """Who embeds; a check model is not worth a cluster."""
        if self.remote is None or opened.check:
            return Local(lambda: self.embedder(opened))
        return self.remote

    def reranker(self, reranking: Reranking) -> Reranker:
        if reranking.id not in self._rerankers:
            engine = self.options.engine
            reranker = reranking.frontend.load(engine.device)
            self._rerankers[reranking.id] = compiled(reranker) if engine.compile else reranker
        return self._rerankers[reranking.id]

    def pairs(self, reranking: Reranking) -> Store:
        """The scores that the reranker gave, whatever they are fused with."""
        return self._store(reranking.id, reranking.identity, kind="pairs", dtype=PAIR_DTYPE)

    def _store(self, name: str, identity: Mapping[str, str], **form: str) -> Store:
        if name not in self._stores:
            options = self.options
            self._stores[name] = Store(
                options.cache_dir,
                identity,
                shared=options.shared_caches,
                remotes=options.remote_caches,
                tell=self.tell,
                **form,
            )
            self._stores[name].touch()
        return self._stores[name]


def open_model(
    spec: ModelSpec,
    given: Mapping[str, str],
    collection: Collection | None = None,
    *,
    dtype: str = DTYPE,
) -> Opened:
    """Open a model's frontend; a check model needs the task's collection. dtype: of the stored rows."""
    if spec.check is None:
        frontend = open_frontend(spec, given)
    elif collection is None:
        raise HarnessError(f"model {spec.name!r} is a check: it is built for one loaded task at a time")
    else:
        frontend = spec.check(collection)
    return Opened.of(spec.name, frontend, check=spec.check is not None, dtype=dtype)


def open_frontend(spec: ModelSpec | RerankerSpec, given: Mapping[str, str]) -> Any:
    """The weightless half of a model or a reranker, as its options want pictures decoded."""
    rest, by_fraction = split(given)
    frontend = spec.open(rest)
    return scaled(spec.name, frontend) if by_fraction else frontend


def open_reranker(spec: RerankerSpec, given: Mapping[str, str], fusion: Fusion) -> Reranking:
    """Open a reranker's frontend; raises HarnessError for a depth beyond that of stored runs."""
    deepest = max(fusion.depths.values(), default=0)
    if not 1 <= deepest <= DEPTH or min(fusion.depths.values()) < 1:
        raise HarnessError(f"runs hold the best {DEPTH} candidates: re-rank at a depth from 1 to {DEPTH}")
    frontend = open_frontend(spec, given)
    return Reranking(spec, frontend, full_identity(spec.name, frontend, {"score_dtype": PAIR_DTYPE}), fusion)


def require_data(tasks: Sequence[Task], data: Path, protocol: Protocol) -> None:
    """Raise DataMissing that lists every missing file of every task, and where to get it."""
    line = missing((need for task in tasks for need in task.needs(protocol)), data)
    if line is not None:
        raise DataMissing(line)


def evaluate(
    catalog: Catalog,
    spec: ModelSpec,
    model_options: Mapping[str, str],
    tasks: Sequence[Task],
    options: EvalOptions,
    *,
    reranking: Reranking | None = None,
    remote: Engine | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Evaluate one model on tasks. One task's failure does not stop the others.

    `remote`, where given, embeds; loading, planning, storing, search and re-ranking stay here.

    With `reranking` each task has two results: the model's own, and that of `model+reranker`, made
    from the stored run of the first; the second is the outcome.
    Before any weights load: unknown names, missing data and an unwritable output folder raise.
    """
    searcher = catalog.searcher(options.searcher)
    require_data(tasks, options.data, options.protocol)
    opened = None if spec.check else open_model(spec, model_options, dtype=options.engine.store_dtype)
    if options.overwrite != "only-cache":
        require_writable(options.output_dir, "the output folder")
        require_writable(options.cache_dir, "the cache folder")
    if reranking is not None and opened is None:
        raise HarnessError(f"model {spec.name!r} is a check: its answers are not re-ranked")
    session = Session.start(options, tell, remote)
    job = _Job(catalog, searcher, spec, opened, reranking, tell)
    one = _evaluate_all_instructions if options.protocol.instructions == "all" else _evaluate_one

    def steps(task: Task) -> Steps[Outcome]:
        try:
            with at_work(options.engine.device):
                return (yield from one(session, job, task))
        except (StorageError, CheckpointMissing, DeviceLost):
            raise
        except HarnessError as error:
            said = str(error)
            tell(said if said.startswith(task.name) else f"{task.name}: {said}")
            return Outcome(task.name, error=said)

    return in_passes(map(steps, tasks), searcher.search)


def task_files(task: Task, options: EvalOptions, digests: Digests) -> dict[str, str]:
    """The digests of what a task reads: names are those of its needs, not of this machine."""
    found = []
    for need in task.needs(options.protocol):
        place = need.require(options.data)
        if need.media:
            continue
        found.append((need.path.name if need.path.is_absolute() else need.path.as_posix(), place))
    files = digests.tree(found)
    digests.save()
    return files


def _evaluate_one(session: Session, job: _Job, task: Task) -> Steps[Outcome]:
    plain = yield from _evaluate_task(session, job, task)
    if job.reranking is None or job.opened is None or plain.result is None:
        return plain
    return (yield from _evaluate_reranked(session, job, job.opened, job.reranking, task, plain.result))


def _evaluate_task(session: Session, job: _Job, task: Task) -> Steps[Outcome]:
    options, spec, opened = session.options, job.spec, job.opened
    files = task_files(task, options, session.digests)
    protocol = task.fingerprint(options.protocol, files)
    protocol_id = digest(protocol)
    clock = time.perf_counter()
    loaded: tuple[Collection, dict[str, int]] | None = None
    if opened is None:
        loaded = load_collection(task, options)
        opened = open_model(spec, {}, loaded[0], dtype=options.engine.store_dtype)
    path = options.output_dir / result_path(spec.name, opened.id, task.name, protocol_id)
    stored = _stored(path, task, options.overwrite)
    if stored is not None or options.overwrite == "only-cache":
        return Outcome(task.name, stored)
    if loaded is None:
        loaded = load_collection(task, options)
    seconds = {"load_task": time.perf_counter() - clock}
    started = datetime.datetime.now(datetime.UTC)
    yield Loaded(loaded[0].pool.name, len(loaded[0].pool))
    result, run, outcomes = yield from _measure(session, job, opened, task, *loaded, seconds)
    result = replace(
        result,
        protocol=protocol,
        protocol_id=protocol_id,
        files=files,
        provenance=_provenance(options, opened.identity, started, seconds, result.provenance),
    )
    return _keep(options, job, result, run, outcomes)


def _keep(
    options: EvalOptions, job: _Job, result: Result, run: Run | None, outcomes: Outcomes | None
) -> Outcome:
    """Write the result, its run and its queries, and let the exporters have them."""
    path = options.output_dir / result.path
    if path.exists():
        job.tell(f"{result.task}: replacing {path}")
    written = []
    if run is not None:
        run.write(path.with_suffix(RUN_SUFFIX), f"{result.model}-{result.identity_id}")
        written.append(RUN_SUFFIX)
    if outcomes is not None:
        outcomes.write(path.with_suffix(SUFFIX))
        written.append(SUFFIX)
    checksums = {suffix: file_digest(path.with_suffix(suffix)) for suffix in written}
    result = replace(result, provenance={**result.provenance, "written": checksums})
    result.write(options.output_dir)
    if run is not None:
        job.catalog.manager.hook.harness_evaluated(result=result, run=run, folder=path.parent)
    return Outcome(result.task, result, fresh=True)


def _evaluate_reranked(
    session: Session, job: _Job, opened: Opened, reranking: Reranking, task: Task, plain: Result
) -> Steps[Outcome]:
    """The stored run of a plain result, re-ranked."""
    options, fusion = session.options, reranking.fusion
    name = f"{opened.name}+{reranking.spec.name}"
    identity = {"model": name, "retriever": opened.id, "reranker": reranking.id, **fusion.identity}
    result = replace(
        plain,
        model=name,
        identity=identity,
        identity_id=identity_id(identity),
        metrics={},
        groups={},
        ties={},
        analysis={},
        headline=None,
    )
    stored = _stored(options.output_dir / result.path, task, options.overwrite)
    if stored is not None or options.overwrite == "only-cache":
        return Outcome(task.name, stored)
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    retrieved = _retrieved(session, opened, task, plain)
    run: Run | None = None
    outcomes: Outcomes | None = None
    counts: dict[str, int] = {}
    lacking = not_taken(retrieved[0], reranking.frontend.modalities) if retrieved else []
    if lacking:
        reason = f"{reranking.spec.name} does not take {' or '.join(lacking)} items"
        result = replace(result, status="unsupported", notes=(*plain.notes, reason))
    elif retrieved:
        weight = fusion.weight(task.name)
        if fusion.tuned_on is not None:
            weight = yield from _tuned_weight(session, job, opened, reranking, task)
        collection, first = retrieved
        scores, counts = _pair_scores(session, reranking, task, collection, first)
        run = fuse(first, scores, weight)
        settings = {"depth": scores.shape[1], "weight": weight, "listwise": reranking.frontend.listwise}
        analysis = dict(task.analyse(collection, run)) if task.analyse is not None else {}
        result = replace(result, analysis={**analysis, "rerank": settings})
        if collection.qrels is not None:
            scored = _score_run(task, collection, run)
            outcomes = scored.pop("outcomes")
            result = _reranked_against_chance(
                replace(result, headline=task.headline.key, **scored), task, plain
            )
    seconds = {"rerank": time.perf_counter() - clock}
    about = _provenance(options, reranking.identity, started, seconds, {"counts": counts})
    return _keep(options, job, replace(result, provenance=about), run, outcomes)


def _reranked_against_chance(result: Result, task: Task, plain: Result) -> Result:
    """The re-ranked result with its own word on chance in place of the plain one's."""
    before = plain.analysis.get("tripwires", {}).get(CHANCE)
    if before is None or before["verdict"] == "not applicable":
        return result
    check = _against_chance(task, result, before["threshold"])
    kept = [note for note in plain.notes if not note.startswith(f"tripwire: {CHANCE}")]
    notes = [*kept, f"tripwire: {check}"] if check.bad else kept
    return replace(
        result, notes=tuple(notes), analysis={**result.analysis, "tripwires": {CHANCE: _brief(check)}}
    )


def _retrieved(session: Session, opened: Opened, task: Task, plain: Result) -> tuple[Collection, Run] | None:
    """The collection that a result was made of, and its run: queries and rows are the collection's.

    None where the model could not take the task.
    """
    if plain.status == "unsupported":
        return None
    collection, _ = load_collection(task, session.options)
    if session.options.protocol.skip_broken:
        queries, pool, _ = _encode(session, opened, task.name, collection)
        if queries.broken or pool.broken:
            collection, *_ = _leave_out(collection, queries, pool)
    path = (session.options.output_dir / plain.path).with_suffix(".run.gz")
    if not path.exists():
        raise ResultConflict(f"{path} is missing: run again with --overwrite-strategy always")
    return collection, Run.read(path).within([q.id for q in collection.queries], collection.pool)


def _pair_scores(
    session: Session, reranking: Reranking, task: Task, collection: Collection, run: Run
) -> tuple[Any, dict[str, int]]:
    return pair_scores(
        collection,
        run,
        min(reranking.fusion.depth(task.name), run.rows.shape[1]),
        reranking.frontend,
        lambda: session.reranker(reranking),
        session.pairs(reranking),
        session.digests,
        session.options.engine,
        title=task.name,
    )


def _tuned_weight(
    session: Session, job: _Job, opened: Opened, reranking: Reranking, task: Task
) -> Steps[float]:
    """The weight of the grid under which the split it is tuned on scores best; the least of equals.

    Raises HarnessError where that split is the one that is scored, unless it is an oracle.
    """
    split, scored = reranking.fusion.tuned_on, session.options.protocol
    tuning = replace(scored, split=split)
    same = {n.path for n in task.needs(tuning)} == {n.path for n in task.needs(scored)}
    if same and not reranking.fusion.oracle:
        raise HarnessError(
            f"{task.name}: split {split!r} is the one that is scored: a weight tuned on it is no result;"
            " name another split, or add --oracle to see the best that could be"
        )
    there = replace(session, options=replace(session.options, protocol=tuning))
    outcome = yield from _evaluate_task(there, job, task)
    retrieved = _retrieved(there, opened, task, outcome.result) if outcome.result else None
    if retrieved is None or retrieved[0].qrels is None:
        raise HarnessError(f"{task.name}: there is nothing to tune a weight on in split {split!r}")
    collection, run = retrieved
    scores, _ = _pair_scores(there, reranking, task, collection, run)
    headline = task.headline.key

    def value(weight: float) -> float:
        found: Mapping[str, Score] = _score_run(task, collection, fuse(run, scores, weight))["metrics"]
        return found[headline].value

    return max(GRID, key=lambda weight: (value(weight), -weight))


def _score_run(task: Task, collection: Collection, run: Run) -> dict[str, Any]:
    """Scores from the lists of a run alone."""
    listed = [collection.positives(q.id) for q in collection.queries]
    row = collection.pool.rows_of({c for p in listed for c in p})
    positives = Ragged.of([[row.get(c, -1) for c in p] for p in listed])
    grades = np.array([g for p in listed for g in p.values()], dtype=np.int64)
    return _score(task, collection, positives, grades, places(run, positives))


def _evaluate_all_instructions(session: Session, job: _Job, task: Task) -> Steps[Outcome]:
    """Four evaluations, one with each instruction, and their mean: a result of its own, with the
    four under `groups` and the spread (greatest less least) under `analysis`."""
    options = session.options
    parts: dict[str, Outcome] = {}
    for number in INSTRUCTIONS:
        chosen = replace(options.protocol, instructions=number)
        single = replace(session, options=replace(options, protocol=chosen))
        try:
            parts[number] = yield from _evaluate_one(single, job, task)
        except NoSuchInstruction:
            if not parts:
                raise
    results = [part.result for part in parts.values() if part.result is not None]
    if len(results) < len(parts):
        return Outcome(task.name)
    first = results[0]
    protocol = task.fingerprint(options.protocol, first.files)
    protocol_id = digest(protocol)
    path = options.output_dir / result_path(first.model, first.identity_id, task.name, protocol_id)
    stored = None if any(part.fresh for part in parts.values()) else _stored(path, task, options.overwrite)
    if stored is not None or options.overwrite == "only-cache":
        return Outcome(task.name, stored)
    notes = tuple(dict.fromkeys(note for r in results for note in r.notes))
    result = replace(first, protocol=protocol, protocol_id=protocol_id, notes=notes)
    outcomes: Outcomes | None = None
    if first.metrics:
        each = [Stored(r, options.output_dir / r.path).outcomes() for r in results]
        means = {key: np.mean([o.values[key] for o in each], axis=0) for key in first.metrics}
        outcomes = Outcomes(each[0].queries, means)
        values = {key: [r.metrics[key].value for r in results] for key in first.metrics}
        spread = {key: max(v) - min(v) for key, v in values.items()}
        result = replace(
            result,
            metrics={key: _mean(per_query) for key, per_query in means.items()},
            groups={f"instruction {number}": r.metrics for number, r in zip(parts, results, strict=True)},
            ties={},
            analysis={"instructions": len(results), "spread": spread},
        )
    return _keep(options, job, result, None, outcomes)


def _stored(path: Path, task: Task, overwrite: Overwrite) -> Result | None:
    """The stored result where the strategy lets it stand."""
    if overwrite == "always" or not path.exists():
        return None
    try:
        result = Result.read(path)
    except ResultConflict:
        if overwrite == "only-cache":
            return None
        raise
    lacking = result.metrics and any(m.key not in result.metrics for m in task.metrics)
    return None if lacking and overwrite == "only-missing" else result


def load_collection(task: Task, options: EvalOptions) -> tuple[Collection, dict[str, int]]:
    """A task's collection under the options' protocol and limit, checked, and its counts."""
    collection = task.load(options.data, options.protocol)
    if options.protocol.limit is not None:
        collection = collection.limited(options.protocol.limit)
    return checked(collection)


def _measure(
    session: Session,
    job: _Job,
    opened: Opened,
    task: Task,
    collection: Collection,
    counts: dict[str, int],
    seconds: dict[str, float],
) -> Steps[tuple[Result, Run | None, Outcomes | None]]:
    options = session.options
    result = Result(
        model=opened.name,
        identity=opened.identity,
        identity_id=opened.id,
        task=task.name,
        protocol={},
        protocol_id="",
        status=_status(collection, options.protocol),
        counts=counts,
        check=opened.check,
    )
    lacking = not_taken(collection, opened.frontend.modalities)
    if lacking:
        reason = f"{opened.name} does not take {' or '.join(lacking)} items"
        return replace(result, status="unsupported", notes=(reason,)), None, None
    wires: list[Check] = []
    speed, loaded = session.speed(opened), session.loaded(opened)

    def watch(items: Sequence[Item], keyed: Keyed, who: str) -> None:
        if not opened.check:
            _trip(wires, _first_vectors(session.store(opened), items, keyed, who), task, job.tell)

    try:
        queries, pool, stats = _encode(session, opened, task.name, collection, watch)
    except Unsupported as error:
        return replace(result, status="unsupported", notes=(str(error),)), None, None
    seconds |= {stage: s for stage, s in stats.seconds.items() if stage != "load" or not loaded}
    notes: tuple[str, ...] = ()
    if options.protocol.limit is None:
        notes = tuple(f"not the published data: {line}" for _, line in task.unlike_published(counts))
    if queries.broken or pool.broken:
        collection, queries, pool, left_out = _leave_out(collection, queries, pool)
        notes += left_out
        counts |= {
            "left_out_queries": counts["queries"] - len(queries.keys),
            "left_out_candidates": counts["candidates"] - len(pool.keys),
        }
    clock = time.perf_counter()
    depth = max([DEPTH, *(m.k or 1 for m in task.metrics)])
    request, grades = _request(session, opened, collection, queries, pool, depth)
    del queries, pool  # 16 bytes a candidate, and other tasks may get here before this one goes on
    seconds["search"] = time.perf_counter() - clock
    answer = yield request
    assert answer is not None, "a search that is wanted is answered"
    found, searching = answer
    seconds["search"] += searching
    clock = time.perf_counter()
    run = _run(collection, found)
    outcomes: Outcomes | None = None
    if collection.qrels is not None:
        scored = _score(task, collection, request.positives, grades, found)
        outcomes = scored.pop("outcomes")
        result = replace(result, headline=task.headline.key, **scored)
        if not result.check:
            level = chance(task.headline, _reached(request.positives, grades, found), reachable(request))
            _trip(wires, [_against_chance(task, result, level)], task, job.tell)
    analysis = dict(task.analyse(collection, run)) if task.analyse is not None else {}
    if wires:
        analysis["tripwires"] = {check.name: _brief(check) for check in wires}
    notes += tuple(f"tripwire: {check}" for check in wires if check.bad)
    seconds["score"] = time.perf_counter() - clock
    work = _work(stats, request)
    made = {"items": stats.items, "embedded": stats.embedded, "batches": stats.batches}
    if stats.cut:
        made["texts_cut"] = stats.cut
    if stats.alone:
        made["over_budget"] = stats.alone
        job.tell(
            f"{task.name}: {stats.alone:,} items cost more than --batch-tokens"
            f" {options.engine.batch_tokens:,}: each was a batch by itself"
        )
    budget = session.budget(opened)
    about: dict[str, Any] = {"counts": made, "work": work, "batch_tokens": budget.tokens}
    if options.engine.probe and not budget.probe:
        about["batch_tokens_found"] = True
    devices = session.engine(opened).devices if stats.embedded else {}
    if devices:
        about["encoded_on"] = dict(devices)
    about["plan"] = _compared(speed, work, seconds, sum(devices.values()) or 1)
    result = replace(result, counts=counts, notes=notes, analysis=analysis, provenance=about)
    return result, run, outcomes


def _work(stats: Stats, request: SearchRequest) -> dict[str, Any]:
    """What was done, in the units that its time goes by: tokens of the missing items by modality, the
    same with its seconds for each part that was encoded by itself, the share of padding among all that
    were embedded, and the products of the search."""
    scoped = request.scope
    pairs = len(request.queries) * len(request.pool) if scoped is None else len(scoped.values)
    return {
        "tokens": stats.tokens,
        "parts": [
            {"tokens": part.tokens, "seconds": round(actual(part.seconds)["encode"], 4)}
            for part in stats.parts
            if part.tokens
        ],
        "padding": round(1 - stats.cost / stats.padded_cost, 4) if stats.padded_cost else 0.0,
        "dim": request.pool.dim,
        "multiply_adds": pairs * request.pool.dim,
    }


def _compared(
    speed: Speed, work: Mapping[str, Any], seconds: Mapping[str, float], devices: int
) -> dict[str, Any]:
    """What `harness plan` would have said of this work on so many devices just before it, beside what it
    took."""
    planned = speed.seconds(
        work["tokens"], work["multiply_adds"], parts=len(work["parts"]), load="load" in seconds
    )
    planned["encode"] /= devices
    return {
        "devices": devices,
        "source": speed.source,
        "within": speed.within,
        "planned": {stage: round(s, 4) for stage, s in planned.items()},
        "actual": {stage: round(s, 4) for stage, s in actual(seconds).items()},
    }


def _trip(wires: list[Check], new: Iterable[Check], task: Task, tell: Callable[[str], None]) -> None:
    """Add checks, and say at once which of them are bad: before the next hour is spent."""
    for check in new:
        wires.append(check)
        if check.bad:
            tell(f"{task.name}: warning: {check}")


def _brief(check: Check) -> dict[str, Any]:
    return {"verdict": check.verdict, "figure": check.figure, "threshold": check.threshold}


def _first_vectors(store: Store, items: Sequence[Item], keyed: Keyed, who: str) -> tuple[Check, ...]:
    """What the first distinct sound items of a role show."""
    _, first = np.unique(keyed.keys[:FIRST], return_index=True)
    chosen = np.array([i for i in sorted(first.tolist()) if i not in keyed.broken], dtype=np.int64)
    keys = keyed.keys[chosen]
    return vectors(
        who, [items[i] for i in chosen.tolist()], store.rows(keys).block(0, len(keys)), store.facts(keys)
    )


def _reached(positives: Ragged, grades: np.ndarray[Any, np.dtype[np.int64]], found: Found) -> Ranks:
    """Places in which it is right alone which positives no ranking can hold."""
    rank = np.where(found.positive_scores > -np.inf, 0, UNREACHED)
    return Ranks(positives.indptr, rank, grades)


def _against_chance(task: Task, result: Result, level: float) -> Check:
    return against_chance(task.headline, *result.metrics[task.headline.key].ci95, level)


@dataclass(frozen=True, slots=True)
class _Items(Sequence[Item]):
    """Queries or candidates as a model sees them; one that reads no instruction is shown none, so
    that it never encodes one content twice."""

    things: Things
    instructed: bool

    def __len__(self) -> int:
        return len(self.things)

    def __iter__(self) -> Iterator[Item]:
        return map(self._shown, self.things)

    def __getitem__(self, at: int) -> Item:  # type: ignore[override]
        return self._shown(self.things[at])

    def _shown(self, thing: Query | Candidate) -> Item:
        return item(thing, instructed=self.instructed)


def segments(parts: Iterable[Things], frontend: Frontend) -> list[_Items]:
    """Queries or candidates as a model sees them."""
    instructed = getattr(frontend, "reads_instructions", True)
    return [_Items(things, instructed) for things in parts]


def parts_of(collection: Collection) -> list[Things]:
    """The queries, and each leaf of the pool: what is looked up and encoded at a time."""
    return [collection.queries, *collection.pool.leaves()]


def not_taken(collection: Collection, modalities: Iterable[str]) -> list[str]:
    """The modalities of the collection that a model does not take."""
    return sorted(_modalities(collection) - set(modalities))


def _modalities(collection: Collection) -> set[str]:
    found: set[str] = {modality(query.parts) for query in collection.queries}
    for leaf in collection.pool.leaves():
        known = getattr(leaf, "modalities", None)
        found |= {modality(c.parts) for c in leaf} if known is None else known
    return found


Watch = Callable[[Sequence[Item], Keyed, str], None]
"""What looks at items as soon as they are encoded: the items, their keys, and what they are called."""


def _unwatched(items: Sequence[Item], keyed: Keyed, who: str) -> None:
    """Nobody looks."""


def _encode(
    session: Session, opened: Opened, title: str, collection: Collection, watch: Watch = _unwatched
) -> tuple[Keyed, Keyed, Stats]:
    """The keys of queries and pool, all embedded but for the broken ones.

    `watch` sees the queries before any candidate is encoded, and the first part of the pool.
    """
    (queries, *leaves), stats = embed(session, opened, parts_of(collection), title=title, watch=watch)
    return queries, joined(leaves), stats


def embed(
    session: Session,
    opened: Opened,
    parts: Sequence[Things],
    *,
    title: str,
    watch: Watch = _unwatched,
) -> tuple[list[Keyed], Stats]:
    """The keys of queries and candidates, all embedded but for the broken ones.

    `watch` sees the first two parts, each before the next one is encoded. Raises DataInvalid for broken
    ones, unless the protocol leaves them out.
    """
    total = Stats()
    clock = time.perf_counter()
    shown = segments(parts, opened.frontend)
    keyed = [session.keyed(items) for items in shown]
    skip_broken = session.options.protocol.skip_broken
    require_readable(keyed, skip_broken)
    total.spend("look_up", clock)
    done = []
    for number, (items, known) in enumerate(zip(shown, keyed, strict=True)):
        who = "queries" if len(items) and items[0].role == "query" else "candidates"
        encoded, stats = encode(
            items,
            known,
            opened.frontend,
            session.engine(opened),
            session.store(opened),
            session.options.engine,
            title=f"{title} {who}",
            check=opened.check,
            budget=session.budget(opened),
        )
        total.add(stats)
        done.append(encoded)
        if number < 2:
            watch(items, encoded, who)
    require_readable(done, skip_broken)
    return done, total


def require_readable(keyed: Sequence[Keyed], skip_broken: bool) -> None:
    """Raise DataInvalid that names the items without a key, unless they may be left out."""
    reasons = [why for part in keyed for why in part.broken.values()]
    if reasons and not skip_broken:
        raise broken_items(reasons)


def joined(parts: Sequence[Keyed]) -> Keyed:
    """The keys of all parts, one after another."""
    broken: dict[int, str] = {}
    offset = 0
    for part in parts:
        broken |= {offset + i: why for i, why in part.broken.items()}
        offset += len(part.keys)
    return Keyed(np.concatenate([part.keys for part in parts]), broken)


def _status(collection: Collection, protocol: Protocol) -> Status:
    if collection.qrels is None:
        return "unscored"
    return "complete" if protocol.limit is None else "partial"


def _leave_out(
    collection: Collection, queries: Keyed, pool: Keyed
) -> tuple[Collection, Keyed, Keyed, tuple[str, ...]]:
    """The collection and its keys without what cannot be read, and a note for each reason."""
    ids = collection.pool.ids
    left = collection.without(
        [collection.queries[i].id for i in queries.broken], [ids[i] for i in pool.broken]
    )
    reasons = [*queries.broken.values(), *pool.broken.values()]
    if not left.queries or not len(left.pool):
        raise broken_items(reasons)
    kept = {q.id for q in left.queries}
    asked = [i for i, q in enumerate(collection.queries) if q.id in kept]
    sound = np.delete(pool.keys, sorted(pool.broken))
    notes = tuple(f"left out: {why}" for why in dict.fromkeys(reasons))
    return left, Keyed(queries.keys[asked], {}), Keyed(sound, {}), notes


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A search of a collection: its run, and where the positives stand."""

    run: Run
    found: Found
    request: SearchRequest
    grades: np.ndarray[Any, np.dtype[np.int64]]
    """Of the request's positives."""


def retrieve(
    session: Session,
    opened: Opened,
    collection: Collection,
    queries: Keyed,
    pool: Keyed,
    depth: int,
    searcher: Searcher = TORCH,
) -> Retrieved:
    """Search the pool for the best `depth` candidates of each query: keys are what `embed` gave."""
    request, grades = _request(session, opened, collection, queries, pool, depth)
    found = searcher.search(request)
    return Retrieved(_run(collection, found), found, request, grades)


def _run(collection: Collection, found: Found) -> Run:
    ids = [q.id for q in collection.queries]
    return Run(ids, collection.pool.ids, collection.pool.name, found.rows, found.scores)


def _request(
    session: Session, opened: Opened, collection: Collection, queries: Keyed, pool: Keyed, depth: int
) -> tuple[SearchRequest, np.ndarray[Any, np.dtype[np.int64]]]:
    """The collection in rows: positives outside the pool are -1; the grades go alongside."""
    ids = [q.id for q in collection.queries]
    positives = [collection.positives(q) for q in ids]
    lists = [*positives, *(collection.scope or {}).values(), *(collection.exclude or {}).values()]
    row = collection.pool.rows_of({c for listed in lists for c in listed})

    def ragged(named: Mapping[str, Sequence[str]] | None, default: Sequence[int]) -> Ragged | None:
        if named is None:
            return None
        return Ragged.of([[row[c] for c in named[q]] if q in named else default for q in ids])

    request = SearchRequest(
        queries=session.store(opened).rows(queries.keys),
        pool=session.pool(opened, pool.keys),
        k=min(len(collection.pool), depth),
        positives=Ragged.of([[row.get(c, -1) for c in p] for p in positives]),
        scope=ragged(collection.scope, range(len(collection.pool))),
        exclude=ragged(collection.exclude, ()),
        device=session.options.engine.device,
        memory=session.options.search_memory,
    )
    grades = np.array([g for p in positives for g in p.values()], dtype=np.int64)
    return request, grades


def _score(
    task: Task,
    collection: Collection,
    positives: Ragged,
    grades: np.ndarray[Any, np.dtype[np.int64]],
    found: Found,
) -> dict[str, Any]:
    def places(rule: TieRule) -> Ranks:
        return ranks(
            positives.indptr,
            grades,
            score=found.positive_scores,
            greater=found.greater,
            equal=found.equal,
            before=found.before,
            rule=rule,
        )

    by_rule = {rule: places(rule) for rule in RULES}
    values = {m.key: m(by_rule[task.ties]) for m in task.metrics}
    index = {q.id: i for i, q in enumerate(collection.queries)}
    groups = {}
    for name, ids in collection.groups.items():
        chosen = np.array([index[q] for q in ids], dtype=np.int64)
        groups[name] = {m.key: _mean(values[m.key][chosen]) for m in task.metrics}
    headline = {rule: task.headline(by_rule[rule]) for rule in RULES}
    straddling = int((headline["pessimistic"] != headline["optimistic"]).sum())
    ties: dict[str, Any] = {
        "rule": task.ties,
        "queries_with_ties": len(np.unique(positives.query[found.equal > 0])),
        "queries_straddling": straddling,
        **{rule: float(headline[rule].mean()) for rule in RULES},
    }
    return {
        "metrics": {key: _mean(per_query) for key, per_query in values.items()},
        "groups": groups,
        "ties": ties,
        "outcomes": Outcomes(tuple(q.id for q in collection.queries), values),
    }


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> Score:
    value = float(values.mean()) if len(values) else 0.0
    return Score(value, mean_ci(values) if len(values) else (0.0, 0.0), len(values))


def _provenance(
    options: EvalOptions,
    identity: Mapping[str, str],
    started: datetime.datetime,
    seconds: Mapping[str, float],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    import torch

    return {
        "harness": __version__,
        "git": git_state(),
        "python": platform.python_version(),
        "libraries": library_versions("torch", "transformers", "numpy", "pillow"),
        "device": device_name(options.engine.device),
        "threads": torch.get_num_threads(),
        "dtype": identity.get("dtype", "unknown"),
        "seed": options.protocol.seed,
        "searcher": options.searcher,
        "batch_tokens": options.engine.batch_tokens,
        "compiled": options.engine.compile,
        "command": shlex.join(["harness", *sys.argv[1:]]),
        "started": started.isoformat(timespec="seconds"),
        "seconds": {stage: round(s, 4) for stage, s in seconds.items()},
        **more,
    }


def device_name(device: str) -> str:
    """The name of a GPU, or of the processor's architecture."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()


def git_state() -> dict[str, Any] | None:
    """Revision of the checkout that the harness runs from, and whether it was changed; None in
    an installed wheel."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
