"""Rows in memory and on a device, and lists of rows as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.dtypes import BFLOAT16, tensor_of
from harness.run import Int64, Ragged, Rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ArrayRows:
    """Rows in memory, or in a mapped file."""

    array: npt.NDArray[np.floating[Any]]
    """[N, D] float16, bfloat16 or float32, unit rows"""

    @property
    def dim(self) -> int:
        return int(self.array.shape[1])

    def __len__(self) -> int:
        return len(self.array)

    def block(self, start: int, stop: int) -> npt.NDArray[np.floating[Any]]:
        return self.array[start:stop]

    def take(self, rows: Int64) -> npt.NDArray[np.floating[Any]]:
        return self.array.take(rows, axis=0)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Rows as tensors on a device."""

    rows: Rows
    device: str

    def block(self, start: int, stop: int) -> Tensor:
        return self._tensor(self.rows.block(start, stop))

    def take(self, rows: Int64) -> Tensor:
        return self._tensor(self.rows.take(rows))

    @property
    def dtype(self) -> torch.dtype:
        return self.block(0, 0).dtype

    def _tensor(self, array: npt.NDArray[np.floating[Any]]) -> Tensor:
        kind = array.dtype if array.dtype in (np.float32, BFLOAT16) else np.float16
        # torch warns about arrays that it could write to and must not, such as mapped files.
        tensor = tensor_of(np.require(array, kind, ["C", "W"]))
        if self.device.startswith("cuda"):
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor


def on_device(name: str) -> str:
    """Where to compute: float64, and float16 with float32 sums, need a CPU or CUDA."""
    return name if name.startswith("cuda") else "cpu"


def pairs_of(lists: Ragged, start: int, stop: int, size: int) -> Int64:
    """Pairs of (query - start) and pool row as single numbers, query-major; -1 for row -1."""
    lengths = np.diff(lists.indptr[start : stop + 1])
    values = lists.values[lists.indptr[start] : lists.indptr[stop]]
    pairs = np.repeat(np.arange(stop - start, dtype=np.int64), lengths) * size + values
    return np.where(values < 0, -1, pairs)


def set_of(lists: Ragged | None, start: int, stop: int, size: int) -> Int64:
    """The distinct pairs within the pool, ascending."""
    if lists is None:
        return np.zeros(0, dtype=np.int64)
    pairs = np.sort(pairs_of(lists, start, stop, size))
    distinct: Int64 = pairs[(pairs >= 0) & (pairs != np.append(-1, pairs[:-1]))]
    return distinct


def within(ascending: Int64, values: Int64) -> npt.NDArray[np.bool_]:
    """Which values are among the ascending ones."""
    if not len(ascending):
        return np.zeros(len(values), dtype=np.bool_)
    found: npt.NDArray[np.bool_] = (
        ascending[np.searchsorted(ascending, values).clip(max=len(ascending) - 1)] == values
    )
    return found


def spans(indptr: Int64, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of queries with at most `most` values each, or of one query."""
    start, last = 0, len(indptr) - 1
    while start < last:
        stop = int(np.searchsorted(indptr, indptr[start] + most, side="right")) - 1
        stop = min(max(stop, start + 1), last)
        yield start, stop
        start = stop
