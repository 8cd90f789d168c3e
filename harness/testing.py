"""Checks for plugins: any task, any model; and the check models `oracle` and `constant`.

    check_task(task, tmp_path)      # on the task's own miniature
    check_model(spec, tmp_path)     # on the model's tiny checkpoint
    check_reranker(spec, tmp_path)  # on the reranker's

All raise AssertionError with one line that says what does not hold.
"""

from __future__ import annotations

import dataclasses
import pickle
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.collection import Collection, checked
from harness.content import Ask, Candidate, Image, Item, Part, Query, Text, Video, item
from harness.digest import Digests, digest
from harness.encode import EngineOptions
from harness.evaluate import EvalOptions, evaluate
from harness.metrics import UNREACHED, Ranks
from harness.model import Batch, Embedder, Frontend, ModelSpec, RerankerSpec, RerankFrontend
from harness.registry import Catalog, load_catalog
from harness.store import key
from harness.task import Protocol, Task

if TYPE_CHECKING:
    from torch import Tensor

ALL_MODALITIES = frozenset({"text", "image", "image,text", "interleaved", "video"})
INVARIANCE = 1e-5
"""Greatest cosine distance between an item's rows alone and in any batch, in float32."""
MOVED = 1e-6
"""By so much a coordinate of a unit row must change for a vector to be another one."""
ORACLE_DIMENSIONS = 16_384

Float64 = npt.NDArray[np.float64]
Ranking = Callable[[Query, Candidate], float]


@dataclass(frozen=True, slots=True)
class CheckFrontend:
    """A model that knows its vectors: item key → weights of the coordinates."""

    identity: Mapping[str, str]
    dim: int
    weights: Mapping[bytes, Mapping[int, float]] | None
    modalities: frozenset[str] = ALL_MODALITIES
    reads_instructions: bool = True

    def cost(self, item: Item) -> int:
        return 1

    def prepare(self, items: Sequence[Item]) -> list[bytes]:
        digests = Digests()
        return [key(i, digests) for i in items]

    def load(self, device: str) -> CheckFrontend:
        return self

    def embed(self, batch: list[bytes]) -> Tensor:
        import torch

        rows = torch.zeros(len(batch), self.dim)
        if self.weights is None:
            rows[:, 0] = 1.0
            return rows
        for row, k in zip(rows, batch, strict=True):
            for coordinate, weight in self.weights.get(k, {}).items():
                row[coordinate] = weight
        return rows


def constant() -> CheckFrontend:
    """One vector for everything: every ranking is one big tie."""
    return CheckFrontend({"check": "constant", "version": "1"}, 8, None)


def oracle(collection: Collection) -> CheckFrontend:
    """Vectors under which every query ranks its positives first, by grade.

    Each distinct relevant content is one coordinate; a query is the grade-weighted sum of its
    positives. Items of equal content share a vector, as they do in every model.
    """
    digests = Digests()
    keys = {c.id: key(item(c), digests) for c in collection.pool}
    coordinate: dict[bytes, int] = {}
    weights: dict[bytes, dict[int, float]] = {}
    for query in collection.queries:
        mine = weights.setdefault(key(item(query), digests), {})
        for candidate, grade in collection.positives(query.id).items():
            if candidate in keys:
                at = coordinate.setdefault(keys[candidate], len(coordinate))
                mine[at] = max(mine.get(at, 0.0), float(grade))
    if len(coordinate) > ORACLE_DIMENSIONS:
        raise AssertionError(
            f"the oracle knows {ORACLE_DIMENSIONS} relevant contents, not {len(coordinate)}: use --limit"
        )
    weights |= {k: {at: 1.0} for k, at in coordinate.items()}
    # The weights, not only the qrels: another pool gives the same positives other coordinates.
    known = digest({k.hex(): mine for k, mine in weights.items()})
    return CheckFrontend(
        {"check": "oracle", "version": "1", "answers": known}, max(1, len(coordinate)), weights
    )


def oracle_ranking(collection: Collection) -> Ranking:
    """What the oracle scores, up to a factor per query: the greatest grade that any query of the
    same content gives to any candidate of the same content."""
    digests = Digests()
    candidates = {c.id: key(item(c), digests) for c in collection.pool}
    grades: dict[tuple[bytes, bytes], int] = {}
    queries = {q.id: key(item(q), digests) for q in collection.queries}
    for q, k in queries.items():
        for c, grade in collection.positives(q).items():
            if c in candidates:
                pair = (k, candidates[c])
                grades[pair] = max(grades.get(pair, 0), grade)
    return lambda q, c: grades.get((queries[q.id], candidates[c.id]), 0)


