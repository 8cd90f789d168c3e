"""The encoding engine: items in, stored unit rows out, each distinct content once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.content import Image, Item, Text, Video
from harness.digest import Digests
from harness.errors import BadEmbedding, DataInvalid, HarnessError
from harness.model import Batch, Embedder, Frontend
from harness.progress import progress
from harness.run import Rows
from harness.store import Half, Keys, Store, as_keys, key

if TYPE_CHECKING:
    from torch import Tensor

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
    distinct: int = 0
    embedded: int = 0
    batches: int = 0
    cost: int = 0
    padded_cost: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def spend(self, stage: str, since: float) -> float:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows in the order of the items; `broken` says why some items have none."""

    keys: Keys
    broken: Mapping[int, str]

    def rows(self, store: Store, items: Sequence[int]) -> Rows:
        """The stored rows of these items."""
        return store.rows(self.keys[np.asarray(items, dtype=np.int64)])


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is left to do: the distinct missing items in order of first appearance."""

    items: list[Item]
    keys: Keys
    costs: npt.NDArray[np.int64]


def encode(
    items: Sequence[Item],
    frontend: Frontend,
    load: Callable[[], Embedder],
    store: Store,
    digests: Digests,
    options: EngineOptions,
    *,
    title: str,
    check: bool = False,
    skip_broken: bool = False,
) -> tuple[Encoded, Stats]:
    """Embed whatever the store lacks of `items`.

    Batches are a pure function of the missing items and the budget; `load` is called only when
    something is missing. Items whose media cannot be read come back in `broken`; without
    `skip_broken`, media that are not there at all stop it before any weights load. Raises
    BadEmbedding for rows that cannot be right (unless the model is a `check`).
    """
    stats = Stats(items=len(items))
    clock = time.perf_counter()
    keys, broken = _keys(items, digests)
    if broken and not skip_broken:
        raise broken_items(broken)
    first: dict[bytes, int] = {}
    for i, k in enumerate(keys):
        if i not in broken:
            first.setdefault(k, i)
    stats.distinct = len(first)
    unique = as_keys(first)
    absent = store.missing(unique)
    todo = [i for i, gone in zip(first.values(), absent, strict=True) if gone]
    clock = stats.spend("look_up", clock)
    unreadable: dict[bytes, str] = {}
    if todo:
        chosen, costs = [], []
        for i in todo:
            try:
                costs.append(max(1, frontend.cost(items[i])))
                chosen.append(i)
            except (DataInvalid, OSError) as error:
                unreadable[keys[i]] = str(error)
        stats.spend("cost", clock)
        plan = _Plan([items[i] for i in chosen], as_keys(keys[i] for i in chosen), np.array(costs, np.int64))
        unreadable |= _embed_all(plan, frontend, load, store, options, stats, title, check)
        digests.save()
    if unreadable:
        broken = broken | {i: unreadable[k] for i, k in enumerate(keys) if k in unreadable}
    return Encoded(as_keys(keys), broken), stats


def broken_items(broken: Mapping[int, str]) -> DataInvalid:
    """One line for media that cannot be read: how many, the first three, and the remedy."""
    reasons = list(dict.fromkeys(broken.values()))
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    return DataInvalid(f"{shown} (mend the data, or leave such items out with --skip-broken)")


def missing_items(items: Sequence[Item], store: Store, digests: Digests) -> list[Item]:
    """The distinct items that the store lacks: what `plan` reports."""
    keys, broken = _keys(items, digests)
    first = {k: item for i, (k, item) in enumerate(zip(keys, items, strict=True)) if i not in broken}
    absent = store.missing(as_keys(first))
    return [item for item, gone in zip(first.values(), absent, strict=True) if gone]


def _keys(items: Sequence[Item], digests: Digests) -> tuple[list[bytes], dict[int, str]]:
    keys, broken = [], {}
    for i, item in enumerate(items):
        try:
            keys.append(key(item, digests))
        except OSError as error:
            keys.append(b"\0" * 16)
            broken[i] = f"{error.filename} cannot be read ({(error.strerror or str(error)).lower()})"
    digests.save()
    return keys, broken


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


@dataclass(slots=True)
class _Budget:
    tokens: int


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a worker hands over: the positions that it could read, and why not the others."""

    window: int
    positions: list[int]
    batch: Batch
    broken: dict[int, str]
    seconds: float


class _Source:
    """A map-style dataset whose index is a planned batch; runs in workers."""

    def __init__(self, items: Sequence[Item], frontend: Frontend) -> None:
        self.items = items
        self.frontend = frontend

    def __getitem__(self, planned: tuple[int, list[int]]) -> _Prepared:
        window, positions = planned
        start = time.perf_counter()
        broken: dict[int, str] = {}
        try:
            batch = self.frontend.prepare([self.items[i] for i in positions])
        except (DataInvalid, OSError):
            batch, positions, broken = self._salvage(positions)
        return _Prepared(window, positions, batch, broken, time.perf_counter() - start)

    def _salvage(self, positions: Sequence[int]) -> tuple[Batch, list[int], dict[int, str]]:
        broken = {}
        for i in positions:
            try:
                self.frontend.prepare([self.items[i]])
            except (DataInvalid, OSError) as error:
                broken[i] = str(error)
        left = [i for i in positions if i not in broken]
        return (self.frontend.prepare([self.items[i] for i in left]) if left else None), left, broken


