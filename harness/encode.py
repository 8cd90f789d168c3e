"""The encoding engine: items in, stored unit rows out, each distinct content once."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from harness.collection import Subset
from harness.content import Image, Item, Text, Video
from harness.digest import Digests
from harness.errors import BadEmbedding, DataInvalid, HarnessError
from harness.media import decoding
from harness.model import Batch, Embedder, Frontend
from harness.progress import progress
from harness.store import Facts, Half, Keys, Store, key

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

WINDOW_ITEMS = 16_384
WINDOW_BUDGETS = 128
"""A window, and so a shard, ends at so many items or so many batches' worth of cost."""
FEW_MEDIA = 64
"""Below this many pictures and clips, starting worker processes costs more than it saves."""
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

    batch_tokens bounds the padded cost of a batch; workers None chooses by the machine.
    """

    device: str = "cpu"
    batch_tokens: int = 1024
    workers: int | None = None
    quiet: bool = False


@dataclass(slots=True)
class Stats:
    """What encoding did: seconds by stage, and counts."""

    items: int = 0
    embedded: int = 0
    batches: int = 0
    cut: int = 0
    """Texts that the model's limit shortened, where its batches say so."""
    cost: int = 0
    padded_cost: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    """What was missing cost, by modality."""
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, other: Stats) -> None:
        """Add up what the parts of a task took."""
        for name in ("items", "embedded", "batches", "cut", "cost", "padded_cost"):
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


