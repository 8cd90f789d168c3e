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
from harness.store import Embeddings, Store

from .candidates import candidates
from .floors import embedding_floor
from .pools import Single, unit
from .texts import texts
from .timing import Peer, Row, Timing, threads

_NEAR = 0.999
"""The least cosine of two vectors of one item that bfloat16 tells apart by its rounding alone."""


@dataclass(frozen=True, slots=True)
class EncodeSizes:
    items: int = 2000
    batch: int = 16
    """items in each of the peer's batches"""
    batch_tokens: int = 1024
    pictures: bool = False
    """candidates as in M-BEIR's global pool, with pictures, instead of texts"""
    workers: int = 0
    """processes that prepare ours; the peer's batches are prepared in between"""


def bench_encode(
    spec: ModelSpec, options: Mapping[str, str], sizes: EncodeSizes, timing: Timing
) -> list[Row]:
    """Items as long as M-BEIR's through the engine, store included, beside batches of a fixed size: in the
    order of the pool and in a random one, by the same embedder (what batching alone is worth) and, of
    texts on a CPU, by one with torch's own products. `identical`: alike within float16's rounding, 2^-11,
    or on a device a cosine of at least 0.999."""
    with threads(timing.threads), tempfile.TemporaryDirectory() as folder:
        items = candidates(sizes.items, Path(folder)) if sizes.pictures else made_up(sizes.items)
        return _rows(spec, options, items, sizes, timing)


def _rows(
    spec: ModelSpec, options: Mapping[str, str], items: Sequence[Item], sizes: EncodeSizes, timing: Timing
) -> list[Row]:
    frontend = spec.open(options)
    embedder = frontend.load(timing.device)
    embedders = {"": embedder}
    if timing.device == "cpu" and not sizes.pictures:
        embedders[", torch's own products"] = _without_onednn(frontend)
    orders = {
        "the pool's order": np.arange(len(items)),
        "a shuffled order": np.random.default_rng(0).permutation(len(items)),
    }
    engine = EngineOptions(timing.device, sizes.batch_tokens, sizes.workers, quiet=True)
    last: list[Embeddings] = []

    def ours() -> None:
        last[:] = [stored(spec, options, frontend, embedder, items, engine)]

    def fixed(order: npt.NDArray[np.int64], by: Embedder) -> Single:
        rows = np.empty(last[0].shape, np.float32)
        for start in range(0, len(items), sizes.batch):
            chosen = order[start : start + sizes.batch]
            rows[chosen] = by.embed(frontend.prepare([items[i] for i in chosen])).float().cpu().numpy()
        return unit(rows)

    def alike() -> bool:
        got, theirs = last[0].astype(np.float32), fixed(orders["the pool's order"], [*embedders.values()][-1])
        if timing.device == "cpu":
            return bool(np.abs(got - theirs).max() <= 2.0**-11)
        return bool((got * theirs).sum(1).min() >= _NEAR)

    kind = "candidates" if sizes.pictures else "texts"
    return timing.rows(
        f"encode {len(items):,} {kind}, {spec.name}, {timing.clock}",
        ours,
        [
            Peer(f"batches of {sizes.batch} in {name}{of}", partial(fixed, order, by))
            for of, by in embedders.items()
            for name, order in orders.items()
        ],
        identical=alike,
        floor=partial(embedding_floor, items, frontend, embedder, sizes.batch_tokens, timing),
    )


def _without_onednn(frontend: Frontend) -> Embedder:
    import torch

    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):
        return frontend.load("cpu")


def made_up(count: int) -> list[Item]:
    return [Item("candidate", (Text(text),)) for text in texts(count)]


def stored(
    spec: ModelSpec,
    options: Mapping[str, str],
    frontend: Frontend,
    embedder: Embedder,
    items: Sequence[Item],
    engine: EngineOptions,
) -> Embeddings:
    """The rows of the items through engine and an empty store, [N, D]."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), full_identity(spec.name, frontend, dict(options)))
        keyed = key_items(items, Digests())
        encoded, _ = encode(items, keyed, frontend, Local(lambda: embedder), store, engine, title="bench")
        return store.rows(encoded.keys).block(0, len(items))