def _embed_all(
    plan: _Plan,
    frontend: Frontend,
    load: Callable[[], Embedder],
    store: Store,
    options: EngineOptions,
    stats: Stats,
    title: str,
    check: bool,
) -> dict[bytes, str]:
    """Embed the plan window by window; returns why some keys could not be."""
    clock = time.perf_counter()
    embedder = load()
    clock = stats.spend("load", clock)
    budget = _Budget(options.batch_tokens)
    source = _Source(plan.items, frontend)
    sizes: dict[int, npt.NDArray[np.int64]] = {}

    def planned() -> Iterator[tuple[int, list[int]]]:
        for number, window in enumerate(windows(plan.costs, options.batch_tokens)):
            sizes[number] = window
            for batch in batches(plan.costs[window], budget.tokens):
                yield number, window[batch].tolist()

    unreadable: dict[bytes, str] = {}
    rows: dict[int, Half] = {}
    current, left = 0, -1
    with progress(title, len(plan.items), quiet=options.quiet) as advance:
        for prepared in _prepared(source, planned(), plan, options):
            clock = stats.spend("wait", clock)
            stats.seconds["prepare"] = stats.seconds.get("prepare", 0.0) + prepared.seconds
            if left < 0:
                current, left = prepared.window, len(sizes[prepared.window])
            if prepared.positions:
                got = _embed(prepared.positions, prepared.batch, source, embedder, budget, plan.costs, check)
                rows |= zip(prepared.positions, got, strict=True)
                stats.batches += 1
                costs = plan.costs[prepared.positions]
                stats.cost += int(costs.sum())
                stats.padded_cost += int(costs.max()) * len(costs)
            unreadable |= {bytes(plan.keys[i]).ljust(16, b"\0"): why for i, why in prepared.broken.items()}
            left -= len(prepared.positions) + len(prepared.broken)
            clock = stats.spend("embed", clock)
            if left == 0:
                _finish(sorted(rows), rows, plan, store, check)
                stats.embedded += len(rows)
                del sizes[current]
                rows, left = {}, -1
                clock = stats.spend("store", clock)
            advance(len(prepared.positions) + len(prepared.broken))
    return unreadable


def _finish(order: list[int], rows: Mapping[int, Half], plan: _Plan, store: Store, check: bool) -> None:
    """Check a window as a whole and store it as one shard, in item order."""
    if not order:
        return
    matrix = np.stack([rows[i] for i in order])
    if not check and len(matrix) >= CONSTANT_ROWS and np.ptp(matrix, axis=0).max() < CONSTANT_SPREAD:
        raise BadEmbedding(
            f"{store.identity['model']} returned the same row for {len(matrix)} different items"
            f" (first: {_brief(plan.items[order[0]])}): it does not look at its input"
        )
    store.add(plan.keys[order], matrix)


def _prepared(
    source: _Source, planned: Iterator[tuple[int, list[int]]], plan: _Plan, options: EngineOptions
) -> Iterator[_Prepared]:
    """Prepared batches in planned order, from worker processes where they pay."""
    workers = _workers(plan.items, options.workers)
    if not workers:
        yield from map(source.__getitem__, planned)
        return
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        source,  # type: ignore[arg-type]
        batch_size=None,
        sampler=_Lazy(planned),
        num_workers=workers,
        collate_fn=_unchanged,  # type: ignore[arg-type]
        pin_memory=options.device.startswith("cuda"),
        prefetch_factor=4,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "exited unexpectedly" in str(error):
            raise HarnessError(
                f"a worker process died ({error}): free some memory or lower --workers"
                " and run the same command again; finished shards are kept"
            ) from error
        raise


class _Lazy:
    """A sampler that plans as it goes, so that a lowered budget reaches the next window."""

    def __init__(self, planned: Iterator[tuple[int, list[int]]]) -> None:
        self.planned = planned

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return self.planned


def _unchanged(prepared: _Prepared) -> _Prepared:
    return prepared


def _workers(items: Sequence[Item], wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    import os

    media = sum(any(isinstance(p, (Image, Video)) for p in item.parts) for item in items)
    return 0 if media < FEW_MEDIA else max(1, min(8, len(os.sched_getaffinity(0)) - 1))


def _embed(
    positions: list[int],
    batch: Batch,
    source: _Source,
    embedder: Embedder,
    budget: _Budget,
    costs: npt.NDArray[np.int64],
    check: bool,
) -> Half:
    """[len(positions), D] float16 unit rows; halves what does not fit and lowers the budget."""
    try:
        rows = embedder.embed(batch)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        if len(positions) == 1:
            raise HarnessError(
                f"one item of cost {costs[positions[0]]} does not fit in memory"
                f" ({_brief(source.items[positions[0]])}): use a smaller dtype or a bigger device"
            ) from error
    else:
        return _unit(rows, [source.items[i] for i in positions], check)
    padded = int(costs[positions].max()) * len(positions)
    budget.tokens = max(1, min(budget.tokens, padded // 2))
    _release_memory()
    middle = (len(positions) + 1) // 2
    halves = []
    for part in (positions[:middle], positions[middle:]):
        again = source.frontend.prepare([source.items[i] for i in part])
        halves.append(_embed(part, again, source, embedder, budget, costs, check))
    return np.concatenate(halves)


def _out_of_memory(error: BaseException) -> bool:
    import torch

    text = str(error)
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "not enough memory" in text
        or ("out of memory" in text)
    )


def _release_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _unit(rows: Tensor, items: Sequence[Item], check: bool) -> Half:
    """Rows brought to unit length in float32, then rounded to the store's float16.

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
        raise BadEmbedding(f"the model returned {what} for {_brief(items[at])}")
    unit: Half = (rows / norms.clamp_min(1e-12)).half().cpu().numpy()
    return unit


def _brief(item: Item) -> str:
    def brief(part: Any) -> str:
        if isinstance(part, Text):
            return repr(part.text if len(part.text) <= 40 else part.text[:37] + "...")
        return str(part.path)

    return f"{item.role} {' + '.join(map(brief, item.parts))}"
