"""A pool in parts, one for each GPU: the best of the parts are the best of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.run import Float32, Int32, Int64, Ragged, Rows, SearchRequest
from harness.search.scores import NOTHING, keys_of, rows_of, scores_of
from harness.search.tile import full_precision

Ranked = tuple[Int32, Float32]
"""rows, scores: [Q, k], padded with -1 and -inf."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows `start` to `stop` of others."""

    rows: Rows
    start: int
    stop: int

    @property
    def dim(self) -> int:
        return self.rows.dim

    def __len__(self) -> int:
        return self.stop - self.start

    def block(self, start: int, stop: int) -> npt.NDArray[np.floating[Any]]:
        return self.rows.block(self.start + start, self.start + stop)

    def take(self, rows: Int64) -> npt.NDArray[np.floating[Any]]:
        return self.rows.take(self.start + rows)


def devices_of(name: str) -> list[str]:
    """`cuda` means all GPUs that are there, `cuda:1` that one."""
    import torch

    if name != "cuda":
        return [name]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or [name]


def in_parts(
    request: SearchRequest, devices: Sequence[str], ranked: Callable[[SearchRequest], Ranked]
) -> Ranked:
    """What `ranked` finds in the whole pool, each device at work on a part of it."""
    if len(devices) == 1:
        return ranked(replace(request, device=devices[0]))
    ends = np.linspace(0, len(request.pool), len(devices) + 1).astype(int).tolist()
    parts = [
        replace(
            request,
            pool=Part(request.pool, start, stop),
            exclude=_inside(request.exclude, start, stop),
            device=device,
            memory=request.memory // len(devices),
        )
        for device, (start, stop) in zip(devices, pairwise(ends), strict=True)
    ]
    with full_precision(), ThreadPoolExecutor(len(devices), thread_name_prefix="search-part") as threads:
        found = list(threads.map(ranked, parts))
    keys = np.concatenate(
        [
            np.where(rows < 0, NOTHING, keys_of(scores, rows.astype(np.int64) + start))
            for (rows, scores), start in zip(found, ends, strict=False)
        ],
        axis=1,
    )
    keys.sort(axis=1)
    keys = keys[:, : request.k]
    return np.where(keys == NOTHING, -1, rows_of(keys)).astype(np.int32), scores_of(keys)


def _inside(lists: Ragged | None, start: int, stop: int) -> Ragged | None:
    """The rows from `start` to `stop`, counted from there; -1 for all others."""
    if lists is None:
        return None
    inside = (lists.values >= start) & (lists.values < stop)
    return replace(lists, values=np.where(inside, lists.values - start, -1).astype(lists.values.dtype))
