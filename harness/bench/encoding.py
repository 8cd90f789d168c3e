"""Encoding beside batches of a fixed size."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.content import Item, Text
from harness.digest import Digests
from harness.encode import EngineOptions, Local, batches, encode, key_items
from harness.model import ModelSpec, full_identity
from harness.store import Store

from .pools import Half, Single, unit
from .timing import Peer, Row, Timing, threads


@dataclass(frozen=True, slots=True)
class EncodeSizes:
    items: int = 2000
    batch: int = 16
    """items in each of the peer's batches"""
    batch_tokens: int = 1024


WORDS = ((0.40, 12, 0.4), (0.35, 90, 0.5), (0.15, 25, 0.5), (0.10, 45, 0.6))
"""Lengths of texts in M-BEIR's pools, roughly: shares of captions, encyclopaedia sections, headlines and
descriptions, the mean number of words of each, and the spread of its logarithm (an assumption)."""


def bench_encode(
    spec: ModelSpec, options: Mapping[str, str], sizes: EncodeSizes, timing: Timing
) -> list[Row]:
    """Texts of M-BEIR-like lengths through the engine, store included, beside batches of a fixed size in
    the order of the pool. `identical`: rows alike within the rounding of float16, 2^-11."""
    items = _texts(sizes.items)
    frontend = spec.open(options)
    embedder = frontend.load("cpu")
    engine = EngineOptions(batch_tokens=sizes.batch_tokens, workers=0, quiet=True)
    last: list[Half] = []

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder), full_identity(spec.name, frontend, dict(options)))
            keyed = key_items(items, Digests())
            encoded, _ = encode(items, keyed, frontend, Local(lambda: embedder), store, engine, title="bench")
            last[:] = [store.rows(encoded.keys).block(0, len(items))]

    def fixed() -> list[Single]:
        starts = range(0, len(items), sizes.batch)
        prepared = (frontend.prepare(items[a : a + sizes.batch]) for a in starts)
        return [unit(embedder.embed(batch).float().numpy()) for batch in prepared]

    def alike() -> bool:
        rows, theirs = last[0].astype(np.float32), np.concatenate(fixed())
        return bool(np.abs(rows - theirs).max() <= 2.0**-11)

    def floor() -> tuple[float, str]:
        costs = np.array([frontend.cost(item) for item in items])
        planned = batches(costs, sizes.batch_tokens)
        prepared = [frontend.prepare([items[i] for i in batch]) for batch in planned]
        taken = timing.seconds(lambda: [embedder.embed(batch) for batch in prepared])
        padded = sum(len(batch) * int(costs[batch].max()) for batch in planned)
        padding = padded / int(costs.sum()) - 1
        return taken / (1 + padding), f"embedding alone, without the {padding:.1%} of padding"

    with threads(timing.threads):
        return timing.rows(
            f"encode {sizes.items:,} texts, {spec.name}, {timing.clock}",
            ours,
            [Peer(f"batches of {sizes.batch} in order", fixed)],
            identical=alike,
            floor=floor,
        )


def _texts(count: int) -> list[Item]:
    """In runs of one kind, as pools are: every data set follows the one before."""
    rng = np.random.default_rng(0)
    items: list[Item] = []
    for share, mean, spread in WORDS:
        lengths = np.exp(rng.normal(np.log(mean) - spread**2 / 2, spread, round(share * count)))
        for words in np.maximum(1, lengths).astype(int).tolist():
            letters = rng.integers(97, 123, (words, 5), dtype=np.uint8)
            text = f"{len(items)} " + " ".join(bytes(word).decode() for word in letters)
            items.append(Item("candidate", (Text(text),)))
    return items
