"""Toy models and tasks for tests of the engine: content hashes as vectors, faults on demand."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pluggy

from harness import hookspecs
from harness.collection import Collection, Pool
from harness.content import Ask, Candidate, Image, Item, Query, Text
from harness.digest import digest, file_digest
from harness.encode import EngineOptions
from harness.evaluate import EvalOptions
from harness.media import open_picture
from harness.metrics import MRR, Hit, Metric, Recall
from harness.model import ModelSpec, RerankerSpec
from harness.outcomes import SUFFIX, Outcomes
from harness.registry import Catalog
from harness.result import Result, Score, Stored
from harness.search import TORCH
from harness.statistics import mean_ci
from harness.task import Column, Need, Protocol, Suite, Task


@dataclass(frozen=True, slots=True)
class Toy:
    """A hash of the content as the vector; `fault` breaks it, `log` records what was embedded."""

    name: str = "toy"
    weights: str = "w1"
    modalities: frozenset[str] = frozenset({"text", "image", "image,text"})
    fault: str = ""
    log: Path | None = None
    sleep: float = 0.0
    fits: int = 10**9
    dim: int = 32
    reads_instructions: bool = True

    @property
    def identity(self) -> Mapping[str, str]:
        return {"weights": self.weights, "version": "1", "dim": str(self.dim)}

    def cost(self, item: Item) -> int:
        return sum(len(p.text) if isinstance(p, Text) else 16 for p in item.parts) + 1

    def prepare(self, items: Sequence[Item]) -> list[str]:
        return [repr([self._content(p) for p in i.parts] + [i.instruction]) for i in items]

    def _content(self, part: Any) -> str:
        if isinstance(part, Image):
            return hashlib.sha256(open_picture(part).tobytes()).hexdigest()
        return str(part.text)

    def load(self, device: str) -> ToyEmbedder:
        return ToyEmbedder(self)

    def open(self, options: Mapping[str, str]) -> Toy:
        return self


class ToyEmbedder:
    def __init__(self, toy: Toy) -> None:
        self.toy = toy
        self.calls: list[int] = []

    def embed(self, batch: list[str]) -> Any:
        import torch

        toy = self.toy
        time.sleep(toy.sleep)
        if len(batch) > toy.fits:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        self.calls.append(len(batch))
        if toy.log is not None:
            with toy.log.open("a") as log:
                log.write("".join(f"{os.getpid()} {hashlib.md5(b.encode()).hexdigest()}\n" for b in batch))
        rows = torch.stack([_vector(toy.weights + b, toy.dim) for b in batch])
        if toy.fault == "nan":
            rows[-1, 3] = float("nan")
        if toy.fault == "zero":
            rows[0] = 0
        if toy.fault == "constant":
            rows[:] = 1.0
        if toy.fault == "count":
            rows = rows[1:]
        if toy.fault == "interrupt":
            raise KeyboardInterrupt
        return rows


@dataclass(frozen=True, slots=True)
class ToyRanker:
    """Scores a pair by a hash of its texts, in [0, 1]; listwise, the place in the list counts too."""

    name: str = "ranker"
    listwise: bool = False
    weights: str = "r1"
    modalities: frozenset[str] = frozenset({"text", "image", "image,text"})
    fault: str = ""
    log: Path | None = None
    fits: int = 10**9

    @property
    def identity(self) -> Mapping[str, str]:
        return {"weights": self.weights, "version": "1"}

    def cost(self, ask: Ask) -> int:
        return 10 * len(ask.candidates)

    def prepare(self, asks: Sequence[Ask]) -> list[str]:
        return [
            repr((a.query.parts, c.parts, place if self.listwise else 0))
            for a in asks
            for place, c in enumerate(a.candidates)
        ]

    def load(self, device: str) -> ToyRanker:
        return self

    def score(self, batch: list[str]) -> Any:
        import torch

        if len(batch) > self.fits:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        if self.log is not None:
            with self.log.open("a") as log:
                log.write("".join(f"{hashlib.md5(b.encode()).hexdigest()}\n" for b in batch))
        scores = torch.tensor([pair_score(self.weights + b) for b in batch])
        if self.fault == "nan":
            scores[-1] = float("nan")
        return scores[1:] if self.fault == "count" else scores

    def spec(self, **more: Any) -> RerankerSpec:
        given = {"depths": {"*": 5}, "weights": {"*": 0.5}, **more}
        return RerankerSpec(
            name=self.name,
            title="a toy",
            open=lambda options: self,
            tiny=lambda folder: {},
            source="tests",
            licence="Apache-2.0",
            **given,
        )


def pair_score(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def _vector(text: str, dim: int) -> Any:
    import torch

    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(dim, dtype=np.float32))


def spec(toy: Toy) -> ModelSpec:
    return ModelSpec(
        name=toy.name,
        title="a toy",
        open=toy.open,
        tiny=lambda folder: {},
        source="tests",
        licence="Apache-2.0",
    )


def texts(n: int, *, prefix: str = "candidate") -> list[Candidate]:
    return [Candidate(f"c{i}", (Text(f"{prefix} {i}" + " word" * (i % 7)),)) for i in range(n)]


def collection(n: int = 12, *, candidates: Sequence[Candidate] | None = None) -> Collection:
    """n queries; query i is about candidate i."""
    pool = list(candidates if candidates is not None else texts(n))
    queries = [Query(f"q{i}", (Text(f"question {i}"),), "Find it.") for i in range(n)]
    qrels = {f"q{i}": {pool[i].id: 1} for i in range(n)}
    return Collection(queries, Pool("toys", pool), qrels)


def task(
    load: Callable[[], Collection],
    name: str = "toys/a",
    *,
    metrics: tuple[Metric, ...] = (Hit(1), Recall(5), MRR(10)),
    needs: Sequence[Need] = (),
    **more: Any,
) -> Task:
    return Task(
        name=name,
        title=name,
        load=lambda data, protocol: load(),
        metrics=metrics,
        needs=lambda protocol: needs,
        mini=lambda folder: None,
        source="tests",
        licence="Apache-2.0",
        **more,
    )


def catalog(
    models: Sequence[ModelSpec], tasks: Sequence[Task], rerankers: Sequence[RerankerSpec] = ()
) -> Catalog:
    manager = pluggy.PluginManager("harness")
    manager.add_hookspecs(hookspecs)
    columns = tuple(Column(t.name, "", (t.name,)) for t in tasks)
    return Catalog(
        models={m.name: m for m in models},
        rerankers={r.name: r for r in rerankers},
        tasks={t.name: t for t in tasks},
        suites={"toys": Suite("toys", "Toys", columns)},
        searchers={"torch": TORCH},
        recipes={},
        plugins=(),
        manager=manager,
    )


def places(folder: Path, *, limit: int | None = None, skip_broken: bool = False, **more: Any) -> EvalOptions:
    engine = {k: more.pop(k) for k in ("batch_tokens", "workers") if k in more}
    return EvalOptions(
        data=folder / "data",
        output_dir=folder / "runs",
        cache_dir=folder / "cache",
        protocol=Protocol(limit=limit, skip_broken=skip_broken),
        engine=EngineOptions(quiet=True, **{"workers": 0, **engine}),
        **more,
    )


def store(
    folder: Path,
    model: str,
    name: str,
    outcomes: Mapping[str, Mapping[str, float]],
    *,
    identity: Mapping[str, str] | None = None,
    choices: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Stored:
    """A result of task `name` made of per-query outcomes: metric → query → value."""
    queries = tuple(next(iter(outcomes.values())))
    values = {key: np.array([by_query[q] for q in queries]) for key, by_query in outcomes.items()}
    side = {"model": model, **(identity or {})}
    protocol = task(collection, name).fingerprint(Protocol(), {}) | dict(choices or {})
    result = Result(
        model=model,
        identity=side,
        identity_id=digest(side),
        task=name,
        protocol=protocol,
        protocol_id=digest(protocol),
        **{
            "status": "complete",
            "metrics": {k: Score(float(v.mean()), mean_ci(v), len(v)) for k, v in values.items()},
            "headline": next(iter(values)),
            "provenance": {"started": "2026-01-01"},
            **fields,
        },
    )
    path = folder / result.path
    Outcomes(queries, values).write(path.with_suffix(SUFFIX))
    written = {SUFFIX: file_digest(path.with_suffix(SUFFIX))}
    result = dataclasses.replace(result, provenance={**result.provenance, "written": written})
    return Stored(result, result.write(folder))
