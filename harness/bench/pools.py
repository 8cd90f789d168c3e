"""Pools and queries made up for searching, in memory or in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.dtypes import DTYPE
from harness.run import Rows
from harness.search import ArrayRows
from harness.store import Embeddings

Single = npt.NDArray[np.float32]

BLOCK = 8192
"""Rows at a time."""


@dataclass(frozen=True, slots=True)
class SearchSizes:
    n: int = 200_000
    dim: int = 768
    queries: int = 512
    k: tuple[int, ...] = (10, 50)
    order: str = "random"
    """or `ascending`: the later in the pool, the nearer to the queries"""
    memory: int = 1 << 30
    sieve: bool = True
    """whether bfloat16 products may come first"""
    dtype: str = DTYPE
    """of the rows"""

    @property
    def place(self) -> str:
        return f"{self.n:,} × {self.dim}{'' if self.dtype == DTYPE else f' {self.dtype}'}"


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows of a raw file, read and never mapped, so that they do not count as memory."""

    path: Path
    size: int
    dim: int
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.size

    def block(self, start: int, stop: int) -> Embeddings:
        count, offset = (stop - start) * self.dim, start * self.dim * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, count, offset=offset).reshape(-1, self.dim)

    def take(self, rows: npt.NDArray[np.int64]) -> Embeddings:
        return np.memmap(self.path, self.dtype, "r", shape=(self.size, self.dim)).take(rows, axis=0)


@contextmanager
def pool_and_queries(sizes: SearchSizes, on_disk: Path | None) -> Iterator[tuple[Rows, Embeddings]]:
    """Clustered unit rows, [N, D], and queries near some of them, [Q, D]: score gaps as in real pools."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(1, sizes.n // 100), sizes.dim), dtype=np.float32)
    towards = rng.standard_normal(sizes.dim, dtype=np.float32)

    def blocks() -> Iterator[Embeddings]:
        for a in range(0, sizes.n, BLOCK):
            count = min(BLOCK, sizes.n - a)
            part = centres[rng.integers(0, len(centres), count)]
            part = part + rng.standard_normal(part.shape, dtype=np.float32)
            if sizes.order == "ascending":
                part += (
                    np.linspace(3 * a, 3 * (a + count), count, dtype=np.float32)[:, None] / sizes.n * towards
                )
            yield unit(part).astype(sizes.dtype)

    if on_disk is None:
        pool: Rows = ArrayRows(np.concatenate(list(blocks())))
        yield pool, _near(pool, sizes, towards, rng)
        return
    with tempfile.NamedTemporaryFile(dir=on_disk) as file:
        for block in blocks():
            block.tofile(file)
        file.flush()
        pool = FileRows(Path(file.name), sizes.n, sizes.dim, np.dtype(sizes.dtype))
        yield pool, _near(pool, sizes, towards, rng)


def _near(pool: Rows, sizes: SearchSizes, towards: Single, rng: np.random.Generator) -> Embeddings:
    near = pool.take(rng.integers(0, sizes.n, sizes.queries)).astype(np.float32) * sizes.dim**0.5
    if sizes.order == "ascending":
        near = np.broadcast_to(towards, near.shape)
    return unit(near + rng.standard_normal(near.shape, dtype=np.float32)).astype(sizes.dtype)


def unit(x: Single) -> Single:
    scaled: Single = x / np.linalg.norm(x, axis=1, keepdims=True)
    return scaled
