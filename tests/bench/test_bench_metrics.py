"""How long scoring takes beside pytrec_eval, as `harness bench metrics` measures it, and an interval
beside plain resampling.

CPU seconds on one thread; BENCH_SIZE=100 is 200,000 queries × 50.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from harness.bench import Timing, bench_metrics
from harness.statistics import mean_ci

QUERIES = round(2000 * float(os.environ.get("BENCH_SIZE", "1")))
RESAMPLES = 1000


def test_eleven_metrics_beside_pytrec_eval(benchmark: Any) -> None:
    rows = benchmark.pedantic(bench_metrics, (QUERIES, Timing()), rounds=1)
    assert all(row.identical for row in rows)
    benchmark.extra_info["rows"] = [asdict(row) for row in rows]


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
    timing = Timing()
    ours, theirs = (
        min(timing.seconds(call) for _ in range(3))
        for call in (lambda: mean_ci(values, resamples=RESAMPLES), plain)
    )
    benchmark.extra_info["queries"] = QUERIES
    benchmark.extra_info["ratio_to_plain"] = ours / theirs
