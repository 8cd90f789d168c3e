"""Metrics: values that print, parse back, and score the places of the relevant candidates.

    >>> Hit(5), Hit(5, rel=2).key, str(Metric.parse("map_at_5"))
    (Metric(kind='Hit', k=5, rel=1), 'hit_rel2_at_5', 'MAP@5')

A metric sees no id and no score: `ranks` (exact search) or `ranks_in_list` (a ranked list alone)
say at which place each relevant candidate of each query stands, and that is all it takes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError, UnknownName

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

UNREACHED = int(np.iinfo(np.int64).max)
"""The place of a relevant candidate that no ranking holds."""

TieRule = Literal["pessimistic", "optimistic", "pool-order"]
Kind = Literal["Hit", "Recall", "MAP", "NDCG", "MRR", "Accuracy"]

_KINDS: dict[str, Kind] = {kind.lower(): kind for kind in get_args(Kind)}
_SPELLED = re.compile(
    r"(?P<kind>[a-z]+)(?:(?:\(rel=(?P<rel>\d{1,18})\))?@(?P<k>\d{1,18})"
    r"|(?:_rel(?P<key_rel>\d{1,18}))?_at_(?P<key_k>\d{1,18}))?",
    re.IGNORECASE | re.ASCII,
)
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Ranks:
    """The places of the relevant candidates: those of query q are `indptr[q]` to `indptr[q + 1]`."""

    indptr: Int64
    """[Q + 1]"""
    rank: Int64
    """[P] counted from 0; UNREACHED outside the pool, the scope or the depth of a list"""
    grade: Int64
    """[P] at least 1"""

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def relevant(self) -> Int64:
        """How many relevant candidates each query has, reached or not, [Q]."""
        return np.diff(self.indptr)

    @property
    def query(self) -> Int64:
        """The query index of every relevant candidate, [P]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.relevant)


def ranks(
    indptr: Int64,
    grade: Int64,
    *,
    score: Float32,
    greater: Int32,
    equal: Int32,
    before: Int32,
    rule: TieRule,
) -> Ranks:
    """The places of the relevant candidates from what a search counted about them (`run.Found`).

    All but `indptr` [Q + 1] are [P]. `score` -inf means unreachable; `greater` and `equal` count
    the other candidates in scope that score higher and the same, `before` those of `equal` that
    stand earlier in the pool.

    Among equal scores, "pool-order" takes the pool's order; "pessimistic" puts the relevant
    candidates last and the highest grade last of all, "optimistic" does the reverse. Those two
    orders give the least and the greatest value that any order of the ties gives, in every metric.
    """
    counts = np.diff(indptr)
    if rule == "pool-order":
        rank = greater.astype(np.int64) + before
    else:
        query = np.repeat(np.arange(len(counts)), counts)
        pessimistic = rule == "pessimistic"
        order = np.lexsort((grade if pessimistic else -grade, -score, query))
        q, s = query[order], score[order]
        start = np.flatnonzero(np.concatenate(([True], (q[1:] != q[:-1]) | (s[1:] != s[:-1])))[: len(q)])
        tied = np.diff(start, append=len(q))
        place = np.arange(len(q)) - np.repeat(start, tied)
        if pessimistic:
            place += equal[order] + 1 - np.repeat(tied, tied)
        rank = np.empty(len(q), dtype=np.int64)
        rank[order] = greater[order] + place
    rank[score == -np.inf] = UNREACHED
    return Ranks(indptr, rank, grade)


