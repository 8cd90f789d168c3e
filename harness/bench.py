"""Speed on this machine: search, encoding, metrics and loading beside what people use instead.

Every comparison takes turns in one process; the ratio is the median of the rounds' ratios, ours divided
by theirs. With one thread the seconds are the process's CPU seconds, which other programs on the
machine hardly touch; with more, they are of the clock.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.content import Candidate, Image, Item, Text
from harness.digest import Digests
from harness.encode import EngineOptions, Local, batches, encode, key_items
from harness.errors import HarnessError
from harness.metrics import MAP, MRR, NDCG, Hit, Metric, Recall, ranks_in_list
from harness.model import ModelSpec, full_identity
from harness.run import Ragged, Rows, SearchRequest
from harness.search import ArrayRows, search, sifted
from harness.store import Store
from harness.table import Fields, Table, open_table

Half = npt.NDArray[np.float16]
Single = npt.NDArray[np.float32]
Call = Callable[[], Any]

_BLOCK = 8192
_CHECKED = 1 << 37
"""Products and sums that a comparison with float64 brute force may take: some ten seconds."""
_ALONE = 8
"""Queries of which the time of one at a time is taken, and scaled to all."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison."""

    case: str
    ours_s: float
    peer: str
    peer_s: float
    ratio: float
    identical: bool | None
    """whether the answers are right (see each bench), None where nothing was compared"""
    peak_gib: float
    """memory beyond what was in use before, at its peak while ours ran once"""
    floor_s: float
    floor: str
    """where the floor comes from"""


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    call: Call
    scale: float = 1.0
    """how many times longer the whole takes than the part that is timed"""


@dataclass(frozen=True, slots=True)
class Timing:
    """How to measure."""

    rounds: int = 3
    threads: int = 1

    def seconds(self, call: Call) -> float:
        clock = time.process_time if self.threads == 1 else time.perf_counter
        start = clock()
        call()
        return clock() - start

    def rows(
        self,
        case: str,
        ours: Call,
        peers: Sequence[Peer],
        *,
        identical: Callable[[], bool | None],
        floor: Callable[[], tuple[float, str]],
    ) -> list[Row]:
        """Ours, and each peer in turn, `rounds` times after one time that is not counted."""
        peak = peak_gib(ours)
        mine: list[float] = []
        theirs: list[list[float]] = [[] for _ in peers]
        for _ in range(self.rounds):
            mine.append(self.seconds(ours))
            for peer, taken in zip(peers, theirs, strict=True):
                taken.append(peer.scale * self.seconds(peer.call))
        right, least = identical(), floor()
        return [
            Row(
                case,
                statistics.median(mine),
                peer.name,
                statistics.median(taken),
                statistics.median(a / b for a, b in zip(mine, taken, strict=True)),
                right,
                peak,
                *least,
            )
            for peer, taken in zip(peers, theirs, strict=True)
        ]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch and faiss on so many threads."""
    import torch

    faiss = _optional("faiss")
    was = torch.get_num_threads(), faiss.omp_get_max_threads() if faiss else 0
    torch.set_num_threads(count)
    if faiss:
        faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(was[0])
        if faiss:
            faiss.omp_set_num_threads(was[1])


def peak_gib(call: Call) -> float:
    """How far the process's memory rises while `call` runs; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _kib(status, "VmRSS")
        call()
        return (_kib(status, "VmHWM") - before) / 2**20
    except OSError:
        call()
        return float("nan")


def _kib(status: Path, name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+)", status.read_text())
    return int(found[1]) if found else 0


def _optional(name: str) -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# Search


