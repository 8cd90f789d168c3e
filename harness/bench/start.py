"""How long a command takes to start, beside importing what it is made of."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from importlib.util import find_spec

from .timing import Peer, Row, Timing

LIBRARIES = "import typer, rich.console, pluggy, numpy, tabulate"
OURS = "import sys; sys.argv = ['harness', *{}]; from harness.cli import main; main()"


def bench_start(timing: Timing) -> list[Row]:
    """`harness --help` and `harness list models`, each in a process of its own, beside `import torch`, and
    MTEB's and sentence-transformers' where they are installed. The floor: importing the libraries that the
    command line is made of."""
    peers = [Peer("import torch", partial(run_python, "import torch"))]
    for module in ("mteb", "sentence_transformers"):
        if find_spec(module):
            peers.append(Peer(f"import {module}", partial(run_python, f"{_QUIETLY}import {module}")))

    def floor() -> tuple[float, str]:
        return min(timing.seconds(partial(run_python, LIBRARIES)) for _ in range(3)), LIBRARIES

    return [
        row
        for arguments in (("--help",), ("list", "models"))
        for row in timing.rows(
            f"harness {' '.join(arguments)}",
            partial(run_python, OURS.format(list(arguments))),
            peers,
            identical=lambda: None,
            floor=floor,
        )
    ]


_QUIETLY = "from harness.compat import allow_torchvision; allow_torchvision(); "
"""Some builds of torchvision cannot be imported without."""


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
