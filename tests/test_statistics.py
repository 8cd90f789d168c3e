"""Intervals and paired tests, against SciPy, brute force, published examples and arithmetic."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from scipy import stats

from harness.errors import HarnessError
from harness.statistics import (
    corrected,
    detectable,
    holm,
    mean_ci,
    paired,
    randomisation,
    rank_intervals,
    sum_ci,
    tied,
)


def test_the_interval_of_hits_is_the_binomial_one() -> None:
    chance = [comb(100, n) * 0.3**n * 0.7 ** (100 - n) for n in range(101)]
    below = np.cumsum(chance)
    expected = (np.searchsorted(below, 0.025) / 100, np.searchsorted(below, 0.975) / 100)
    assert mean_ci(np.repeat([1.0, 0.0], [30, 70])) == pytest.approx(expected)


def test_the_interval_is_that_of_resampling_the_queries() -> None:
    rng = np.random.default_rng(1)
    values = rng.choice([0, 0.25, 1 / 3, 0.5, 1], p=[0.6, 0.1, 0.1, 0.1, 0.1], size=300)
    means = values[rng.integers(0, 300, size=(10_000, 300))].mean(axis=1)
    # An end of a 95 % interval from 10,000 draws has a standard error of 0.027 of the mean's.
    close = 0.12 * values.std() / 300**0.5
    assert mean_ci(values) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=close)


def test_the_interval_of_continuous_values_is_the_normal_one_for_many_queries() -> None:
    values = np.random.default_rng(2).beta(0.3, 3, size=20_000)
    error = values.std() / len(values) ** 0.5
    expected = (values.mean() - 1.96 * error, values.mean() + 1.96 * error)
    assert mean_ci(values) == pytest.approx(expected, abs=0.12 * error)


def test_the_interval_is_deterministic_and_blind_to_the_order_of_queries() -> None:
    values = np.random.default_rng(3).random(400)
    assert mean_ci(values) == mean_ci(values) == mean_ci(values[::-1])
    assert mean_ci(values, seed=1) != mean_ci(values)


def test_the_interval_of_one_resample_is_a_point() -> None:
    low, high = mean_ci(np.array([0.0, 0.5, 1.0]), resamples=1)
    assert low == high


@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3])
@pytest.mark.parametrize("queries", [1, 7])
def test_the_interval_of_one_query_or_of_equal_values_is_the_value(value: float, queries: int) -> None:
    assert mean_ci(np.full(queries, value)) == (value, value)


def test_the_interval_of_no_query_is_refused() -> None:
    with pytest.raises(HarnessError, match="at least one value"):
        mean_ci(np.zeros(0))


def hits(wins: int, losses: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """0/1 outcomes of two systems."""
    counts = (wins, losses, both, neither)
    return np.repeat([1.0, 0, 1, 0], counts), np.repeat([0.0, 1, 1, 0], counts)


def test_the_interval_of_a_sum_is_that_of_resampling_each_stratum() -> None:
    rng = np.random.default_rng(4)
    strata = [rng.choice([0.0, 0.5, 1], size=n) / 2 for n in (80, 300)]
    sums = sum(s[rng.integers(0, len(s), size=(10_000, len(s)))].mean(axis=1) for s in strata)
    error = sum(s.var() / len(s) for s in strata) ** 0.5
    assert sum_ci(strata) == pytest.approx(tuple(np.quantile(sums, [0.025, 0.975])), abs=0.12 * error)


def test_the_interval_of_a_difference_is_scipys() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.choice([0, 1 / 3, 0.5, 1], size=(2, 200))
    found = stats.bootstrap(
        (a, b), lambda x, y, axis: (x - y).mean(axis=axis), paired=True, n_resamples=10_000,
        method="percentile", rng=rng,
    ).confidence_interval  # fmt: skip
    close = 0.12 * (a - b).std() / 200**0.5
    assert paired([a], [b]).ci95 == pytest.approx((found.low, found.high), abs=close)


def scipys_p(a: np.ndarray, b: np.ndarray, **more: object) -> float:
    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return (x - y).mean(axis=axis)

    found = stats.permutation_test((a, b), difference, permutation_type="samples", vectorized=True, **more)
    return float(found.pvalue)


@pytest.mark.parametrize("seed", range(5))
def test_few_differences_are_tested_exactly_as_scipy_does(seed: int) -> None:
    a, b = np.random.default_rng(seed).choice([0, 0.2, 1 / 3, 0.5, 1], size=(2, 12))
    p, exact = randomisation(a - b)
    assert exact
    assert p == pytest.approx(scipys_p(a, b, n_resamples=np.inf))


def test_many_differences_are_tested_as_scipy_does_within_the_error_of_drawing() -> None:
    rng = np.random.default_rng(6)
    a = rng.choice([0, 0.2, 1 / 3, 0.5, 1], size=150)
    b = np.where(rng.random(150) < 0.8, a, rng.choice([0, 0.2, 0.5], size=150))
    p, exact = randomisation(a - b)
    assert not exact
    reference = scipys_p(a, b, n_resamples=50_000, rng=rng)
    assert 0.0005 < p < 0.2
    assert p == pytest.approx(reference, abs=5 * (reference / 50_000) ** 0.5)


def test_continuous_differences_are_tested_as_the_normal_one_for_many_queries() -> None:
    differences = np.random.default_rng(7).normal(0.004, 0.1, size=3000)
    z = abs(differences.sum()) / (differences**2).sum() ** 0.5
    assert randomisation(differences)[0] == pytest.approx(2 * stats.norm.sf(z), abs=0.005)


@pytest.mark.parametrize(("wins", "losses"), [(1, 0), (7, 1), (12, 12), (60, 31), (900, 1100)])
def test_hits_are_tested_exactly_as_mcnemar_does(wins: int, losses: int) -> None:
    a, b = hits(wins, losses, 40, 25)
    p, exact = randomisation(a - b)
    assert exact
    assert p == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)


def test_no_difference_and_one_query_give_no_evidence() -> None:
    assert randomisation(np.zeros(9)) == (1.0, True)
    assert randomisation(np.array([0.3])) == (1.0, True)


def test_a_drawn_p_is_never_0() -> None:
    differences = np.linspace(0.1, 1, 17)  # only 2 of 2^17 assignments are as far from 0
    assert randomisation(differences, draws=999) == (1 / 1000, False)


def test_beyond_all_draws_p_is_a_bound_above_the_truth() -> None:
    differences = np.concatenate([np.full(150, 0.5), np.full(20, -1.0)])
    p, exact = randomisation(differences)
    z = differences.sum() / (differences**2).sum() ** 0.5
    assert not exact
    assert p == pytest.approx(2 * np.exp(-(z**2) / 2))
    assert 2 * stats.norm.sf(z) < p < 1e-5


def test_rounding_errors_do_not_split_equal_differences() -> None:
    differences = np.array([0.3 - 0.2, 0.1, 0.7 - 0.6, 0.8 - 0.7])  # 0.1 up to a rounding error
    assert len(np.unique(differences)) > 1
    assert randomisation(differences) == (2 / 2**4, True)


def test_strata_are_exchanged_within_and_weighted_by_their_size() -> None:
    """Two tasks of 4 and 2 queries: all 2^6 exchanges by hand."""
    a = [np.array([1.0, 0, 1, 1]), np.array([1.0, 0.5])]
    b = [np.array([0.0, 0, 1, 0]), np.array([0.0, 1.0])]
    gaps = np.array([1 / 4, 0, 0, 1 / 4, 1 / 2, -0.5 / 2])
    sums = [abs(np.dot(signs, gaps)) for signs in product((1, -1), repeat=6)]
    test = paired(a, b)
    assert test.difference == pytest.approx(gaps.sum())
    assert test.p == pytest.approx(np.mean(np.array(sums) >= gaps.sum() - 1e-9))
    assert (test.wins, test.ties, test.losses, test.n) == (3, 2, 1, 6)
    assert test.effect is None
    assert test.odds is None


def test_effects_and_odds_by_hand() -> None:
    a, b = hits(6, 2, 10, 2)
    test = paired([a], [b])
    # Differences: six times 1, twice -1, twelve times 0; mean 0.2, variance (8 - 20 · 0.04) / 19.
    assert test.difference == pytest.approx(0.2)
    assert test.effect == pytest.approx(0.2 / (7.2 / 19) ** 0.5)
    assert test.odds == 3.0
    assert (test.wins, test.ties, test.losses) == (6, 12, 2)
    assert paired([a], [a]).effect is None
    assert paired([a / 2], [b]).odds is None


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    differences = np.random.default_rng(8).choice([-1.0, 0, 1], p=[0.2, 0.6, 0.2], size=500)
    least = detectable([differences])
    assert least == pytest.approx(2.8016 * (differences.var(ddof=1) / 500) ** 0.5, rel=1e-4)
    rng = np.random.default_rng(9)
    samples = rng.choice(differences - differences.mean() + least, size=(4000, 500))
    found = stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    assert detectable([np.zeros(5)]) is None
    assert detectable([np.ones(1)]) is None


def test_holms_correction_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, never falling.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_ranks_are_intervals_as_wide_as_the_tests_leave_them() -> None:
    rng = np.random.default_rng(10)
    noise = rng.random(400)
    systems = {
        "good": (noise < 0.8).astype(float),
        "near": (noise < 0.79).astype(float),
        "poor": (noise < 0.3).astype(float),
    }
    pairs = [("good", "near"), ("good", "poor"), ("near", "poor")]
    tests = corrected([paired([systems[a]], [systems[b]]) for a, b in pairs])
    ranks = rank_intervals(list(systems), dict(zip(pairs, tests, strict=True)))
    assert ranks == {"good": (1, 2), "near": (1, 2), "poor": (3, 3)}
    assert tied({name: [values] for name, values in systems.items()}) == {"good", "near"}
    assert tied({}) == frozenset()


def test_equal_systems_tie_whatever_their_order() -> None:
    values = [np.array([0.0, 1, 1])]
    assert tied({"a": values, "b": values}) == {"a", "b"}
