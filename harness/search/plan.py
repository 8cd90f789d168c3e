"""How a search is cut so that it stays within its budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from harness.errors import HarnessError
from harness.run import SearchRequest
from harness.search.rows import on_device
from harness.search.scores import gathered_rows
from harness.search.tile import GROUP

_TILE = 4096
"""Candidates that are read at a time, and at most a quarter of it queries per matrix product: 16 MiB of
scores. Larger results leave the allocator's reuse on a CPU and cost a page fault per 4 KiB."""
PIECE = 512
"""Candidates per product once a bound is known: they and their scores stay in a CPU's cache until they
have been looked at."""
_CUDA_TILE = 1 << 17
"""Candidates per product on CUDA, where every call costs microseconds and fills the whole device."""
_SIFTED_K, _SIFTED_POOL = 128, 1 << 17
"""Up to so many wanted of at least so many, few enough lie within a bfloat16 product's error of the
last one that scoring them exactly costs less than the float32 product."""


@dataclass(frozen=True, slots=True)
class Plan:
    group: int
    """queries per pass over the pool"""
    queries: int
    """queries per tile"""
    tile: int
    """candidates in the first product, and to read at a time, a multiple of 64"""
    piece: int
    """candidates in every other product"""
    width: int
    """candidates kept per query: k, and room for those not yet compared with one another"""
    gather: int
    """rows gathered at a time"""
    sifted: bool
    """whether bfloat16 products come first"""

    @classmethod
    def of(cls, request: SearchRequest, k: int) -> Plan:
        """Half of the budget for tiles, a quarter for running results, an eighth for gathers.

        Raises HarnessError where no tile fits.
        """
        dim, n = request.pool.dim, max(1, len(request.queries))
        sifts = request.sieve and sifted(k, len(request.pool), request.device)
        width = _width(k, sifts)
        cuda = request.device.startswith("cuda")
        held = _query_bytes(0 if cuda else dim, width)
        group = min(n, request.memory // 4 // held)

        cost = partial(_tile_bytes, dim, width, sifts)
        tile = _tile(len(request.pool), _CUDA_TILE if cuda else _TILE)
        queries = min(max(1, group), _TILE if cuda else _TILE // 4)
        while cost(queries, tile) > request.memory // 2 and (queries > 1 or tile > GROUP):
            if tile > GROUP and (tile >= 4 * queries or queries == 1):
                tile = max(GROUP, tile // 2 // GROUP * GROUP)
            else:
                queries //= 2
        if group < 1 or cost(queries, tile) > request.memory // 2:
            least = max(2 * cost(1, GROUP), 4 * held)
            raise HarnessError(
                f"searching {dim}-dimensional rows for the best {k} takes at least {-(-least // 1024)} KiB"
                f" and the budget is {request.memory // 1024} KiB: raise --search-memory"
            )
        piece = tile if cuda else min(tile, PIECE)
        return cls(group, queries, tile, piece, width, gathered_rows(request), sifts)


def _tile(candidates: int, most: int) -> int:
    return min(most, -(-max(1, candidates) // GROUP) * GROUP)


def _query_bytes(dim: int, width: int) -> int:
    """A query in the order in which a CPU's products take it, and its running results."""
    return 4 * dim + 8 * width + 32


def _tile_bytes(dim: int, width: int, sifts: bool, queries: int, tile: int) -> int:
    """Two blocks as they are stored, the tile in float32 and, for degenerate pools, in float64; scores,
    scratch and lists of hits; the copies that a compression of the running results makes. Where
    bfloat16 comes first, it adds to tile, queries and scores."""
    half = 2 if sifts else 0
    return tile * dim * (20 + half) + queries * (dim * (12 + half) + tile * (24 + half) + width * 40)


def peak_memory(queries: int, candidates: int, dim: int, k: int, memory: int, dtype: str = "float16") -> int:
    """Bytes that the built-in search takes at most on a CPU: what of its budget `memory` it can use, the
    queries as they are stored, and the results."""
    sifts = sifted(k + 1, candidates, "cpu")
    width = _width(k + 1, sifts)
    tiles = 2 * _tile_bytes(dim, width, sifts, min(queries, _TILE // 4), _tile(candidates, _TILE))
    running = queries * _query_bytes(dim, width)
    return min(memory, tiles + running) + queries * (np.dtype(dtype).itemsize * dim + 16 * (k + 1))


def sifted(k: int, candidates: int, device: str) -> bool:
    """Whether bfloat16 products come first."""
    import torch

    return (
        0 < k <= _SIFTED_K
        and candidates >= _SIFTED_POOL
        and on_device(device) == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    )


def _width(k: int, sifts: bool) -> int:
    return k + (max(4 * k, 512) if sifts else max(k, 256)) if k else 0
