"""Search within a few candidates of each query's own."""

from __future__ import annotations

from functools import partial

import numpy as np

from harness.dtypes import tensor_of
from harness.run import Ragged, SearchRequest
from harness.search import ArrayRows, search

from .pools import SearchSizes, pool_and_queries
from .timing import Peer, Row, Timing, threads


def bench_galleries(sizes: SearchSizes, timing: Timing, *, gallery: int = 100) -> list[Row]:
    """Search limited to `gallery` rows a query, beside a loop that picks and multiplies them.

    `identical`: rows and scores equal those of float64 sums.
    """
    import torch

    with threads(timing.threads), pool_and_queries(sizes, None) as (pool, queries):
        assert isinstance(pool, ArrayRows)
        chosen = np.random.default_rng(1).integers(0, sizes.n, (len(queries), gallery))
        nothing, scope = Ragged.of([()] * len(queries)), Ragged.of(list(chosen.astype(np.int32)))
        request = SearchRequest(ArrayRows(queries), pool, min(sizes.k), nothing, scope, device=timing.device)
        x, q = tensor_of(pool.array), tensor_of(queries)

        def loop() -> None:
            for i, rows in enumerate(torch.from_numpy(chosen)):
                (x[rows].float() @ q[i].float()).topk(min(min(sizes.k), gallery))

        def as_float64() -> bool:
            found = search(request)
            for q, rows, got, reached in zip(queries, chosen, found.rows, found.scores, strict=True):
                rows = np.unique(rows)
                scores = (pool.array[rows].astype(np.float64) @ q.astype(np.float64)).astype(np.float32)
                best = np.argsort(-scores, kind="stable")[: request.k]
                if not (
                    np.array_equal(got[: len(best)], rows[best])
                    and np.array_equal(reached[: len(best)], scores[best])
                ):
                    return False
            return True

        def gathered() -> tuple[float, str]:
            buffer = np.empty((gallery, sizes.dim), sizes.dtype)

            def gather() -> None:
                for rows in chosen:  # mode: numpy copies once more where it could have to raise
                    pool.array.take(rows, axis=0, out=buffer, mode="clip")

            copy = min(timing.seconds(gather) for _ in range(3))
            return copy, f"{chosen.size * buffer[0].nbytes / 1e9:.2f} GB gathered, timed alone"

        return timing.rows(
            f"galleries of {gallery} in {sizes.place}, {len(queries)} queries, {timing.clock}",
            partial(search, request),
            [Peer("loop over queries", loop)],
            identical=as_float64,
            floor=gathered,
        )
