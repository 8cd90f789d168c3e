"""Exact search: the best k of a pool for every query, and the exact place of every positive.

Scores are canonical: the float64 dot product of the stored float16 rows, rounded to float32. The
product of two float16 numbers is a multiple of 2^-48, and so is every partial sum; for unit rows
none exceeds 2, so that 50 bits hold it and float64 adds without any rounding. The order of
summation, the tile, the thread count and the device therefore cannot show in a score.

A fast matrix product, whose error is bounded, only decides which pairs are worth an exact score:
in float32 (`tolerance`), or in bfloat16 (`_Sieve`) at half the time where the processor has it and few of
many candidates are wanted. Per tile, the maximum of every 64 scores is compared with what a query
still needs, so that most scores are read once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from harness.run import BEYOND, Float32, Found, Int32, Int64, Ragged, Rows, Searcher, SearchRequest

if TYPE_CHECKING:
    from torch import Tensor

    Gemm = Callable[[Tensor, Tensor], Tensor]

_GROUP = 64
"""Scores per maximum."""
_TILE = 4096
"""Candidates, and at most a quarter of it queries, per matrix product: 16 MiB of scores. Larger
results leave the allocator's reuse on a CPU and cost a page fault per 4 KiB."""
_LOWEST = float(np.finfo(np.float32).min)
"""Below every score and above -inf, which marks pairs that are no candidates."""
_LAST = 2**31 - 1
_SCALE = 0.98
_MIB = 1 << 20
_SIFTED_K, _SIFTED_POOL = 128, 1 << 17
"""Up to so many wanted of at least so many, few enough lie within a bfloat16 product's error of the
last one that scoring them exactly costs less than the float32 product."""


@dataclass(frozen=True, slots=True)
class ArrayRows:
    """Rows in memory, or in a mapped file."""

    array: npt.NDArray[np.float16]
    """[N, D] float16, unit rows"""

    @property
    def dim(self) -> int:
        return int(self.array.shape[1])

    def __len__(self) -> int:
        return len(self.array)

    def block(self, start: int, stop: int) -> npt.NDArray[np.float16]:
        return self.array[start:stop]

    def take(self, rows: Int64) -> npt.NDArray[np.float16]:
        return self.array.take(rows, axis=0)


def tolerance(dim: int, device: str) -> float:
    """How far a float32 matrix product of unit rows can lie from the canonical score.

    Products of float16 numbers are exact in float32; `dim` additions in any order then err by at
    most dim · 2^-24 · sum|q_i x_i|, and the sum is at most 1 (Higham, Accuracy and Stability of
    Numerical Algorithms, §3.1). Sums of equal terms, as in constant vectors, come within a factor
    of 20 of it, so that nothing smaller is safe. Tensor cores truncate where a CPU rounds, and
    align the terms of a block before they add them: four times as much (Fasi et al. 2021,
    Numerical behavior of NVIDIA tensor cores). The 8 cover the roundings of the canonical score
    and of the comparisons, 1.01 the norms of rounded rows.
    """
    return 1.01 * 2.0**-24 * (8 + dim * (4 if device.startswith("cuda") else 1))


def search(request: SearchRequest) -> Found:
    """The built-in backend: torch, on the CPU or on a CUDA device.

    Memory beyond queries and results stays within `request.memory`; the pool is read block by
    block, once, or once per group of queries where the running results of all do not fit.
    Raises HarnessError where no tile fits the budget, or where the request makes no sense.
    """
    check(request)
    if request.scope is not None:
        return scoped(request)
    wide = replace(request, k=request.k + 1, positives=Ragged.of([()] * len(request.queries)))
    found = _sweep(wide, wide.k)
    return placed(request, found.rows, found.scores)


TORCH = Searcher("torch", "exact blocked search in torch, on CPU or CUDA", search)


