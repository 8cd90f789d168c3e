"""Scoring rankings, and intervals of means, beside other libraries."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from harness.metrics import MAP, MRR, NDCG, Hit, Metric, Recall, ranks_in_list
from harness.statistics import RESAMPLES, mean_ci

from .timing import Peer, Row, Timing, optional

Values = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int32]
_DRAWN = 1000
"""Resamples that the loop draws, and is scaled from."""

METRICS: tuple[Metric, ...] = (
    *(Recall(k) for k in (1, 5, 10, 50)),
    *(Hit(k) for k in (1, 5, 10)),
    MAP(50),
    MRR(50),
    *(NDCG(k) for k in (10, 50)),
)
PYTREC = {
    "Recall": "recall_{}",
    "Hit": "success_{}",
    "MAP": "map_cut_{}",
    "MRR": "recip_rank",
    "NDCG": "ndcg_cut_{}",
}
IR_MEASURES = {"Recall": "R@{}", "Hit": "Success@{}", "MAP": "AP@{}", "MRR": "RR@{}", "NDCG": "nDCG@{}"}
RANX = {"Recall": "recall@{}", "Hit": "hit_rate@{}", "MAP": "map@{}", "MRR": "mrr@{}", "NDCG": "ndcg@{}"}
"""How each calls our metrics; `{}` is the cut-off."""

Qrels = dict[str, dict[str, int]]
Listed = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class _Scorer:
    """How somebody else scores: what it makes of dictionaries, and the means of our metrics from that."""

    name: str
    make: Callable[[Qrels, Listed], Any]
    means: Callable[[Any], list[float]]


def bench_metrics(queries: int, timing: Timing, *, depth: int = 50) -> list[Row]:
    """Eleven metrics of `queries` rankings beside pytrec_eval, ir-measures and ranx: their evaluation alone,
    and (pytrec_eval) with making its dictionaries. `identical`: every mean within 1e-9.

    Raises HarnessError without pytrec_eval.
    """
    scorers = _scorers()
    if not scorers or not scorers[0].name.startswith("pytrec"):
        raise HarnessError("bench metrics compares with pytrec_eval: pip install pytrec-eval-terrier")
    rows, indptr, positives = rankings(queries, depth)

    def ours() -> list[float]:
        return means_of(rows, indptr, positives)

    def dictionaries() -> tuple[Qrels, Listed]:
        relevant: Qrels = {str(q): {} for q in range(queries)}
        for q, p in zip(
            np.repeat(np.arange(queries), np.diff(indptr)).tolist(), positives.tolist(), strict=True
        ):
            relevant[str(q)][str(p)] = 1
        listed = {
            str(q): {str(row): float(depth - i) for i, row in enumerate(ranked)}
            for q, ranked in enumerate(rows.tolist())
        }
        return relevant, listed

    def whole() -> None:
        scorers[0].means(scorers[0].make(*dictionaries()))

    qrels, run = dictionaries()
    made = [scorer.make(qrels, run) for scorer in scorers]
    means = [scorer.means(each) for scorer, each in zip(scorers, made, strict=True)]  # and they compile

    def floor() -> tuple[float, str]:
        read = min(timing.seconds(lambda: rows.sum()) for _ in range(3))
        return read, f"{rows.nbytes / 1e6:.0f} MB of ids read once"

    return timing.rows(
        f"{len(METRICS)} metrics of {queries:,} queries × {depth}",
        ours,
        [
            *(
                Peer(f"{scorer.name} evaluate", partial(scorer.means, each))
                for scorer, each in zip(scorers, made, strict=True)
            ),
            Peer(f"{scorers[0].name} with its dictionaries", whole),
        ],
        identical=lambda: all(np.allclose(ours(), each, rtol=0, atol=1e-9) for each in means),
        floor=floor,
    )


def means_of(rows: Rows, indptr: npt.NDArray[np.int64], positives: Rows) -> list[float]:
    """The means of our metrics from ranked lists, [Q, depth], and the positives of each query."""
    places = ranks_in_list(indptr, positives, grade=np.ones(len(positives), np.int64), rows=rows)
    return [float(metric(places).mean()) for metric in METRICS]


def _named(names: Mapping[str, str]) -> list[str]:
    return [names[metric.kind].format(metric.k) for metric in METRICS]


def _scorers() -> list[_Scorer]:
    """Those that are installed."""
    found = []
    if pytrec_eval := optional("pytrec_eval"):
        wanted = {re.sub(r"_(?=\d)", ".", name) for name in _named(PYTREC)}

        def from_pytrec(made: tuple[Any, Listed]) -> list[float]:
            evaluator, run = made
            per_query = evaluator.evaluate(run).values()
            return [sum(q[name] for q in per_query) / len(per_query) for name in _named(PYTREC)]

        found.append(
            _Scorer("pytrec_eval", lambda q, r: (pytrec_eval.RelevanceEvaluator(q, wanted), r), from_pytrec)
        )
    if ir_measures := optional("ir_measures"):
        measures = [ir_measures.parse_measure(name) for name in _named(IR_MEASURES)]

        def from_ir_measures(made: tuple[Any, Listed]) -> list[float]:
            evaluator, run = made
            values = evaluator.calc_aggregate(run)
            return [values[measure] for measure in measures]

        found.append(
            _Scorer("ir-measures", lambda q, r: (ir_measures.evaluator(measures, q), r), from_ir_measures)
        )
    if ranx := optional("ranx"):

        def from_ranx(made: tuple[Any, Any]) -> list[float]:
            values = ranx.evaluate(*made, _named(RANX))
            return [float(values[name]) for name in _named(RANX)]

        found.append(_Scorer("ranx", lambda q, r: (ranx.Qrels(q), ranx.Run(r)), from_ranx))
    return found


def bench_intervals(queries: int, timing: Timing, *, resamples: int = RESAMPLES) -> list[Row]:
    """The bootstrap interval of a mean over `queries`, of a metric with few and one with many distinct
    values, beside a loop in numpy that draws the queries. `identical`: both ends within half a standard
    error, some six times what 1,000 draws leave to chance."""
    rows, indptr, positives = rankings(queries, 50)
    places = ranks_in_list(indptr, positives, grade=np.ones(len(positives), np.int64), rows=rows)
    found = []
    for metric in (Hit(10), MRR(50), Recall(10)):
        values = metric(places)
        last: list[tuple[float, float]] = []

        def plain(values: Values = values, last: list[tuple[float, float]] = last) -> None:
            rng = np.random.default_rng(0)
            means = [values[rng.integers(0, queries, queries)].mean() for _ in range(_DRAWN)]
            low, high = np.quantile(means, [0.025, 0.975])
            last[:] = [(float(low), float(high))]

        def alike(values: Values = values, last: list[tuple[float, float]] = last) -> bool:
            error = values.std() / queries**0.5
            return bool(np.allclose(mean_ci(values, resamples=resamples), last[0], rtol=0, atol=error / 2))

        def floor(values: Values = values) -> tuple[float, str]:
            read = min(timing.seconds(lambda: values.sum()) for _ in range(3))
            return read, f"{values.nbytes / 1e6:.1f} MB of outcomes read once"

        found += timing.rows(
            f"interval of {metric} over {queries:,} queries, {resamples:,} resamples",
            partial(mean_ci, values, resamples=resamples),
            [Peer(f"numpy loop (scaled from {_DRAWN:,})", plain, resamples / _DRAWN)],
            identical=alike,
            floor=floor,
        )
    return found


def rankings(queries: int, depth: int = 50) -> tuple[Rows, npt.NDArray[np.int64], Rows]:
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
