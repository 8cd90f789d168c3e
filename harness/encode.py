"""The encoding engine: items in, stored unit rows out, each distinct content once."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from harness.collection import Subset
from harness.content import Item
from harness.device import Budget, Embedded, Runner, ahead, brief
from harness.digest import Digests
from harness.dtypes import DTYPE
from harness.errors import BadEmbedding, DataInvalid
from harness.model import Embedder, Frontend
from harness.probe import WORTH, best_budget
from harness.progress import progress
from harness.store import Embeddings, Facts, Keys, Store, key
from harness.workers import ItemSource, Prepared, in_workers, worker_count

WINDOW_ITEMS = 16_384
WINDOW_BUDGETS = 128
"""A window, and so a shard, ends at so many items or so many batches' worth of cost."""
CALL = 1 / 32
"""What a batch costs beside its items' tokens, as a share of the budget. Of a window of M-BEIR's texts
this makes 72 batches of 16,384 with 2.3 % of padding, where full ones would be 63 with 3.8 %."""
CONSTANT_ROWS = 4
"""From this many distinct items on, rows that are all alike are an error."""
CONSTANT_SPREAD = 1e-4
"""Alike: no coordinate of the unit rows varies by more."""


def default_batch_tokens(device: str) -> int:
    """A CPU is fastest while a batch stays in its cache: pictures through EfficientNet-Lite0 took
    8.7 s at 1,024 and 24.4 s at 16,384. A GPU wants more to do at a time."""
    return 1024 if device == "cpu" else 16_384


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to encode: none of these changes a vector beyond rounding.

    batch_tokens bounds the padded cost of a batch; workers None chooses by the machine; compile hands
    the model's modules to torch.compile; probe looks for the budget at which the device is fastest,
    and only windows go by batch_tokens then. store_dtype rounds the rows, and is part of the identity.
    """

    device: str = "cpu"
    batch_tokens: int = 1024
    workers: int | None = None
    quiet: bool = False
    compile: bool = False
    probe: bool = False
    store_dtype: str = DTYPE


@dataclass(slots=True)
class Stats:
    """What encoding did: seconds by stage, and counts."""

    items: int = 0
    embedded: int = 0
    batches: int = 0
    cut: int = 0
    """Texts that the model's limit shortened, where its batches say so."""
    alone: int = 0
    """Items above the budget of a batch: each was one by itself."""
    cost: int = 0
    padded_cost: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    """What was missing cost, by modality."""
    seconds: dict[str, float] = field(default_factory=dict)
    parts: list[Stats] = field(default_factory=list)
    """What was added up."""

    def add(self, other: Stats) -> None:
        """Add up what the parts of a task took."""
        self.parts.append(other)
        for name in ("items", "embedded", "batches", "cut", "alone", "cost", "padded_cost"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for modality, tokens in other.tokens.items():
            self.tokens[modality] = self.tokens.get(modality, 0) + tokens
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def spend(self, stage: str, since: float) -> float:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now

    def count(self, done: Embedded, costs: npt.NDArray[np.int64]) -> None:
        """Count an executed batch, whose items cost so much each."""
        for stage, seconds in done.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        if done.positions:
            self.batches += 1
            self.cut += int(done.facts.cut.clip(0).sum())
            self.cost += int(costs.sum())
            self.padded_cost += int(costs.max()) * len(costs)


@dataclass(frozen=True, slots=True)
class Keyed:
    """The keys of some items in their order; `broken` says why some can have no row."""

    keys: Keys
    broken: Mapping[int, str]


Planned = tuple[int, list[int]]
"""A batch: the number of its window, and the positions of its items among all that are missing."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is left to do: the distinct missing items in order of first appearance, and what they cost."""

    items: Sequence[Item]
    costs: npt.NDArray[np.int64]
    frontend: Frontend
    options: EngineOptions
    check: bool
    budget: Budget
    stats: Stats

    def windows(self) -> Iterator[npt.NDArray[np.int64]]:
        return windows(self.costs, self.options.batch_tokens)

    def planned(self) -> Iterator[Planned]:
        """The batches: a pure function of costs and budget, planned window by window."""
        for number, window in enumerate(self.windows()):
            for batch in batches(self.costs[window], self.budget.tokens):
                yield number, window[batch].tolist()


class Engine(Protocol):
    """Where planned batches are executed."""

    def execute(self, work: Work, /) -> Iterator[Embedded]:
        """Execute every batch of `work.planned()`, in any order. What the engine itself waits for
        goes to `work.stats`."""
        ...

    @property
    def devices(self) -> Mapping[str, int]:
        """How many devices of which name are at work elsewhere."""
        ...


def key_items(items: Sequence[Item], digests: Digests) -> Keyed:
    """The keys under which the store has, or will have, the rows of `items`. Media that are not
    there are `broken`: that is known before any weights load."""
    broken = {}

    def each() -> Iterator[bytes]:
        for i, item in enumerate(items):
            try:
                yield key(item, digests)
            except OSError as error:
                broken[i] = f"{error.filename} cannot be read ({(error.strerror or str(error)).lower()})"
                yield b""

    keys = np.fromiter(each(), dtype="S16", count=len(items))
    digests.save()
    return Keyed(keys, broken)


def missing_rows(keyed: Keyed, store: Store) -> npt.NDArray[np.int64]:
    """Where each distinct key that the store lacks appears first: what has to be embedded."""
    _, first = np.unique(keyed.keys, return_index=True)
    first = np.sort(first)
    if keyed.broken:
        first = first[~np.isin(first, list(keyed.broken))]
    return first[store.missing(keyed.keys[first])]


def encode(
    items: Sequence[Item],
    keyed: Keyed,
    frontend: Frontend,
    engine: Engine,
    store: Store,
    options: EngineOptions,
    *,
    title: str,
    check: bool = False,
    budget: Budget | None = None,
) -> tuple[Keyed, Stats]:
    """Embed whatever the store lacks of `items`, which may be a view of a file.

    Batches are a pure function of the missing items and the budget; `engine` is asked only when
    something is missing. A `budget` is one that several calls share. Items whose media cannot be
    decoded come back in `broken`. Raises BadEmbedding for rows that cannot be right (unless the model is
    a `check`).
    """
    stats = Stats(items=len(items))
    clock = time.perf_counter()
    todo = missing_rows(keyed, store)
    clock = stats.spend("look_up", clock)
    if not len(todo):
        return keyed, stats
    costs, readable, unreadable = [], [], {}
    for i in todo.tolist():
        item = items[i]
        try:
            costs.append(max(1, frontend.cost(item)))
            readable.append(i)
            stats.tokens[item.modality] = stats.tokens.get(item.modality, 0) + costs[-1]
        except (DataInvalid, OSError) as error:
            unreadable[keyed.keys[i]] = str(error)
    stats.spend("cost", clock)
    chosen, known = np.array(readable, dtype=np.int64), np.array(costs, dtype=np.int64)
    stats.alone = int((known > options.batch_tokens).sum())
    if len(chosen):
        budget = budget or Budget(options.batch_tokens, options.probe)
        work = Work(Subset(items, chosen), known, frontend, options, check, budget, stats)
        unreadable |= _embed_all(work, keyed.keys[chosen], engine, store, title)
    if unreadable:
        more = {i: unreadable[k] for i, k in enumerate(keyed.keys) if k in unreadable}
        keyed = Keyed(keyed.keys, {**keyed.broken, **more})
    return keyed, stats


def broken_items(reasons: Iterable[str]) -> DataInvalid:
    """One line for media that cannot be read: the first three, how many more, and the remedy."""
    distinct = list(dict.fromkeys(reasons))
    shown = "; ".join(distinct[:3]) + (f"; and {len(distinct) - 3} more" if len(distinct) > 3 else "")
    return DataInvalid(f"{shown} (mend the data, or leave such items out with --skip-broken)")


def windows(costs: npt.NDArray[np.int64], budget: int) -> Iterator[npt.NDArray[np.int64]]:
    """Consecutive runs of items, each sorted and stored as one; greedy, so that what is left
    after an interruption falls into the same windows again."""
    start, total = 0, 0
    for i, cost in enumerate(costs.tolist()):
        total += cost
        if i + 1 - start >= WINDOW_ITEMS or total >= WINDOW_BUDGETS * budget or i + 1 == len(costs):
            yield np.arange(start, i + 1)
            start, total = i + 1, 0


def batches(costs: npt.NDArray[np.int64], budget: int) -> list[npt.NDArray[np.int64]]:
    """Positions of a window's items, longest first, in batches of at most `budget` padded cost.

    A batch ends where it costs least for each token of its items, what a batch costs whatever is in it
    (CALL) included: where lengths differ much it ends before the budget does. One item always fits.
    """
    order = np.argsort(-costs, kind="stable")
    ordered = costs[order]
    until = np.concatenate([[0], np.cumsum(ordered)])
    out, start = [], 0
    while start < len(order):
        longest = int(ordered[start])
        sizes = np.arange(1, min(max(1, budget // longest), len(order) - start) + 1)
        each = (sizes * longest + budget * CALL) / (until[start + sizes] - until[start])
        size = len(sizes) - int(each[::-1].argmin())  # of equals the largest
        out.append(order[start : start + size])
        start += size
    return out


def _embed_all(work: Work, keys: Keys, engine: Engine, store: Store, title: str) -> dict[np.bytes_, str]:
    """Let the engine embed the work, and store each window once it is whole; returns why some keys
    could not be."""
    stats = work.stats
    left = [len(window) for window in work.windows()]
    rows: dict[int, dict[int, Embeddings]] = defaultdict(dict)
    facts = Facts(np.zeros(len(keys), np.float32), np.zeros(len(keys), np.int16))
    unreadable: dict[np.bytes_, str] = {}
    with progress(title, len(keys), quiet=work.options.quiet) as advance:
        for done in engine.execute(work):
            clock = time.perf_counter()
            stats.count(done, work.costs[done.positions])
            rows[done.window] |= zip(done.positions, done.rows, strict=True)
            facts.norms[done.positions] = done.facts.norms
            facts.cut[done.positions] = done.facts.cut
            unreadable |= {keys[i]: why for i, why in done.broken.items()}
            finished = len(done.positions) + len(done.broken)
            left[done.window] -= finished
            if left[done.window] == 0:
                stats.embedded += _finish(rows.pop(done.window), facts, keys, work, store)
                stats.spend("store", clock)
            advance(finished)
    return unreadable


def _finish(rows: Mapping[int, Embeddings], facts: Facts, keys: Keys, work: Work, store: Store) -> int:
    """Check a window as a whole and store it as one shard, in item order; how many rows it has."""
    if not rows:
        return 0
    order = np.array(sorted(rows))
    matrix = np.stack([rows[i] for i in order.tolist()])
    if not work.check and len(matrix) >= CONSTANT_ROWS and np.ptp(matrix, axis=0).max() < CONSTANT_SPREAD:
        raise BadEmbedding(
            f"{store.identity['model']} returned the same row for {len(matrix)} different items"
            f" (first: {brief(work.items[order[0]])}): it does not look at its input"
        )
    store.add(keys[order], matrix, facts[order])
    return len(order)


@dataclass(frozen=True, slots=True)
class Local:
    """Worker processes of this machine prepare, this process embeds on its device."""

    load: Callable[[], Embedder]

    @property
    def devices(self) -> Mapping[str, int]:
        return {}

    def execute(self, work: Work) -> Iterator[Embedded]:
        """The batches, in order; a GPU has one before it while the rows of another are stored."""
        clock = time.perf_counter()
        embedder = self.load()
        work.stats.spend("load", clock)
        source = ItemSource(work.items, work.frontend)
        workers = worker_count(work.items, work.options.workers)
        runner = Runner(embedder, source, work.budget, work.costs, work.check, work.options.store_dtype)
        if work.budget.probe and work.costs.sum() >= WORTH * work.budget.tokens:
            clock = time.perf_counter()
            work.budget.tokens = best_budget(runner, work.budget.tokens // 4)
            work.budget.probe = False
            work.stats.spend("probe", clock)
        prepared = in_workers(source, work.planned(), workers, work.options.device)
        yield from runner.run(_waited_for(prepared, work.stats), ahead=ahead(work.options.device))


def _waited_for(prepared: Iterable[Prepared], stats: Stats) -> Iterator[Prepared]:
    """The same, with the time that it takes until each is there."""
    clock = time.perf_counter()
    for each in prepared:
        stats.spend("wait", clock)
        yield each
        clock = time.perf_counter()