def expected(collection: Collection, task: Task, ranking: Ranking) -> dict[str, float]:
    """The task's metrics for a model that scores pairs by `ranking`, by sorting plain lists."""
    pool = {c.id: (i, c) for i, c in enumerate(collection.pool)}
    indptr, places, grades = [0], [], []
    for query in collection.queries:
        positives = collection.positives(query.id)
        scope = pool if collection.scope is None else collection.scope.get(query.id, pool)
        out = set((collection.exclude or {}).get(query.id, ()))
        order = []
        for candidate_id in dict.fromkeys(scope):
            place, candidate = pool[candidate_id]
            tie = positives.get(candidate_id, 0) if task.ties == "pessimistic" else place
            if candidate_id not in out:
                order.append((-ranking(query, candidate), tie, place, candidate_id))
        rank = {candidate_id: r for r, (*_, candidate_id) in enumerate(sorted(order))}
        places += [rank.get(c, UNREACHED) for c in positives]
        grades += list(positives.values())
        indptr.append(len(places))
    ranks = Ranks(np.array(indptr), np.array(places, dtype=np.int64), np.array(grades, dtype=np.int64))
    return {m.key: float(m(ranks).mean()) for m in task.metrics}


def check_task(task: Task, folder: Path, *, catalog: Catalog | None = None) -> None:
    """The task loads twice alike, and the pipeline gives the oracle its ceiling and a constant
    model exactly what the tie rule implies, at most chance under the pessimistic rule.

    Both values are computed here from qrels, scope, exclusions and contents by sorting lists.
    """
    catalog = catalog or load_catalog()
    data = folder / "data"
    data.mkdir(parents=True)
    hidden = task.mini(data)
    protocol = Protocol()
    missing = [str(need.path) for need in task.needs(protocol) if need.find(data) is None]
    assert not missing, f"{task.name}: its miniature lacks what it needs: {missing}"
    first, second = task.load(data, protocol), task.load(data, protocol)
    assert list(first.queries) == list(second.queries), f"{task.name}: two loads give different queries"
    assert list(first.pool) == list(second.pool), f"{task.name}: two loads give different pools"
    assert (first.qrels, first.scope) == (second.qrels, second.scope), (
        f"{task.name}: two loads give different qrels"
    )
    assert (first.qrels is None) == (hidden is not None), (
        f"{task.name}: mini() must return the qrels where load() hides them, and only there"
    )
    if hidden is not None:
        task = dataclasses.replace(task, load=lambda d, p: dataclasses.replace(second, qrels=hidden))
    collection, _ = checked(task.load(data, protocol))
    assert any(collection.positives(q.id) for q in collection.queries), (
        f"{task.name}: no query has a positive"
    )
    ceiling = expected(collection, task, oracle_ranking(collection))
    floor = expected(collection, task, lambda q, c: 0.0)
    for name, wanted in (("oracle", ceiling), ("constant", floor)):
        got = _scores_of(catalog, catalog.model(name), {}, task, data, folder)
        for metric, value in wanted.items():
            assert abs(got[metric] - value) < 1e-9, (
                f"{task.name}: {name} scores {metric} {got[metric]:.6f}, by sorting lists it is {value:.6f}"
            )
    headline = task.headline.key
    assert ceiling[headline] > floor[headline], (
        f"{task.name}: the oracle ({ceiling[headline]}) does not beat a constant"
    )
    if task.ties == "pessimistic":
        chance = _chance(collection, task)
        assert floor[headline] <= chance + 1e-9, f"{task.name}: a constant model beats chance ({chance:.4f})"


def _chance(collection: Collection, task: Task, *, draws: int = 20) -> float:
    """Mean headline of random rankings."""
    rng = random.Random(0)
    return (
        sum(expected(collection, task, lambda q, c: rng.random())[task.headline.key] for _ in range(draws))
        / draws
    )


def _scores_of(
    catalog: Catalog, spec: ModelSpec, options: Mapping[str, str], task: Task, data: Path, folder: Path
) -> dict[str, float]:
    engine = EngineOptions(workers=0, quiet=True)
    places = EvalOptions(data=data, output_dir=folder / "runs", cache_dir=folder / "cache", engine=engine)
    (outcome,) = evaluate(catalog, spec, options, [task], places)
    assert outcome.result is not None, f"{task.name}: {outcome.error}"
    return {name: score.value for name, score in outcome.result.metrics.items()}