@dataclass(frozen=True, slots=True)
class SearchSizes:
    n: int = 200_000
    dim: int = 768
    queries: int = 512
    k: tuple[int, ...] = (10, 50)
    order: str = "random"
    """or `ascending`: the later in the pool, the nearer to the queries"""
    memory: int = 1 << 30


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows of a raw float16 file, read and never mapped, so that they do not count as memory."""

    path: Path
    size: int
    dim: int

    def __len__(self) -> int:
        return self.size

    def block(self, start: int, stop: int) -> Half:
        count, offset = (stop - start) * self.dim, start * self.dim * 2
        return np.fromfile(self.path, np.float16, count, offset=offset).reshape(-1, self.dim)

    def take(self, rows: npt.NDArray[np.int64]) -> Half:
        return np.memmap(self.path, np.float16, "r", shape=(self.size, self.dim)).take(rows, axis=0)


def bench_search(sizes: SearchSizes, timing: Timing, *, on_disk: Path | None = None) -> list[Row]:
    """`identical`: ids and order equal to those of a float64 brute force, for as many queries as that
    takes seconds for. With `on_disk` the pool lies in a file there, and only ours is measured, against a
    float32 product of the same shape."""
    rows = []
    with threads(timing.threads), pool_and_queries(sizes, on_disk) as (pool, queries):
        peers = (
            _search_peers(pool, queries, timing) if isinstance(pool, ArrayRows) else _products(pool, queries)
        )
        for k in sizes.k:
            nothing = Ragged.of([()] * len(queries))
            request = SearchRequest(ArrayRows(queries), pool, k, nothing, memory=sizes.memory)
            place = f"{sizes.n:,} × {sizes.dim}{' on disk' if on_disk else ''}"
            case = f"search {place}, {len(queries)} queries, k={k}, {sizes.order} order, {_threads(timing)}"
            rows += timing.rows(
                case,
                partial(search, request),
                [peer for make in peers if (peer := make(k))],
                identical=partial(_as_brute_force, request),
                floor=partial(_product_floor, request, timing),
            )
    return rows


def _threads(timing: Timing) -> str:
    return f"{timing.threads} thread{'s' if timing.threads > 1 else ''}"


@contextmanager
def pool_and_queries(sizes: SearchSizes, on_disk: Path | None) -> Iterator[tuple[Rows, Half]]:
    """Clustered unit rows, [N, D], and queries near some of them, [Q, D]: score gaps as in real pools."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(1, sizes.n // 100), sizes.dim), dtype=np.float32)
    towards = rng.standard_normal(sizes.dim, dtype=np.float32)

    def blocks() -> Iterator[Half]:
        for a in range(0, sizes.n, _BLOCK):
            count = min(_BLOCK, sizes.n - a)
            part = centres[rng.integers(0, len(centres), count)]
            part = part + rng.standard_normal(part.shape, dtype=np.float32)
            if sizes.order == "ascending":
                part += (
                    np.linspace(3 * a, 3 * (a + count), count, dtype=np.float32)[:, None] / sizes.n * towards
                )
            yield _unit(part).astype(np.float16)

    if on_disk is None:
        pool: Rows = ArrayRows(np.concatenate(list(blocks())))
        yield pool, _near(pool, sizes, towards, rng)
        return
    with tempfile.NamedTemporaryFile(dir=on_disk) as file:
        for block in blocks():
            block.tofile(file)
        file.flush()
        pool = FileRows(Path(file.name), sizes.n, sizes.dim)
        yield pool, _near(pool, sizes, towards, rng)


def _near(pool: Rows, sizes: SearchSizes, towards: Single, rng: np.random.Generator) -> Half:
    near = pool.take(rng.integers(0, sizes.n, sizes.queries)).astype(np.float32) * sizes.dim**0.5
    if sizes.order == "ascending":
        near = np.broadcast_to(towards, near.shape)
    return _unit(near + rng.standard_normal(near.shape, dtype=np.float32)).astype(np.float16)


def _unit(x: Single) -> Single:
    scaled: Single = x / np.linalg.norm(x, axis=1, keepdims=True)
    return scaled


def _search_peers(pool: ArrayRows, queries: Half, timing: Timing) -> list[Callable[[int], Peer | None]]:
    """faiss, blocks of torch and numpy, and one query at a time, all over float32 rows in memory."""
    import torch

    x, q = pool.array.astype(np.float32), queries.astype(np.float32)
    tx, tq = torch.from_numpy(x), torch.from_numpy(q)
    peers: list[Callable[[int], Peer | None]] = []
    if faiss := _optional("faiss"):
        index = faiss.IndexFlatIP(x.shape[1])
        index.add(x)
        kind = os.environ.get("OPENBLAS_CORETYPE", "unset")
        name = f"faiss IndexFlatIP (OPENBLAS_CORETYPE {kind})"
        peers.append(lambda k: Peer(name, partial(index.search, q, k)))
    alone = min(_ALONE, len(q))
    peers += [
        lambda k: Peer("torch matmul and topk in blocks", partial(_torch_blocks, tq, tx, k)),
        lambda k: Peer("numpy matmul and argpartition in blocks", partial(_numpy_blocks, q, x, k)),
        lambda k: Peer("one query at a time", partial(_one_by_one, tq[:alone], tx, k), len(q) / alone),
    ]
    return peers


