"""Worker processes: they prepare batches while the device embeds others."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np

from harness.content import Image, Item, Video
from harness.errors import DataInvalid, HarnessError
from harness.media import decoding
from harness.model import Batch, Frontend

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

FEW_MEDIA = 64
"""Below this many pictures and clips, starting worker processes costs more than it saves."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a worker hands over: the positions that it could read, and why not the others."""

    window: int
    positions: list[int]
    batch: Batch
    broken: dict[int, str]
    seconds: float
    decode: float
    """Of the seconds, those that went into decoding pictures and clips."""

    def pin_memory(self) -> Prepared:
        """The same in memory that a GPU copies from by itself; the loader's thread asks for it."""
        return replace(self, batch=_pinned(self.batch))


def _pinned(value: Any) -> Any:
    """Arrays and tensors, wherever they are in mappings and sequences, in page-locked memory."""
    import torch

    if hasattr(value, "pin_memory"):
        return value.pin_memory()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size:
        return torch.from_numpy(np.require(value, requirements=["C", "W"])).pin_memory().numpy()
    if type(value) is dict:
        return {key: _pinned(each) for key, each in value.items()}
    return type(value)(map(_pinned, value)) if type(value) in (list, tuple) else value


class ItemSource:
    """A map-style dataset whose index is a planned batch; runs in workers."""

    def __init__(self, items: Sequence[Item], frontend: Frontend) -> None:
        self.items = items
        self.frontend = frontend

    def __getitem__(self, planned: tuple[int, list[int]]) -> Prepared:
        window, positions = planned
        start = time.perf_counter()
        broken: dict[int, str] = {}
        with decoding() as decoded:
            try:
                batch = self.frontend.prepare([self.items[i] for i in positions])
            except (DataInvalid, OSError):
                batch, positions, broken = self._salvage(positions)
        seconds = time.perf_counter() - start
        return Prepared(window, positions, batch, broken, seconds, sum(decoded))

    def _salvage(self, positions: Sequence[int]) -> tuple[Batch, list[int], dict[int, str]]:
        broken = {}
        for i in positions:
            try:
                self.frontend.prepare([self.items[i]])
            except (DataInvalid, OSError) as error:
                broken[i] = str(error)
        left = [i for i in positions if i not in broken]
        return (self.frontend.prepare([self.items[i] for i in left]) if left else None), left, broken


class Source(Protocol[T_co]):
    """What makes batches from plans; it crosses into worker processes, so it must pickle."""

    def __getitem__(self, planned: Any, /) -> T_co: ...


def in_workers(source: Source[T], planned: Iterator[Any], workers: int, device: str) -> Iterator[T]:
    """`source[plan]` of every plan, in order, from so many worker processes (0: from this one); for a GPU
    in memory that it copies from by itself."""
    pinned = device.startswith("cuda")
    if not workers:
        made = map(source.__getitem__, planned)
        yield from map(_pinned, made) if pinned else made
        return
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        source,  # type: ignore[arg-type]
        batch_size=None,
        sampler=_Lazy(planned),
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pinned,
        prefetch_factor=4,
    )
    try:
        yield from _started(loader)
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise worker_died(error) from error
        raise


def _started(loader: Iterable[T]) -> Iterator[T]:
    """The loader with its workers at work. torch lets the end of a worker interrupt this process wherever
    it is, were it writing to the store; without that, the loader says so where a batch is asked for."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
    iterator = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return iterator


def worker_died(error: Exception) -> HarnessError:
    """The one line for a preparing process that is gone."""
    return HarnessError(
        f"a worker process died ({error}): free some memory or lower --workers"
        " and run the same command again; finished shards are kept"
    )


class _Lazy:
    """A sampler that plans as it goes, so that a lowered budget reaches the next window."""

    def __init__(self, planned: Iterator[Any]) -> None:
        self.planned = planned

    def __iter__(self) -> Iterator[Any]:
        return self.planned


def _unchanged(prepared: T) -> T:
    return prepared


def worker_count(items: Iterable[Item], wanted: int | None) -> int:
    """How many worker processes to use: as wanted, else as many as pay (none for texts and few media)."""
    if wanted is not None:
        return wanted
    media = (item for item in items if any(isinstance(p, (Image, Video)) for p in item.parts))
    few = sum(1 for _ in islice(media, FEW_MEDIA)) < FEW_MEDIA
    return 0 if few else max(1, min(8, _cores() - 1))


def _cores() -> int:
    """Cores that this process may use; not every system can say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
