"""Encoding beside batches of a fixed size."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.content import Item, Text
from harness.digest import Digests
from harness.encode import EngineOptions, Local, encode, key_items
from harness.model import ModelSpec, full_identity
from harness.store import Store

from .floors import embedding_floor
from .pools import Half, Single, unit
from .texts import texts
from .timing import Peer, Row, Timing, threads


@dataclass(frozen=True, slots=True)
class EncodeSizes:
    items: int = 2000
    batch: int = 16
    """items in each of the peer's batches"""
    batch_tokens: int = 1024


def bench_encode(
    spec: ModelSpec, options: Mapping[str, str], sizes: EncodeSizes, timing: Timing
) -> list[Row]:
    """Texts of M-BEIR-like lengths through the engine, store included, beside batches of a fixed size, in
    the order of the pool and in a random one. `identical`: alike within float16's rounding, 2^-11."""
    items = [Item("candidate", (Text(text),)) for text in texts(sizes.items)]
    frontend = spec.open(options)
    embedder = frontend.load("cpu")
    engine = EngineOptions(batch_tokens=sizes.batch_tokens, workers=0, quiet=True)
    pool_order = np.arange(len(items))
    shuffled = np.random.default_rng(0).permutation(len(items))
    last: list[Half] = []

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder), full_identity(spec.name, frontend, dict(options)))
            keyed = key_items(items, Digests())
            encoded, _ = encode(items, keyed, frontend, Local(lambda: embedder), store, engine, title="bench")
            last[:] = [store.rows(encoded.keys).block(0, len(items))]

    def fixed(order: npt.NDArray[np.int64]) -> Single:
        rows = np.empty((len(items), last[0].shape[1]), np.float32)
        for start in range(0, len(items), sizes.batch):
            chosen = order[start : start + sizes.batch]
            rows[chosen] = embedder.embed(frontend.prepare([items[i] for i in chosen])).float().numpy()
        return unit(rows)

    def alike() -> bool:
        rows, theirs = last[0].astype(np.float32), fixed(pool_order)
        return bool(np.abs(rows - theirs).max() <= 2.0**-11)

    with threads(timing.threads):
        return timing.rows(
            f"encode {sizes.items:,} texts, {spec.name}, {timing.clock}",
            ours,
            [
                Peer(f"batches of {sizes.batch} in the pool's order", partial(fixed, pool_order)),
                Peer(f"batches of {sizes.batch} in a shuffled order", partial(fixed, shuffled)),
            ],
            identical=alike,
            floor=partial(embedding_floor, items, frontend, embedder, sizes.batch_tokens, timing),
        )
