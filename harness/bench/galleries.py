"""Search within a few candidates of each query's own."""

from __future__ import annotations

from functools import partial

import numpy as np

from harness.run import Ragged, SearchRequest
from harness.search import ArrayRows, search

from .pools import SearchSizes, pool_and_queries
from .timing import Peer, Row, Timing, threads


def bench_galleries(sizes: SearchSizes, timing: Timing, *, gallery: int = 100) -> list[Row]:
    """Search limited to `gallery` rows a query, beside a loop that picks and multiplies them; their best
    are not compared (see tests/test_search.py)."""
    import torch

    with threads(timing.threads), pool_and_queries(sizes, None) as (pool, queries):
        assert isinstance(pool, ArrayRows)
        chosen = np.random.default_rng(1).integers(0, sizes.n, (len(queries), gallery))
        nothing, scope = Ragged.of([()] * len(queries)), Ragged.of(list(chosen.astype(np.int32)))
        request = SearchRequest(ArrayRows(queries), pool, min(sizes.k), nothing, scope)
        x, q = torch.from_numpy(pool.array), torch.from_numpy(queries)

        def loop() -> None:
            for i, rows in enumerate(torch.from_numpy(chosen)):
                (x[rows].float() @ q[i].float()).topk(min(min(sizes.k), gallery))

        def gathered() -> tuple[float, str]:
            copy = min(timing.seconds(lambda: pool.array.take(chosen.ravel(), axis=0)) for _ in range(3))
            return copy, f"{chosen.size * sizes.dim * 2 / 1e9:.2f} GB gathered, timed alone"

        place = f"{sizes.n:,} × {sizes.dim}"
        return timing.rows(
            f"galleries of {gallery} in {place}, {len(queries)} queries, {timing.clock}",
            partial(search, request),
            [Peer("loop over queries", loop)],
            identical=lambda: None,
            floor=gathered,
        )
