import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from harness.collection import Collection, Pool
from harness.content import Candidate, Image, Item, Query, Text
from harness.evaluate import evaluate, open_reranker
from harness.metrics import ACCURACY, MAP, MRR, NDCG, UNREACHED, Hit, Ranks, Recall
from harness.registry import load_catalog
from harness.rerank import Fusion
from harness.run import Ragged, SearchRequest
from harness.store import Facts, Store, as_keys
from harness.testing import write_picture
from harness.tripwires import against_chance, chance, collapse, norms, pictures, reachable, truncation
from toys import Toy, ToyEmbedder, ToyRanker, catalog, collection, places, spec, task

METRICS = [
    Hit(1),
    Hit(3),
    Hit(9),
    Hit(2, rel=2),
    ACCURACY,
    Recall(2),
    Recall(9),
    MRR(4),
    MAP(3),
    MAP(9),
    NDCG(3),
]


def ranked(lists):
    """Ranks of one query for each list of (place, grade)."""
    indptr = np.concatenate([[0], np.cumsum([len(x) for x in lists])])
    flat = [pair for x in lists for pair in x]
    return Ranks(indptr, np.array([p for p, _ in flat], np.int64), np.array([g for _, g in flat], np.int64))


@pytest.mark.parametrize("metric", METRICS, ids=str)
@pytest.mark.parametrize(
    ("n", "grades", "lost"), [(5, [1], 0), (5, [2, 1, 1], 1), (4, [], 2), (1, [3], 0), (2, [1, 1], 0)]
)
def test_chance_is_the_mean_over_every_ranking(metric, n, grades, lost):
    gone = [(UNREACHED, 2)] * lost
    every = [[*zip(places_, grades, strict=False), *gone] for places_ in itertools.permutations(range(n))]
    mean = metric(ranked(every)).mean()
    known = ranked([[*((0, g) for g in grades), *gone]])
    assert chance(metric, known, np.array([n])) == pytest.approx(mean, abs=1e-12)


def test_chance_is_a_mean_over_queries_of_different_galleries():
    known = ranked([[(0, 1)], [(0, 1)], [(UNREACHED, 1)]])
    assert chance(Hit(1), known, np.array([2, 10, 7])) == pytest.approx((1 / 2 + 1 / 10 + 0) / 3)


def test_what_a_query_can_find_is_its_scope_less_what_is_excluded():
    class Rows:
        def __len__(self):
            return 10

    def request(**more):
        return SearchRequest(None, Rows(), 1, Ragged.of([[0], [1]]), **more)

    assert reachable(request()).tolist() == [10, 10]
    assert reachable(request(exclude=Ragged.of([[1, 1, 2], []]))).tolist() == [8, 10]
    scoped = request(scope=Ragged.of([[1, 2, 2, 3], [9]]), exclude=Ragged.of([[2, 7], []]))
    assert reachable(scoped).tolist() == [2, 1]


def test_collapse_is_the_mean_cosine_of_pairs():
    rows = np.random.default_rng(0).standard_normal((20, 6)) + 3 * np.eye(1, 6)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    plain = np.mean([a @ b for a, b in itertools.combinations(rows, 2)])
    assert collapse("x", rows).figure == pytest.approx(plain, abs=5e-4)
    near = np.ones((20, 6)) + 0.01 * rows
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    assert collapse("x", near).verdict == "FAIL"
    assert collapse("x", rows[:7]).verdict == "not applicable"


def test_a_picture_that_moves_nothing_is_seen_only_between_items_alike_but_for_it(tmp_path):
    shown = [Item("query", (Image(tmp_path / f"{i}.png"), Text("what is this?"))) for i in range(12)]
    other = [Item("query", (Image(tmp_path / "a.png"), Text(f"is it {i}?"))) for i in range(12)]
    same = np.tile(np.eye(1, 4), (12, 1))
    assert pictures("x", shown, same).verdict == "FAIL"
    assert pictures("x", shown, np.eye(12)).verdict == "pass"
    assert pictures("x", other, same).verdict == "not applicable"  # here the texts differ
    two = np.eye(12)
    two[1] = two[0]
    check = pictures("x", shown, two)
    assert (check.verdict, check.figure) == ("warn", 0.0909)  # 1 of the 11 others


@pytest.mark.parametrize(
    ("values", "verdict", "said"),
    [
        ([1, 1.5, 0.7], "pass", "0.7 to 1.5"),
        ([1, 150, 1], "warn", "150 times the shortest"),
        ([3e4, 2e4], "warn", "float16"),
        ([2e-7, 1e-6], "warn", "rounding noise"),
        ([np.nan, np.nan], "not applicable", "before norms were recorded"),
    ],
)
def test_norms_of_raw_rows(values, verdict, said):
    check = norms("x", np.array(values, np.float32))
    assert check.verdict == verdict
    assert said in check.detail


def test_truncation_counts_items_of_which_it_is_known():
    assert truncation("x", np.array([0, 0, -1, 2, 0], np.int16)).figure == 0.25
    assert truncation("x", np.array([-1, -1], np.int16)).verdict == "not applicable"


def test_a_score_is_above_chance_where_its_whole_interval_is():
    assert against_chance(Hit(1), 0.2, 0.4, 0.1).verdict == "pass"
    assert against_chance(Hit(1), 0.05, 0.4, 0.1).verdict == "warn"
    assert against_chance(ACCURACY, 1.0, 1.0, 1.0).verdict == "not applicable"


