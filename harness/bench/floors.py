"""What embedding cannot go below: the model alone, on batches without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.content import Item
from harness.encode import batches
from harness.model import Embedder, Frontend

from .timing import Timing

_TIMED = 512
"""Items that are embedded to see how long all would take."""
_PEAK_SIDE = 8192
"""Of the matrices whose product shows what a device can do."""


def embedding_floor(
    items: Sequence[Item], frontend: Frontend, embedder: Embedder, batch_tokens: int, timing: Timing
) -> tuple[float, str]:
    """Seconds of embedding alone, scaled from a part of the items to all, and how that was found; on a
    device what its work would take at the rate of the device's fastest product."""
    part = items[:: max(1, len(items) // _TIMED)]
    every, costs = (np.array([frontend.cost(item) for item in some]) for some in (items, part))
    planned = batches(costs, batch_tokens)
    prepared = [frontend.prepare([part[i] for i in batch]) for batch in planned]
    flop = _flop(prepared, embedder)
    taken = timing.seconds(lambda: [embedder.embed(batch) for batch in prepared])
    padded = sum(len(batch) * int(costs[batch].max()) for batch in planned)
    scale = int(every.sum()) / padded
    said = f"{flop * scale:.2e} FLOP, embedding alone at {flop / taken / 1e9:,.0f} GFLOP/s"
    scaled = f"without padding, scaled from {len(part):,} items"
    if timing.device == "cpu":
        return taken * scale, f"{said} {scaled}"
    peak = _peak(timing)
    return flop * scale / peak, f"{said}, products at {peak / 1e9:,.0f} GFLOP/s, {scaled}"


def _peak(timing: Timing) -> float:
    """FLOP a second of the device's product of two large bfloat16 matrices."""
    import torch

    one, other = (
        torch.ones(_PEAK_SIDE, _PEAK_SIDE, dtype=torch.bfloat16, device=timing.device) for _ in "ab"
    )
    best = min(timing.seconds(lambda: one @ other) for _ in range(10))
    return 2 * _PEAK_SIDE**3 / best


def _flop(prepared: Sequence[Any], embedder: Embedder) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    known = {torch.ops.mkldnn._linear_pointwise: _linear} if there else {}
    with FlopCounterMode(display=False, custom_mapping=known) as mode:
        for batch in prepared:
            embedder.embed(batch)
    return int(mode.get_total_flops())


def _linear(x: Any, weight: Any, *rest: Any, **named: Any) -> int:
    """Of a product [..., I] by [O, I], from their shapes."""
    return int(2 * np.prod(x) * weight[0])
