"""One task in its local and in the global pool: together, and as two separate runs would do it.

CPU seconds of one evaluation each, the same tiny CLIP on the miniature; ratio = ours / separate.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest

from harness.encode import EngineOptions
from harness.evaluate import EvalOptions, evaluate
from harness.registry import load_catalog

TASK = "edis_task2"
ROUNDS = 3


@pytest.fixture(scope="module")
def seconds(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    catalog = load_catalog()
    spec = catalog.models["clip"]
    folder = tmp_path_factory.mktemp("mbeir")
    local, world = (catalog.tasks[f"mbeir-{place}/{TASK}"] for place in ("local", "global"))
    local.mini(folder / "data")
    options = spec.tiny(folder / "tiny")
    engine = EngineOptions(workers=0, quiet=True)

    def run(name: Path, *groups: list) -> float:  # type: ignore[type-arg]
        start = time.process_time()
        for number, tasks in enumerate(groups):
            places = EvalOptions(folder / "data", name / "runs", name / f"cache{number}", engine=engine)
            outcomes = evaluate(catalog, spec, options, tasks, places)
            assert not [o.error for o in outcomes if o.error]
        return time.process_time() - start

    run(folder / "warm", [local])
    return lambda number, *groups: run(folder / f"{len(groups)}-{number}", *groups), local, world


def test_local_and_global(benchmark, seconds):  # type: ignore[no-untyped-def]
    run, local, world = seconds
    separate = statistics.median(run(n, [local], [world]) for n in range(ROUNDS))
    rounds = iter(range(ROUNDS, 10 * ROUNDS))
    taken: list[float] = []
    benchmark.pedantic(lambda: taken.append(run(next(rounds), [local, world])), rounds=ROUNDS)
    ours = statistics.median(taken)
    benchmark.extra_info |= {"peer_s": separate, "ours_s": ours, "ratio": ours / separate}
