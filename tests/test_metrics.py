"""Metrics, and tie rules, against trec_eval, ir-measures, brute force and arithmetic."""

from __future__ import annotations

from itertools import permutations, product
from math import log2

import ir_measures
import numpy as np
import numpy.typing as npt
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError, UnknownName
from harness.metrics import (
    ACCURACY,
    MAP,
    MRR,
    NDCG,
    UNREACHED,
    Hit,
    Metric,
    Ranks,
    Recall,
    ranks,
    ranks_in_list,
)

NAMES = {
    Hit(5): ("Hit@5", "hit_at_5", "R@5"),
    Hit(5, rel=2): ("Hit(rel=2)@5", "hit_rel2_at_5", "R(rel=2)@5"),
    Recall(5): ("Recall@5", "recall_at_5", "Recall@5"),
    MAP(5): ("MAP@5", "map_at_5", "mAP@5"),
    NDCG(10): ("NDCG@10", "ndcg_at_10", "NDCG@10"),
    MRR(10): ("MRR@10", "mrr_at_10", "MRR@10"),
    ACCURACY: ("Accuracy", "accuracy", "Acc."),
}
CUTS = (1, 3, 5, 10, 50)


def placed(*queries: dict[int, int]) -> Ranks:
    """Ranks from one {place from 0: grade} per query."""
    indptr = np.cumsum([0, *map(len, queries)])
    return Ranks(
        indptr,
        np.array([place for q in queries for place in q], dtype=np.int64),
        np.array([grade for q in queries for grade in q.values()], dtype=np.int64),
    )