def _products(pool: Rows, queries: Half) -> list[Callable[[int], Peer | None]]:
    """The float32 product with one block of the pool, scaled to all of it."""
    import torch

    block = torch.from_numpy(pool.block(0, min(len(pool), _BLOCK)).astype(np.float32))
    asked = torch.from_numpy(queries.astype(np.float32))
    call = partial(_product, asked, block)
    return [lambda k: Peer("float32 product alone (scaled)", call, len(pool) / len(block))]


def _torch_blocks(queries: Any, pool: Any, k: int) -> Any:
    """What people write: a matrix product and a top-k per block, merged."""
    import torch

    best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for a in range(0, len(pool), _BLOCK):
        scores = queries @ pool[a : a + _BLOCK].T
        values, index = scores.topk(min(k, scores.shape[1]), dim=1)
        best, order = torch.cat([best, values], 1).topk(min(k, best.shape[1] + values.shape[1]), dim=1)
        rows = torch.cat([rows, index + a], 1).gather(1, order)
    return rows


def _numpy_blocks(queries: Single, pool: Single, k: int) -> npt.NDArray[np.int64]:
    best, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for a in range(0, len(pool), _BLOCK):
        scores = queries @ pool[a : a + _BLOCK].T
        some = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
        best = np.concatenate([best, np.take_along_axis(scores, some, 1)], 1)
        rows = np.concatenate([rows, some + a], 1)
        order = np.argpartition(-best, min(k, best.shape[1]) - 1, axis=1)[:, :k]
        best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
    order = np.argsort(-best, axis=1)
    return np.take_along_axis(rows, order, 1)


def _one_by_one(queries: Any, pool: Any, k: int) -> list[Any]:
    return [(pool @ query).topk(min(k, len(pool))).indices for query in queries]


