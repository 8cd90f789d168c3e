"""How long scoring takes beside pytrec_eval, ir-measures and ranx, and an interval beside plain
resampling: what `harness bench metrics` measures.

CPU seconds on one thread; BENCH_SIZE=100 is 200,000 queries × 50.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from harness.bench import Timing, bench_intervals, bench_metrics

QUERIES = round(2000 * float(os.environ.get("BENCH_SIZE", "1")))


def test_eleven_metrics_beside_pytrec_eval(benchmark: Any) -> None:
    rows = benchmark.pedantic(bench_metrics, (QUERIES, Timing()), rounds=1)
    assert all(row.identical for row in rows)
    benchmark.extra_info["rows"] = [asdict(row) for row in rows]


def test_intervals_beside_plain_resampling(benchmark: Any) -> None:
    rows = benchmark.pedantic(bench_intervals, (QUERIES, Timing(1)), rounds=1)
    assert all(row.identical for row in rows)
    benchmark.extra_info["rows"] = [asdict(row) for row in rows]
