"""A pool file made into a table beside json.loads, as `harness bench load` measures it; then walking
through the table and picking rows.

BENCH_SIZE=50 is a million rows of about 240 bytes.
"""

from __future__ import annotations

import os
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.bench import Timing, bench_load
from harness.bench.loading import opened, write_pool

ROWS = round(20_000 * float(os.environ.get("BENCH_SIZE", "1")))


def test_building_and_opening_beside_json_line_by_line(benchmark: Any) -> None:
    rows = benchmark.pedantic(bench_load, (ROWS, Timing()), rounds=1)
    assert all(row.identical for row in rows)
    benchmark.extra_info["rows"] = [asdict(row) for row in rows]


def test_rows_at_random_and_in_order(benchmark: Any, tmp_path: Path) -> None:
    """Microseconds a row, of which making candidates is a large part."""
    write_pool(tmp_path / "pool.jsonl", ROWS)
    table = opened(tmp_path / "pool.jsonl")
    rng = random.Random(0)
    rows = [rng.randrange(ROWS) for _ in range(20_000)]
    benchmark(lambda: [table[row] for row in rows])
    timing = Timing()
    picked, walked, named = (
        min(timing.seconds(call) for _ in range(3))
        for call in (
            lambda: [table[row] for row in rows],
            lambda: sum(1 for _ in table),
            lambda: sum(1 for _ in table.ids),
        )
    )
    assert [c.id for c in table] == list(table.ids)
    benchmark.extra_info |= {
        "rows": ROWS,
        "us_at_random": 1e6 * picked / len(rows),
        "us_in_order": 1e6 * walked / ROWS,
        "us_an_id": 1e6 * named / ROWS,
    }
