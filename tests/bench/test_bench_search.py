"""Exact search beside faiss, torch and numpy: what `harness bench search` measures.

    pytest tests/bench/test_bench_search.py --benchmark-enable

The rows lie in `extra_info` (ours divided by theirs: below 1 is faster). Sizes come from the environment:
HARNESS_BENCH_POOL (default 20000), HARNESS_BENCH_DIM (256), HARNESS_BENCH_QUERIES (256); the published
figures are of 200000 x 768 with 512 queries, one thread.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from harness.bench import Peer, SearchSizes, Timing, bench_galleries, bench_search, threads
from harness.bench.pools import pool_and_queries
from harness.run import Ragged, SearchRequest
from harness.search import ArrayRows, search


def setting(name: str, default: int) -> int:
    return int(os.environ.get(f"HARNESS_BENCH_{name}", default))


SIZES = SearchSizes(setting("POOL", 20_000), setting("DIM", 256), setting("QUERIES", 256), (10, 50, 1000))


@pytest.mark.parametrize("order", ["random", "ascending"])
def test_unscoped(benchmark: Any, order: str) -> None:
    sizes = SearchSizes(SIZES.n, SIZES.dim, SIZES.queries, SIZES.k, order)
    rows = benchmark.pedantic(bench_search, (sizes, Timing()), rounds=1)
    assert all(row.identical for row in rows)
    benchmark.extra_info["rows"] = [asdict(row) for row in rows]


def test_galleries_of_100(benchmark: Any) -> None:
    rows = benchmark.pedantic(bench_galleries, (SIZES, Timing()), rounds=1)
    benchmark.extra_info["rows"] = [asdict(row) for row in rows]


def test_a_pool_of_one_repeated_row(benchmark: Any) -> None:
    """The worst that the bounds can meet: every score ties, and every one is computed exactly."""
    with threads(1), pool_and_queries(SIZES, None) as (pool, queries):
        nothing = Ragged.of([[]] * len(queries))
        same = ArrayRows(np.repeat(pool.block(0, 1), len(pool), axis=0))
        request, ordinary = (SearchRequest(ArrayRows(queries), rows, 50, nothing) for rows in (same, pool))
        peer = Peer("an ordinary pool", lambda: search(ordinary))
        (row,) = benchmark.pedantic(
            lambda: Timing(1).rows(
                "one repeated row",
                lambda: search(request),
                [peer],
                identical=lambda: bool((search(request).rows == np.arange(50)).all()),
                floor=lambda: (0.0, "not measured"),
            ),
            rounds=1,
        )
    assert row.identical
    benchmark.extra_info["row"] = asdict(row)