def placed(request: SearchRequest, rows: Int32, scores: Float32) -> Found:
    """The answer, given the exact best k + 1 of every query, [Q, k + 1] padded with -1 and -inf:
    they are cut to k, and place the positives. Only where a tie reaches from above k to the end of
    the list is the pool read again, for those queries alone.
    """
    k, positives, size = request.k, request.positives, len(request.pool)
    found = _Counts.empty(len(positives.values))
    for a, b in _spans(positives.indptr, max(1, request.memory // (32 * (k + 1)))):
        pairs = _pairs(positives, a, b, size)
        reached = (pairs >= 0) & ~np.isin(pairs, _set(request.exclude, a, b, size))
        query, row = np.divmod(pairs[reached], max(1, size))
        score = rescore(request, query + a, row)
        ranked = scores[a:b][query]
        same = ranked == score[:, None]
        part = _Counts(
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


def _recount(request: SearchRequest, found: _Counts, which: Int64) -> None:
    """Count anew for these positives, over the whole pool."""
    if not len(which):
        return
    query, number = np.unique(request.positives.query[which], return_inverse=True)
    lists: list[list[int]] = [[] for _ in query]
    for n, row in zip(number.tolist(), request.positives.values[which].tolist(), strict=True):
        lists[n].append(row)
    exclude = request.exclude
    again = replace(
        request,
        queries=ArrayRows(request.queries.take(query)),
        positives=Ragged.of(lists),
        exclude=None if exclude is None else Ragged.of([exclude[q] for q in query.tolist()]),
    )
    counted = _sweep(again, 0)
    found.put(which, _Counts(counted.positive_scores, counted.greater, counted.equal, counted.before))


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


def rescore(request: SearchRequest, query: Int64, rows: Int64) -> Float32:
    """Canonical scores of pairs, [P] float32; fastest where `query` ascends."""
    import torch

    q = _Vectors(request.queries, request.device)
    out = np.empty(len(query), dtype=np.float32)
    step = _gather_rows(request)
    for a in range(0, len(query), step):
        present, index = np.unique(query[a : a + step], return_inverse=True)
        x = _Vectors(request.pool, request.device).take(rows[a : a + step])
        scores = _exact(q.take(present), x, torch.from_numpy(index).to(x.device), None)
        out[a : a + step] = scores.cpu().numpy()
    return out


def best(query: Int64, rows: Int64, scores: Float32, *, queries: int, k: int) -> tuple[Int32, Float32]:
    """The best `k` of scored pairs per query: rows and scores [Q, k], padded with -1 and -inf."""
    order = np.lexsort((rows, -scores, query))
    return _best_sorted(query[order], rows[order], scores[order], queries, k)


def _best_sorted(query: Int64, rows: Int64, scores: Float32, queries: int, k: int) -> tuple[Int32, Float32]:
    count = np.bincount(query, minlength=queries)
    place = np.arange(len(query)) - (np.cumsum(count) - count)[query]
    keep = place < k
    top_rows = np.full((queries, k), -1, dtype=np.int32)
    top_scores = np.full((queries, k), -np.inf, dtype=np.float32)
    top_rows[query[keep], place[keep]] = rows[keep]
    top_scores[query[keep], place[keep]] = scores[keep]
    return top_rows, top_scores


def scoped(request: SearchRequest) -> Found:
    """Search limited to a scope per query: its rows are gathered and scored one by one."""
    assert request.scope is not None
    k = request.k
    size, positives = len(request.pool), request.positives
    rows = np.full((len(positives), k), -1, dtype=np.int32)
    scores = np.full((len(positives), k), -np.inf, dtype=np.float32)
    found = _Counts.empty(len(positives.values))
    for a, b in _spans(request.scope.indptr, max(1, request.memory // 256)):
        # One int64 per pair: sorted, without repeats, and ready for the set operations.
        excluded = _set(request.exclude, a, b, size)
        pairs = np.setdiff1d(_set(request.scope, a, b, size), excluded, assume_unique=True)
        query, row = np.divmod(pairs, max(1, size))
        score = rescore(request, query + a, row)
        order = np.lexsort((-score, query))  # stable, and pairs ascend by row
        rows[a:b], scores[a:b] = _best_sorted(query[order], row[order], score[order], b - a, k)
        at = slice(int(positives.indptr[a]), int(positives.indptr[b]))
        found.put(at, _places(pairs, query, score, order, _pairs(positives, a, b, size)))
    return found.answer(rows, scores)


def _pairs(lists: Ragged, start: int, stop: int, size: int) -> Int64:
    """Pairs of (query - start) and pool row as single numbers, query-major; -1 for row -1."""
    lengths = np.diff(lists.indptr[start : stop + 1])
    values = lists.values[lists.indptr[start] : lists.indptr[stop]]
    pairs = np.repeat(np.arange(stop - start, dtype=np.int64), lengths) * size + values
    return np.where(values < 0, -1, pairs)


def _set(lists: Ragged | None, start: int, stop: int, size: int) -> Int64:
    """The distinct pairs within the pool, ascending."""
    if lists is None:
        return np.zeros(0, dtype=np.int64)
    pairs = np.sort(_pairs(lists, start, stop, size))
    distinct: Int64 = pairs[(pairs >= 0) & (pairs != np.append(-1, pairs[:-1]))]
    return distinct


def _spans(indptr: Int64, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of queries with at most `most` values each, or of one query."""
    start, last = 0, len(indptr) - 1
    while start < last:
        stop = int(np.searchsorted(indptr, indptr[start] + most, side="right")) - 1
        stop = min(max(stop, start + 1), last)
        yield start, stop
        start = stop


@dataclass(frozen=True, slots=True)
class _Counts:
    """What is known about each positive, [P]."""

    score: Float32
    greater: Int32
    equal: Int32
    before: Int32

    @classmethod
    def empty(cls, n: int) -> _Counts:
        zeros = (np.zeros(n, dtype=np.int32) for _ in range(3))
        return cls(np.full(n, -np.inf, dtype=np.float32), *zeros)

    def put(self, at: slice | Int64, part: _Counts) -> None:
        self.score[at], self.greater[at] = part.score, part.greater
        self.equal[at], self.before[at] = part.equal, part.before

    def answer(self, rows: Int32, scores: Float32) -> Found:
        """With the best k, [Q, k]: a positive that k or more candidates beat is BEYOND."""
        beyond = self.greater >= rows.shape[1]
        greater, equal, before = (
            np.where(beyond, np.int32(value), counts)
            for value, counts in ((BEYOND, self.greater), (0, self.equal), (0, self.before))
        )
        return Found(rows, scores, self.score, greater, equal, before)


def _places(pairs: Int64, query: Int64, score: Float32, order: Int64, wanted: Int64) -> _Counts:
    """The places of `wanted` pairs among all `pairs` (ascending; `order` ranks them)."""
    found = _Counts.empty(len(wanted))
    if not len(pairs) or not len(wanted):
        return found
    index = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
    reached = np.flatnonzero(pairs[index] == wanted)
    q, s = query[order], score[order]
    first = np.flatnonzero(np.concatenate(([True], (q[1:] != q[:-1]) | (s[1:] != s[:-1]))))
    length = np.diff(first, append=len(order))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    mine = place[index[reached]]
    run = np.searchsorted(first, mine, side="right") - 1
    part = _Counts(
        score[index[reached]],
        (first[run] - np.searchsorted(query, query[index[reached]])).astype(np.int32),
        (length[run] - 1).astype(np.int32),
        (mine - first[run]).astype(np.int32),
    )
    found.put(reached, part)
    return found


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Rows as tensors on a device."""

    rows: Rows
    device: str

    def block(self, start: int, stop: int) -> Tensor:
        return self._tensor(self.rows.block(start, stop))

    def take(self, rows: Int64) -> Tensor:
        return self._tensor(self.rows.take(rows))

    def _tensor(self, array: npt.NDArray[np.float16]) -> Tensor:
        import torch

        # torch warns about arrays that it could write to and must not, such as mapped files.
        array = np.require(array, np.float16, ["C", "W"])
        return torch.from_numpy(array).to(_device(self.device))


def _device(name: str) -> str:
    """Where to compute: float64, and float16 with float32 sums, need a CPU or CUDA."""
    return name if name.startswith("cuda") else "cpu"


def _range(x: Tensor) -> Tensor:
    import torch

    return torch.arange(len(x), device=x.device)


def _exact(queries: Tensor, candidates: Tensor, query: Tensor, row: Tensor | None) -> Tensor:
    """Canonical scores of the pairs (query, row), or (query, its own row: None), [P] float32.

    queries: [B, D], candidates: [C, D], both float16, or float32 with float16 values.
    """
    import torch

    present, count = torch.unique_consecutive(query, return_counts=True)
    if row is None and len(query) >= 32 * len(present) and not query.is_cuda:
        return _exact_runs(queries[present], candidates, count.tolist())
    scores = torch.empty(len(query), dtype=torch.float32, device=query.device)
    # Products of float16 numbers are exact in float32. On a CPU the pieces stay in its cache.
    step = max(1, (1 << 24 if scores.is_cuda else 1 << 18) // queries.shape[1])
    for a in range(0, len(query), step):
        own = candidates[a : a + step] if row is None else candidates.index_select(0, row[a : a + step])
        product = own.float() * queries.index_select(0, query[a : a + step]).float()
        scores[a : a + step] = product.sum(1, dtype=torch.float64)
    return scores.add_(0.0)  # -0.0 becomes 0.0: the two are one score


def _exact_runs(queries: Tensor, candidates: Tensor, counts: Sequence[int]) -> Tensor:
    """The same where each query meets the next `counts` candidates, with a product for each query."""
    import torch

    scores = torch.empty(len(candidates), dtype=torch.float64)
    step, start = 256, 0
    for query, count in zip(queries.double(), counts, strict=True):
        for a in range(start, start + count, step):
            b = min(a + step, start + count)
            # float16 becomes float64 fastest by way of float32.
            torch.mv(candidates[a:b].float().double(), query, out=scores[a:b])
        start += count
    return scores.float().add_(0.0)


def _exact_in(tile: _Scored, query: Tensor, column: Tensor) -> Tensor:
    """Canonical scores of pairs of a tile, `query` ascending, [P] float32."""
    import torch

    present, index = torch.unique_consecutive(query, return_inverse=True)
    if len(query) * 16 <= len(present) * len(tile.tile):
        return _exact(tile.queries, tile.tile, query, column)
    # A pair costs about as much alone as 16 of them in a float64 matrix product.
    scores = torch.empty(len(query), dtype=torch.float32, device=query.device)
    wide, step = tile.tile.double().T, 64
    starts = torch.arange(0, len(present) + step, step, device=query.device)
    ends = torch.searchsorted(index, starts).tolist()
    for i, (a, b) in enumerate(pairwise(ends)):
        some = tile.queries[present[i * step : (i + 1) * step]].double() @ wide
        scores[a:b] = some[index[a:b] - i * step, column[a:b]]
    return scores.add_(0.0)


def _keys(scores: Tensor, rows: Tensor) -> Tensor:
    """int64 that sort as (score, then the smaller row): every key is distinct."""
    import torch

    bits = scores.view(torch.int32).long()
    bits = torch.where(bits < 0, bits ^ _LAST, bits)
    return (bits << 32) | (_LAST - rows.long())


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the work is cut so that it fits the budget."""

    group: int
    """queries per pass over the pool"""
    queries: int
    """queries per tile"""
    tile: int
    """candidates per tile, a multiple of 64"""
    gather: int
    """rows gathered at a time"""
    sifted: bool
    """whether bfloat16 products come first"""


def _gather_rows(request: SearchRequest) -> int:
    """Few enough to stay near the processor while they are scored."""
    return max(1, min(request.memory // 8 // 16, 1 << 20) // request.pool.dim)


def _plan(request: SearchRequest, k: int) -> _Plan:
    """Half of the budget for tiles, a quarter for running results, an eighth for gathers."""
    dim, n = request.pool.dim, max(1, len(request.queries))
    sifts = sifted(k, len(request.pool), request.device)
    width = _width(k, sifts)
    group = min(n, request.memory // 4 // (8 * width + 32))

    cost = partial(_tile_bytes, dim, width, sifts)
    tile = min(_TILE, -(-max(1, len(request.pool)) // _GROUP) * _GROUP)
    queries = min(max(1, group), _TILE if request.device.startswith("cuda") else _TILE // 4)
    while cost(queries, tile) > request.memory // 2 and (queries > 1 or tile > _GROUP):
        if tile > _GROUP and (tile >= 4 * queries or queries == 1):
            tile = max(_GROUP, tile // 2 // _GROUP * _GROUP)
        else:
            queries //= 2
    if group < 1 or cost(queries, tile) > request.memory // 2:
        least = max(2 * cost(1, _GROUP), 4 * (8 * width + 32))
        raise HarnessError(
            f"searching {dim}-dimensional rows for the best {k} takes at least {-(-least // 1024)} KiB and"
            f" the budget is {request.memory // 1024} KiB: raise --search-memory"
        )
    return _Plan(group, queries, tile, _gather_rows(request), sifts)


def _tile_bytes(dim: int, width: int, sifts: bool, queries: int, tile: int) -> int:
    """Two blocks of float16, the tile in float32 and, for degenerate pools, in float64; scores,
    scratch and lists of hits; the copies that a compression of the running results makes. Where
    bfloat16 comes first, it adds to tile, queries and scores."""
    half = 2 if sifts else 0
    return tile * dim * (16 + half) + queries * (dim * (12 + half) + tile * (24 + half) + width * 40)


def peak_memory(queries: int, candidates: int, dim: int, k: int, memory: int) -> int:
    """Bytes that the built-in search takes at most on a CPU: what of its budget `memory` it can use, the
    queries in float16, and the results."""
    tile = min(_TILE, -(-max(1, candidates) // _GROUP) * _GROUP)
    sifts = sifted(k + 1, candidates, "cpu")
    width = _width(k + 1, sifts)
    tiles = 2 * _tile_bytes(dim, width, sifts, min(queries, _TILE // 4), tile)
    return min(memory, tiles + queries * 8 * width) + queries * (2 * dim + 16 * (k + 1))


def sifted(k: int, candidates: int, device: str) -> bool:
    """Whether bfloat16 products come first."""
    import torch

    return (
        0 < k <= _SIFTED_K
        and candidates >= _SIFTED_POOL
        and _device(device) == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    )


def _width(k: int, sifted: bool) -> int:
    """Columns of the running results: k and room for those not yet compared with one another."""
    return k + (max(4 * k, 512) if sifted else max(k, 256)) if k else 0


def _sweep(request: SearchRequest, k: int) -> Found:
    """The unscoped search, and the count of the positives, in one reading of the pool."""
    plan = _plan(request, k)
    n, p = len(request.queries), len(request.positives.values)
    rows = np.full((n, k), -1, dtype=np.int32)
    scores = np.full((n, k), -np.inf, dtype=np.float32)
    found = _Counts.empty(p)
    if not k and not p:
        return Found(rows, scores, found.score, found.greater, found.equal, found.before)
    with _full_precision():
        for start in range(0, n, plan.group):
            stop = min(n, start + plan.group)
            blocks = [
                _Block(request, plan, k, a, min(stop, a + plan.queries))
                for a in range(start, stop, plan.queries)
            ]
            _read(request, plan, blocks)
            for block in blocks:
                if k:
                    rows[block.start : block.stop], scores[block.start : block.stop] = block.top.result()
                found.put(block.places.index, block.places.result())
    return Found(rows, scores, found.score, found.greater, found.equal, found.before)


def _read(request: SearchRequest, plan: _Plan, blocks: list[_Block]) -> None:
    """Show every tile of the pool to every block of queries; the next one is read meanwhile."""
    import torch

    pool, size = _Vectors(request.pool, request.device), len(request.pool)
    gemm = _gemm(request.device)
    cuda = request.device.startswith("cuda")
    # Without the preallocated tile, a conversion takes ten times as long in page faults.
    kind, device = (torch.float16, request.device) if cuda else (torch.float32, "cpu")
    tile = torch.empty(plan.tile, request.pool.dim, dtype=kind, device=device)
    asked = torch.empty(plan.queries, request.pool.dim, dtype=kind, device=device)
    scratch = torch.empty(plan.queries * plan.tile, device=device)
    rounded = torch.empty(tile.shape if plan.sifted else 0, dtype=torch.bfloat16)
    starts = _scattered(range(0, size, plan.tile))
    with ThreadPoolExecutor(1, thread_name_prefix="search-reader") as reader:
        blocks_ahead = _ahead(reader, lambda a: pool.block(a, min(size, a + plan.tile)), starts)
        for start, rows in zip(starts, blocks_ahead, strict=True):
            tile[: len(rows)].copy_(rows)
            tile[len(rows) :].zero_()
            if any(block.sieve for block in blocks):
                rounded.copy_(tile)
            for block in blocks:
                if block.sift(gemm, rounded, start, len(rows), scratch):
                    continue
                queries = asked[: len(block.queries)].copy_(block.queries)
                block.offer(_Scored(queries, tile, gemm(queries, tile), start, len(rows), scratch))


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


def _gemm(device: str) -> Gemm:
    """The fastest float32 product of [B, D] and [C, D] to [B, C]."""
    import torch

    if device.startswith("cuda"):
        return lambda q, x: torch.mm(q, x.T, out_dtype=torch.float32)
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        # oneDNN is twice as fast as torch.matmul (MKL) on AMD, and as fast elsewhere.
        return lambda q, x: torch.ops.mkldnn._linear_pointwise(q, x, None, "none", [], "")
    return lambda q, x: torch.nn.functional.linear(q, x)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Float32 products with float32 inputs and sums, whatever a model has asked torch for."""
    import torch

    cpu = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    cuda = torch.backends.cuda.matmul
    was = cpu.fp32_precision, cuda.allow_fp16_accumulation
    cpu.fp32_precision, cuda.allow_fp16_accumulation = "ieee", False
    try:
        yield
    finally:
        cpu.fp32_precision, cuda.allow_fp16_accumulation = was


@dataclass(frozen=True, slots=True)
class _Scored:
    """A tile and its approximate scores for one block of queries."""

    queries: Tensor
    """[B, D]"""
    tile: Tensor
    """[C, D], the last rows zero where the pool ends"""
    scores: Tensor
    """[B, C] float32, -inf where a pair is no candidate"""
    start: int
    """the pool row of the tile's first row"""
    count: int
    """how many of its rows are the pool's"""
    scratch: Tensor
    """float32 memory for a comparison of all scores"""

    def maxima(self) -> Tensor:
        """[B, C / 64]"""
        return self.scores.view(len(self.scores), -1, _GROUP).amax(2)

    def compared(self, scores: Tensor) -> Tensor:
        """Scratch of the shape of `scores`: a comparison written as float32 sums ten times faster."""
        return self.scratch[: scores.numel()].view(scores.shape)


class _Block:
    """The queries `start` to `stop`, and what the tiles so far have told about them."""

    def __init__(self, request: SearchRequest, plan: _Plan, k: int, start: int, stop: int) -> None:
        import torch

        self.start, self.stop = start, stop
        self.queries = _Vectors(request.queries, request.device).block(start, stop)
        self.sieve = _Sieve.of(self.queries) if plan.sifted else None
        self.top = _Top(request, plan, k, self.queries, self.sieve)
        self.places = _Places(request, start, stop)
        size = len(request.pool)
        query, row = np.divmod(_set(request.exclude, start, stop, size), max(1, size))
        order = np.argsort(row, kind="stable")
        self._gone_rows = row[order]
        self._gone = torch.from_numpy(np.stack([query[order], row[order]])).to(self.queries.device)

    def sift(self, gemm: Gemm, rounded: Tensor, start: int, count: int, scratch: Tensor) -> bool:
        """Offer the bfloat16 products with a tile. False where the block has no sieve, or where too
        many pairs pass it: this tile, then, and all later ones, are to come in float32."""
        if self.sieve is None:
            return False
        shape = len(self.queries), len(rounded)
        # A maximum over float32 is five times as fast as over bfloat16.
        scores = scratch[: shape[0] * shape[1]].view(shape).copy_(gemm(self.sieve.queries, rounded))
        self.offer(_Scored(self.sieve.queries, rounded, scores, start, count, scratch))
        if not self.top.crowded:
            return True
        self.sieve = None
        self.top.sharpen(start, start + count)
        return False

    def offer(self, scored: _Scored) -> None:
        scored.scores[:, scored.count :] = float("-inf")
        a, b = np.searchsorted(self._gone_rows, [scored.start, scored.start + len(scored.tile)]).tolist()
        if a < b:
            scored.scores[self._gone[0, a:b], self._gone[1, a:b] - scored.start] = float("-inf")
        maxima = scored.maxima()
        if self.top.k:
            self.top.offer(scored, maxima)
        self.places.offer(scored, maxima)


@dataclass(frozen=True, slots=True)
class _Sieve:
    """A block of queries in bfloat16.

    They are scaled so that no product with a unit row reaches 1: below it, rounding a product to
    bfloat16 moves it by at most 2^-9.
    """

    queries: Tensor
    """[B, D] bfloat16"""
    eps: Tensor
    """[B], how far a product can lie from the scaled canonical score"""

    @classmethod
    def of(cls, queries: Tensor) -> _Sieve:
        """For `queries` [B, D] float16.

        q'x' - qx = (q' - q)x' + q(x' - x), where rounding to bfloat16 moves every number of x by at
        most 2^-8 of its own size, and the whole row so; 1.01 stands for the norms of rounded rows.
        The sum in float32 errs as on tensor cores: processors, too, may truncate and align.
        """
        scaled = queries.double() * _SCALE
        rounded = scaled.bfloat16()
        lost = (rounded.double() - scaled).norm(dim=1)
        eps = 1.01 * (lost + 2.0**-8) + 2.0**-9 + tolerance(queries.shape[1], "cuda")
        return cls(rounded, eps.float())


@dataclass(frozen=True, slots=True)
class _Hits:
    """Pairs of a tile that may be among the best, `query` ascending."""

    query: Tensor
    column: Tensor
    score: Tensor

    def where(self, keep: Tensor) -> _Hits:
        return _Hits(self.query[keep], self.column[keep], self.score[keep])

    def count(self, per_query: Tensor) -> Tensor:
        """How many hits each query has, of the shape of `per_query`, [B]."""
        return self.query.bincount(minlength=len(per_query))

    def place(self, count: Tensor) -> Tensor:
        """The place of each hit among those of its query."""
        return _range(self.query) - (count.cumsum(0) - count)[self.query]


class _Top:
    """The running best k of a block of queries: what can still be among them, scored roughly.

    A score is within eps of the canonical one, so the k-th best rough score seen is at most eps
    above the k-th best canonical one, and what scores 2 eps less than it is out: `bound`. Where
    so many are within 2 eps that there is no room for them, their exact scores decide (`_settle`);
    behind a sieve, `crowded` says so, and float32 decides.
    """

    def __init__(
        self, request: SearchRequest, plan: _Plan, k: int, queries: Tensor, sieve: _Sieve | None
    ) -> None:
        import torch

        b, width, device = len(queries), _width(k, plan.sifted), queries.device
        self.k, self._queries, self._gather = k, queries, plan.gather
        self._pool = _Vectors(request.pool, request.device)
        self._sharp = torch.full((b,), tolerance(request.pool.dim, request.device), device=device)
        self._eps = self._sharp if sieve is None else sieve.eps
        self.crowded = False
        self._bound = torch.full((b,), _LOWEST, device=device)
        self._scores = torch.full((b, width), -torch.inf, device=device)  # [B, width] float32
        self._rows = torch.full((b, width), _LAST, dtype=torch.int32, device=device)
        self._fill = torch.zeros(b, dtype=torch.int64, device=device)
        self._exact = torch.zeros(b, dtype=torch.bool, device=device)
        self._primed = False

    def offer(self, scored: _Scored, maxima: Tensor) -> None:
        if not self._primed:
            self._prime(scored.scores, slice(None))
            self._primed = bool((self._bound > _LOWEST).all())
        groups = maxima >= self._bound[:, None]
        # Lists of hits of all scores of a tile at once would take several times its memory.
        step = len(groups) if int(groups.sum()) * 4 <= groups.numel() else max(1, len(groups) // 8)
        for a in range(0, len(groups), step):
            self._add(scored, groups[a : a + step], a)

    def _prime(self, scores: Tensor, which: Tensor | slice) -> None:
        """Raise the bound to what the k-th best of the kept ones and of this tile allows."""
        import torch

        seen = torch.cat([self._scores[which, : int(self._fill.max())], scores[which]], 1)
        if seen.shape[1] >= self.k:
            kth = seen.topk(self.k, sorted=False).values.amin(1)
            self._bound[which] = self._bound[which].maximum(kth - 2 * self._eps[which])

    def _add(self, scored: _Scored, groups: Tensor, first: int) -> None:
        index = groups.reshape(-1).nonzero().view(-1)
        if not len(index):
            return
        groups_per_row = groups.shape[1]
        query = index.div(groups_per_row, rounding_mode="floor") + first
        values = scored.scores.view(-1, _GROUP).index_select(0, index + first * groups_per_row)
        hit, inner = (values >= self._bound[query][:, None]).nonzero(as_tuple=True)
        column = (index[hit] % groups_per_row) * _GROUP + inner
        self._append(scored, _Hits(query[hit], column, values[hit, inner]))

    def _append(self, scored: _Scored, hits: _Hits) -> None:
        hits = self._make_room(scored, hits)
        count = hits.count(self._fill)
        place = hits.query * self._scores.shape[1] + hits.place(count) + self._fill[hits.query]
        self._scores.view(-1)[place] = hits.score
        self._rows.view(-1)[place] = (hits.column + scored.start).int()
        self._fill += count
        self._exact &= count == 0

    def _make_room(self, scored: _Scored, hits: _Hits) -> _Hits:
        """The hits that are left, and fit, once bounds are raised and crowded queries settled."""
        crowded = self._crowded(hits)
        if not bool(crowded.any()):
            return hits
        self._compress()
        hits = hits.where(hits.score >= self._bound[hits.query])
        crowded = self._crowded(hits)
        if not bool(crowded.any()):
            return hits
        self._prime(scored.scores, crowded)
        self._compress()
        hits = hits.where(hits.score >= self._bound[hits.query])
        crowded = self._crowded(hits)
        if bool(crowded.any()):
            if self._eps is self._sharp:
                self._settle(crowded, scored, hits.where(crowded[hits.query]))
            else:
                self.crowded = True
            hits = hits.where(~crowded[hits.query])
        return hits

    def _crowded(self, hits: _Hits) -> Tensor:
        return self._fill + hits.count(self._fill) > self._scores.shape[1]

    def _compress(self) -> None:
        """Drop what is below the bound that the kept ones give one another."""
        kept = int(self._fill.max())
        if kept <= self.k:
            return
        kth = self._scores[:, :kept].topk(self.k, sorted=False).values.amin(1)
        self._bound = self._bound.maximum(kth - 2 * self._eps)
        self._drop(kept)

    def _drop(self, kept: int) -> None:
        scores, rows = self._scores[:, :kept], self._rows[:, :kept]
        query, column = (scores >= self._bound[:, None]).nonzero(as_tuple=True)
        left = _Hits(query, column, scores[query, column])
        left_rows = rows[query, column]
        scores.fill_(float("-inf"))
        rows.fill_(_LAST)
        self._fill = left.count(self._fill)
        at = query, left.place(self._fill)
        scores[at], rows[at] = left.score, left_rows

    def sharpen(self, start: int, stop: int) -> None:
        """From here on the products are float32, those with the rows `start` to `stop` once more."""
        kept = int(self._fill.max())
        again = (self._rows >= start) & (self._rows < stop)
        self._scores.masked_fill_(again, float("-inf"))
        self._score_kept(~self._exact)
        self._bound.fill_(_LOWEST)
        self._drop(kept)
        self._eps, self.crowded = self._sharp, False
        self._compress()

    def _settle(self, crowded: Tensor, scored: _Scored | None = None, hits: _Hits | None = None) -> None:
        """Leave the crowded queries exactly their best k of the kept ones and of their hits."""
        import torch

        self._score_kept(crowded & ~self._exact)
        chosen = crowded.nonzero().view(-1)
        scores, rows = self._scores[chosen], self._rows[chosen]
        if scored is not None and hits is not None:
            more, more_rows = self._settle_hits(crowded, scored, hits)
            scores, rows = torch.cat([scores, more], 1), torch.cat([rows, more_rows], 1)
        index = _keys(scores, rows).topk(self.k).indices
        scores, rows = scores.gather(1, index), rows.gather(1, index)
        self._scores[chosen] = float("-inf")
        self._rows[chosen] = _LAST
        self._scores[chosen, : self.k] = scores
        self._rows[chosen, : self.k] = rows
        self._fill[chosen] = (scores > -torch.inf).sum(1)
        self._exact[chosen] = True
        self._bound[chosen] = self._bound[chosen].maximum(scores[:, -1] - self._eps[chosen])

    def _settle_hits(self, crowded: Tensor, scored: _Scored, hits: _Hits) -> tuple[Tensor, Tensor]:
        """Canonical scores and rows of what may displace a kept one, a line per crowded query."""
        import torch

        hits = replace(hits, score=_exact_in(scored, hits.query, hits.column))
        settled = self._exact & (self._fill == self.k)
        last = _keys(self._scores[:, self.k - 1], self._rows[:, self.k - 1])
        least = torch.where(settled, last, torch.iinfo(torch.int64).min)
        hits = hits.where(_keys(hits.score, hits.column + scored.start) > least[hits.query])
        count = hits.count(self._fill)
        shape = int(crowded.sum()), int(count.max())
        scores = torch.full(shape, -torch.inf, device=count.device)
        rows = torch.full(shape, _LAST, dtype=torch.int32, device=count.device)
        at = (crowded.cumsum(0) - 1)[hits.query], hits.place(count)
        scores[at], rows[at] = hits.score, (hits.column + scored.start).int()
        return scores, rows

    def _score_kept(self, which: Tensor) -> None:
        """Replace the rough scores that these queries have kept by canonical ones."""
        kept = max(1, int(self._fill.max()))
        query, column = ((self._scores[:, :kept] > _LOWEST) & which[:, None]).nonzero(as_tuple=True)
        for a in range(0, len(query), self._gather):
            q, c = query[a : a + self._gather], column[a : a + self._gather]
            x = self._pool.take(self._rows[q, c].long().cpu().numpy())
            self._scores[q, c] = _exact(self._queries, x, q, None)

    def result(self) -> tuple[Int32, Float32]:
        """rows, scores: [B, k]"""
        import torch

        self._compress()
        self._settle(torch.ones_like(self._exact))
        scores, rows = self._scores[:, : self.k], self._rows[:, : self.k]
        rows = rows.masked_fill(scores == -torch.inf, -1)
        return rows.cpu().numpy(), scores.cpu().numpy()


class _Places:
    """The counts for all reachable positives of a block of queries.

    Scores more than eps above or below a positive's are settled; those within are scored exactly.
    """

    def __init__(self, request: SearchRequest, start: int, stop: int) -> None:
        import torch

        size, positives = len(request.pool), request.positives
        pairs = _pairs(positives, start, stop, size)
        reached = (pairs >= 0) & ~np.isin(pairs, _set(request.exclude, start, stop, size))
        query, row = np.divmod(pairs[reached], max(1, size))
        # The first positives of all queries, then the second ones, and so on: within each level a
        # query stands once, so that a level is a comparison of rows with one number each.
        level = np.arange(len(query)) - np.searchsorted(query, query)
        order = np.lexsort((query, level))
        self._scores = rescore(request, query + start, row)[order]
        self.index: Int64 = (np.flatnonzero(reached) + int(positives.indptr[start]))[order]
        device = _device(request.device)
        self._eps = tolerance(request.pool.dim, request.device)
        self._query = torch.from_numpy(query[order]).to(device)
        self._row = torch.from_numpy(row[order]).to(device)
        self._score = torch.from_numpy(self._scores).to(device)
        self._ends = np.cumsum(np.bincount(level)).tolist() if len(level) else []
        self._counts = torch.zeros(3, len(query), dtype=torch.int64, device=device)

    def offer(self, scored: _Scored, maxima: Tensor) -> None:
        if not self._ends:
            return
        best = maxima.amax(1)
        for a, b in zip([0, *self._ends], self._ends, strict=False):
            self._level(scored, best, a, b)

    def _level(self, scored: _Scored, best: Tensor, a: int, b: int) -> None:
        import torch

        query, score = self._query[a:b], self._score[a:b]
        low, high = score - self._eps, score + self._eps
        if not bool((best[query] >= low).any()):
            return
        scores = scored.scores if b - a == len(scored.scores) else scored.scores.index_select(0, query)
        above = torch.gt(scores, high[:, None], out=scored.compared(scores)).sum(1).long()
        reached = torch.ge(scores, low[:, None], out=scored.compared(scores)).sum(1).long()
        self._counts[0, a:b] += above
        near = reached - above
        some = near.nonzero().view(-1)
        # As in `_Top.offer`: lists of all pairs of a tile at once would not fit.
        step = max(1, len(scores) if int(near.sum()) * 8 <= scores.numel() else len(scores) // 8)
        for i in range(0, len(some), step):
            self._near(scored, scores, some[i : i + step], a)

    def _near(self, scored: _Scored, scores: Tensor, part: Tensor, first: int) -> None:
        """Count the pairs whose rough score decides nothing."""
        import torch

        at = part + first
        score, scores = self._score[at], scores[part]
        near = (scores >= (score - self._eps)[:, None]) & (scores <= (score + self._eps)[:, None])
        which, column = near.nonzero(as_tuple=True)
        exact = _exact_in(scored, self._query[at][which], column)
        row, mine, equal = column + scored.start, self._row[at][which], exact == score[which]
        kinds = exact > score[which], equal & (row != mine), equal & (row < mine)
        for counts, kind in zip(self._counts, kinds, strict=True):
            counts[at] += torch.bincount(which[kind], minlength=len(at))

    def result(self) -> _Counts:
        greater, equal, before = self._counts.int().cpu().numpy()
        return _Counts(self._scores, greater, equal, before)
