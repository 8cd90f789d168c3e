"""A whole evaluation, from files to scores, beside the evaluators of MTEB and sentence-transformers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from harness.collection import Collection, Pool
from harness.compat import allow_torchvision
from harness.content import Candidate, Image, Item, Query, Text
from harness.dtypes import DTYPE
from harness.encode import EngineOptions
from harness.errors import HarnessError
from harness.evaluate import EvalOptions, evaluate
from harness.files import read_jsonl
from harness.media import open_picture
from harness.metrics import NDCG, Recall
from harness.model import ModelSpec
from harness.registry import Catalog
from harness.task import Need, Protocol, Task
from harness.testing import write_picture

from .evaluators import METRICS, Evaluator, Load, Scores, evaluators
from .floors import embedding_floor
from .texts import WORDS, texts
from .timing import Peer, Row, Timing, compared, peak_gib, threads

_QUERIES, _POOL = Need(Path("queries.jsonl"), "it is written"), Need(Path("pool.jsonl"), "it is written")
_ASKED = 8
"""Words of a candidate that a query repeats."""
_WITHIN = 1e-4
"""Scores are alike: rows are stored in float16, which turns round a few near-ties."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as ours opens it, and as the others load it."""

    spec: ModelSpec
    options: Mapping[str, str]
    load: Load


def bench_evaluation(
    catalog: Catalog,
    model: Model,
    data: Path,
    timing: Timing,
    *,
    batch_tokens: int = 1024,
    store_dtype: str = DTYPE,
) -> list[Row]:
    """The collection in `data` evaluated by ours, with an empty cache (cold) and with the embeddings in
    the cache (warm), and by the others. Loading the model counts for all; Python's start and imports for
    none. `identical`: nDCG@10 and recall@10 within 1e-4 of theirs.

    Raises HarnessError where neither MTEB nor sentence-transformers is installed.
    """
    allow_torchvision()
    collection = _load(data, Protocol())
    others = evaluators(collection, model.load)
    if not others:
        raise HarnessError(
            "bench eval compares with mteb and sentence-transformers: pip install 'umr-harness[bench]'"
        )
    model.load()  # what a library imports at its first model
    with threads(timing.threads), tempfile.TemporaryDirectory() as folder:
        workers = 0 if timing.threads == 1 else None  # others' CPU seconds would not be counted
        engine = EngineOptions(
            batch_tokens=batch_tokens, workers=workers, quiet=True, store_dtype=store_dtype
        )
        ours = partial(_evaluate, catalog, model, data, engine)
        reached: dict[str, Scores] = {}

        def cold() -> None:
            with tempfile.TemporaryDirectory() as empty:
                reached["cold"] = ours(Path(empty))

        def warm() -> None:
            reached["warm"] = ours(Path(folder))

        def run(other: Evaluator) -> None:
            reached[other.name] = other.run()

        peers = [Peer(other.name, partial(run, other)) for other in others]
        peaks = peak_gib(warm), peak_gib(warm)  # the first finds its cache empty, and fills it
        first, again, *theirs = timing.turns([cold, warm, *(peer.call for peer in peers)])
        alike = all(
            abs(reached["cold"][key] - scores[key]) <= _WITHIN
            for scores in reached.values()
            for key in METRICS
        )
        queries, pool = len(collection.queries), len(collection.pool)
        case = f"evaluate {queries:,} queries × {pool:,}, {model.spec.name}, {store_dtype}, {timing.clock}"
        floors = _embedding(model, collection, batch_tokens, timing), _product(queries, pool, timing)
        return [
            row
            for name, mine, peak, floor in zip(("cold", "warm"), (first, again), peaks, floors, strict=True)
            for row in compared(
                f"{case}, {name}", mine, peers, theirs, identical=alike, peak=peak, floor=floor
            )
        ]


def _evaluate(catalog: Catalog, model: Model, data: Path, engine: EngineOptions, cache: Path) -> Scores:
    """Everything anew but for what is in the cache."""
    options = EvalOptions(data, cache / "runs", cache, engine=engine, overwrite="always")
    (outcome,) = evaluate(catalog, model.spec, model.options, [_TASK], options)
    if outcome.result is None:
        raise HarnessError(outcome.error or "nothing was evaluated")
    return {key: outcome.result.metrics[key].value for key in METRICS}


