"""Exact search beside faiss, torch, numpy, sentence-transformers and one query at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.compat import allow_torchvision
from harness.dtypes import tensor_of
from harness.run import Ragged, Rows, SearchRequest
from harness.search import ArrayRows, search, sifted
from harness.search.plan import PIECE
from harness.search.tile import packed, product
from harness.store import Embeddings

from .pools import BLOCK, SearchSizes, Single, pool_and_queries
from .timing import Peer, Row, Timing, optional, threads

Asked = Callable[[Rows, Embeddings, int], SearchRequest]
"""The best k of a pool for these queries."""

_CHECKED = 1 << 37
"""Products and sums that a comparison with float64 brute force may take: some ten seconds."""
_DEVICE_BLOCK = 1 << 17
_ALONE = 8
"""Queries of which the time of one at a time is taken, and scaled to all."""


def bench_search(sizes: SearchSizes, timing: Timing, *, on_disk: Path | None = None) -> list[Row]:
    """`identical`: ids and order equal to those of a float64 brute force, for as many queries as that
    takes seconds for. With `on_disk` the pool lies in a file there, and only ours is measured, against a
    float32 product of the same shape."""
    rows = []

    def asked(pool: Rows, queries: Embeddings, k: int) -> SearchRequest:
        nothing = Ragged.of([()] * len(queries))
        device, memory, sieve = timing.device, sizes.memory, sizes.sieve
        return SearchRequest(ArrayRows(queries), pool, k, nothing, device=device, memory=memory, sieve=sieve)

    floor = _product_floor if timing.device == "cpu" else _device_floor
    with threads(timing.threads), pool_and_queries(sizes, on_disk) as (pool, queries):
        if not isinstance(pool, ArrayRows):
            peers = _products(pool, queries)
        elif timing.device == "cpu":
            peers = _search_peers(pool, queries, asked)
        else:
            peers = _device_peers(pool, queries, timing.device)
        for k in sizes.k:
            request = asked(pool, queries, k)
            place = f"{sizes.place}{' on disk' if on_disk else ''}"
            case = (
                f"search {place}, {len(queries)} queries, k={k}, {sizes.order} order, {_kind(request)},"
                f" {timing.clock}"
            )
            rows += timing.rows(
                case,
                partial(search, request),
                [peer for make in peers if (peer := make(k))],
                identical=partial(_as_brute_force, request),
                floor=partial(floor, request, timing),
            )
    return rows


def _search_peers(pool: ArrayRows, queries: Embeddings, asked: Asked) -> list[Callable[[int], Peer | None]]:
    """faiss, blocks of torch and numpy, sentence-transformers, one query at a time, and ours, all over
    float32 rows in memory."""
    import torch

    x, q = pool.array.astype(np.float32), queries.astype(np.float32)
    tx, tq = torch.from_numpy(x), torch.from_numpy(q)
    peers: list[Callable[[int], Peer | None]] = []
    if faiss := optional("faiss"):
        index = faiss.IndexFlatIP(x.shape[1])
        index.add(x)
        kind = os.environ.get("OPENBLAS_CORETYPE", "unset")
        name = f"faiss IndexFlatIP (OPENBLAS_CORETYPE {kind})"
        peers.append(lambda k: Peer(name, partial(index.search, q, k)))
    alone = min(_ALONE, len(q))
    peers += [
        lambda k: Peer("torch matmul and topk in blocks", partial(_torch_blocks, tq, tx, k)),
        lambda k: Peer("numpy matmul and argpartition in blocks", partial(_numpy_blocks, q, x, k)),
        lambda k: Peer("one query at a time", partial(_one_by_one, tq[:alone], tx, k), len(q) / alone),
    ]
    allow_torchvision()
    if optional("sentence_transformers"):
        from sentence_transformers import util

        semantic = partial(util.semantic_search, tq, tx, score_function=util.dot_score)
        peers.append(lambda k: Peer("sentence-transformers semantic_search", lambda: semantic(top_k=k)))
    if pool.array.dtype != np.float32:
        peers.append(lambda k: Peer("ours, over rows in float32", partial(search, asked(ArrayRows(x), q, k))))
    return peers


def _device_peers(pool: ArrayRows, queries: Embeddings, device: str) -> list[Callable[[int], Peer | None]]:
    """Blocks of torch and one query at a time, over rows that lie on the device already."""
    tx, tq = (tensor_of(x).to(device) for x in (pool.array, queries))
    alone = min(_ALONE, len(tq))
    place = "rows on the device"
    return [
        lambda k: Peer(f"torch matmul and topk in blocks, {place}", partial(_torch_blocks, tq, tx, k)),
        lambda k: Peer(
            f"one query at a time, {place}", partial(_one_by_one, tq[:alone], tx, k), len(tq) / alone
        ),
    ]


def _products(pool: Rows, queries: Embeddings) -> list[Callable[[int], Peer | None]]:
    """The float32 product with one block of the pool, scaled to all of it."""
    import torch

    block = torch.from_numpy(pool.block(0, min(len(pool), BLOCK)).astype(np.float32))
    asked = torch.from_numpy(queries.astype(np.float32))
    call = partial(_product, asked, block)
    return [lambda k: Peer("float32 product alone (scaled)", call, len(pool) / len(block))]


def _torch_blocks(queries: Any, pool: Any, k: int) -> Any:
    """What people write: a matrix product and a top-k per block, merged."""
    import torch

    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    step = BLOCK if queries.device.type == "cpu" else _DEVICE_BLOCK
    for a in range(0, len(pool), step):
        scores = queries @ pool[a : a + step].T
        values, index = scores.topk(min(k, scores.shape[1]), dim=1)
        best, order = torch.cat([best, values], 1).topk(min(k, best.shape[1] + values.shape[1]), dim=1)
        rows = torch.cat([rows, index + a], 1).gather(1, order)
    return rows


def _numpy_blocks(queries: Single, pool: Single, k: int) -> npt.NDArray[np.int64]:
    best, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for a in range(0, len(pool), BLOCK):
        scores = queries @ pool[a : a + BLOCK].T
        some = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
        best = np.concatenate([best, np.take_along_axis(scores, some, 1)], 1)
        rows = np.concatenate([rows, some + a], 1)
        order = np.argpartition(-best, min(k, best.shape[1]) - 1, axis=1)[:, :k]
        best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
    order = np.argsort(-best, axis=1)
    return np.take_along_axis(rows, order, 1)


def _one_by_one(queries: Any, pool: Any, k: int) -> list[Any]:
    return [(pool @ query).topk(min(k, len(pool))).indices for query in queries]


def _product(queries: Any, pool: Any) -> None:
    """The matrix product alone, in pieces as ours are."""
    multiply, asked = product("cpu"), packed(queries)
    for a in range(0, len(pool), PIECE):
        multiply(asked, pool[a : a + PIECE])


def _kind(request: SearchRequest) -> str:
    """The type of the products that come first."""
    if request.device != "cpu":
        return str(request.queries.block(0, 0).dtype)
    first = request.sieve and sifted(request.k + 1, len(request.pool), request.device)
    return "bfloat16" if first else "float32"


def _product_floor(request: SearchRequest, timing: Timing) -> tuple[float, str]:
    """What the product takes at the rate of one tile, in the type that the search uses."""
    import torch

    n, dim, queries = len(request.pool), request.pool.dim, len(request.queries)
    kind = _kind(request)
    tile, asked = (
        torch.from_numpy(rows.astype(np.float32)).to(getattr(torch, kind))
        for rows in (request.pool.block(0, min(n, BLOCK)), request.queries.block(0, queries))
    )
    _product(asked, tile)
    rate = (
        2 * len(tile) * dim * queries / min(timing.seconds(partial(_product, asked, tile)) for _ in range(5))
    )
    flop, read = 2 * n * dim * queries, n * dim * request.pool.block(0, 0).itemsize
    return flop / rate, f"{flop:.2e} FLOP at {rate / 1e9:.0f} GFLOP/s ({kind}); {read / 1e9:.2f} GB read"


def _device_floor(request: SearchRequest, timing: Timing) -> tuple[float, str]:
    """What the product takes at the rate of one block that is there, or moving the rows there."""
    n, dim, queries = len(request.pool), request.pool.dim, len(request.queries)
    there = tensor_of(np.array(request.pool.block(0, min(n, _DEVICE_BLOCK))))
    if timing.device.startswith("cuda"):
        there = there.pin_memory()
    tile = there.to(timing.device)
    asked = tensor_of(request.queries.block(0, queries)).to(timing.device)
    multiply = min(timing.seconds(lambda: asked @ tile.T) for _ in range(5)) * n / len(tile)
    move = min(timing.seconds(lambda: tile.copy_(there)) for _ in range(5)) * n / len(tile)
    flop, read = 2 * n * dim * queries, n * dim * request.pool.block(0, 0).itemsize
    return max(multiply, move), (
        f"the longer of {flop:.2e} FLOP at {flop / multiply / 1e9:,.0f} GFLOP/s ({_kind(request)})"
        f" and {read / 1e9:.2f} GB moved at {read / move / 1e9:.0f} GB/s"
    )


def _as_brute_force(request: SearchRequest) -> bool:
    """Whether ids, order and scores are those of float64 sums, for as many queries as is affordable."""
    found = search(request)
    n, k = len(request.pool), request.k
    count = max(1, min(len(request.queries), _CHECKED // (n * request.pool.dim)))
    asked = request.queries.block(0, count).astype(np.float64)
    scores = np.empty((count, n), np.float32)
    for a in range(0, n, BLOCK):
        b = min(n, a + BLOCK)
        scores[:, a:b] = asked @ request.pool.block(a, b).astype(np.float64).T
    for got, reached, row in zip(found.rows, found.scores, scores, strict=False):
        # Everything that may be among the best k, ties at the end included, in the order of the pool.
        near = np.flatnonzero(row >= np.partition(row, max(0, n - k))[max(0, n - k)])
        best = near[np.argsort(-row[near], kind="stable")][:k]
        if not np.array_equal(got[: len(best)], best) or not np.array_equal(reached[: len(best)], row[best]):
            return False
    return True
