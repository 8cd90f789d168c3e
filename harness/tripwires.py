"""Tripwires: signs in a task's first vectors and in its score that a model is not at work.

A check is a value; it is made from stored rows and items alone, so that a warm run says the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.content import Image, Item
from harness.metrics import UNREACHED, Metric, Ranks
from harness.run import Ragged, SearchRequest
from harness.store import Facts

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Verdict = Literal["pass", "warn", "FAIL", "not applicable"]

FIRST = 256
"""So many items of each role are looked at."""
FEW = 8
"""Below so many distinct items, nothing is said of them as a whole."""
SAME = 1e-6
"""Rows within this cosine distance are one vector: float16 rounds unit rows to about 2e-8."""
COLLAPSED = (0.9, 0.99)
"""Mean cosine above which vectors are suspicious, and above which they tell nothing apart. Trained
retrievers stay below; hidden states of untrained language models lie there (Ethayarajh 2019)."""
IGNORED = (0.05, 0.5)
"""Shares of items that another picture does not move. Published sets hold a few pictures twice."""
NORMS = (1e-6, 1e4)
"""Norms below are rounding noise; those above are close to the end of float16, 65,504."""
NORM_SPREAD = 100.0
"""Longest over shortest: more than a model's own normalisation or its absence explains."""
CHANCE = "score: chance"
CUT = (0.1, 0.5)
"""Shares of items whose texts were shortened: above, the limit is part of the score."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was measured, the bound that it is held against, and what that means."""

    name: str
    verdict: Verdict
    figure: float | None
    threshold: float | None
    detail: str

    @property
    def bad(self) -> bool:
        return self.verdict in ("warn", "FAIL")

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


def graded(name: str, figure: float, bounds: tuple[float, float], detail: str) -> Check:
    """A warning above the first bound, a failure above the second."""
    warn, fail = bounds
    verdict: Verdict = "FAIL" if figure > fail else "warn" if figure > warn else "pass"
    return Check(name, verdict, rounded(figure), fail if verdict == "FAIL" else warn, detail)


def without(name: str, reason: str) -> Check:
    """A check that cannot be made."""
    return Check(name, "not applicable", None, None, reason)


def rounded(figure: float) -> float:
    """Three digits: what lies below depends on how items were batched."""
    return float(f"{figure:.3g}")


def vectors(who: str, items: Sequence[Item], rows: npt.NDArray[Any], facts: Facts) -> tuple[Check, ...]:
    """What the vectors of distinct items of one role show: unit rows [N, D], and their facts."""
    unit = rows.astype(np.float64)
    return (
        collapse(f"{who}: collapse", unit),
        pictures(f"{who}: pictures", items, unit),
        norms(f"{who}: norms", facts.norms),
        truncation(f"{who}: truncation", facts.cut),
    )


def collapse(name: str, unit: Float64) -> Check:
    """The mean cosine of all pairs of unit rows [N, D]."""
    n = len(unit)
    if n < FEW:
        return without(name, f"only {n} items")
    total = unit.sum(axis=0)
    mean = float((total @ total - (unit * unit).sum()) / (n * (n - 1)))
    detail = (
        f"mean cosine {mean:.3f} between {n} different items; trained retrievers stay below {COLLAPSED[0]}"
    )
    return graded(name, mean, COLLAPSED, detail)


def pictures(name: str, items: Sequence[Item], unit: Float64) -> Check:
    """The share of items with the vector of one that differs in its pictures alone."""
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        if any(isinstance(part, Image) for part in item.parts):
            shown = tuple(Image if isinstance(part, Image) else part for part in item.parts)
            alike[item.instruction, shown].append(i)
    others = sum(len(group) - 1 for group in alike.values())
    if others < FEW:
        return without(name, "too few items differ in their pictures alone")
    still = sum(
        int((((unit[group[1:]] - unit[group[0]]) ** 2).sum(axis=1) / 2 <= SAME).sum())
        for group in alike.values()
    )
    detail = f"another picture leaves the vector as it is in {still} of {others} cases; it should in none"
    return graded(name, still / others, IGNORED, detail)


def norms(name: str, values: npt.NDArray[np.float32]) -> Check:
    """Longest over shortest of the vectors as the model returned them."""
    known = values[~np.isnan(values)].astype(np.float64)
    if not len(known):
        return without(name, "the cache was filled before norms were recorded")
    least, most = float(known.min()), float(known.max())
    spread = most / max(least, 1e-30)
    faults = [
        f"below {NORMS[0]:g} a vector is rounding noise" if least < NORMS[0] else "",
        f"above {NORMS[1]:g} float16 is near its end" if most > NORMS[1] else "",
        f"the longest is {spread:.3g} times the shortest" if spread > NORM_SPREAD else "",
    ]
    said = "; ".join([f"{least:.3g} to {most:.3g}", *filter(None, faults)])
    return Check(name, "warn" if any(faults) else "pass", rounded(spread), NORM_SPREAD, said)