def check_model(spec: ModelSpec, folder: Path) -> None:
    """The tiny checkpoint opens twice alike, the frontend pickles, every part of every modality
    that it claims moves the vector, rows are finite, and a row is the same alone and in any batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = spec.tiny(folder)
    frontend = spec.open(options)
    again = spec.open(options)
    assert dict(frontend.identity) == dict(again.identity), f"{spec.name}: two opens give two identities"
    assert frontend.modalities <= ALL_MODALITIES, (
        f"{spec.name}: unknown modalities {set(frontend.modalities)}"
    )
    assert frontend.modalities, f"{spec.name} takes no modality"
    items = sample_items(folder / "media", frontend)
    for one in items:
        cost = frontend.cost(one)
        assert isinstance(cost, int) and cost >= 1, f"{spec.name}: cost {cost!r} is not a whole number from 1"
    probe = Probe(spec.name, frontend, pickle.loads(pickle.dumps(frontend)).load("cpu"))
    alone = probe.alone(items)
    for how, rows in (
        ("in a batch", probe.unit(items)),
        ("in a reversed batch", probe.unit(items[::-1])[::-1]),
    ):
        for i, distance in enumerate(distances(alone, rows).tolist()):
            assert distance <= INVARIANCE, (
                f"{spec.name}: {items[i].modality} item {i} is another vector {how} than alone"
                f" (cosine distance {distance:.2e})"
            )
    for one, before in zip(items, alone, strict=True):
        for _, changed in changes(one, folder / "media", getattr(frontend, "reads_instructions", True)):
            assert probe.moves(before, changed), (
                f"{spec.name}: a part is not looked at: {changed} and {one} have one vector"
            )


@dataclass(frozen=True, slots=True)
class Probe:
    """A loaded model whose rows are looked at one by one, outside the engine."""

    name: str
    frontend: Frontend
    embedder: Embedder

    def prepared(self, items: Sequence[Item]) -> Batch:
        """A batch as it comes from a worker."""
        return pickle.loads(pickle.dumps(self.frontend.prepare(items)))

    def embedded(self, batch: Batch, count: int) -> Float64:
        """[count, D], as the model returns them."""
        got = self.embedder.embed(batch)
        assert got.ndim == 2 and got.shape[0] == count, f"{self.name}: shape {tuple(got.shape)} for {count}"
        values: Float64 = got.double().cpu().numpy()
        assert np.isfinite(values).all(), f"{self.name}: a row is not finite"
        return values

    def unit(self, items: Sequence[Item]) -> Float64:
        """[N, D] unit rows, all in one batch."""
        return unit(self.embedded(self.prepared(items), len(items)))

    def alone(self, items: Sequence[Item]) -> Float64:
        """[N, D] unit rows, each in a batch of its own."""
        return np.concatenate([self.unit([one]) for one in items])

    def moves(self, before: Float64, changed: Item) -> bool:
        """Whether an item has another vector than the unit row [D]."""
        return float(np.abs(before - self.unit([changed])[0]).max()) > MOVED


def unit(rows: Float64) -> Float64:
    """Rows [N, D] brought to unit length."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)  # type: ignore[no-any-return]


def distances(a: Float64, b: Float64) -> Float64:
    """Cosine distances of the rows of two [N, D] of unit length, [N]."""
    return 1 - np.asarray((a * b).sum(axis=1))


