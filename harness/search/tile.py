"""Rough scores: a fast product of a block of queries with a tile of the pool, and its error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.run import Float32, Int64
from harness.search.scores import exact, tolerance

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Gemm = Callable[[Tensor, Tensor], Tensor]
    """Of packed queries [B, D] and a tile [C, D]: their products, [B, C]."""

Int16 = npt.NDArray[np.int16]

GROUP = 64
"""Scores per maximum."""


def product(device: str) -> Gemm:
    """The fastest product: of rows as they are stored on CUDA, with float32 sums, and of float32 or bfloat16
    on a CPU, there with the scores of each candidate side by side."""
    import torch

    if device.startswith("cuda"):
        return lambda q, x: (
            torch.mm(q, x.T) if q.dtype == torch.float32 else torch.mm(q, x.T, out_dtype=torch.float32)
        )
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        # oneDNN is twice as fast as torch.matmul (MKL) on AMD, and as fast elsewhere.
        return lambda q, x: torch.ops.mkldnn._linear_pointwise(x, q, None, "none", [], "").T
    return lambda q, x: torch.nn.functional.linear(x, q).T


def packed(queries: Tensor) -> Tensor:
    """Queries as `product` takes them: on a CPU in the order in which oneDNN reads them, which it would
    make anew for every tile."""
    import torch

    if queries.is_cuda or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return queries
    usual_rows = 512  # a hint: any number may follow
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(queries, usual_rows)
    return laid_out


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products with float32 inputs and sums, whatever a model has asked torch for."""
    import torch

    cpu = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    cuda = torch.backends.cuda.matmul
    was = cpu.fp32_precision, cuda.fp32_precision, cuda.allow_fp16_accumulation
    cpu.fp32_precision, cuda.fp32_precision, cuda.allow_fp16_accumulation = "ieee", "ieee", False
    try:
        yield
    finally:
        cpu.fp32_precision, cuda.fp32_precision, cuda.allow_fp16_accumulation = was


@dataclass(frozen=True, slots=True)
class Scored:
    """A tile and its rough scores for one block of queries."""

    queries: Tensor
    """[B, D], as they are stored"""
    tile: Tensor
    """[C, D], the last rows zero where the pool ends"""
    scores: Tensor
    """[B, C] float32, or bfloat16 as products of bfloat16 are; -inf where a pair is no candidate"""
    start: int
    """the pool row of the tile's first row"""
    count: int
    """how many of its rows are the pool's"""
    scratch: Tensor
    """float32 memory for a comparison of all scores"""

    def ordered(self) -> Tensor:
        """The scores as numbers that order them: of bfloat16 the bits as int16, which order what is
        above 0 and leave the rest below, at a quarter of the time."""
        import torch

        return self.scores.view(torch.int16) if self.scores.dtype == torch.bfloat16 else self.scores

    def holds(self, rows: Int64) -> npt.NDArray[np.bool_]:
        """Which rows of the pool are the tile's."""
        return (rows >= self.start) & (rows < self.start + self.count)

    def compared(self, scores: Tensor) -> Tensor:
        """Scratch of the shape of `scores`: a comparison written as float32 sums ten times faster."""
        return self.scratch[: scores.numel()].view(scores.shape)

    def exact(self, query: Int64, column: Int64) -> Float32:
        """Canonical scores of pairs of the tile, in float32, `query` ascending, [P]."""
        import torch

        present, line = np.unique(query, return_inverse=True)
        at = torch.from_numpy(column).to(self.tile.device)
        if self.queries.dtype != torch.float16 or len(query) * 16 <= len(present) * len(self.tile):
            step = max(1, (1 << 20) // self.tile.shape[1])
            return exact(self.queries, lambda a, b: self.tile.index_select(0, at[a:b]), query, step)
        # A pair costs about as much alone as 16 of them in a float64 product.
        wide, step = self.tile.double().T, 64
        scores = np.empty(len(query), dtype=np.float32)
        ends = np.searchsorted(line, np.arange(0, len(present) + step, step)).tolist()
        lines = torch.from_numpy(line).to(self.tile.device)
        for i, (a, b) in enumerate(pairwise(ends)):
            some = self.queries[present[i * step : (i + 1) * step]].double() @ wide
            scores[a:b] = some[lines[a:b] - i * step, at[a:b]].float().cpu().numpy()
        return scores + np.float32(0)


def single(ordered: Float32 | Int16) -> Float32:
    """The scores that these numbers stand for."""
    if ordered.dtype == np.int16:
        return (ordered.astype(np.int32) << 16).view(np.float32)
    return ordered.astype(np.float32, copy=False)


def order(scores: Float32, like: Float32 | Int16) -> Float32 | Int16:
    """The numbers that stand for these scores, rounded towards 0 where they are bits."""
    return (scores.view(np.int32) >> 16).astype(np.int16) if like.dtype == np.int16 else scores


@dataclass(frozen=True, slots=True)
class Sieve:
    """A block of queries in bfloat16."""

    queries: Tensor
    """[B, D] bfloat16"""
    eps: Tensor
    """[B], how far a product can lie from the canonical score before it is rounded to bfloat16"""

    ROUNDING = 2.0**-8
    """How far that rounding moves a product, as a share of what it has become"""

    @classmethod
    def of(cls, queries: Tensor, pool: torch.dtype) -> Sieve:
        """For `queries` [B, D], unit rows, and a pool stored in this type.

        q'x' - qx = (q' - q)x' + q(x' - x), where rounding to bfloat16 moves every number of x by at
        most 2^-8 of its own size, and the whole row so, if it is not stored in bfloat16; 1.01 stands for
        the norms of rounded rows. The sum in float32 errs as on tensor cores: processors, too, may
        truncate and align.
        """
        import torch

        rounded = queries.bfloat16()
        lost = (rounded.double() - queries.double()).norm(dim=1)
        lost += 0 if pool == torch.bfloat16 else 2.0**-8
        eps = 1.01 * lost + tolerance(queries.shape[1], "cuda")
        return cls(rounded, eps.float())