def _product(queries: Any, pool: Any) -> None:
    """The matrix product by oneDNN without anything else."""
    import torch

    for a in range(0, len(pool), _BLOCK // 2):
        torch.ops.mkldnn._linear_pointwise(queries, pool[a : a + _BLOCK // 2], None, "none", [], "")


def _product_floor(request: SearchRequest, timing: Timing) -> tuple[float, str]:
    """What the product takes at the rate of one tile, in the type that the search uses."""
    import torch

    n, dim, queries = len(request.pool), request.pool.dim, len(request.queries)
    kind = torch.bfloat16 if sifted(request.k + 1, n, request.device) else torch.float32
    tile = torch.from_numpy(request.pool.block(0, min(n, _BLOCK)).astype(np.float32)).to(kind)
    asked = torch.from_numpy(request.queries.block(0, queries).astype(np.float32)).to(kind)
    _product(asked, tile)
    rate = (
        2 * len(tile) * dim * queries / min(timing.seconds(partial(_product, asked, tile)) for _ in range(5))
    )
    flop, read = 2 * n * dim * queries, 2 * n * dim
    name = str(kind).removeprefix("torch.")
    return flop / rate, f"{flop:.2e} FLOP at {rate / 1e9:.0f} GFLOP/s ({name}); {read / 1e9:.2f} GB read"


def _as_brute_force(request: SearchRequest) -> bool:
    """Whether ids, order and scores are those of float64 sums, for as many queries as is affordable."""
    found = search(request)
    n, k = len(request.pool), request.k
    count = max(1, min(len(request.queries), _CHECKED // (n * request.pool.dim)))
    asked = request.queries.block(0, count).astype(np.float64)
    scores = np.empty((count, n), np.float32)
    for a in range(0, n, _BLOCK):
        b = min(n, a + _BLOCK)
        scores[:, a:b] = asked @ request.pool.block(a, b).astype(np.float64).T
    for got, reached, row in zip(found.rows, found.scores, scores, strict=False):
        # Everything that may be among the best k, ties at the end included, in the order of the pool.
        near = np.flatnonzero(row >= np.partition(row, max(0, n - k))[max(0, n - k)])
        best = near[np.argsort(-row[near], kind="stable")][:k]
        if not np.array_equal(got[: len(best)], best) or not np.array_equal(reached[: len(best)], row[best]):
            return False
    return True


def bench_galleries(sizes: SearchSizes, timing: Timing, *, gallery: int = 100) -> list[Row]:
    """Search limited to `gallery` rows a query, beside a loop that picks and multiplies them; their best
    are not compared (see tests/test_search.py)."""
    import torch

    with threads(timing.threads), pool_and_queries(sizes, None) as (pool, queries):
        assert isinstance(pool, ArrayRows)
        chosen = np.random.default_rng(1).integers(0, sizes.n, (len(queries), gallery))
        nothing, scope = Ragged.of([()] * len(queries)), Ragged.of(list(chosen.astype(np.int32)))
        request = SearchRequest(ArrayRows(queries), pool, min(sizes.k), nothing, scope)
        x, q = torch.from_numpy(pool.array), torch.from_numpy(queries)

        def loop() -> None:
            for i, rows in enumerate(torch.from_numpy(chosen)):
                (x[rows].float() @ q[i].float()).topk(min(min(sizes.k), gallery))

        def gathered() -> tuple[float, str]:
            copy = min(timing.seconds(lambda: pool.array.take(chosen.ravel(), axis=0)) for _ in range(3))
            return copy, f"{chosen.size * sizes.dim * 2 / 1e9:.2f} GB gathered, timed alone"

        place = f"{sizes.n:,} × {sizes.dim}"
        return timing.rows(
            f"galleries of {gallery} in {place}, {len(queries)} queries, {_threads(timing)}",
            partial(search, request),
            [Peer("loop over queries", loop)],
            identical=lambda: None,
            floor=gathered,
        )


# Encoding


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
        return [_unit(embedder.embed(batch).float().numpy()) for batch in prepared]

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
            f"encode {sizes.items:,} texts, {spec.name}, {_threads(timing)}",
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


# Metrics

PEERS: Mapping[Metric, str] = {
    **{Recall(k): f"recall_{k}" for k in (1, 5, 10, 50)},
    **{Hit(k): f"success_{k}" for k in (1, 5, 10)},
    MAP(50): "map_cut_50",
    MRR(50): "recip_rank",
    **{NDCG(k): f"ndcg_cut_{k}" for k in (10, 50)},
}
"""Our metrics, and the names that pytrec_eval has for them."""
_WANTED = {"recall.1,5,10,50", "success.1,5,10", "map_cut.50", "recip_rank", "ndcg_cut.10,50"}


def bench_metrics(queries: int, timing: Timing, *, depth: int = 50) -> list[Row]:
    """Eleven metrics of `queries` rankings beside pytrec_eval's evaluation, without and with making its
    dictionaries. `identical`: every mean within 1e-9.

    Raises HarnessError without pytrec_eval.
    """
    if (pytrec_eval := _optional("pytrec_eval")) is None:
        raise HarnessError("bench metrics compares with pytrec_eval: pip install pytrec-eval-terrier")
    rows, indptr, positives = _rankings(queries, depth)
    grade = np.ones(len(positives), dtype=np.int64)

    def ours() -> list[float]:
        places = ranks_in_list(indptr, positives, grade=grade, rows=rows)
        return [float(metric(places).mean()) for metric in PEERS]

    def dictionaries() -> tuple[Any, dict[str, dict[str, float]]]:
        qrels: dict[str, dict[str, int]] = {str(q): {} for q in range(queries)}
        for q, p in zip(
            np.repeat(np.arange(queries), np.diff(indptr)).tolist(), positives.tolist(), strict=True
        ):
            qrels[str(q)][str(p)] = 1
        run = {
            str(q): {str(row): float(depth - i) for i, row in enumerate(listed)}
            for q, listed in enumerate(rows.tolist())
        }
        return pytrec_eval.RelevanceEvaluator(qrels, _WANTED), run

    peer, run = dictionaries()
    theirs = peer.evaluate(run)
    means = [sum(values[name] for values in theirs.values()) / queries for name in PEERS.values()]

    def floor() -> tuple[float, str]:
        read = min(timing.seconds(lambda: rows.sum()) for _ in range(3))
        return read, f"{rows.nbytes / 1e6:.0f} MB of ids read once"

    def whole() -> None:
        evaluator, made = dictionaries()
        evaluator.evaluate(made)

    return timing.rows(
        f"{len(PEERS)} metrics of {queries:,} queries × {depth}",
        ours,
        [
            Peer("pytrec_eval evaluate", lambda: peer.evaluate(run)),
            Peer("pytrec_eval with its dictionaries", whole),
        ],
        identical=lambda: bool(np.allclose(ours(), means, rtol=0, atol=1e-9)),
        floor=floor,
    )


def _rankings(
    queries: int, depth: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Distinct candidates in every list, one to five positives a query, about half of them found."""
    rng = np.random.default_rng(0)
    rows = (rng.integers(0, 1000, (queries, 1)) + np.arange(depth) * 7919) % 100_000
    rows = rng.permuted(rows, axis=1).astype(np.int32)
    relevant = rng.integers(1, 6, queries)
    indptr = np.concatenate(([0], np.cumsum(relevant)))
    query = np.repeat(np.arange(queries), relevant)
    nth = np.arange(indptr[-1]) - indptr[query]
    found = rng.random(indptr[-1]) < 0.5
    return rows, indptr, np.where(found, rows[query, nth * 9], 100_000 + nth).astype(np.int32)


# Loading

_KINDS = (("image", 0.158), ("text", 0.438), ("image,text", 0.404))
"""The shares of M-BEIR's global pool."""


def bench_load(lines: int, timing: Timing) -> list[Row]:
    """A pool file made into a table, and opened again, beside json.loads line by line. `identical`: the
    ids and texts of all rows."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pool.jsonl"
        write_pool(source, lines)
        with _cache(Path(folder) / "cache") as cache:

            def anew() -> Table:
                shutil.rmtree(cache, ignore_errors=True)
                return opened(source)

            def floor() -> tuple[float, str]:
                read = min(timing.seconds(source.read_bytes) for _ in range(3))
                return read, f"{source.stat().st_size / 1e6:.0f} MB read once"

            peers = [Peer("json.loads line by line", partial(_json_lines, source))]
            same = partial(_same_rows, source)
            first = timing.rows(f"table of {lines:,} lines", anew, peers, identical=same, floor=floor)
            again = timing.rows(
                f"table of {lines:,} lines, opened again",
                partial(opened, source),
                peers,
                identical=same,
                floor=lambda: (0.0, "nothing has to be read"),
            )
            return [*first, *again]


@contextmanager
def _cache(folder: Path) -> Iterator[Path]:
    """The cache in `folder`, and nowhere else."""
    was = os.environ.get("HARNESS_CACHE")
    os.environ["HARNESS_CACHE"] = str(folder)
    try:
        yield folder
    finally:
        if was is None:
            del os.environ["HARNESS_CACHE"]
        else:
            os.environ["HARNESS_CACHE"] = was


def opened(source: Path) -> Table:
    fields = Fields("did", "txt", "img_path", "modality")
    return open_table(source, fields, _candidate, variant="", media_root=Path("/"))


def _candidate(name: str, text: str | None, image: str | None, modality: str | None) -> Candidate:
    picture = () if image is None else (Image(Path(image)),)
    return Candidate(name, (*picture, *(() if text is None else (Text(text),))))


def _same_rows(source: Path) -> bool:
    rows = map(json.loads, source.read_text().splitlines())
    made = [_candidate(row["did"], row["txt"], row["img_path"], row["modality"]) for row in rows]
    return list(opened(source)) == made


def write_pool(path: Path, lines: int) -> None:
    """Candidates in M-BEIR's form, about 240 bytes each."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    with path.open("w") as file:
        for i in range(lines):
            (modality,) = rng.choices([k for k, _ in _KINDS], [share for _, share in _KINDS])
            text = " ".join(rng.choices(words, k=rng.randint(8, 36))) if "text" in modality else None
            image = f"mbeir_images/oven_images/{i % 100:02d}/{i:09d}.jpg" if "image" in modality else None
            row = {"did": f"{i % 10}:{i}", "txt": text, "img_path": image, "modality": modality}
            row["src_content"] = json.dumps({"id": i, "source": "oven"}) if i % 3 == 0 else None
            file.write(json.dumps(row) + "\n")


def _json_lines(source: Path) -> None:
    with source.open("rb") as file:
        for line in file:
            json.loads(line)
