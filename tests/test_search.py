"""Search: every field of every answer equals a float64 brute force, whatever the cut and backend."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch

from harness.errors import HarnessError
from harness.plugins.faiss_flat import FAISS
from harness.run import BEYOND, Found, Ragged, Searcher, SearchRequest
from harness.search import TORCH, ArrayRows, plan, rescore, search, search_together, tolerance
from harness.search.device import DeviceTop
from harness.search.parts import devices_of
from harness.search.plan import Plan
from harness.search.sweep import ranked
from harness.search.tile import Scored, Sieve, product
from harness.search.top import Top

Half = npt.NDArray[np.float16]
ROOMY = 1 << 28


def unit(rng: np.random.Generator, n: int, dim: int) -> Half:
    x = rng.standard_normal((n, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def lists(rng: np.random.Generator, queries: int, low: int, high: int, most: int) -> Ragged:
    return Ragged.of([rng.integers(low, high, rng.integers(0, most + 1)).tolist() for _ in range(queries)])


def brute_force(request: SearchRequest) -> Found:
    q = request.queries.block(0, len(request.queries)).astype(np.float64)
    x = request.pool.block(0, len(request.pool)).astype(np.float64)
    scores = np.einsum("qd,nd->qn", q, x).astype(np.float32)
    top = np.full((len(q), request.k), -1, np.int32), np.full((len(q), request.k), -np.inf, np.float32)
    places: list[tuple[float, int, int, int]] = []
    for i, s in enumerate(scores):
        allowed = set(range(len(x))) if request.scope is None else set(request.scope[i].tolist())
        allowed -= set() if request.exclude is None else set(request.exclude[i].tolist())
        inside = np.array(sorted(allowed), dtype=int)
        order = inside[np.argsort(-s[inside], kind="stable")]
        top[0][i, : len(order)] = order[: request.k]
        top[1][i, : len(order)] = s[order[: request.k]]
        for p in request.positives[i].tolist():
            if p not in allowed:
                places.append((-np.inf, 0, 0, 0))
                continue
            equal = inside[(s[inside] == s[p]) & (inside != p)]
            greater = int((s[inside] > s[p]).sum())
            known = (greater, len(equal), int((equal < p).sum())) if greater < request.k else (BEYOND, 0, 0)
            places.append((float(s[p]), *known))
    score, *counts = zip(*places, strict=True) if places else ((), (), (), ())
    return Found(*top, np.array(score, np.float32), *(np.array(c, np.int32) for c in counts))


def assert_same(found: Found, expected: Found) -> None:
    for f in fields(Found):
        got, want = getattr(found, f.name), getattr(expected, f.name)
        assert got.dtype == want.dtype, f.name
        np.testing.assert_array_equal(got, want, err_msg=f.name)


def search_tightly(request: SearchRequest) -> Found:
    """Search in the least power of two bytes that a tile fits in: many tiles and passes."""
    memory = 1 << 10
    while True:
        try:
            return search(replace(request, memory=memory))
        except HarnessError:
            memory *= 2


def random_pool(rng: np.random.Generator, n: int, dim: int) -> Half:
    return unit(rng, n, dim)


def repeated_rows(rng: np.random.Generator, n: int, dim: int) -> Half:
    return unit(rng, max(1, n // 4), dim)[rng.integers(0, max(1, n // 4), n)]


def one_row(rng: np.random.Generator, n: int, dim: int) -> Half:
    return np.repeat(unit(rng, 1, dim), n, axis=0)


def constant(rng: np.random.Generator, n: int, dim: int) -> Half:
    return np.full((n, dim), dim**-0.5, np.float16)


def one_ulp_apart(rng: np.random.Generator, n: int, dim: int) -> Half:
    """One row, with one number in about half of the copies moved to its float16 neighbour."""
    x = one_row(rng, n, dim)
    moved = rng.integers(0, n, n // 2), rng.integers(0, dim, n // 2)
    x[moved] = np.nextafter(x[moved], np.float16(np.inf))
    return x


def ascending(rng: np.random.Generator, n: int, dim: int) -> Half:
    """The later, the nearer to the queries of `request_for`, which are near the first axis."""
    x = unit(rng, n, dim).astype(np.float64)
    x[:, 0] += np.linspace(0, 3, n)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


POOLS = [random_pool, repeated_rows, one_row, constant, one_ulp_apart, ascending]


def request_for(make: Callable[..., Half], n: int, dim: int, k: int, *, seed: int = 0) -> SearchRequest:
    """13 queries, some of them pool rows or near the first axis; up to 3 positives each."""
    rng = np.random.default_rng(seed)
    pool = make(rng, n, dim)
    queries = unit(rng, 13, dim)
    queries[:3] = pool[rng.integers(0, n, 3)]
    queries[3:6] = np.eye(1, dim)
    return SearchRequest(ArrayRows(queries), ArrayRows(pool), k, lists(rng, 13, -1, n, 3), memory=ROOMY)


@pytest.mark.parametrize("make", POOLS)
@pytest.mark.parametrize("dim", [3, 64, 200])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 300])
def test_every_field_equals_brute_force_in_any_cut_and_backend(
    make: Callable[..., Half], dim: int, n: int
) -> None:
    for k in {1, 7, n, n + 3}:
        request = request_for(make, n, dim, k, seed=n)
        expected = brute_force(request)
        assert_same(search(request), expected)
        assert_same(search_tightly(request), expected)
        assert_same(FAISS.search(request), expected)


def stored_as(dtype: str, request: SearchRequest) -> SearchRequest:
    """The rows in another type, in float32 moved by as little as float16 cannot show; equal ones alike."""
    moved = np.random.default_rng(7).standard_normal(request.pool.dim) * 1e-5
    rows = []
    for each in (request.queries, request.pool):
        x = each.block(0, len(each)).astype(np.float64) + moved
        rows.append(ArrayRows((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)))
    return replace(request, queries=rows[0], pool=rows[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sieve", [True, False])
@pytest.mark.parametrize("make", POOLS)
@pytest.mark.parametrize("n", [1, 65, 300, 4500])
def test_rows_stored_in_other_types_are_ranked_as_they_are(
    make: Callable[..., Half], n: int, sieve: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_SIFTED_POOL", 0)
    for k in (1, 9, 100):
        request = replace(stored_as(dtype, request_for(make, n, 48, k, seed=n)), sieve=sieve)
        expected = brute_force(request)
        assert_same(search(request), expected)
        assert_same(search(replace(request, memory=1 << 20)), expected)
        assert_same(FAISS.search(request), expected)
        scope = lists(np.random.default_rng(n), 13, 0, n, 60)
        assert_same(search(replace(request, scope=scope)), brute_force(replace(request, scope=scope)))


def test_float16_would_rank_them_otherwise() -> None:
    """So that the test above could fail: two rows that differ by less than float16 shows."""
    pool = np.zeros((2, 4), np.float32)
    pool[:, 0], pool[1, 0] = 0.5, 0.5 + 2**-14
    request = SearchRequest(ArrayRows(np.eye(1, 4, dtype=np.float32)), ArrayRows(pool), 2, Ragged.of([()]))
    assert search(request).rows.tolist() == [[1, 0]]
    half = replace(request, pool=ArrayRows(pool.astype(np.float16)))
    assert search(half).rows.tolist() == [[0, 1]]


@pytest.mark.parametrize("make", POOLS)
def test_excluded_rows_are_neither_ranked_nor_counted(make: Callable[..., Half]) -> None:
    rng = np.random.default_rng(1)
    request = replace(request_for(make, 200, 64, 9), exclude=lists(rng, 13, 0, 200, 40))
    expected = brute_force(request)
    assert_same(search(request), expected)
    assert_same(search_tightly(request), expected)
    assert_same(FAISS.search(request), expected)


@pytest.mark.parametrize("make", POOLS)
@pytest.mark.parametrize("backend", [TORCH, FAISS])
def test_requests_over_one_pool_are_answered_together(make: Callable[..., Half], backend: Searcher) -> None:
    """Of other numbers of queries, depths, positives and exclusions; one search for all of them."""
    rng = np.random.default_rng(5)
    whole = request_for(make, 200, 64, 1)
    requests = []
    for first, last, k, exclude in ((0, 5, 9, None), (5, 5, 3, None), (5, 6, 1, 40), (6, 13, 250, 0)):
        n = last - first
        requests.append(
            replace(
                whole,
                queries=ArrayRows(whole.queries.block(first, last)),
                k=k,
                positives=lists(rng, n, -1, 200, 3),
                exclude=None if exclude is None else lists(rng, n, 0, 200, exclude),
            )
        )
    asked = []
    found = search_together(requests, lambda request: asked.append(request) or backend.search(request))
    assert len(asked) == 1
    for each, request in zip(found, requests, strict=True):
        assert_same(each, brute_force(request))
    queries = asked[0].queries
    every = queries.block(0, 13)
    np.testing.assert_array_equal(every, whole.queries.block(0, 13))
    np.testing.assert_array_equal(queries.block(4, 7), every[4:7])
    np.testing.assert_array_equal(queries.take(np.array([12, 0, 5, 5, 4])), every[[12, 0, 5, 5, 4]])
    assert (queries.dim, len(queries), len(queries.block(3, 3))) == (64, 13, 0)


def test_a_query_whose_whole_pool_is_excluded_finds_nothing() -> None:
    request = request_for(random_pool, 70, 64, 5)
    request = replace(request, exclude=Ragged.of([list(range(70)), *([[]] * 12)]))
    found = search(request)
    assert (found.rows[0] == -1).all()
    assert_same(found, brute_force(request))
    assert_same(FAISS.search(request), found)


@pytest.mark.parametrize("make", POOLS)
@pytest.mark.parametrize("k", [1, 5, 50])
def test_scopes_limit_ranking_and_counting(make: Callable[..., Half], k: int) -> None:
    """Galleries of 0 to 60 of 100 rows, in any order, often with repeats, with exclusions."""
    rng = np.random.default_rng(2)
    request = replace(
        request_for(make, 100, 64, k), scope=lists(rng, 13, 0, 100, 60), exclude=lists(rng, 13, 0, 100, 20)
    )
    expected = brute_force(request)
    for backend in (TORCH, FAISS):
        assert_same(backend.search(request), expected)
        assert_same(backend.search(replace(request, memory=1 << 12)), expected)


def test_equal_scores_in_a_scope_are_ordered_by_pool_row() -> None:
    request = SearchRequest(
        ArrayRows(np.eye(1, 3, dtype=np.float16)),
        ArrayRows(np.repeat(np.eye(1, 3, dtype=np.float16), 9, axis=0)),
        4,
        Ragged.of([[7]]),
        scope=Ragged.of([[7, 2, 5, 2]]),
    )
    found = search(request)
    assert found.rows.tolist() == [[2, 5, 7, -1]]
    assert (found.greater[0], found.equal[0], found.before[0]) == (0, 2, 2)


def test_a_worked_example() -> None:
    """Pool (1,0) (0,1) (1,0) (-1,0), query (1,0): scores 1, 0, 1, -1."""
    pool = np.array([[1, 0], [0, 1], [1, 0], [-1, 0]], np.float16)
    positives = Ragged.of([[3, 2, -1, 1, 2]])
    found = search(SearchRequest(ArrayRows(pool[:1]), ArrayRows(pool), 5, positives))
    assert found.rows.tolist() == [[0, 2, 1, 3, -1]]
    assert found.scores.tolist() == [[1, 1, 0, -1, -math.inf]]
    assert found.positive_scores.tolist() == [-1, 1, -math.inf, 0, 1]
    assert found.greater.tolist() == [3, 0, 0, 2, 0]
    assert found.equal.tolist() == [0, 1, 0, 0, 1]
    assert found.before.tolist() == [0, 1, 0, 0, 1]


def test_minus_zero_and_zero_are_one_score() -> None:
    pool = np.array([[-0.0, -1], [0, 1]], np.float16)
    request = SearchRequest(ArrayRows(np.array([[1, 0]], np.float16)), ArrayRows(pool), 2, Ragged.of([[1]]))
    for answer in (search(request), replace_scope(request), FAISS.search(request)):
        assert answer.rows.tolist() == [[0, 1]]
        assert (answer.equal[0], answer.before[0]) == (1, 1)


def replace_scope(request: SearchRequest) -> Found:
    return search(replace(request, scope=Ragged.of([range(len(request.pool))])))


def test_scores_are_the_exact_sum_rounded_once() -> None:
    """`math.fsum` adds without error; the dimension is that of Qwen2-VL-7B."""
    rng = np.random.default_rng(3)
    x, q = unit(rng, 40, 3584), unit(rng, 2, 3584)
    request = SearchRequest(ArrayRows(q), ArrayRows(x), 40, Ragged.of([[], []]))
    exact = [[np.float32(math.fsum(a.astype(float) * b.astype(float))) for b in x] for a in q]
    found = search(request)
    for i in range(2):
        assert found.scores[i].tolist() == [exact[i][row] for row in found.rows[i]]
    query = np.array([1, 0, 1])
    assert rescore(request, query, np.array([3, 3, 0])).tolist() == [exact[1][3], exact[0][3], exact[1][0]]


@pytest.mark.parametrize("dim", [3, 768, 3584])
@pytest.mark.parametrize("make", [random_pool, constant, one_ulp_apart])
def test_float32_products_stay_within_the_tolerance(make: Callable[..., Half], dim: int) -> None:
    """Equal terms round to the same side again and again: the worst that a sum can meet."""
    x = torch.from_numpy(make(np.random.default_rng(4), 64, dim))
    exact = x.double() @ x.double().T
    error = (x.float() @ x.float().T).double() - exact
    assert float(error.abs().max()) <= tolerance(dim, "cpu")


BFLOAT16 = pytest.mark.skipif(
    not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()),
    reason="this processor has no bfloat16 products",
)


@BFLOAT16
@pytest.mark.parametrize("dim", [3, 768, 3584])
@pytest.mark.parametrize("make", [random_pool, constant, one_ulp_apart])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_bfloat16_products_stay_within_the_eps_of_the_sieve(
    make: Callable[..., Half], dim: int, stored: torch.dtype
) -> None:
    x = torch.from_numpy(make(np.random.default_rng(4), 64, dim)).to(stored)
    sieve = Sieve.of(x, stored)
    products = product("cpu")(sieve.queries, x.float().bfloat16()).double()
    error = (products - x.double() @ x.double().T).abs()
    assert bool((error <= sieve.eps[:, None] + sieve.ROUNDING * products.abs()).all())


@BFLOAT16
@pytest.mark.parametrize("make", POOLS)
@pytest.mark.parametrize("n", [65, 4500])
def test_bfloat16_first_gives_the_same(
    make: Callable[..., Half], n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pools whose scores crowd overflow the running results, so that float32 takes over half-way."""
    monkeypatch.setattr(plan, "_SIFTED_POOL", 0)
    took_over = []
    sharpen = Top._sharpen
    monkeypatch.setattr(Top, "_sharpen", lambda *given: took_over.append(given) or sharpen(*given))
    for k in (1, 9, 100):
        rng = np.random.default_rng(k)
        request = replace(request_for(make, n, 48, k, seed=k), exclude=lists(rng, 13, 0, n, 40))
        expected = brute_force(request)
        assert_same(search(request), expected)
        assert n == 65 or make is not random_pool or not took_over
        assert_same(search(replace(request, memory=1 << 20)), expected)
        if make is random_pool:
            took_over.clear()
    if n == 4500 and make in (one_row, constant, one_ulp_apart):
        assert any(took_over)


