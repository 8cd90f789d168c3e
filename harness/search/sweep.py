"""The unscoped search: every tile of the pool is shown to every block of queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from harness.errors import HarnessError
from harness.run import BEYOND, Float32, Found, Int32, Int64, Ragged, Searcher, SearchRequest
from harness.search.counts import Counts, Places
from harness.search.device import DeviceTop
from harness.search.galleries import scoped
from harness.search.parts import devices_of, in_parts
from harness.search.plan import Plan
from harness.search.rows import ArrayRows, Vectors, on_device, pairs_of, set_of, spans, within
from harness.search.scores import rescore
from harness.search.tile import GROUP, Scored, Sieve, full_precision, packed, product
from harness.search.top import Top

if TYPE_CHECKING:
    from torch import Tensor

    from harness.search.tile import Gemm


def search(request: SearchRequest) -> Found:
    """The built-in backend: torch, on the CPU, on a CUDA device, or (`cuda`) on all of them.

    Memory beyond queries and results stays within `request.memory`; the pool is read block by
    block, once, or once per group of queries where the running results of all do not fit.
    Raises HarnessError where no tile fits the budget, or where the request makes no sense.
    """
    check(request)
    if request.scope is not None:
        return scoped(request)
    deeper = replace(request, k=request.k + 1)
    return placed(request, *in_parts(deeper, devices_of(request.device), ranked))


TORCH = Searcher("torch", "exact blocked search in torch, on CPU or CUDA", search)


def check(request: SearchRequest) -> None:
    """Raises HarnessError where the request makes no sense."""
    queries, pool = request.queries, request.pool
    if queries.dim != pool.dim:
        raise HarnessError(
            f"queries have {queries.dim} dimensions and the pool has {pool.dim}:"
            " encode both with the same model and options"
        )
    if request.k < 1:
        raise HarnessError(f"search for the best k = {request.k} candidates: k must be at least 1")
    for name in ("positives", "scope", "exclude"):
        lists: Ragged | None = getattr(request, name)
        if lists is not None and len(lists) != len(queries):
            raise HarnessError(f"search: {len(lists)} lists of {name} for {len(queries)} queries")
        if lists is not None and lists.values.max(initial=-1) >= len(pool):
            raise HarnessError(f"search: {name} name row {lists.values.max()} of a pool of {len(pool)}")


def placed(request: SearchRequest, rows: Int32, scores: Float32) -> Found:
    """The answer, given the exact best k + 1 of every query, [Q, k + 1] padded with -1 and -inf:
    they are cut to k, and place the positives. Only where a tie reaches from above k to the end of
    the list is the pool read again, for those queries alone.
    """
    k, positives, size = request.k, request.positives, len(request.pool)
    found = Counts.empty(len(positives.values))
    for a, b in spans(positives.indptr, max(1, request.memory // (32 * (k + 1)))):
        pairs = pairs_of(positives, a, b, size)
        reached = (pairs >= 0) & ~within(set_of(request.exclude, a, b, size), pairs)
        query, row = np.divmod(pairs[reached], max(1, size))
        score = rescore(request, query + a, row)
        ranked = scores[a:b][query]
        same = ranked == score[:, None]
        part = Counts(
            score,
            (ranked > score[:, None]).sum(1, dtype=np.int32),
            same.sum(1, dtype=np.int32) - 1,
            (same & (rows[a:b][query] < row[:, None])).sum(1, dtype=np.int32),
        )
        found.put(np.flatnonzero(reached) + int(positives.indptr[a]), part)
    last = scores[positives.query, -1]
    reached = found.score > -np.inf
    found.greater[reached & (found.score < last)] = BEYOND
    _recount(request, found, np.flatnonzero(reached & (found.score == last) & (found.greater < k)))
    return found.answer(rows[:, :k], scores[:, :k])


def _recount(request: SearchRequest, found: Counts, which: Int64) -> None:
    """Count anew for these positives, over the whole pool."""
    if not len(which):
        return
    query, number = np.unique(request.positives.query[which], return_inverse=True)
    lists: list[list[int]] = [[] for _ in query]
    for n, row in zip(number.tolist(), request.positives.values[which].tolist(), strict=True):
        lists[n].append(row)
    again = only(request, query, Ragged.of(lists))
    for block in _shown(again, Plan.of(again, 0), lambda block: Places(again, block.start, block.stop)):
        found.put(which[block.watch.index], block.watch.result())


def ranked(request: SearchRequest, kind: type[Top | DeviceTop] | None = None) -> tuple[Int32, Float32]:
    """The best k of every query, [Q, k] padded with -1 and -inf; what leaves a device uncertain, such as
    more ties than it keeps, is searched once more on the CPU."""
    n, k = len(request.queries), request.k
    rows = np.full((n, k), -1, dtype=np.int32)
    scores = np.full((n, k), -np.inf, dtype=np.float32)
    certain = np.ones(n, dtype=np.bool_)
    plan = Plan.of(request, k)
    top = kind or (DeviceTop if request.device.startswith("cuda") else Top)
    for block in _shown(request, plan, lambda block: top(request, plan, k, block.queries, block.sieve)):
        at = slice(block.start, block.stop)
        rows[at], scores[at], certain[at] = block.watch.result()
    left = np.flatnonzero(~certain)
    if len(left):
        again = replace(only(request, left, Ragged.of([()] * len(left))), device="cpu")
        rows[left], scores[left] = ranked(again)
    return rows, scores


def only(request: SearchRequest, queries: Int64, positives: Ragged) -> SearchRequest:
    """The request for these queries alone, with these positives."""
    exclude = request.exclude
    return replace(
        request,
        queries=ArrayRows(request.queries.take(queries)),
        positives=positives,
        exclude=None if exclude is None else Ragged.of([exclude[q] for q in queries.tolist()]),
    )


class _Watch(Protocol):
    """What is shown the scores of every tile."""

    def offer(self, scored: Scored) -> bool:
        """False where they are too rough: float32 scores are to follow, of this tile and all later ones."""
        ...


W = TypeVar("W", bound=_Watch)


def _shown(request: SearchRequest, plan: Plan, watch: Callable[[_Block[W]], W]) -> Iterator[_Block[W]]:
    """Blocks of queries that have seen the whole pool."""
    n = len(request.queries)
    with full_precision():
        for start in range(0, n, plan.group):
            stop = min(n, start + plan.group)
            blocks = [
                _Block(request, plan.sifted, a, min(stop, a + plan.queries), watch)
                for a in range(start, stop, plan.queries)
            ]
            _read(request, plan, blocks)
            yield from blocks


def _read(request: SearchRequest, plan: Plan, blocks: Sequence[_Block[W]]) -> None:
    """Show every tile of the pool to every block of queries; the next one is read meanwhile."""
    pool, size = Vectors(request.pool, on_device(request.device)), len(request.pool)
    multiply, tile = product(request.device), _Tile(request, plan)
    starts = _scattered(range(0, size, plan.tile))
    with ThreadPoolExecutor(1, thread_name_prefix="search-reader") as reader:
        ahead = _ahead(reader, lambda a: pool.block(a, min(size, a + plan.tile)), starts)
        step = plan.tile
        for start, rows in zip(starts, ahead, strict=True):
            for a in range(0, len(rows), step):
                tile.fill(start + a, rows[a : a + step])
                for block in blocks:
                    block.show(tile, multiply)
            step = plan.piece


def _scattered(starts: range) -> list[int]:
    """All of them, spread evenly over the whole at every moment.

    In a pool that happens to be sorted by rising scores, read from its start, every row is among
    the best so far; read like this, its order costs nothing.
    """
    n = len(starts)
    step = max(1, round(n * 0.618))
    while math.gcd(step, n) > 1:
        step += 1
    return [starts[i * step % n] for i in range(n)]


def _ahead(
    reader: ThreadPoolExecutor, block: Callable[[int], Tensor], starts: Sequence[int]
) -> Iterator[Tensor]:
    """The blocks in order, each read while the one before it is in use."""
    pending: Future[Tensor] | None = None
    for start in starts:
        following = reader.submit(block, start)
        if pending is not None:
            yield pending.result()
        pending = following
    if pending is not None:
        yield pending.result()


class _Block(Generic[W]):
    """The queries `start` to `stop`, and what watches their scores."""

    def __init__(
        self, request: SearchRequest, sifted: bool, start: int, stop: int, watch: Callable[[_Block[W]], W]
    ) -> None:
        import torch

        self.start, self.stop = start, stop
        self.queries = Vectors(request.queries, on_device(request.device)).block(start, stop)
        self.sieve = Sieve.of(self.queries, Vectors(request.pool, "cpu").dtype) if sifted else None
        self._packed = self._whole() if self.sieve is None else packed(self.sieve.queries)
        self.watch = watch(self)
        size = len(request.pool)
        query, row = np.divmod(set_of(request.exclude, start, stop, size), max(1, size))
        order = np.argsort(row, kind="stable")
        self._gone_rows = row[order]
        self._gone = torch.from_numpy(np.stack([query[order], row[order]])).to(self.queries.device)

    def show(self, tile: _Tile, multiply: Gemm) -> None:
        """Offer the products with a tile: in bfloat16 where the block has a sieve, and in float32 where it
        has none or too many pairs pass it, this time and from then on."""
        if self.sieve is not None:
            if self._offer(tile, tile.rounded(), multiply):
                return
            self.sieve, self._packed = None, self._whole()
        self._offer(tile, tile.whole(), multiply)

    def _whole(self) -> Tensor:
        """The queries for products with whole rows: float32 on a CPU."""
        return packed(self.queries if self.queries.is_cuda else self.queries.float())

    def _offer(self, tile: _Tile, rows: Tensor, multiply: Gemm) -> bool:
        scores = multiply(self._packed, rows)
        if tile.count < scores.shape[1]:
            scores[:, tile.count :] = float("-inf")
        a, b = np.searchsorted(self._gone_rows, [tile.start, tile.start + tile.count]).tolist()
        if a < b:
            scores[self._gone[0, a:b], self._gone[1, a:b] - tile.start] = float("-inf")
        return self.watch.offer(Scored(self.queries, rows, scores, tile.start, tile.count, tile.scratch))


class _Tile:
    """Rows of the pool, converted in memory that all tiles share: in new memory it takes ten times as long,
    in page faults. Rows beyond the pool's end are 0."""

    def __init__(self, request: SearchRequest, plan: Plan) -> None:
        import torch

        device, dim = on_device(request.device), request.pool.dim
        kind = torch.float32 if device == "cpu" else Vectors(request.pool, "cpu").dtype
        self._whole = torch.empty(plan.tile, dim, dtype=kind, device=device)
        self._rounded = torch.empty(self._whole.shape if plan.sifted else 0, dtype=torch.bfloat16)
        self.scratch = torch.empty(plan.queries * plan.tile, device=device)

    def fill(self, start: int, rows: Tensor) -> None:
        self.start, self.count, self._rows = start, len(rows), rows
        self._size = -(-self.count // GROUP) * GROUP
        self._now_whole: Tensor | None = None
        self._now_rounded: Tensor | None = None

    def whole(self) -> Tensor:
        """[C, D] float32, on CUDA as they are stored"""
        if self._now_whole is None:
            self._now_whole = self._filled(self._whole, self._rows)
        return self._now_whole

    def rounded(self) -> Tensor:
        """[C, D] bfloat16, which of float16 is fastest made by way of float32"""
        if self._now_rounded is None:
            stored_so = self._rows.dtype == self._rounded.dtype
            self._now_rounded = self._filled(self._rounded, self._rows if stored_so else self.whole())
        return self._now_rounded

    def _filled(self, memory: Tensor, rows: Tensor) -> Tensor:
        """The rows in the memory of a tile, or as they are where they are one."""
        if rows.dtype == memory.dtype and len(rows) == self._size:
            return rows
        memory[: len(rows)].copy_(rows)
        memory[len(rows) : self._size].zero_()
        return memory[: self._size]