class Problem:
    """Random graded judgements and untied scores: 40 queries over 30 candidates.

    Candidates 30 to 33 are judged but in no pool; some queries have no relevant candidate, some
    have more of them than the cut-offs.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        share = rng.choice([0, 0.05, 0.2, 0.8], size=(40, 1))
        self.grades = np.where(rng.random((40, 34)) < share, rng.integers(1, 4, (40, 34)), 0)
        self.scores = np.argsort(rng.random((40, 30)), axis=1).astype(np.float32)
        self.rows = np.argsort(-self.scores, axis=1).astype(np.int32)
        query, self.positives = np.nonzero(self.grades)
        self.indptr = np.cumsum([0, *np.bincount(query, minlength=40)])
        self.grade = self.grades[query, self.positives]
        self.qrels = {
            str(q): {f"d{c:02}": int(g) for c, g in enumerate(row)} for q, row in enumerate(self.grades)
        }
        self.run = {
            str(q): {f"d{c:02}": float(s) for c, s in enumerate(row)} for q, row in enumerate(self.scores)
        }

    def listed(self) -> Ranks:
        rows = np.where(self.positives < 30, self.positives, -1).astype(np.int32)
        return ranks_in_list(self.indptr, rows, grade=self.grade, rows=self.rows)

    def searched(self) -> Ranks:
        query = np.repeat(np.arange(40), np.diff(self.indptr))
        outside = self.positives >= 30
        score = self.scores[query, np.minimum(self.positives, 29)]
        score[outside] = -np.inf
        greater = (self.scores[query] > score[:, None]).sum(axis=1, dtype=np.int32)
        none = np.zeros(len(query), dtype=np.int32)
        return ranks(
            self.indptr, self.grade, score=score, greater=greater, equal=none, before=none, rule="pessimistic"
        )

    def trec(self, measure: str, depth: int = 30) -> list[float]:
        """What trec_eval says about the first `depth` candidates, query by query."""
        run = {q: dict(sorted(docs.items(), key=lambda x: -x[1])[:depth]) for q, docs in self.run.items()}
        values = pytrec_eval.RelevanceEvaluator(self.qrels, {measure}).evaluate(run)
        return [values[str(q)][measure.replace(".", "_")] for q in range(40)]

    def ir(self, measure: object) -> list[float]:
        values = {m.query_id: m.value for m in ir_measures.iter_calc([measure], self.qrels, self.run)}
        return [values.get(str(q), 0.0) for q in range(40)]


@pytest.mark.parametrize("seed", range(10))
def test_metrics_agree_with_trec_eval_on_untied_graded_runs(seed: int) -> None:
    problem = Problem(seed)
    relevant = np.diff(problem.indptr)
    for given_ranks in (problem.searched(), problem.listed()):
        for k in CUTS:
            close = {"rtol": 0, "atol": 1e-12}
            np.testing.assert_allclose(Recall(k)(given_ranks), problem.trec(f"recall.{k}"), **close)
            np.testing.assert_allclose(Hit(k)(given_ranks), problem.trec(f"success.{k}"), **close)
            np.testing.assert_allclose(NDCG(k)(given_ranks), problem.trec(f"ndcg_cut.{k}"), **close)
            np.testing.assert_allclose(MRR(k)(given_ranks), problem.trec("recip_rank", depth=k), **close)
            by_all = MAP(k)(given_ranks) * np.minimum(relevant, k) / np.maximum(relevant, 1)
            np.testing.assert_allclose(by_all, problem.trec(f"map_cut.{k}"), **close)
        np.testing.assert_array_equal(ACCURACY(given_ranks), problem.trec("success.1"))


@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_ir_measures(seed: int) -> None:
    problem = Problem(seed)
    found = problem.searched()
    peers = {
        Hit(5): ir_measures.Success @ 5,
        Hit(5, rel=2): ir_measures.Success(rel=2) @ 5,
        Recall(5): ir_measures.R @ 5,
        NDCG(10): ir_measures.nDCG @ 10,
        MRR(10): ir_measures.RR @ 10,
    }
    for metric, peer in peers.items():
        np.testing.assert_allclose(metric(found), problem.ir(peer), rtol=0, atol=1e-12, err_msg=str(metric))


def test_map_of_circo_is_worked_by_hand() -> None:
    first_and_third_of_three = placed({0: 1, 2: 1, UNREACHED: 1})
    assert MAP(5)(first_and_third_of_three) == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert MAP(2)(first_and_third_of_three) == pytest.approx((1 / 1) / 2)
    # Six relevant and a cut at 5: the divisor is 5, so that a perfect list scores 1, not 5/6.
    assert MAP(5)(placed(dict.fromkeys(range(6), 1))) == pytest.approx(1)


def test_ndcg_is_worked_by_hand_and_its_ideal_counts_what_was_not_reached() -> None:
    # Grade 1 first, grade 3 third, grade 2 nowhere; best order: 3, 2, 1.
    value = NDCG(3)(placed({0: 1, 2: 3, UNREACHED: 2}))
    assert value == pytest.approx((1 / log2(2) + 3 / log2(4)) / (3 / log2(2) + 2 / log2(3) + 1 / log2(4)))


def test_hit_from_a_grade_ignores_lower_grades() -> None:
    found = placed({0: 1, 4: 2}, {0: 1, 5: 2}, {1: 3})
    assert Hit(5, rel=2)(found).tolist() == [1, 0, 1]
    assert Hit(5)(found).tolist() == [1, 1, 1]


def test_accuracy_needs_the_best_relevant_candidate_to_come_first() -> None:
    assert ACCURACY(placed({0: 1, 7: 2}, {1: 3}, {UNREACHED: 1})).tolist() == [1, 0, 0]


@pytest.mark.parametrize("metric", NAMES, ids=str)
def test_a_query_without_relevant_candidates_scores_nothing_wherever_it_stands(metric: Metric) -> None:
    assert metric(placed({}, {0: 2}, {}, {}, {0: 2}, {})).tolist() == [0, 1, 0, 0, 1, 0]
    assert metric(placed({}, {})).tolist() == [0, 0]
    assert metric(placed()).shape == (0,)


@pytest.mark.parametrize("metric", NAMES, ids=str)
def test_an_unreached_candidate_never_counts_even_at_the_largest_cut(metric: Metric) -> None:
    deepest = metric if metric is ACCURACY else Metric(metric.kind, 2**70, metric.rel)
    assert deepest(placed({UNREACHED: 3})).tolist() == [0]


def test_an_unreached_candidate_lowers_recall_but_not_a_hit() -> None:
    found = placed({0: 1, UNREACHED: 1, 3: 1, 9: 1})
    assert Recall(5)(found).tolist() == [2 / 4]
    assert Hit(5)(found).tolist() == [1]
    assert MRR(5)(found).tolist() == [1]


def counted(scores: list[int], grades: list[int], outside: int, rule: str) -> Ranks:
    """One query over a small pool, counted by hand; `outside` is the grade of one unreachable positive."""
    places = [i for i, g in enumerate(grades) if g]
    greater = [sum(s > scores[i] for s in scores) for i in places]
    equal = [scores.count(scores[i]) - 1 for i in places]
    before = [scores[:i].count(scores[i]) for i in places]
    lost = [0] if outside else []
    return ranks(
        np.array([0, len(places) + len(lost)]),
        np.array([grades[i] for i in places] + [outside] * len(lost), dtype=np.int64),
        score=np.array([scores[i] for i in places] + [-np.inf] * len(lost), dtype=np.float32),
        greater=np.array(greater + lost, dtype=np.int32),
        equal=np.array(equal + lost, dtype=np.int32),
        before=np.array(before + lost, dtype=np.int32),
        rule=rule,  # type: ignore[arg-type]
    )


def orders(scores: list[int]) -> npt.NDArray[np.int32]:
    """Every order of the candidates in which no score stands before a higher one; the pool's first."""
    tied = [[i for i, s in enumerate(scores) if s == level] for level in sorted(set(scores), reverse=True)]
    return np.array([sum(parts, ()) for parts in product(*map(permutations, tied))], dtype=np.int32)