def check_reranker(spec: RerankerSpec, folder: Path) -> None:
    """The tiny checkpoint opens twice alike, the frontend pickles, scores are finite, every part of
    query and candidate moves the score, and a pair scores the same alone and in any batch (a list
    the same in any batch).
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = spec.tiny(folder)
    frontend = spec.open(options)
    assert dict(frontend.identity) == dict(spec.open(options).identity), (
        f"{spec.name}: two opens, two identities"
    )
    assert frontend.modalities <= ALL_MODALITIES, (
        f"{spec.name}: unknown modalities {set(frontend.modalities)}"
    )
    items = sample_items(folder / "media", frontend)
    candidates = tuple(dataclasses.replace(i, role="candidate", instruction=None) for i in items)
    asks = [Ask(query, (candidates * 2)[n : n + 3]) for n, query in enumerate(items)]
    reranker = pickle.loads(pickle.dumps(frontend)).load("cpu")
    for ask in asks:
        cost = frontend.cost(ask)
        assert isinstance(cost, int) and cost >= 1, f"{spec.name}: cost {cost!r} is not a whole number from 1"

    def scores(chosen: Sequence[Ask]) -> list[float]:
        got = reranker.score(pickle.loads(pickle.dumps(frontend.prepare(chosen))))
        count = sum(len(ask.candidates) for ask in chosen)
        assert got.shape == (count,), f"{spec.name}: shape {tuple(got.shape)} for {count} candidates"
        values: list[float] = got.double().tolist()
        assert np.isfinite(values).all(), f"{spec.name}: a score is not finite"
        return values

    together = scores(asks)
    single = [scores([ask]) for ask in asks]
    apart = [s for listed in single for s in listed]
    if not frontend.listwise:
        pairs = [Ask(ask.query, (c,)) for ask in asks for c in ask.candidates]
        apart = [scores([pair])[0] for pair in pairs]
    worst = max(abs(a - b) for a, b in zip(together, apart, strict=True))
    assert worst <= INVARIANCE, f"{spec.name}: a pair scores {worst:.2e} apart in a batch and alone"
    for ask in asks:
        before = scores([ask])
        changed = [Ask(other, ask.candidates) for _, other in changes(ask.query, folder / "media", False)]
        first, *rest = ask.candidates
        changed += [Ask(ask.query, (other, *rest)) for _, other in changes(first, folder / "media", False)]
        for other in changed:
            assert max(abs(a - b) for a, b in zip(before, scores([other]), strict=True)) > 1e-7, (
                f"{spec.name}: a part is not looked at: {other} and {ask} have one score"
            )


def sample_items(folder: Path, frontend: Frontend | RerankFrontend) -> list[Item]:
    """A few small real items of every modality that the frontend takes."""
    pictures = [
        write_picture(folder / f"{i}.png", seed=i, size=size) for i, size in enumerate([(64, 48), (40, 90)])
    ]
    texts = [
        Text("a red square"),
        Text("a much longer caption about two green circles beside a small blue one"),
    ]
    of: dict[str, list[tuple[Part, ...]]] = {
        "text": [(texts[0],), (texts[1],), (Text(""),)],
        "image": [(Image(p),) for p in pictures],
        "image,text": [(Image(pictures[0]), texts[0]), (Image(pictures[1]), texts[1])],
        "interleaved": [(texts[0], Image(pictures[0]), texts[1], Image(pictures[1]))],
    }
    if "video" in frontend.modalities:
        of["video"] = [(Video(write_clip(folder / "clip.mp4", seed=1)),)]
    parts = [p for name, listed in of.items() if name in frontend.modalities for p in listed]
    instruction = "Find the picture." if getattr(frontend, "reads_instructions", True) else None
    return [Item("query", p, instruction) for p in parts]


def changes(one: Item, folder: Path, instructed: bool) -> list[tuple[str, Item]]:
    """The item with one part, or the instruction, exchanged, and what was exchanged."""
    new: dict[type, Callable[[], Part]] = {
        Text: lambda: Text("nothing but noise"),
        Image: lambda: Image(write_picture(folder / "other.png", seed=77, size=(56, 56))),
        Video: lambda: Video(write_clip(folder / "other.mp4", seed=78)),
    }
    names = {Text: "text", Image: "picture", Video: "clip"}
    found = [
        (names[type(part)], dataclasses.replace(one, parts=(*one.parts[:at], made, *one.parts[at + 1 :])))
        for at, part in enumerate(one.parts)
        if (made := new[type(part)]()) != part
    ]
    if instructed:
        found.append(("instruction", dataclasses.replace(one, instruction="Say what the news is about.")))
    return found


def write_picture(path: Path, *, seed: int, size: tuple[int, int] = (48, 48)) -> Path:
    """A small drawn picture, the same for a seed; PNG or JPEG by the suffix."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    rng = random.Random(seed)

    def colour() -> tuple[int, int, int]:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    picture = Pillow.new("RGB", size, colour())
    draw = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        draw.ellipse((x - size[0] // 4, y - size[1] // 4, x + size[0] // 4, y + size[1] // 4), fill=colour())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def write_clip(
    path: Path, *, seed: int, frames: int = 12, size: tuple[int, int] = (64, 48), fps: int = 6
) -> Path:
    """A small h264 clip of a moving square, through PyAV."""
    import av

    rng = random.Random(seed)
    background = [rng.randrange(256) for _ in range(3)]
    colour = [255 - c for c in background]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for t in range(frames):
            picture = np.full((size[1], size[0], 3), background, np.uint8)
            x = (t * 4 + seed) % (size[0] - 16)
            picture[8:24, x : x + 16] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