@BFLOAT16
def test_float32_takes_over_where_the_last_query_alone_is_crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 copies of the row that the last query is; the others have a few of 4,096 within reach."""
    monkeypatch.setattr(plan, "_SIFTED_POOL", 0)
    request = request_for(random_pool, 6096, 48, 9)
    assert isinstance(request.pool, ArrayRows)
    assert isinstance(request.queries, ArrayRows)
    request.pool.array[4096:] = request.queries.array[-1]
    assert_same(search(request), brute_force(request))


@pytest.mark.parametrize("make", POOLS)
@pytest.mark.parametrize("n", [65, 4500])
def test_what_a_device_keeps_gives_the_same(make: Callable[..., Half], n: int) -> None:
    """On the CPU here. More ties than it keeps leave a query uncertain, for the other kind to decide."""
    for k in (1, 9, 300):
        request = replace(request_for(make, n, 48, k), exclude=lists(np.random.default_rng(k), 13, 0, n, 40))
        expected = brute_force(request)
        for memory in (ROOMY, 1 << 20):
            rows, scores = ranked(replace(request, memory=memory), DeviceTop)
            np.testing.assert_array_equal(rows, expected.rows)
            np.testing.assert_array_equal(scores, expected.scores)


def test_a_device_is_uncertain_of_the_queries_alone_that_more_ties_reach_than_it_keeps() -> None:
    """1,000 rows of 9,000 equal the first query, and 100 the second: room is for 9 and 256 more."""
    request = request_for(random_pool, 9000, 48, 9)
    assert isinstance(request.pool, ArrayRows)
    asked = request.queries.take(np.array([0, 6, 9]))
    request.pool.array[:1000], request.pool.array[2000:2100] = asked[0], asked[1]
    request = replace(request, queries=ArrayRows(asked), positives=Ragged.of([()] * 3))
    top = DeviceTop(request, Plan.of(request, 9), 9, torch.from_numpy(asked), None)
    scores = torch.from_numpy(asked).float() @ torch.from_numpy(request.pool.array[:8960]).float().T
    queries, tile = torch.from_numpy(asked), torch.from_numpy(request.pool.array[:8960])
    top.offer(Scored(queries, tile, scores, 0, 8960, torch.empty(0)))
    assert top.result()[2].tolist() == [False, True, True]


def test_a_device_is_shown_tiles_without_being_waited_for() -> None:
    """Meta tensors hold no data: whatever depends on it, as a list of hits does, raises."""
    request = request_for(random_pool, 9, 64, 40)
    width = Plan.of(request, 40).width
    for columns in (64, 64 * (width + 1)):
        queries, tile = (torch.empty(n, 64, dtype=torch.float16, device="meta") for n in (13, columns))
        top = DeviceTop(request, Plan.of(request, 40), 40, queries, None)
        scores = torch.empty(13, columns, device="meta")
        assert top.offer(Scored(queries, tile, scores, 0, columns, scores))


@pytest.mark.parametrize("make", POOLS)
@pytest.mark.parametrize(("n", "devices"), [(700, 3), (2, 3), (65, 2)])
def test_parts_of_a_pool_on_several_devices_give_the_same(
    make: Callable[..., Half], n: int, devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.search.sweep.devices_of", lambda name: [name] * devices)
    request = request_for(make, n, 64, 12)
    assert_same(search(request), brute_force(request))
    some = lists(np.random.default_rng(3), 13, 0, n, 30)
    request = replace(request, exclude=some)
    assert_same(search(request), brute_force(request))


def test_cuda_without_a_number_means_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert devices_of("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices_of("cuda:1") == ["cuda:1"]
    assert devices_of("cpu") == ["cpu"]


@pytest.mark.parametrize("make", POOLS)
def test_a_larger_pool_gives_the_same_in_every_cut_and_thread_count(make: Callable[..., Half]) -> None:
    """4,500 rows: more than a tile, and more ties than the running results have room for."""
    request = request_for(make, 4500, 16, 300)
    expected = brute_force(request)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert_same(search(request), expected)
    finally:
        torch.set_num_threads(threads)
    assert_same(search(replace(request, memory=1 << 20)), expected)
    assert_same(FAISS.search(request), expected)


def test_positives_at_any_depth_and_in_any_number_are_counted() -> None:
    """From none to 174 positives a query, as in OVEN, and k far above where most of them stand."""
    rng = np.random.default_rng(5)
    request = request_for(repeated_rows, 900, 64, 2)
    positives = Ragged.of([rng.integers(-1, 900, n).tolist() for n in (174, 0, 1, 30, *range(9))])
    request = replace(request, positives=positives)
    expected = brute_force(request)
    assert_same(search(request), expected)


def test_an_empty_pool_or_no_query_gives_padding_only() -> None:
    none, some = ArrayRows(np.zeros((0, 4), np.float16)), ArrayRows(np.eye(4, dtype=np.float16))
    for backend in (TORCH, FAISS):
        found = backend.search(SearchRequest(some, none, 3, Ragged.of([[-1]] * 4)))
        assert (found.rows == -1).all()
        assert found.rows.shape == (4, 3)
        assert (found.positive_scores == -np.inf).all()
        assert backend.search(SearchRequest(none, some, 3, Ragged.of([]))).rows.shape == (0, 3)


@dataclass(frozen=True)
class Streamed:
    """Rows made when asked for, as numbers from their row: the whole never exists."""

    n: int
    dim: int
    blocks: list[tuple[int, int]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.n

    def block(self, start: int, stop: int) -> Half:
        self.blocks.append((start, stop))
        return self._make(np.arange(start, stop))

    def take(self, rows: npt.NDArray[np.int64]) -> Half:
        self.taken.append(len(rows))
        return self._make(rows)

    def _make(self, rows: npt.NDArray[np.int64]) -> Half:
        x = np.sin(rows[:, None] * 0.7 + np.arange(1, self.dim + 1) ** 2.0)
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def test_a_pool_larger_than_the_budget_is_read_once_in_pieces_that_fit() -> None:
    """30,000 rows of 64 float16 are 3.8 MB, in float32 7.7 MB; the budget is 3 MB."""
    pool = Streamed(30_000, 64)
    request = request_for(random_pool, 50, 64, 10)
    request = replace(request, pool=pool, memory=3_000_000)
    found = search(request)
    covered = sorted(pool.blocks)
    assert covered[0][0] == 0
    assert covered[-1][1] == 30_000
    assert all(a[1] == b[0] for a, b in pairwise(covered))
    biggest = max([stop - start for start, stop in pool.blocks] + pool.taken)
    assert biggest * 64 * 2 <= request.memory // 8
    whole = ArrayRows(pool._make(np.arange(30_000)))
    assert_same(found, brute_force(replace(request, pool=whole)))


def test_results_do_not_depend_on_the_precision_that_a_model_asked_torch_for() -> None:
    request = request_for(random_pool, 300, 200, 20)
    expected = brute_force(request)
    with precision("medium"):
        assert_same(search(request), expected)
        assert torch.get_float32_matmul_precision() == "medium"


@contextmanager
def precision(name: str) -> Iterator[None]:
    was = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(was)


def test_rows_of_a_read_only_file_are_searched_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    request = request_for(random_pool, 70, 16, 3)
    assert isinstance(request.pool, ArrayRows)
    request.pool.array.setflags(write=False)
    assert_same(search(request), brute_force(request))
    assert not recwarn.list


def test_dimensions_that_differ_are_an_error_naming_both() -> None:
    request = request_for(random_pool, 9, 16, 3)
    request = replace(request, pool=ArrayRows(np.zeros((9, 8), np.float16)))
    for backend in (TORCH, FAISS):
        with pytest.raises(HarnessError, match="16 dimensions and the pool has 8"):
            backend.search(request)


def test_requests_that_make_no_sense_are_errors() -> None:
    request = request_for(random_pool, 9, 16, 3)
    with pytest.raises(HarnessError, match="k = 0"):
        search(replace(request, k=0))
    with pytest.raises(HarnessError, match="1 lists of scope for 13 queries"):
        search(replace(request, scope=Ragged.of([[1]])))
    with pytest.raises(HarnessError, match="positives name row 9 of a pool of 9"):
        search(replace(request, positives=Ragged.of([[9]] * 13)))


def test_a_budget_too_small_for_one_tile_says_what_is_needed() -> None:
    request = replace(request_for(random_pool, 9, 200, 3), memory=1000)
    with pytest.raises(HarnessError, match=r"at least (\d+) KiB .*--search-memory") as error:
        search(request)
    needed = int(str(error.value).split("at least ")[1].split()[0])
    assert_same(search(replace(request, memory=needed * 1024)), brute_force(request))


def test_faiss_refuses_a_pool_beyond_the_budget() -> None:
    request = replace(request_for(random_pool, 300, 200, 3), memory=100_000)
    with pytest.raises(HarnessError, match="--searcher torch"):
        FAISS.search(request)


def test_faiss_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(HarnessError, match=r"pip install 'umr-harness\[faiss\]'"):
        FAISS.search(request_for(random_pool, 9, 16, 3))
