"""`harness --help` and `harness list` against the bare cost of the libraries they are made of, a part of
what `harness bench start` measures."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import pytest

from harness.bench import Timing
from harness.bench.start import LIBRARIES, OURS, run_python

CLOCK = Timing(threads=2)


@pytest.mark.parametrize("arguments", [["--help"], ["list", "tasks"]], ids=" ".join)
def test_start_up(benchmark: Any, arguments: list[str]) -> None:
    """Ratio to importing typer, rich, pluggy, numpy and tabulate; 1.0 would be free."""
    peer = statistics.median(CLOCK.seconds(partial(run_python, LIBRARIES)) for _ in range(3))
    benchmark.pedantic(run_python, args=(OURS.format(arguments),), rounds=3, warmup_rounds=1)
    if benchmark.stats is not None:
        ours = benchmark.stats.stats.median
        benchmark.extra_info |= {"peer_s": peer, "ours_s": ours, "ratio": ours / peer}