def test_the_store_keeps_what_was_seen_of_rows(tmp_path):
    store = Store(tmp_path, {"model": "m"})
    keys = as_keys([bytes([65 + i]) * 16 for i in range(5)])
    rows = np.eye(5, 8, dtype=np.float16)
    store.add(keys[:3], rows[:3], Facts(np.array([1, 2, 3], np.float32), np.array([0, 1, -1], np.int16)))
    store.add(keys[3:], rows[3:])  # a shard without, as older ones are
    for again in (store, Store(tmp_path, {"model": "m"})):
        facts = again.facts(keys[[4, 2, 0]])
        assert facts.norms[1:].tolist() == [3.0, 1.0]
        assert np.isnan(facts.norms[0])
        assert facts.cut.tolist() == [-1, -1, 0]


@dataclass(frozen=True, slots=True)
class Faulty(Toy):
    """A toy with one of the silent faults."""

    def prepare(self, items):
        if self.fault == "blind":
            items = [
                dataclasses.replace(i, parts=tuple(p for p in i.parts if isinstance(p, Text))) for i in items
            ]
        made = super(Faulty, self).prepare(items)
        return {"made": made, "cut": [1 if self.fault == "short" else 0 for _ in items]}

    def load(self, device):
        return FaultyEmbedder(self)


class FaultyEmbedder(ToyEmbedder):
    def embed(self, batch):
        rows = super().embed(batch["made"])
        if self.toy.fault == "collapsed":
            rows = 1 + 0.1 * rows
        if self.toy.fault == "wild":
            rows[0] *= 1e5
        return rows


def shown(tmp_path):
    """A query is the text and the picture of its candidate, all queries with one text."""
    files = [write_picture(tmp_path / f"{i}.png", seed=i) for i in range(12)]
    pool = [Candidate(f"c{i}", (Image(f), Text("what is this?"))) for i, f in enumerate(files)]
    queries = [Query(f"q{i}", c.parts) for i, c in enumerate(pool)]
    return Collection(queries, Pool("p", pool), {q.id: {c.id: 1} for q, c in zip(queries, pool, strict=True)})


@pytest.mark.parametrize(
    ("fault", "tripped"),
    [
        ("", set()),
        ("collapsed", {"queries: collapse", "candidates: collapse"}),
        ("wild", {"queries: norms", "candidates: norms"}),
        ("short", {"queries: truncation", "candidates: truncation"}),
    ],
)
def test_each_fault_trips_its_own_wire_and_a_warm_run_says_the_same(tmp_path, fault, tripped):
    made = shown(tmp_path)
    toy = Faulty(fault=fault)
    results = []
    for overwrite in ("only-missing", "always"):
        models, tasks = [spec(toy)], [task(lambda: made)]
        chosen = dataclasses.replace(places(tmp_path), overwrite=overwrite)
        (outcome,) = evaluate(catalog(models, tasks), models[0], {}, tasks, chosen)
        results.append(dataclasses.replace(outcome.result, provenance={}))
    assert results[0] == results[1]
    wires = results[0].analysis["tripwires"]
    assert {name for name, check in wires.items() if check["verdict"] in ("warn", "FAIL")} == tripped
    assert {": ".join(note.split(": ")[1:3]) for note in results[0].notes} == tripped


def test_a_model_that_ignores_pictures_is_told_before_candidates_are_encoded(tmp_path):
    made = shown(tmp_path)
    more = [Query(f"t{i}", (Text(f"number {i}"),)) for i in range(12)]  # not all rows are alike
    qrels = {**made.qrels, **{q.id: {"c0": 1} for q in more}}
    pool = Pool("p", [*made.pool, Candidate("x", (Text("x"),))])
    mixed = dataclasses.replace(made, queries=[*made.queries, *more], qrels=qrels, pool=pool)
    said: list[str] = []
    models, tasks = [spec(Faulty(fault="blind"))], [task(lambda: mixed)]
    (outcome,) = evaluate(catalog(models, tasks), models[0], {}, tasks, places(tmp_path), tell=said.append)
    assert said[0].startswith("toys/a: warning: queries: pictures: another picture leaves the vector")
    assert outcome.result.analysis["tripwires"]["queries: pictures"]["verdict"] == "FAIL"


def test_random_vectors_score_within_noise_of_chance(tmp_path):
    models, tasks = [spec(Toy())], [task(lambda: collection(40))]
    said: list[str] = []
    (outcome,) = evaluate(catalog(models, tasks), models[0], {}, tasks, places(tmp_path), tell=said.append)
    wire = outcome.result.analysis["tripwires"]["score: chance"]
    assert (wire["verdict"], wire["threshold"]) == ("warn", 0.025)  # one of 40
    assert said == [f"toys/a: warning: {outcome.result.notes[0].removeprefix('tripwire: ')}"]


def test_a_reranked_result_is_held_against_chance_by_its_own_score(tmp_path):
    made = collection(40)
    ranker = ToyRanker(weights="r9")
    reranking = open_reranker(ranker.spec(), {}, Fusion({"*": 40}, {"*": 100.0}))
    models, tasks = [spec(Faulty(fault="short"))], [task(lambda: made)]
    known = catalog(models, tasks, [ranker.spec()])
    (outcome,) = evaluate(known, models[0], {}, tasks, places(tmp_path), reranking=reranking)
    result = outcome.result
    wire = result.analysis["tripwires"]["score: chance"]
    assert wire["figure"] == pytest.approx(result.metrics["hit_at_1"].ci95[0], rel=1e-2)
    said = [note for note in result.notes if "score: chance" in note]
    assert len(said) == (wire["verdict"] == "warn")
    assert sum("truncation" in note for note in result.notes) == 2  # the vectors are the retriever's


def test_checks_of_tasks_are_exempt(tmp_path):
    known = load_catalog()
    chosen = [known.tasks["demo/right-caption"]]
    (outcome,) = evaluate(known, known.model("constant"), {}, chosen, places(tmp_path))
    assert "tripwires" not in outcome.result.analysis
    assert outcome.result.notes == ()
