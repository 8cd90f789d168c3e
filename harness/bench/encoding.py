"""Encoding beside batches of a fixed size."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.content import Item, Text
from harness.digest import Digests
from harness.encode import EngineOptions, Local, encode, key_items
from harness.model import Embedder, Frontend, ModelSpec, full_identity
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
    """Texts of M-BEIR-like lengths through the engine, store included, beside batches of a fixed size: in
    the order of the pool and in a random one, by the same embedder (what batching alone is worth) and by
    one with torch's own products. `identical`: alike within float16's rounding, 2^-11."""
    import torch

    items = made_up(sizes.items)
    frontend = spec.open(options)
    embedder = frontend.load("cpu")
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):
        plain = frontend.load("cpu")
    orders = {
        "the pool's order": np.arange(len(items)),
        "a shuffled order": np.random.default_rng(0).permutation(len(items)),
    }
    last: list[Half] = []

    def ours() -> None:
        last[:] = [stored(spec, options, frontend, embedder, items, sizes.batch_tokens)]

    def fixed(order: npt.NDArray[np.int64], by: Embedder) -> Single:
        rows = np.empty(last[0].shape, np.float32)
        for start in range(0, len(items), sizes.batch):
            chosen = order[start : start + sizes.batch]
            rows[chosen] = by.embed(frontend.prepare([items[i] for i in chosen])).float().numpy()
        return unit(rows)

    def alike() -> bool:
        theirs = fixed(orders["the pool's order"], plain)
        return bool(np.abs(last[0].astype(np.float32) - theirs).max() <= 2.0**-11)

    with threads(timing.threads):
        return timing.rows(
            f"encode {sizes.items:,} texts, {spec.name}, {timing.clock}",
            ours,
            [
                Peer(f"batches of {sizes.batch} in {name}{of}", partial(fixed, order, by))
                for of, by in (("", embedder), (", torch's own products", plain))
                for name, order in orders.items()
            ],
            identical=alike,
            floor=partial(embedding_floor, items, frontend, embedder, sizes.batch_tokens, timing),
        )


def made_up(count: int) -> list[Item]:
    return [Item("candidate", (Text(text),)) for text in texts(count)]


def stored(
    spec: ModelSpec,
    options: Mapping[str, str],
    frontend: Frontend,
    embedder: Embedder,
    items: Sequence[Item],
    batch_tokens: int,
) -> Half:
    """The rows of the items through engine and an empty store, [N, D]."""
    engine = EngineOptions(batch_tokens=batch_tokens, workers=0, quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), full_identity(spec.name, frontend, dict(options)))
        keyed = key_items(items, Digests())
        encoded, _ = encode(items, keyed, frontend, Local(lambda: embedder), store, engine, title="bench")
        return store.rows(encoded.keys).block(0, len(items))
