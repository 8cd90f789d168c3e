"""Scoring rankings beside pytrec_eval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from harness.metrics import MAP, MRR, NDCG, Hit, Metric, Recall, ranks_in_list

from .timing import Peer, Row, Timing, optional

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
    if (pytrec_eval := optional("pytrec_eval")) is None:
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