@settings(max_examples=150, deadline=None)
@given(
    items=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=6),
    outside=st.integers(0, 2),
)
def test_tie_rules_give_the_least_and_greatest_value_of_all_orders(
    items: list[tuple[int, int]], outside: int
) -> None:
    scores, grades = [s for s, _ in items], [g for _, g in items]
    lists = orders(scores)
    positives = [i for i, g in enumerate(grades) if g] + [-1] * bool(outside)
    grade = [g for g in grades if g] + [outside] * bool(outside)
    every = ranks_in_list(
        np.arange(len(lists) + 1) * len(positives),
        np.tile(np.array(positives, dtype=np.int32), len(lists)),
        grade=np.tile(np.array(grade, dtype=np.int64), len(lists)),
        rows=lists,
    )
    for k in range(1, len(items) + 1):
        for metric in (Hit(k), Hit(k, rel=2), Recall(k), MAP(k), NDCG(k), MRR(k), ACCURACY):
            values = metric(every)
            by_rule = {
                rule: metric(counted(scores, grades, outside, rule))[0]
                for rule in ("pessimistic", "optimistic", "pool-order")
            }
            expected = {"pessimistic": values.min(), "optimistic": values.max(), "pool-order": values[0]}
            assert by_rule == pytest.approx(expected, abs=1e-12), str(metric)


def test_places_follow_the_rule_within_a_tie() -> None:
    # Two score higher, then five are tied: grades 0 2 0 1 0 in the pool's order.
    tied = {"scores": [9, 9, 5, 5, 5, 5, 5], "grades": [0, 0, 0, 2, 0, 1, 0], "outside": 0}
    assert counted(**tied, rule="pessimistic").rank.tolist() == [6, 5]
    assert counted(**tied, rule="optimistic").rank.tolist() == [2, 3]
    assert counted(**tied, rule="pool-order").rank.tolist() == [3, 5]


def test_ties_are_not_shared_between_queries_or_scores() -> None:
    # Equal scores in neighbouring queries: each query's two positives are tied with one other.
    two = np.full(6, 2, dtype=np.int32)
    found = ranks(
        np.array([0, 2, 2, 4, 6]),
        np.ones(6, dtype=np.int64),
        score=np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.25], dtype=np.float32),
        greater=np.array([0, 0, 1, 1, 0, 3], dtype=np.int32),
        equal=two,
        before=two,
        rule="pessimistic",
    )
    assert found.rank.tolist() == [1, 2, 2, 3, 2, 5]


@pytest.mark.parametrize("rule", ["pessimistic", "optimistic", "pool-order"])
def test_places_of_no_positives_are_none(rule: str) -> None:
    found = counted([1, 2], [0, 0], 0, rule)
    assert len(found) == 1
    assert found.rank.shape == (0,)


