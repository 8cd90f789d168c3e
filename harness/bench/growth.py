"""How cost grows with the work: seconds at one, four and sixteen times a size, and the fitted exponent."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from harness.encode import EngineOptions
from harness.model import ModelSpec
from harness.run import Ragged, SearchRequest
from harness.search import ArrayRows, search

from .encoding import made_up, stored
from .loading import cache_in, made_anew, write_pool
from .metrics import means_of, rankings
from .pools import SearchSizes, pool_and_queries
from .timing import Call, Timing, threads

TIMES = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class Growth:
    """The seconds of one kind of work at several sizes; seconds = c · size ^ exponent, by least squares of
    the logarithms. What cannot be avoided grows with an exponent of 1."""

    case: str
    unit: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    exponent: float


@dataclass(frozen=True, slots=True)
class GrowthSizes:
    """At the smallest."""

    items: int = 500
    pool: int = 25_000
    rankings: int = 12_500
    lines: int = 12_500


def bench_growth(
    spec: ModelSpec, options: Mapping[str, str], sizes: GrowthSizes, timing: Timing
) -> list[Growth]:
    """Encoding, search, metrics and loading."""
    with (
        threads(timing.threads),
        tempfile.TemporaryDirectory() as name,
        cache_in(Path(name) / "cache") as cache,
    ):
        encode, load = partial(_encode, spec, options), partial(_load, cache)
        return [
            _grown(f"encode texts, {spec.name}", "texts", sizes.items, timing, encode),
            _grown("search, 512 queries × 256, k=50", "candidates", sizes.pool, timing, _search),
            _grown("11 metrics × 50", "queries", sizes.rankings, timing, _score),
            _grown("table of a pool file", "lines", sizes.lines, timing, load),
        ]


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of the line through the logarithms, by least squares."""
    return float(np.polyfit([math.log(n) for n in sizes], [math.log(s) for s in seconds], 1)[0])


def _grown(case: str, unit: str, least: int, timing: Timing, prepare: Callable[[int], Call]) -> Growth:
    """What `prepare(size)` returns is timed, each size in turn, after one time that is not counted."""
    sizes = tuple(least * times for times in TIMES)
    calls = [prepare(size) for size in sizes]
    for call in calls:
        call()
    seconds = tuple(sorted(taken)[len(taken) // 2] for taken in timing.turns(calls))
    return Growth(f"{case}, {timing.clock}", unit, sizes, seconds, exponent(sizes, seconds))


def _encode(spec: ModelSpec, options: Mapping[str, str], items: int) -> Call:
    frontend = spec.open(options)
    embedder = frontend.load("cpu")
    engine = EngineOptions(workers=0, quiet=True)
    return partial(stored, spec, options, frontend, embedder, made_up(items), engine)


def _search(pool: int) -> Call:
    sizes = replace(SearchSizes(), n=pool, dim=256)
    with pool_and_queries(sizes, None) as (rows, queries):
        nothing = Ragged.of([()] * len(queries))
        return partial(search, SearchRequest(ArrayRows(queries), rows, 50, nothing))


def _score(queries: int) -> Call:
    return partial(means_of, *rankings(queries))


def _load(cache: Path, lines: int) -> Call:
    source = cache.parent / f"{lines}.jsonl"
    write_pool(source, lines)
    return partial(made_anew, source, cache)