@dataclass(slots=True)
class Budget:
    """The padded cost of a batch; lowered where one did not fit, for the windows planned after that."""

    tokens: int


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


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of a planned batch: the rows of `positions`, and why the others cannot be read.

    rows: [len(positions), D] float16, unit rows.
    """

    window: int
    positions: list[int]
    rows: Half
    facts: Facts
    broken: dict[int, str]
    seconds: dict[str, float]


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
) -> tuple[Keyed, Stats]:
    """Embed whatever the store lacks of `items`, which may be a view of a file.

    Batches are a pure function of the missing items and the budget; `engine` is asked only when
    something is missing. Items whose media cannot be decoded come back in `broken`. Raises
    BadEmbedding for rows that cannot be right (unless the model is a `check`).
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
    chosen = np.array(readable, dtype=np.int64)
    if len(chosen):
        budget = Budget(options.batch_tokens)
        work = Work(Subset(items, chosen), np.array(costs, np.int64), frontend, options, check, budget, stats)
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
    """Positions of a window's items, longest first, in batches of at most `budget` padded cost."""
    order = np.argsort(-costs, kind="stable")
    out, start = [], 0
    while start < len(order):
        size = max(1, budget // int(costs[order[start]]))
        out.append(order[start : start + size])
        start += size
    return out


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a worker hands over: the positions that it could read, and why not the others."""

    window: int
    positions: list[int]
    batch: Batch
    broken: dict[int, str]
    seconds: float
    decode: float
    """Of the seconds, those that went into decoding pictures and clips."""

    def pin_memory(self) -> Prepared:
        """The same in memory that a GPU copies from by itself; the loader's thread asks for it."""
        return replace(self, batch=_pinned(self.batch))


def _pinned(value: Any) -> Any:
    """Arrays and tensors, wherever they are in mappings and sequences, in page-locked memory."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size:
        return torch.from_numpy(np.require(value, requirements=["C", "W"])).pin_memory().numpy()
    if type(value) is dict:
        return {key: _pinned(each) for key, each in value.items()}
    return type(value)(map(_pinned, value)) if type(value) in (list, tuple) else value


class ItemSource:
    """A map-style dataset whose index is a planned batch; runs in workers."""

    def __init__(self, items: Sequence[Item], frontend: Frontend) -> None:
        self.items = items
        self.frontend = frontend

    def __getitem__(self, planned: tuple[int, list[int]]) -> Prepared:
        window, positions = planned
        start = time.perf_counter()
        broken: dict[int, str] = {}
        with decoding() as decoded:
            try:
                batch = self.frontend.prepare([self.items[i] for i in positions])
            except (DataInvalid, OSError):
                batch, positions, broken = self._salvage(positions)
        seconds = time.perf_counter() - start
        return Prepared(window, positions, batch, broken, seconds, sum(decoded))

    def _salvage(self, positions: Sequence[int]) -> tuple[Batch, list[int], dict[int, str]]:
        broken = {}
        for i in positions:
            try:
                self.frontend.prepare([self.items[i]])
            except (DataInvalid, OSError) as error:
                broken[i] = str(error)
        left = [i for i in positions if i not in broken]
        return (self.frontend.prepare([self.items[i] for i in left]) if left else None), left, broken


def _embed_all(work: Work, keys: Keys, engine: Engine, store: Store, title: str) -> dict[np.bytes_, str]:
    """Let the engine embed the work, and store each window once it is whole; returns why some keys
    could not be."""
    stats = work.stats
    left = [len(window) for window in work.windows()]
    rows: dict[int, dict[int, Half]] = defaultdict(dict)
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


@dataclass(frozen=True, slots=True)
class Local:
    """Worker processes of this machine prepare, this process embeds on its device."""

    load: Callable[[], Embedder]

    @property
    def devices(self) -> Mapping[str, int]:
        return {}

    def execute(self, work: Work) -> Iterator[Embedded]:
        """The batches, in order."""
        clock = time.perf_counter()
        embedder = self.load()
        clock = work.stats.spend("load", clock)
        source = ItemSource(work.items, work.frontend)
        workers = worker_count(work.items, work.options.workers)
        for prepared in in_workers(source, work.planned(), workers, work.options.device):
            work.stats.spend("wait", clock)
            yield embed_prepared(prepared, source, embedder, work.budget, work.costs, work.check)
            clock = time.perf_counter()


def embed_prepared(
    prepared: Prepared,
    source: ItemSource,
    embedder: Embedder,
    budget: Budget,
    costs: npt.NDArray[np.int64],
    check: bool,
) -> Embedded:
    """Embed a prepared batch of the source's items, which cost so much each; halves what does not
    fit and lowers the budget. Raises BadEmbedding naming the item at fault."""
    clock = time.perf_counter()
    rows: Half = np.zeros((0, 0), np.float16)
    facts = Facts(np.zeros(0, np.float32), np.zeros(0, np.int16))
    if prepared.positions:
        rows, norms = _embed(prepared.positions, prepared.batch, source, embedder, budget, costs, check)
        facts = Facts(norms, texts_cut(prepared.batch, len(rows)))
    seconds = {
        "decode": prepared.decode,
        "prepare": prepared.seconds - prepared.decode,
        "embed": time.perf_counter() - clock,
    }
    return Embedded(prepared.window, prepared.positions, rows, facts, prepared.broken, seconds)


def texts_cut(batch: Batch, count: int) -> npt.NDArray[np.int16]:
    """How many texts of each item were shortened in a prepared batch: what a mapping says under
    "cut", [count]; -1 where it says nothing."""
    said = batch.get("cut") if isinstance(batch, Mapping) else None
    return np.full(count, -1, np.int16) if said is None else np.asarray(said, np.int16)


def _finish(rows: Mapping[int, Half], facts: Facts, keys: Keys, work: Work, store: Store) -> int:
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


class Source(Protocol[T_co]):
    """What makes batches from plans; it crosses into worker processes, so it must pickle."""

    def __getitem__(self, planned: Any, /) -> T_co: ...


def in_workers(source: Source[T], planned: Iterator[Any], workers: int, device: str) -> Iterator[T]:
    """`source[plan]` of every plan, in order, from so many worker processes (0: from this one)."""
    if not workers:
        yield from map(source.__getitem__, planned)
        return
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        source,  # type: ignore[arg-type]
        batch_size=None,
        sampler=_Lazy(planned),
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=device.startswith("cuda"),
        prefetch_factor=4,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "exited unexpectedly" in str(error):
            raise worker_died(error) from error
        raise


def worker_died(error: Exception) -> HarnessError:
    """The one line for a preparing process that is gone."""
    return HarnessError(
        f"a worker process died ({error}): free some memory or lower --workers"
        " and run the same command again; finished shards are kept"
    )


class _Lazy:
    """A sampler that plans as it goes, so that a lowered budget reaches the next window."""

    def __init__(self, planned: Iterator[Any]) -> None:
        self.planned = planned

    def __iter__(self) -> Iterator[Any]:
        return self.planned


def _unchanged(prepared: T) -> T:
    return prepared


def worker_count(items: Iterable[Item], wanted: int | None) -> int:
    """How many worker processes to use: as wanted, else as many as pay (none for texts and few media)."""
    if wanted is not None:
        return wanted
    media = (item for item in items if any(isinstance(p, (Image, Video)) for p in item.parts))
    few = sum(1 for _ in islice(media, FEW_MEDIA)) < FEW_MEDIA
    return 0 if few else max(1, min(8, _cores() - 1))


def _cores() -> int:
    """Cores that this process may use; not every system can say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _embed(
    positions: list[int],
    batch: Batch,
    source: ItemSource,
    embedder: Embedder,
    budget: Budget,
    costs: npt.NDArray[np.int64],
    check: bool,
) -> tuple[Half, npt.NDArray[np.float32]]:
    """[len(positions), D] float16 unit rows and the norms they had; halves what does not fit and
    lowers the budget."""
    try:
        rows = embedder.embed(batch)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if len(positions) == 1:
            raise HarnessError(
                f"one item of cost {costs[positions[0]]} does not fit in memory"
                f" ({brief(source.items[positions[0]])}): use a smaller dtype or a bigger device"
            ) from error
    else:
        return _unit(rows, [source.items[i] for i in positions], check)
    padded = int(costs[positions].max()) * len(positions)
    budget.tokens = max(1, min(budget.tokens, padded // 2))
    release_memory()
    middle = (len(positions) + 1) // 2
    halves = []
    for part in (positions[:middle], positions[middle:]):
        again = source.frontend.prepare([source.items[i] for i in part])
        halves.append(_embed(part, again, source, embedder, budget, costs, check))
    return np.concatenate([part for part, _ in halves]), np.concatenate([norms for _, norms in halves])


def out_of_memory(error: BaseException) -> bool:
    import torch

    text = str(error)
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "not enough memory" in text
        or ("out of memory" in text)
    )


def release_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _unit(rows: Tensor, items: Sequence[Item], check: bool) -> tuple[Half, npt.NDArray[np.float32]]:
    """Rows brought to unit length in float32, then rounded to the store's float16, and their norms.

    Raises BadEmbedding naming the item at fault.
    """
    import torch

    if rows.ndim != 2 or rows.shape[0] != len(items):
        raise BadEmbedding(f"the model returned shape {tuple(rows.shape)} for {len(items)} items, not [B, D]")
    rows = rows.detach().to(dtype=torch.float32)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    bad = ~torch.isfinite(norms[:, 0]) | ((norms[:, 0] == 0) & (not check))
    if bool(bad.any()):
        at = int(bad.nonzero()[0, 0])
        what = "a zero row" if norms[at, 0] == 0 else "a row that is not finite"
        raise BadEmbedding(f"the model returned {what} for {brief(items[at])}")
    unit: Half = (rows / norms.clamp_min(1e-12)).half().cpu().numpy()
    return unit, norms[:, 0].cpu().numpy()


def brief(item: Item) -> str:
    """An item for a message: its role, and the beginning of each part."""

    def shown(part: Any) -> str:
        if isinstance(part, Text):
            return repr(part.text if len(part.text) <= 40 else part.text[:37] + "...")
        return str(part.path)

    return f"{item.role} {' + '.join(map(shown, item.parts))}"
