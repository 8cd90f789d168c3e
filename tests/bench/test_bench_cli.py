"""`harness --help` and `harness list` against the bare cost of the libraries they are made of."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

LIBRARIES = "import typer, rich.console, pluggy, numpy, tabulate"
COMMANDS = {
    "help": "import sys; sys.argv = ['harness', '--help']; from harness.cli import main; main()",
    "list": "import sys; sys.argv = ['harness', 'list', 'tasks']; from harness.cli import main; main()",
}


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


@pytest.mark.parametrize("name", COMMANDS)
def test_start_up(benchmark, name):
    """Ratio to importing typer, rich, pluggy, numpy and tabulate; 1.0 would be free."""
    peer = statistics.median(seconds(LIBRARIES) for _ in range(7))
    benchmark.pedantic(seconds, args=(COMMANDS[name],), rounds=7, warmup_rounds=1)
    if benchmark.stats is not None:
        ours = benchmark.stats.stats.median
        benchmark.extra_info |= {"peer_s": peer, "ours_s": ours, "ratio": ours / peer}
