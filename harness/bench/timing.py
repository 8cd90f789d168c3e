"""How a comparison is measured: rows, peers, clocks, threads and memory."""

from __future__ import annotations

import importlib
import os
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
    device: str = "cpu"

    @property
    def clock(self) -> str:
        """As cases name it: 1 thread, 2 threads, cuda."""
        if self.device != "cpu":
            return self.device
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}"

    def seconds(self, call: Call) -> float:
        """CPU seconds of one thread; of several, and of a device until it has done all, by the clock."""
        clock = _cpu if self.threads == 1 and self.device == "cpu" else time.perf_counter
        self._wait()
        start = clock()
        call()
        self._wait()
        return clock() - start

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)

    def turns(self, calls: Sequence[Call]) -> list[list[float]]:
        """The seconds of each call in every round, [calls][rounds]: they take turns."""
        taken: list[list[float]] = [[] for _ in calls]
        for _ in range(self.rounds):
            for call, times in zip(calls, taken, strict=True):
                times.append(self.seconds(call))
        return taken

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
        mine, *theirs = self.turns([ours, *(peer.call for peer in peers)])
        return compared(case, mine, peers, theirs, identical=identical(), peak=peak, floor=floor())


def compared(
    case: str,
    mine: Sequence[float],
    peers: Sequence[Peer],
    theirs: Sequence[Sequence[float]],
    *,
    identical: bool | None,
    peak: float,
    floor: tuple[float, str],
) -> list[Row]:
    """A row for each peer, from the seconds of every round: ours, [rounds], and theirs, [peers][rounds]."""
    rows = []
    for peer, times in zip(peers, theirs, strict=True):
        whole = [peer.scale * seconds for seconds in times]
        rows.append(
            Row(
                case,
                statistics.median(mine),
                peer.name,
                statistics.median(whole),
                statistics.median(a / b for a, b in zip(mine, whole, strict=True)),
                identical,
                peak,
                *floor,
            )
        )
    return rows


def _cpu() -> float:
    """CPU seconds of this process, and of those that it started and that have ended."""
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system


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
