"""How long scoring takes beside pytrec_eval, and an interval beside plain resampling.

CPU seconds on one thread, best of three in one run; BENCH_SIZE=100 is 200,000 queries × 50.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytrec_eval

from harness.metrics import MAP, MRR, NDCG, Hit, Recall, ranks_in_list
from harness.statistics import mean_ci

QUERIES = round(2000 * float(os.environ.get("BENCH_SIZE", "1")))
DEPTH = 50
RESAMPLES = 1000
PEERS = {
    **{Recall(k): f"recall_{k}" for k in (1, 5, 10, 50)},
    **{Hit(k): f"success_{k}" for k in (1, 5, 10)},
    MAP(50): "map_cut_50",
    MRR(50): "recip_rank",
    **{NDCG(k): f"ndcg_cut_{k}" for k in (10, 50)},
}


def cpu_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def test_eleven_metrics_beside_pytrec_eval(benchmark: Any) -> None:
    rng = np.random.default_rng(0)
    # Distinct candidates in every list, a few positives to a query, about half of them found.
    rows = (rng.integers(0, 1000, (QUERIES, 1)) + np.arange(DEPTH) * 7919) % 100_000
    rows = rng.permuted(rows, axis=1).astype(np.int32)
    relevant = rng.integers(1, 6, QUERIES)
    indptr = np.concatenate(([0], np.cumsum(relevant)))
    query = np.repeat(np.arange(QUERIES), relevant)
    nth = np.arange(indptr[-1]) - indptr[query]
    found = rng.random(indptr[-1]) < 0.5
    positives = np.where(found, rows[query, nth * 9], 100_000 + nth).astype(np.int32)
    grade = np.ones(len(positives), dtype=np.int64)

    def ours() -> list[float]:
        places = ranks_in_list(indptr, positives, grade=grade, rows=rows)
        return [float(metric(places).mean()) for metric in PEERS]

    qrels: dict[str, dict[str, int]] = {}
    for q, p in zip(query.tolist(), positives.tolist(), strict=True):
        qrels.setdefault(str(q), {})[str(p)] = 1
    run = {
        str(q): {str(row): float(DEPTH - i) for i, row in enumerate(listed)}
        for q, listed in enumerate(rows.tolist())
    }
    wanted = {"recall.1,5,10,50", "success.1,5,10", "map_cut.50", "recip_rank", "ndcg_cut.10,50"}
    peer = pytrec_eval.RelevanceEvaluator(qrels, wanted)

    values = benchmark(ours)
    theirs = peer.evaluate(run)
    means = [sum(v[name] for v in theirs.values()) / QUERIES for name in PEERS.values()]
    assert values == pytest.approx(means, abs=1e-9)
    benchmark.extra_info["queries"] = QUERIES
    benchmark.extra_info["ratio_to_pytrec_eval"] = cpu_seconds(ours) / cpu_seconds(lambda: peer.evaluate(run))


@pytest.mark.parametrize("distinct", [2, 50, 100_000])
def test_an_interval_beside_plain_resampling(benchmark: Any, distinct: int) -> None:
    values = np.random.default_rng(0).integers(0, distinct, QUERIES) / (distinct - 1)

    def plain() -> tuple[float, float]:
        rng = np.random.default_rng(0)
        means = [values[rng.integers(0, QUERIES, QUERIES)].mean() for _ in range(RESAMPLES)]
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)

    interval = benchmark(mean_ci, values, resamples=RESAMPLES)
    assert interval == pytest.approx(plain(), abs=0.5 * values.std() / QUERIES**0.5)
    ours = cpu_seconds(lambda: mean_ci(values, resamples=RESAMPLES))
    benchmark.extra_info["queries"] = QUERIES
    benchmark.extra_info["ratio_to_plain"] = ours / cpu_seconds(plain)