def test_a_list_gives_first_places_and_ignores_padding() -> None:
    rows = np.array([[4, 7, 4, 2], [3, -1, -1, -1], [-1, -1, -1, -1]], dtype=np.int32)
    found = ranks_in_list(
        np.array([0, 3, 5, 6]),
        np.array([2, 4, 9, -1, 3, 3], dtype=np.int32),
        grade=np.ones(6, dtype=np.int64),
        rows=rows,
    )
    assert found.rank.tolist() == [3, 0, UNREACHED, UNREACHED, 0, UNREACHED]


def test_a_list_without_depth_reaches_nothing() -> None:
    found = ranks_in_list(
        np.array([0, 1]),
        np.array([0], dtype=np.int32),
        grade=np.ones(1, dtype=np.int64),
        rows=np.empty((1, 0), dtype=np.int32),
    )
    assert found.rank.tolist() == [UNREACHED]


def test_places_in_long_lists_with_many_positives_agree_with_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    rows = np.array([rng.permutation(2000)[:1000] for _ in range(20)], dtype=np.int32)
    positives = np.array([rng.permutation(2000)[:174] for _ in range(20)], dtype=np.int32)
    found = ranks_in_list(
        np.arange(21) * 174, positives.ravel(), grade=np.ones(20 * 174, dtype=np.int64), rows=rows
    )
    plain = [
        row.index(p) if p in row else UNREACHED
        for row, wanted in zip(rows.tolist(), positives.tolist(), strict=True)
        for p in wanted
    ]
    assert found.rank.tolist() == plain


@pytest.mark.parametrize(("metric", "names"), NAMES.items(), ids=map(str, NAMES))
def test_names_are_the_agreed_ones_and_parse_back(metric: Metric, names: tuple[str, str, str]) -> None:
    assert (str(metric), metric.key, metric.alias) == names
    for text in (str(metric), metric.key, str(metric).lower(), metric.key.upper(), f" {metric} "):
        assert Metric.parse(text) == metric


def test_a_metric_prints_as_parsed_whatever_the_cut() -> None:
    assert str(Metric.parse("hit_rel12_at_345")) == "Hit(rel=12)@345"
    assert Metric.parse("Hit(rel=1)@007") == Hit(7)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("Hits@7", "Hit@7"),
        ("recal_at_5", "Recall@5"),
        ("R@5", "did you mean Recall@5 or Hit@5?"),
        ("NDGC@10", "NDCG@10"),
        ("Hit", "Hit@10"),
        ("Accuracy@5", "Accuracy"),
        ("Hit@5.5", "Hit@5"),
        ("hit_rel2@5", "Hit@5"),
        ("", "known: Accuracy, Hit@10"),
    ],
)
def test_an_unknown_name_shows_the_near_misses(text: str, advice: str) -> None:
    with pytest.raises(UnknownName) as error:
        Metric.parse(text)
    assert f"unknown metric {text!r}: " in str(error.value)
    assert advice in str(error.value).split(": ", 1)[1]


@pytest.mark.parametrize(
    ("kind", "k", "rel", "message"),
    [
        ("Hit", 0, 1, "Hit@0: the cut-off must be a whole number from 1"),
        ("NDCG", None, 1, "NDCG@None: the cut-off"),
        ("MRR", 2.5, 1, r"MRR@2\.5: the cut-off"),
        ("Accuracy", 5, 1, "Accuracy takes no cut-off, got 5: use Hit@5"),
        ("Hit", 5, 0, r"Hit\(rel=0\): the grade must be a whole number from 1"),
        ("Recall", 5, 2, "Recall takes no rel=2: only Hit"),
        ("Precision", 5, 1, "unknown metric 'Precision'"),
    ],
)
def test_an_impossible_metric_is_refused(kind: str, k: object, rel: int, message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        Metric(kind, k, rel)  # type: ignore[arg-type]


def test_a_cut_of_zero_is_refused_when_parsed() -> None:
    with pytest.raises(HarnessError, match="whole number from 1"):
        Metric.parse("hit_at_0")
