"""Re-ranking: fused scores by hand, each pair scored once, runs stay runs, tuning never on the test."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.boards import render
from harness.cli import main
from harness.collection import Collection, Pool
from harness.content import Candidate, Query, Text
from harness.errors import HarnessError
from harness.evaluate import evaluate, open_reranker
from harness.leaderboard import leaderboard
from harness.metrics import Hit
from harness.rerank import GRID, Fusion, fuse, places
from harness.result import read_results
from harness.run import BEYOND, Ragged, Run
from harness.task import Need, only
from toys import Toy, ToyRanker, catalog, collection, pair_score, spec, task
from toys import places as folders

TASK = task(lambda: collection(12))
TOY = Toy()
FUSION = Fusion({"*": 5}, {"*": 0.5})


def run_of(rows, scores):
    n = max(max(r) for r in rows) + 1
    ids = [f"c{i}" for i in range(n)]
    return Run(
        [f"q{i}" for i in range(len(rows))], ids, "p", np.array(rows, np.int32), np.array(scores, np.float32)
    )


def evaluated(tmp_path, ranker, *, fusion=FUSION, tasks=(TASK,), toy=TOY, **options):
    options = folders(tmp_path, **options)
    reranking = open_reranker(ranker.spec(), {}, fusion)
    found = catalog([spec(toy)], list(tasks), [ranker.spec()])
    return evaluate(found, spec(toy), {}, list(tasks), options, reranking=reranking)


def test_scores_are_fused_and_ordered_as_by_hand():
    run = run_of([[0, 1, 2, 3]], [[0.75, 0.5, 0.25, 0.125]])
    fused = fuse(run, np.array([[0.0, 1.0]], np.float32), 0.5)
    # 0.75 + 0 = 0.75; 0.5 + 0.5 = 1; the rest stands as it was
    assert fused.rows.tolist() == [[1, 0, 2, 3]]
    assert fused.scores.tolist() == [[1.0, 0.75, 0.25, 0.125]]


def test_equal_fused_scores_stand_in_pool_order():
    run = run_of([[2, 0, 1]], [[0.75, 0.5, 0.25]])
    fused = fuse(run, np.array([[0.0, 0.25, 0.5]], np.float32), 1.0)
    assert fused.rows.tolist() == [[0, 1, 2]]
    assert fused.scores.tolist() == [[0.75, 0.75, 0.75]]


def test_what_is_not_reranked_stays_below_and_a_run_stays_sorted():
    run = run_of([[0, 1, 2, 3]], [[0.75, 0.5, 0.25, 0.125]])
    fused = fuse(run, np.array([[-3.0, -2.0]], np.float32), 1.0)
    assert fused.rows.tolist() == [[1, 0, 2, 3]]
    assert (np.diff(fused.scores[0]) < 0).all()


def test_a_list_shorter_than_the_depth_keeps_its_padding():
    run = run_of([[1, 0, -1]], [[0.5, 0.25, -np.inf]])
    fused = fuse(run, np.array([[0.0, 1.0, np.nan]], np.float32), 1.0)
    assert fused.rows.tolist() == [[0, 1, -1]]
    assert fused.scores[0, 2] == -np.inf


def test_places_count_what_is_above_and_beside():
    run = run_of([[3, 1, 0, 2]], [[0.5, 0.25, 0.25, 0.125]])
    found = places(run, Ragged.of([[0, 1, 2, -1]]))
    assert found.greater.tolist() == [1, 1, 3, BEYOND]
    assert found.equal.tolist() == [1, 1, 0, 0]
    assert found.before.tolist() == [0, 1, 0, 0]  # row 0 stands before row 1 in the pool


def test_a_reranked_result_is_that_of_plain_lists(tmp_path):
    (outcome,) = evaluated(tmp_path, ToyRanker())
    plain, reranked = sorted(read_results(tmp_path / "runs"), key=lambda r: r.model)
    assert (plain.model, reranked.model) == ("toy", "toy+ranker")
    assert outcome.result == reranked
    run = Run.read((tmp_path / "runs" / plain.path).with_suffix(".run.gz"))
    by_id = {c.id: c for c in collection(12).pool}
    hits = []
    for q, query in enumerate(collection(12).queries):
        ranked = run.ranking(q)
        scored = [
            (s + 0.5 * pair_score("r1" + repr((query.parts, by_id[c].parts, 0))), c) for c, s in ranked[:5]
        ]
        order = [c for _, c in sorted(scored, reverse=True)] + [c for c, _ in ranked[5:]]
        hits.append(order[0] == f"c{q}")
    assert reranked.metrics["hit_at_1"].value == sum(hits) / 12
    assert reranked.analysis["rerank"] == {"depth": 5, "weight": 0.5, "listwise": False}
    assert reranked.provenance["counts"] == {"pairs": 60, "scored": 60}


def test_a_reranker_is_shown_what_stands_for_a_query_and_a_candidate(tmp_path):
    def worded() -> Collection:
        plain = collection(12)
        queries = [
            dataclasses.replace(q, reranked=Query(q.id, (Text(f"ask {q.id}"),))) for q in plain.queries
        ]
        pool = [dataclasses.replace(c, reranked=Candidate(c.id, (Text(f"is {c.id}"),))) for c in plain.pool]
        return dataclasses.replace(plain, queries=queries, pool=Pool("worded", pool))

    evaluated(tmp_path, ToyRanker(log=tmp_path / "log"), tasks=(task(worded),))
    plain, reranked = sorted(read_results(tmp_path / "runs"), key=lambda r: r.model)
    run = Run.read((tmp_path / "runs" / plain.path).with_suffix(".run.gz"))
    pairs = {
        repr(((Text(f"ask {query.id}"),), (Text(f"is {c}"),), 0))
        for q, query in enumerate(collection(12).queries)
        for c, _ in run.ranking(q)[:5]
    }
    logged = (tmp_path / "log").read_text().split()
    assert sorted(logged) == sorted(hashlib.md5(pair.encode()).hexdigest() for pair in pairs)
    assert reranked.provenance["counts"]["scored"] == 60


def test_a_weight_of_zero_changes_nothing(tmp_path):
    evaluated(tmp_path, ToyRanker(), fusion=Fusion({"*": 50}, {"*": 0.0}))
    plain, reranked = sorted(read_results(tmp_path / "runs"), key=lambda r: r.model)
    assert reranked.metrics == plain.metrics


def test_a_pair_is_scored_once_whatever_the_weight_and_depth(tmp_path):
    log = tmp_path / "log"
    ranker = ToyRanker(log=log)
    evaluated(tmp_path, ranker, batch_tokens=25)
    evaluated(tmp_path, ranker, fusion=Fusion({"*": 5}, {"*": 2.0}))
    evaluated(tmp_path, ranker, fusion=Fusion({"*": 8}, {"*": 2.0}))
    lines = log.read_text().split()
    assert len(lines) == len(set(lines)) == 12 * 8


def test_a_listwise_reranker_sees_whole_lists_in_order(tmp_path):
    log = tmp_path / "log"
    ranker = ToyRanker(listwise=True, log=log)
    evaluated(tmp_path, ranker)
    evaluated(tmp_path, ranker, fusion=Fusion({"*": 4}, {"*": 0.5}))
    assert len(log.read_text().split()) == 12 * 5 + 12 * 4


class Sharing(ToyRanker):
    """Runs the query, 100 tokens, once for all candidates of an ask."""

    def cost(self, ask):
        return 100 + 10 * len(ask.candidates)

    def prepare(self, asks):
        with self.log.open("a") as log:
            log.write(" ".join(str(len(ask.candidates)) for ask in asks) + "\n")
        return ToyRanker(self.name).prepare(asks)

    def score(self, batch):
        return ToyRanker(self.name).score(batch)


def test_what_candidates_share_counts_once_when_batches_are_cut(tmp_path):
    evaluated(tmp_path, Sharing(log=tmp_path / "log"), batch_tokens=130)
    # 100 + 3 · 10 tokens are within 130
    assert (tmp_path / "log").read_text().splitlines() == ["3", "2"] * 12


@pytest.mark.parametrize("listwise", [False, True])
def test_what_does_not_fit_in_memory_is_halved(tmp_path, listwise):
    small = ToyRanker(fits=5, listwise=listwise)
    (outcome,) = evaluated(tmp_path / "a", small, batch_tokens=10_000)
    (wanted,) = evaluated(tmp_path / "b", dataclasses.replace(small, fits=10**9))
    assert outcome.result.metrics == wanted.result.metrics
    (failed,) = evaluated(tmp_path / "c", dataclasses.replace(small, fits=0))
    assert "one pair does not fit in memory" in failed.error


def test_it_starts_from_the_stored_run_and_encodes_nothing(tmp_path):
    log = tmp_path / "log"
    toy = Toy(log=log)
    evaluate(catalog([spec(toy)], [TASK]), spec(toy), {}, [TASK], folders(tmp_path))
    before = log.read_text()
    shutil.rmtree(tmp_path / "cache")
    evaluated(tmp_path, ToyRanker(), toy=toy)
    assert log.read_text() == before
    plain = next(r for r in read_results(tmp_path / "runs") if r.model == "toy")
    (tmp_path / "runs" / plain.path).with_suffix(".run.gz").unlink()
    (outcome,) = evaluated(tmp_path, ToyRanker(weights="r2"), toy=toy)
    assert ".run.gz is missing: run again with --overwrite-strategy always" in outcome.error


def test_galleries_and_exclusions_hold(tmp_path):
    def scoped() -> Collection:
        base = collection(6)
        ids = [c.id for c in base.pool]
        scope = {q.id: [f"c{i}", ids[(i + 1) % 6]] for i, q in enumerate(base.queries)}
        return dataclasses.replace(base, scope=scope)

    pair = task(scoped, metrics=(Hit(1), Hit(2)))
    (outcome,) = evaluated(tmp_path, ToyRanker(), tasks=[pair])
    assert outcome.result.metrics["hit_at_2"].value == 1.0
    assert outcome.result.provenance["counts"]["pairs"] == 12


@pytest.mark.parametrize(
    ("fault", "said"),
    [("nan", "a score that is not finite"), ("count", "shape (4,) for 5 candidates, not [5]")],
)
def test_bad_scores_are_an_error(tmp_path, fault, said):
    (outcome,) = evaluated(tmp_path, ToyRanker(fault=fault), batch_tokens=50)
    assert said in outcome.error


def test_a_modality_that_it_does_not_take_is_a_gap(tmp_path):
    (outcome,) = evaluated(tmp_path, ToyRanker(modalities=frozenset({"image"})))
    assert outcome.result.status == "unsupported"
    assert "ranker does not take text items" in outcome.result.notes


def test_settings_are_by_task_and_the_last_match_holds():
    rule = Fusion({"*": 50, "toys/*": 10}, {"*": 1.0, "mbeir-*/mscoco_task0": 0.5})
    assert (rule.depth("toys/a"), rule.depth("x")) == (10, 50)
    assert (rule.weight("mbeir-local/mscoco_task0"), rule.weight("mbeir-local/x")) == (0.5, 1.0)
    assert rule.identity == {"depth": "50, toys/*=10", "fusion_weight": "1.0, mbeir-*/mscoco_task0=0.5"}


def test_one_model_has_one_identity_on_all_tasks(tmp_path):
    other = task(lambda: collection(9), "toys/b")
    a, b = evaluated(
        tmp_path, ToyRanker(), tasks=[TASK, other], fusion=Fusion({"*": 5}, {"*": 0.5, "toys/b": 2.0})
    )
    assert a.result.identity_id == b.result.identity_id
    assert (a.result.analysis["rerank"]["weight"], b.result.analysis["rerank"]["weight"]) == (0.5, 2.0)


@pytest.mark.parametrize("depth", [0, 51])
def test_a_depth_that_runs_do_not_have_is_refused_at_once(depth):
    with pytest.raises(HarnessError, match="a depth from 1 to 50"):
        open_reranker(ToyRanker().spec(), {}, Fusion({"*": depth}, {"*": 1.0}))


def split_task(tmp_path):
    """A task with a test split of twelve queries and a val split of seven."""
    (tmp_path / "data").mkdir()
    for split in ("val", "test", "nowhere"):
        (tmp_path / "data" / split).write_text(split)

    def load(data, protocol):
        split = only("toys/a", protocol, splits=("test", "val"))
        return collection(12 if split == "test" else 7)

    return dataclasses.replace(TASK, load=load, needs=lambda p: [Need(Path(p.split or "test"), "tests")])


def test_a_weight_is_tuned_on_another_split_only(tmp_path):
    tuned = Fusion({"*": 5}, {"*": 1.0}, tuned_on="val")
    (outcome,) = evaluated(tmp_path, ToyRanker(), tasks=[split_task(tmp_path)], fusion=tuned)
    weight = outcome.result.analysis["rerank"]["weight"]
    assert outcome.result.identity["fusion_weight"] == "tuned on val"
    assert outcome.result.counts["queries"] == 12

    def on_val(w):
        val = [task(lambda: collection(7))]
        (again,) = evaluated(tmp_path / f"w{w}", ToyRanker(), tasks=val, fusion=Fusion({"*": 5}, {"*": w}))
        return again.result.metrics["hit_at_1"].value

    values = {w: on_val(w) for w in GRID}
    assert values[weight] == max(values.values())
    assert weight == min(w for w, value in values.items() if value == values[weight])


@pytest.mark.parametrize("split", ["test", "nowhere"])
def test_tuning_on_what_is_scored_is_refused(tmp_path, split):
    fusion = Fusion({"*": 5}, {"*": 1.0}, tuned_on=split)
    (outcome,) = evaluated(tmp_path, ToyRanker(), tasks=[split_task(tmp_path)], fusion=fusion)
    assert ("add --oracle" if split == "test" else "has no split 'nowhere'") in outcome.error


def test_an_oracle_is_marked_and_never_ranked(tmp_path):
    fusion = Fusion({"*": 5}, {"*": 1.0}, tuned_on="test", oracle=True)
    (outcome,) = evaluated(tmp_path, ToyRanker(), tasks=[split_task(tmp_path)], fusion=fusion)
    found = catalog([], [TASK])
    board = leaderboard([found.suites["toys"]], found.tasks, read_results(tmp_path / "runs"))
    text = render(board, "markdown")
    assert "toy+ranker *oracle*" in text
    assert "not ranked" in text
    row = next(line for line in text.splitlines() if "*oracle*" in line)
    assert "**" not in row
    assert outcome.result.identity["oracle"] == "true"


def test_a_run_that_is_not_of_this_pool_is_named(tmp_path):
    run = run_of([[0, 1]], [[0.5, 0.25]])
    with pytest.raises(HarnessError, match="retrieved 'c1', which is not in pool 'p'"):
        run.within(["q0"], Pool("p", [Candidate("c0", (Text("x"),))]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--depth", "5"], "need --rerank NAME"),
        (["--rerank", "nobody"], "unknown reranker 'nobody'"),
    ],
)
def test_the_command_line_names_what_is_wrong(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["harness", "eval", "-m", "random", "-s", "demo", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_queries_that_found_nothing_have_empty_lists():
    run = run_of([[0]], [[0.5]])
    whole = run.within(["q9", "q0"], Pool("p", [Candidate("x", (Text("x"),)), Candidate("c0", (Text("y"),))]))
    assert whole.rows.tolist() == [[-1], [1]]
    assert whole.query_ids == ["q9", "q0"]
