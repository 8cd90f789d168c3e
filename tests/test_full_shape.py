"""All 32 M-BEIR tasks through the command line: small, and (slow) at M-BEIR's full size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import full_shape
import pytest

from harness.tasks import mbeir_layout as layout

HERE = Path(__file__).parent
MEASURED = """
import resource, sys
from harness.cli import main
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"peak {used.ru_maxrss / 2**20:.2f} GiB, {used.ru_utime + used.ru_stime:.0f} s", file=sys.stderr)
"""


def run(folder: Path, scale: float) -> dict[str, dict]:
    """Results by task, after a run of both suites in a process of its own."""
    data = folder / "data"
    full_shape.write(data, scale)
    command = [sys.executable, "-c", MEASURED, "eval", "-m", "random", "--model-arg", "dim=16"]
    command += ["-s", "mbeir-local,mbeir-global", "--data", data, "-o", folder / "runs", "--workers", "0"]
    environment = os.environ | {
        "HARNESS_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": str(os.cpu_count()),
    }
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    print(done.stdout, done.stderr[-2000:])
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(p.read_text()) for p in (folder / "runs").glob("random/*/*/*.json")]
    return {r["task"]: r for r in results}


def check(results: dict[str, dict], scale: float) -> None:
    sizes = {row.name: full_shape.rows_of(row, scale) for row in layout.ROWS}
    every = sum(pool for _, pool in sizes.values())
    assert len(results) == 32
    for row in layout.ROWS:
        queries, pool = sizes[row.name]
        planted = len(range(0, queries, full_shape.PLANTED)) / queries
        for place, candidates in (("local", pool), ("global", every)):
            result = results[f"mbeir-{place}/{row.name}"]
            assert (result["counts"]["queries"], result["counts"]["candidates"]) == (queries, candidates)
            got = result["metrics"]["hit_at_1"]["value"]
            # what is not planted is found by chance only: k of the pool's rows for each positive
            assert planted <= got <= planted + 20 * row.qrels / row.queries / candidates + 3 / queries
            if place == "global":
                made = result["provenance"]["counts"]["embedded"]
                assert made == 0, f"{row.name}: the global task encoded {made} items again"


def test_all_tasks_at_a_thousandth_of_the_size(tmp_path):
    check(run(tmp_path, 0.001), 0.001)


@pytest.mark.slow
def test_all_tasks_at_full_size(tmp_path):
    """190,573 queries, 5,609,079 candidates: about half an hour on two cores."""
    check(run(tmp_path, 1.0), 1.0)