def truncation(name: str, cut: npt.NDArray[np.int16]) -> Check:
    """The share of items with a text that the model's limit shortened."""
    known = cut[cut >= 0]
    if not len(known):
        return without(name, "the model does not say which texts it shortens")
    some = int((known > 0).sum())
    detail = f"the model's limit shortened texts of {some} of {len(known)} items: it does not see the rest"
    return graded(name, some / len(known), CUT, detail)


def against_chance(metric: Metric, low: float, high: float, level: float) -> Check:
    """Whether the 95 % interval of a headline lies above what random rankings score."""
    if level > 1 - 1e-9:
        return without(CHANCE, "every ranking is right")
    above = low > level
    detail = f"{metric} {100 * low:.1f} to {100 * high:.1f} is {'' if above else 'not '}above chance, "
    return Check(
        CHANCE, "pass" if above else "warn", rounded(low), rounded(level), f"{detail}{100 * level:.2f}"
    )


def reachable(request: SearchRequest) -> Int64:
    """How many candidates each query can find: its scope or the pool, less what is excluded, [Q]."""
    size, count = len(request.pool), len(request.positives)

    def pairs(listed: Ragged | None) -> Int64:
        return np.unique(listed.query * size + listed.values) if listed else np.zeros(0, np.int64)

    inside, out = pairs(request.scope), pairs(request.exclude)
    if request.scope is None:
        return np.full(count, size) - np.bincount(out // size, minlength=count)
    return np.bincount(np.setdiff1d(inside, out, assume_unique=True) // size, minlength=count)


def chance(metric: Metric, relevant: Ranks, reach: Int64) -> float:
    """The expected mean of a metric under random rankings of the `reach` [Q] candidates of each query.

    `relevant` says by UNREACHED which positives cannot be found. Place i of a ranking holds a given
    candidate with probability 1 / n; the rest is counting without replacement.
    """
    if not len(relevant):
        return 0.0
    n = np.maximum(reach, 1).astype(np.float64)
    k = metric.k or 1
    depth = np.minimum(k, n).astype(np.int64)
    there = relevant.rank != UNREACHED
    if metric.kind == "Hit":
        there &= relevant.grade >= metric.rel
    r = np.bincount(relevant.query[there], minlength=len(relevant)).astype(np.float64)
    steps = np.arange(1, int(depth.max()) + 1)
    match metric.kind:
        case "Hit" | "Accuracy":
            values = _first_at(n, r, steps, np.ones(len(steps)))
        case "MRR":
            values = _first_at(n, r, steps, 1 / steps)
        case "Recall":
            values = depth / n * r / np.maximum(relevant.relevant, 1)
        case "MAP":
            # The precision at place i, where a relevant one stands, is (1 + (i - 1)(r - 1)/(n - 1)) / i.
            harmonic = np.cumsum(1 / steps)[depth - 1]
            precise = harmonic + (r - 1) / np.maximum(n - 1, 1) * (depth - harmonic)
            values = r / n * precise / np.clip(relevant.relevant, 1, k)
        case "NDCG":
            gain = np.bincount(relevant.query, relevant.grade * there, minlength=len(relevant))
            expected = gain / n * np.cumsum(1 / np.log2(steps + 1))[depth - 1]
            values = np.divide(expected, _best_gain(relevant, k), out=np.zeros(len(r)), where=gain > 0)
    return float(values.mean())


def _first_at(n: Float64, r: Float64, steps: Int64, worth: Float64) -> Float64:
    """The expected worth of the place of the first of r among n candidates, [Q]."""
    values, none = np.zeros(len(n)), np.ones(len(n))
    for place, value in zip(steps.tolist(), worth.tolist(), strict=True):
        still = none * np.clip(n - r - place + 1, 0, None) / np.maximum(n - place + 1, 1)
        still = np.where(r == 0, none, still)
        values += value * (none - still)
        none = still
    return values


def _best_gain(relevant: Ranks, k: int) -> Float64:
    """The DCG of each query's best order, [Q]."""
    order = np.lexsort((-relevant.grade, relevant.query))
    place = np.arange(len(order)) - relevant.indptr[relevant.query]
    gain = np.where(place < k, relevant.grade[order] / np.log2(place + 2), 0.0)
    return np.bincount(relevant.query, gain, minlength=len(relevant)).astype(np.float64)
