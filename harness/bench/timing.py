"""How a comparison is measured: rows, peers, clocks, threads and memory."""

from __future__ import annotations

import importlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison."""

    case: str
    ours_s: float
    peer: str
    peer_s: float
    ratio: float
    identical: bool | None
    """whether the answers are right (see each bench), None where nothing was compared"""
    peak_gib: float
    """memory beyond what was in use before, at its peak while ours ran once"""
    floor_s: float
    floor: str
    """where the floor comes from"""


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    call: Call
    scale: float = 1.0
    """how many times longer the whole takes than the part that is timed"""


@dataclass(frozen=True, slots=True)
class Timing:
    """How to measure."""

    rounds: int = 3
    threads: int = 1

    @property
    def clock(self) -> str:
        """As cases name it: 1 thread, 2 threads."""
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}"

    def seconds(self, call: Call) -> float:
        clock = time.process_time if self.threads == 1 else time.perf_counter
        start = clock()
        call()
        return clock() - start

    def rows(
        self,
        case: str,
        ours: Call,
        peers: Sequence[Peer],
        *,
        identical: Callable[[], bool | None],
        floor: Callable[[], tuple[float, str]],
    ) -> list[Row]:
        """Ours, and each peer in turn, `rounds` times after one time that is not counted."""
        peak = peak_gib(ours)
        mine: list[float] = []
        theirs: list[list[float]] = [[] for _ in peers]
        for _ in range(self.rounds):
            mine.append(self.seconds(ours))
            for peer, taken in zip(peers, theirs, strict=True):
                taken.append(peer.scale * self.seconds(peer.call))
        right, least = identical(), floor()
        return [
            Row(
                case,
                statistics.median(mine),
                peer.name,
                statistics.median(taken),
                statistics.median(a / b for a, b in zip(mine, taken, strict=True)),
                right,
                peak,
                *least,
            )
            for peer, taken in zip(peers, theirs, strict=True)
        ]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch and faiss on so many threads."""
    import torch

    faiss = optional("faiss")
    was = torch.get_num_threads(), faiss.omp_get_max_threads() if faiss else 0
    torch.set_num_threads(count)
    if faiss:
        faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(was[0])
        if faiss:
            faiss.omp_set_num_threads(was[1])


def peak_gib(call: Call) -> float:
    """How far the process's memory rises while `call` runs; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _kib(status, "VmRSS")
        call()
        return (_kib(status, "VmHWM") - before) / 2**20
    except OSError:
        call()
        return float("nan")


def _kib(status: Path, name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+)", status.read_text())
    return int(found[1]) if found else 0


def optional(name: str) -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
