"""The store beside the disk alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.store import Keys, Store, StoredRows, as_keys

from .timing import Peer, Row, Timing

Half = npt.NDArray[np.float16]

_BLOCK = 8192
"""Rows read at a time, as a search does."""
_IDENTITY = {"model": "bench"}


@dataclass(frozen=True, slots=True)
class StoreSizes:
    rows: int = 131_072
    dim: int = 768
    shard: int = 16_384


def bench_store(sizes: StoreSizes, timing: Timing, *, folder: Path | None = None) -> list[Row]:
    """Rows stored and read again, beside bytes appended to a file and copied from a mapped one; in
    `folder`, or where temporary files lie. `identical`: the rows that come back.

    What a disk does shows on the clock alone: give more than one thread.
    """
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((sizes.rows, sizes.dim), dtype=np.float32).astype(np.float16)
    keys = as_keys(rng.bytes(16) for _ in range(sizes.rows))
    with tempfile.TemporaryDirectory(dir=folder) as made:
        trial = _Trial(sizes, rows, keys, Path(made) / "store", Path(made) / "plain.npy")
        return [*_writing(trial, timing), *_reading(trial, timing)]


@dataclass(frozen=True, slots=True)
class _Trial:
    """Rows and their keys, the store and the plain file that they go to."""

    sizes: StoreSizes
    rows: Half
    keys: Keys
    root: Path
    plain: Path

    @property
    def place(self) -> str:
        return f"{self.sizes.rows:,} × {self.sizes.dim} in shards of {self.sizes.shard:,}"

    def opened(self) -> StoredRows | None:
        """The stored rows, verified; None where some are missing."""
        store = Store(self.root, _IDENTITY)
        return None if store.missing(self.keys).any() else store.rows(self.keys)

    def comes_back(self) -> bool:
        found = self.opened()
        return found is not None and np.array_equal(found.block(0, len(self.rows)), self.rows)


def _writing(trial: _Trial, timing: Timing) -> list[Row]:
    shard, rows = trial.sizes.shard, trial.rows
    parts = [slice(a, a + shard) for a in range(0, len(rows), shard)]

    def write() -> None:
        shutil.rmtree(trial.root, ignore_errors=True)
        store = Store(trial.root, _IDENTITY)
        for part in parts:
            store.add(trial.keys[part], rows[part])

    def append(*, sync: bool) -> None:
        trial.plain.unlink(missing_ok=True)
        for part in parts:
            with trial.plain.open("ab") as file:
                rows[part].tofile(file)
                file.flush()
                if sync:
                    os.fsync(file.fileno())

    def least() -> tuple[float, str]:
        taken = min(timing.seconds(partial(append, sync=False)) for _ in range(3))
        return taken, f"{rows.nbytes / 1e9:.2f} GB written and not waited for"

    peers = [Peer("appended to one file, synced as often", partial(append, sync=True))]
    case = f"store written, {trial.place}"
    return timing.rows(case, write, peers, identical=trial.comes_back, floor=least)


def _reading(trial: _Trial, timing: Timing) -> list[Row]:
    rows = trial.rows
    np.save(trial.plain, rows)
    stored = trial.opened()
    assert stored is not None, "written just before"
    starts = range(0, len(rows), _BLOCK)
    copy = np.empty((_BLOCK, trial.sizes.dim), np.float16)

    def read() -> None:
        for a in starts:
            stored.block(a, min(len(rows), a + _BLOCK))

    def mapped() -> None:
        whole = np.load(trial.plain, mmap_mode="r")
        for a in starts:
            np.array(whole[a : a + _BLOCK])

    def copied() -> None:
        whole = np.load(trial.plain, mmap_mode="r")
        for a in starts:
            part = whole[a : a + _BLOCK]
            copy[: len(part)] = part

    def least() -> tuple[float, str]:
        taken = min(timing.seconds(copied) for _ in range(3))
        return taken, f"{rows.nbytes / 1e9:.2f} GB copied from the page cache to one place"

    peers = [Peer("np.load mapped, copied in blocks", mapped)]
    case = f"store read, {trial.place}"
    return timing.rows(case, read, peers, identical=trial.comes_back, floor=least)