def _embedding(model: Model, collection: Collection, batch_tokens: int, timing: Timing) -> tuple[float, str]:
    frontend = model.spec.open(model.options)
    queries = [Item("query", query.parts) for query in collection.queries]
    pool = [Item("candidate", candidate.parts) for candidate in collection.pool]
    return embedding_floor([*queries, *pool], frontend, frontend.load("cpu"), batch_tokens, timing)


def _product(queries: int, pool: int, timing: Timing, *, dim: int = 384) -> tuple[float, str]:
    """The float32 product of the rows alone."""
    rng = np.random.default_rng(0)
    q, p = (rng.standard_normal((n, dim), dtype=np.float32) for n in (queries, pool))
    taken = min(timing.seconds(lambda: q @ p.T) for _ in range(3))
    return taken, f"{2 * queries * pool * dim:.2e} FLOP, the product of rows of {dim} alone"


def _load(data: Path, protocol: Protocol) -> Collection:
    queries = list(read_jsonl(_QUERIES.require(data), ("id", "text", "positives")))
    pool = [
        Candidate(row["id"], (Text(row["text"]),) if "text" in row else (Image(data / row["image"]),))
        for row in read_jsonl(_POOL.require(data), ("id",))
    ]
    return Collection(
        [Query(row["id"], (Text(row["text"]),)) for row in queries],
        Pool("bench", pool),
        {row["id"]: dict.fromkeys(row["positives"], 1) for row in queries},
    )


_TASK = Task(
    name="bench",
    title="Texts asked for by some of their words, or pictures by their captions",
    load=_load,
    metrics=(NDCG(10), Recall(10)),
    needs=lambda protocol: [_QUERIES, _POOL],
    mini=lambda data: None,
    source="made up, or a task's captions and pictures",
    licence="as the source",
    ties="pool-order",
)


def write_texts(data: Path, queries: int, pool: int) -> None:
    """Texts of M-BEIR-like lengths; each query is a few words of one of them."""
    rng = np.random.default_rng(1)
    made = texts(pool)
    wanted = rng.choice(len(made), min(queries, len(made)), replace=False).tolist()
    asked = []
    for number, row in enumerate(wanted):
        words = made[row].split()[1:]
        chosen = np.sort(rng.choice(len(words), min(_ASKED, len(words)), replace=False))
        text = " ".join(words[i] for i in chosen.tolist())
        asked.append({"id": f"q{number}", "text": text, "positives": [f"d{row}"]})
    _write(data / _QUERIES.path, asked)
    _write(data / _POOL.path, [{"id": f"d{row}", "text": text} for row, text in enumerate(made)])


def write_drawn(data: Path, queries: int, pool: int) -> None:
    """Drawn pictures, 400 × 300, and nouns as their captions."""
    for row in range(pool):
        write_picture(data / f"{row}.jpg", seed=row, size=(400, 300))
    rng = np.random.default_rng(1)
    captions = [" ".join(rng.choice(WORDS, _ASKED)) for _ in range(min(queries, pool))]
    asked = [{"id": f"q{row}", "text": text, "positives": [f"d{row}"]} for row, text in enumerate(captions)]
    _write(data / _QUERIES.path, asked)
    _write(data / _POOL.path, [{"id": f"d{row}", "image": f"{row}.jpg"} for row in range(pool)])


def write_pictures(data: Path, collection: Collection) -> None:
    """The captions and pictures of a collection; these as JPEG without transparency, which every library
    reads alike."""
    pool = []
    for row, candidate in enumerate(collection.pool):
        (part, *more) = candidate.parts
        if more or not isinstance(part, Image):
            raise HarnessError(f"candidate {candidate.id!r} is no picture: name another task")
        open_picture(part).save(data / f"{row}.jpg", quality=90)
        pool.append({"id": candidate.id, "image": f"{row}.jpg"})
    asked = [
        {"id": query.id, "text": _text(query), "positives": list(collection.positives(query.id))}
        for query in collection.queries
    ]
    _write(data / _QUERIES.path, asked)
    _write(data / _POOL.path, pool)


def _text(query: Query) -> str:
    return " ".join(part.text for part in query.parts if isinstance(part, Text))


def _write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
