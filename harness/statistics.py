"""Statistics over per-query outcomes: intervals, paired tests, effects and ranks.

    >>> paired([np.array([1.0, 1, 0, 1])], [np.array([0.0, 1, 0, 0])]).wins
    2

A score here is a sum of means over *strata*: one array of per-query values for a task's score, one
for each task (already weighted) for an average over a suite. Queries are resampled, and their two
outcomes exchanged, within their stratum, independently of the other strata.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Strata = Sequence[Float64]
"""Per-query values by stratum; the score is the sum of their means."""
K = TypeVar("K", bound=Hashable)

ALPHA = 0.05
POWER = 0.8
RESAMPLES = 10_000
DRAWS = 100_000
"""Of the randomisation test where it is not exact: the least p is 1e-5, so that it survives a
correction over hundreds of tests."""
_ENUMERATED = 16
_BLOCK = 1 << 20
_BINS = 1000
_SIZES = 250


def mean_ci(values: Float64, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap 95 % interval of the mean of `values` [Q], one per query.

    One query, or equal values, give (v, v). Efron and Tibshirani 1993, §13.3.
    """
    return sum_ci([values], resamples=resamples, seed=seed)


def sum_ci(strata: Strata, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap 95 % interval of the sum of the strata's means."""
    rng = np.random.default_rng(seed)
    sums = np.sum([_resampled_means(values, resamples, rng) for values in strata], axis=0)
    low, high = np.quantile(sums, [0.025, 0.975])
    return float(low), float(high)


def _resampled_means(values: Float64, resamples: int, rng: np.random.Generator) -> Float64:
    """The means of `resamples` resamples of the queries.

    How often each *distinct* value occurs in a resample is multinomial, so that it is drawn
    directly: the same distribution as drawing queries, at a cost that does not grow with Q. Beyond
    1000 distinct values they are first put into 1000 bins of equal width, each standing for its
    mean: the mean is kept, and the variance falls by at most a quarter of a squared bin width.
    """
    if not len(values):
        raise HarnessError("an interval needs at least one value: no query was scored")
    distinct, counts = _binned(*np.unique(values, return_counts=True))
    if len(distinct) == 1:
        return np.full(resamples, distinct[0])
    step = max(1, _BLOCK // len(distinct))
    totals = [
        rng.multinomial(len(values), counts / len(values), size=min(step, resamples - i)) @ distinct
        for i in range(0, resamples, step)
    ]
    return np.asarray(np.concatenate(totals) / len(values))


def _binned(distinct: Float64, counts: Int64, *, bins: int = _BINS) -> tuple[Float64, Int64]:
    """Sorted distinct values and their counts, put into equal-width bins where there are more: the mean
    and the count of each bin that is not empty."""
    if len(distinct) <= bins:
        return distinct, counts
    width = (distinct[-1] - distinct[0]) / bins
    number = np.minimum(((distinct - distinct[0]) / width).astype(np.int64), bins - 1)
    start = np.flatnonzero(np.diff(number, prepend=-1))
    total = np.add.reduceat(counts, start)
    return np.add.reduceat(distinct * counts, start) / total, total


def randomisation(differences: Float64, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, bool]:
    """Two-sided p of the paired randomisation test, and whether it is exact.

    Without a difference between two systems the sign of every query's difference is a coin toss
    (Fisher 1935, §21; Smucker, Allan and Carterette 2007): p is the chance that the sum of
    `differences` with random signs is at least as far from 0 as it is. Exact where all differences
    have one size (0/1 outcomes: then it is the exact McNemar test) and where at most 16 are not 0.
    Otherwise it is drawn, the observed assignment counted among those drawn, so that p is valid and
    never 0 (Phipson and Smyth 2010); a tenth of the `draws` is enough where p is not small. What no
    number of draws could show has Hoeffding's bound (1963) for p.
    """
    largest = float(np.abs(differences).max(initial=0.0))
    # Differences of one size can come out unequal by a rounding error.
    scaled = np.round(differences / (largest or 1.0), 12)
    sizes, counts = np.unique(np.abs(scaled[scaled != 0]), return_counts=True)
    observed = abs(float(scaled.sum())) - 1e-9
    if len(sizes) <= 1:
        return _sign_test(int(counts.sum()), observed), True
    if counts.sum() <= _ENUMERATED:
        sums = np.zeros(1)
        for size in np.repeat(sizes, counts):
            sums = np.concatenate([sums + size, sums - size])
        return float((np.abs(sums) >= observed).mean()), True
    bound = 2 * float(np.exp(-(observed**2) / (2 * counts @ sizes**2)))
    if bound * (draws + 1) < 1:
        return bound, False
    sizes, counts = _binned(sizes, counts, bins=_SIZES)
    rng = np.random.default_rng(seed)
    first = draws // 10
    beyond = _beyond(sizes, counts, observed, first, rng)
    if beyond >= 100:
        return (beyond + 1) / (first + 1), False
    beyond += _beyond(sizes, counts, observed, draws - first, rng)
    return (beyond + 1) / (draws + 1), False


def _beyond(sizes: Float64, counts: Int64, observed: float, draws: int, rng: np.random.Generator) -> int:
    """In how many draws the signed sum is at least so far from 0. The number of plus signs among
    differences of one size is binomial: drawn directly, as in the bootstrap."""
    step = max(1, _BLOCK // len(sizes))
    found = 0
    for i in range(0, draws, step):
        plus = rng.binomial(counts, 0.5, size=(min(step, draws - i), len(sizes)))
        found += int((np.abs((2 * plus - counts) @ sizes) >= observed).sum())
    return found


def _sign_test(n: int, observed: float) -> float:
    """The chance that heads and tails of n tosses differ by `observed` or more."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_chance = log_factorial[n] - log_factorial - log_factorial[::-1] - n * np.log(2)
    apart = np.abs(2 * np.arange(n + 1) - n) >= observed
    return min(1.0, float(np.exp(log_chance[apart]).sum()))


@dataclass(frozen=True, slots=True)
class Paired:
    """Two scores on the same queries, in [0, 1]; `difference` is the first less the second.

    ci95: bootstrap over queries. p: paired randomisation test, `adjusted` for all tests made
    together. effect: the mean of the paired differences over their standard deviation (Cohen's d_z);
    odds: wins over losses, for 0/1 outcomes. Both None where they are not defined, and for sums over
    several strata. wins, ties, losses count queries. mdd: the least true difference that a test at
    level 0.05 on so many queries of this spread finds with a chance of 80 %.
    """

    first: float
    second: float
    difference: float
    ci95: tuple[float, float]
    p: float
    exact: bool
    adjusted: float
    effect: float | None
    odds: float | None
    wins: int
    ties: int
    losses: int
    mdd: float | None
    n: int

    @property
    def significant(self) -> bool:
        return self.adjusted <= ALPHA


def paired(first: Strata, second: Strata, *, seed: int = 0) -> Paired:
    """Compare two systems whose values stand for the same queries in the same order."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    p, exact = _chance_of(differences, seed)
    every = np.concatenate(differences)
    wins, losses = int((every > 0).sum()), int((every < 0).sum())
    alone = len(differences) == 1
    spread = float(every.std(ddof=1)) if alone and len(every) > 1 else 0.0
    binary = alone and all(np.isin(values, (0.0, 1.0)).all() for values in (*first, *second))
    return Paired(
        first=score(first),
        second=score(second),
        difference=score(differences),
        ci95=sum_ci(differences, seed=seed),
        p=p,
        exact=exact,
        adjusted=p,
        effect=float(every.mean()) / spread if spread else None,
        odds=wins / losses if binary and losses else None,
        wins=wins,
        ties=len(every) - wins - losses,
        losses=losses,
        mdd=detectable(differences),
        n=len(every),
    )


def _chance_of(differences: Strata, seed: int) -> tuple[float, bool]:
    """p of the test on a sum of means: a sum over queries, once each is divided by its stratum's size."""
    return randomisation(np.concatenate([d / len(d) for d in differences]), seed=seed)


def score(strata: Strata) -> float:
    """The sum of the strata's means."""
    return float(sum(values.mean() for values in strata))


def detectable(differences: Strata, *, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The minimum detectable difference of a two-sided paired test: (z[1 - α/2] + z[power]) · SE.

    SE² is the sum of variance / queries over the strata. Normal approximation (Cohen 1988, §2;
    Card et al. 2020, "With little power comes great responsibility"). None where nothing varies.
    """
    if any(len(d) < 2 for d in differences):
        return None
    error = float(sum(d.var(ddof=1) / len(d) for d in differences)) ** 0.5
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * error or None


def holm(ps: Sequence[float]) -> list[float]:
    """The p values adjusted for making all these tests, in their order (Holm 1979).

    Whatever is at most α afterwards holds with a chance of at most α that any of it is false.
    """
    order = np.argsort(ps, kind="stable")
    adjusted = np.empty(len(ps))
    steps = np.asarray(ps, dtype=np.float64)[order] * np.arange(len(ps), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(p) for p in adjusted]


def corrected(tests: Sequence[Paired]) -> list[Paired]:
    """The tests with p adjusted for all of them."""
    return [replace(test, adjusted=p) for test, p in zip(tests, holm([t.p for t in tests]), strict=True)]


def rank_intervals(systems: Sequence[K], tests: Mapping[tuple[K, K], Paired]) -> dict[K, tuple[int, int]]:
    """The ranks that each system can have, from tests of all pairs corrected together.

    Best: 1 + the systems significantly better; worst: all but those significantly worse. With
    simultaneous tests all intervals hold together with 95 % (Mogstad, Romano, Shaikh and Wilhelm
    2024, "Inference for ranks", whose stepwise method this is with Holm's steps).
    """
    better = dict.fromkeys(systems, 0)
    worse = dict.fromkeys(systems, 0)
    for (a, b), test in tests.items():
        if test.significant and test.difference:
            winner, loser = (a, b) if test.difference > 0 else (b, a)
            worse[winner] += 1
            better[loser] += 1
    return {system: (1 + better[system], len(systems) - worse[system]) for system in systems}


def tied(scores: Mapping[K, Strata], *, seed: int = 0) -> frozenset[K]:
    """The systems that cannot be told from the best one: itself, and those whose paired test against
    it is not significant after correction for all tests against it.

    All values stand for the same queries in the same order.
    """
    if not scores:
        return frozenset()
    best = max(scores, key=lambda name: score(scores[name]))
    others = [name for name in scores if name != best]
    gaps = ([a - b for a, b in zip(scores[best], scores[name], strict=True)] for name in others)
    chances = holm([_chance_of(gap, seed)[0] for gap in gaps])
    return frozenset([best, *(name for name, p in zip(others, chances, strict=True) if p > ALPHA)])