def ranks_in_list(indptr: Int64, positives: Int32, *, grade: Int64, rows: Int32) -> Ranks:
    """The places of the relevant candidates in ranked lists [Q, k] of pool rows, padded with -1.

    A positive that its list does not hold, or that is -1 (outside the pool), is UNREACHED. A row
    that a list holds twice counts where it stands first.
    """
    query = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    depth = max(1, rows.shape[1])
    rank = np.full(len(positives), UNREACHED, dtype=np.int64)
    # Blocks that stay in the cache are several times faster than one [P, k] comparison.
    step = max(1, _BLOCK // depth)
    for i in range(0, len(positives), step):
        hits = np.flatnonzero(rows[query[i : i + step]] == positives[i : i + step, None])[::-1]
        rank[i + hits // depth] = hits % depth
    rank[positives < 0] = UNREACHED
    return Ranks(indptr, rank, grade)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as a value: calling it scores every query; `str` and `key` parse back to it."""

    kind: Kind
    k: int | None = None
    rel: int = 1

    def __post_init__(self) -> None:
        if self.kind not in _KINDS.values():
            raise UnknownName("metric", str(self.kind), _KINDS.values())
        if self.kind == "Accuracy":
            if self.k is not None:
                raise HarnessError(f"metric Accuracy takes no cut-off, got {self.k!r}: use Hit@{self.k}")
        elif not isinstance(self.k, int) or self.k < 1:
            raise HarnessError(f"metric {self.kind}@{self.k}: the cut-off must be a whole number from 1")
        if not isinstance(self.rel, int) or self.rel < 1:
            raise HarnessError(f"metric {self.kind}(rel={self.rel}): the grade must be a whole number from 1")
        if self.rel != 1 and self.kind != "Hit":
            raise HarnessError(f"metric {self.kind} takes no rel={self.rel}: only Hit counts from a grade")

    def __call__(self, ranks: Ranks) -> Float64:
        """The score of every query, [Q] in [0, 1]; a query without relevant candidates scores 0."""
        k = 1 if self.k is None else min(self.k, UNREACHED)
        match self.kind:
            case "Hit" | "Accuracy":
                return _hit(ranks, k, self.rel)
            case "Recall":
                return _recall(ranks, k)
            case "MAP":
                return _average_precision(ranks, k)
            case "NDCG":
                return _ndcg(ranks, k)
            case "MRR":
                return _reciprocal(ranks, k)

    def __str__(self) -> str:
        rel = "" if self.rel == 1 else f"(rel={self.rel})"
        return self.kind if self.k is None else f"{self.kind}{rel}@{self.k}"

    @property
    def key(self) -> str:
        """The name in JSON."""
        rel = "" if self.rel == 1 else f"_rel{self.rel}"
        return self.kind.lower() if self.k is None else f"{self.kind.lower()}{rel}_at_{self.k}"

    @property
    def alias(self) -> str:
        """The papers' word, for tables: what they call R@k is Hit@k, the true recall is spelled out."""
        if self.kind == "Accuracy":
            return "Acc."
        return str(self).replace("Hit", "R").replace("MAP", "mAP")

    @classmethod
    def parse(cls, text: str) -> Metric:
        """The metric of a printed form or a JSON key, in any case. `R@5` is refused as ambiguous."""
        found = _SPELLED.fullmatch(text.strip())
        kind = _KINDS.get(found["kind"].lower()) if found else None
        cut = found and (found["k"] or found["key_k"])
        if not found or kind is None or (kind == "Accuracy") == bool(cut):
            k = next(iter(re.findall(r"[0-9]+", text)[-1:]), "10")
            # What papers call R@k is either of two.
            papers = re.match(r"\s*r\b", text, re.IGNORECASE) is not None
            kinds = ("Hit", "Recall") if papers else tuple(_KINDS.values())
            raise UnknownName("metric", text, [x if x == "Accuracy" else f"{x}@{k}" for x in kinds])
        return cls(kind, int(cut) if cut else None, int(found["rel"] or found["key_rel"] or 1))


def Hit(k: int, rel: int = 1) -> Metric:  # noqa: N802
    """1 where a candidate of grade `rel` or more is among the first k, else 0.

    Papers on multimodal retrieval call this recall (UniIR, Wei et al. 2024; LamRA); Success@k in
    trec_eval and ir-measures.
    """
    return Metric("Hit", k, rel)


def Recall(k: int) -> Metric:  # noqa: N802
    """The share of all relevant candidates, unreachable ones included, among the first k.

    trec_eval's recall_k.
    """
    return Metric("Recall", k)


def MAP(k: int) -> Metric:  # noqa: N802
    """AP@k = 1 / min(k, relevant) · Σ over relevant places i ≤ k of the precision at i.

    As in CIRCO (Baldrati et al. 2023; miccunifi/CIRCO, src/evaluation.py). trec_eval's map_cut_k
    divides by the number of relevant candidates instead, so it cannot reach 1 where that exceeds k.
    """
    return Metric("MAP", k)


def NDCG(k: int) -> Metric:  # noqa: N802
    """DCG@k = Σ grade / log2(i + 1) over places i ≤ k from 1, over that of the best order.

    Järvelin and Kekäläinen 2002 with linear gain, the best order made of all relevant candidates,
    unreachable ones included; trec_eval's ndcg_cut_k.
    """
    return Metric("NDCG", k)


def MRR(k: int) -> Metric:  # noqa: N802
    """1 over the place (from 1) of the first relevant candidate, 0 beyond k.

    trec_eval's recip_rank of the first k; RR@k in ir-measures.
    """
    return Metric("MRR", k)


ACCURACY = Metric("Accuracy")
"""1 where a relevant candidate comes first, of a pair or a gallery (SugarCrepe, Hsieh et al. 2023)."""


def _hit(ranks: Ranks, k: int, rel: int) -> Float64:
    values = np.zeros(len(ranks))
    values[ranks.query[(ranks.rank < k) & (ranks.grade >= rel)]] = 1
    return values


def _recall(ranks: Ranks, k: int) -> Float64:
    found = np.bincount(ranks.query[ranks.rank < k], minlength=len(ranks))
    return np.asarray(found / np.maximum(ranks.relevant, 1))


def _average_precision(ranks: Ranks, k: int) -> Float64:
    near = ranks.rank < k
    query, rank = ranks.query[near], ranks.rank[near]
    order = np.lexsort((rank, query))
    query, rank = query[order], rank[order]
    found = np.bincount(query, minlength=len(ranks))
    nth = np.arange(1, len(query) + 1) - (np.cumsum(found) - found)[query]
    total = np.bincount(query, weights=nth / (rank + 1), minlength=len(ranks))
    return np.asarray(total / np.clip(ranks.relevant, 1, k))


def _ndcg(ranks: Ranks, k: int) -> Float64:
    query, near = ranks.query, ranks.rank < k
    gained = np.bincount(
        query[near], weights=ranks.grade[near] / np.log2(ranks.rank[near] + 2.0), minlength=len(ranks)
    )
    # One sort of a combined key, highest grade first within its query: faster than two keys.
    top = int(ranks.grade.max(initial=0)) + 1
    ideal = top - np.sort(query * (top + 1) + top - ranks.grade) % (top + 1)
    place = np.arange(len(query)) - ranks.indptr[query]
    best = np.bincount(
        query, weights=np.where(place < k, ideal / np.log2(place + 2.0), 0.0), minlength=len(ranks)
    )
    return np.divide(gained, best, out=np.zeros(len(ranks)), where=best > 0)


def _reciprocal(ranks: Ranks, k: int) -> Float64:
    values = np.zeros(len(ranks))
    judged = ranks.relevant > 0
    first = np.minimum.reduceat(ranks.rank, ranks.indptr[:-1][judged])
    values[judged] = np.where(first < k, 1 / (first.astype(np.float64) + 1), 0.0)
    return values
