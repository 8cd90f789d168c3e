"""Progress on stderr: a live bar on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

PIPE_SECONDS = 15.0


class Advance(Protocol):
    """Call with the number of items just finished."""

    def __call__(self, n: int, /) -> None: ...


class _Rate(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: object) -> Text:
        speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
        return Text(f"{speed:,.1f} items/s" if speed else "- items/s")


@dataclass
class _Lines:
    """Progress for a pipe: at most one line every PIPE_SECONDS, and one at the end."""

    title: str
    total: int

    def __post_init__(self) -> None:
        self.done = 0
        self.start = self.last = time.monotonic()

    def __call__(self, n: int, /) -> None:
        self.done += n
        now = time.monotonic()
        if self.done >= self.total or now - self.last >= PIPE_SECONDS:
            self.last = now
            rate = self.done / max(now - self.start, 1e-9)
            eta = (self.total - self.done) / rate if rate else 0.0
            left = f", {eta:,.0f} s left" if self.done < self.total else ""
            print(
                f"{self.title}: {self.done:,}/{self.total:,}, {rate:,.1f} items/s{left}",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def progress(title: str, total: int, *, quiet: bool = False) -> Iterator[Advance]:
    """Show `total` items with items/s and the time left; yields the function that advances it."""
    if quiet or not total:
        yield lambda n: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)
