"""Exported runs scored by outside tools, and files read back by the libraries that define them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import pytrec_eval
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from ir_measures import AP, RR, Success, nDCG
from ir_measures import R as TrueRecall

from harness.collection import Collection, Pool
from harness.content import Query, Text
from harness.errors import DataInvalid, HarnessError
from harness.evaluate import evaluate
from harness.exports import collection_of, eval_results, model_index, mteb, trec
from harness.metrics import MAP, MRR, NDCG, Hit, Metric, Recall
from harness.registry import load_catalog
from harness.result import Stored, read_results, read_stored
from harness.task import Hub, Need
from toys import Toy, catalog, places, spec, store, task, texts

HITS = {"hit_at_1": {"q0": 1.0, "q1": 0.0}, "ndcg_at_10": {"q0": 1.0, "q1": 0.25}}


def outside(metric):
    """The metric in the words of ir-measures."""
    match metric.kind:
        case "Hit" | "Accuracy":
            return Success(rel=metric.rel) @ (metric.k or 1)
        case "Recall":
            return TrueRecall @ metric.k
        case "NDCG":
            return nDCG @ metric.k
        case "MRR":
            return RR @ metric.k
        case "MAP":
            return AP @ metric.k


def assert_scored_alike(stored, run, qrels):
    """ir-measures gives all our means, pytrec_eval those that trec_eval has."""
    ours = {Metric.parse(key): score.value for key, score in stored.result.metrics.items()}
    theirs = ir_measures.calc_aggregate(
        list(map(outside, ours)),
        list(ir_measures.read_trec_qrels(str(qrels))),
        list(ir_measures.read_trec_run(str(run))),
    )
    for metric, value in ours.items():
        assert theirs[outside(metric)] == pytest.approx(value, abs=1e-9), metric
    with qrels.open() as judged, run.open() as ranked:
        evaluator = pytrec_eval.RelevanceEvaluator(
            pytrec_eval.parse_qrel(judged), {"success.1,5,10", "recall.5", "ndcg_cut.10"}
        )
        each = evaluator.evaluate(pytrec_eval.parse_run(ranked)).values()
    names = {Hit(1): "success_1", Hit(5): "success_5", Recall(5): "recall_5", NDCG(10): "ndcg_cut_10"}
    for metric, name in names.items():
        if metric in ours:
            assert np.mean([found[name] for found in each]) == pytest.approx(ours[metric], abs=1e-9)


@pytest.mark.parametrize("dim", [64, 1])
def test_exported_demo_runs_are_scored_alike_by_outside_tools(cli, tmp_path, dim):
    """With one dimension every score is 1 or -1: the tie rule decides everything."""
    asked = ("--model-arg", f"dim={dim}", "-s", "demo", "--workers", 0)
    assert cli("eval", "-m", "random", *asked)[0] == 0
    tasks = load_catalog().tasks
    results = read_stored(tmp_path / "results" / "runs")
    assert len(results) == 12
    for stored in results:
        run, qrels = trec(stored, tasks[stored.result.task], tmp_path / "data", tmp_path / "out")
        assert_scored_alike(stored, run, qrels)


def graded():
    """Grades 1 and 2, a query without relevant candidates, one judged only 0, and ids with spaces."""
    rng = np.random.default_rng(0)
    pool = [dataclasses.replace(c, id=f"c {i}") for i, c in enumerate(texts(60))]
    queries = [Query(f"q {i}", (Text(f"question {i}"),)) for i in range(30)]
    qrels = {q.id: {f"c {j}": int(rng.integers(1, 3)) for j in rng.choice(60, 4, False)} for q in queries[2:]}
    qrels["q 1"] = {"c 3": 0}
    qrels["q 5"]["nowhere"] = 2
    return Collection(queries, Pool("graded", pool), qrels)


METRICS = (MAP(10), Hit(1), Hit(5), Hit(5, rel=2), Recall(5), MRR(10), NDCG(10))


@pytest.mark.parametrize("ties", ["pessimistic", "pool-order"])
def test_graded_qrels_and_ties_are_scored_alike(tmp_path, ties):
    made = task(graded, metrics=METRICS, ties=ties)
    models = [spec(Toy(dim=1))]
    (outcome,) = evaluate(catalog(models, [made]), models[0], {}, [made], places(tmp_path))
    stored = Stored(outcome.result, tmp_path / "runs" / outcome.result.path)
    run, qrels = trec(stored, made, tmp_path / "data", tmp_path / "out")
    assert "q%200 0 c%200 0\n" in qrels.read_text()
    assert "q%205 0 nowhere 2\n" in qrels.read_text()
    assert_scored_alike(stored, run, qrels)


def test_other_data_than_the_results_are_refused(tmp_path):
    data = tmp_path / "data" / "q.jsonl"
    data.parent.mkdir()
    data.write_text("{}")
    made = task(graded, needs=[Need(data.relative_to(tmp_path / "data"), "by hand")])
    models = [spec(Toy())]
    (outcome,) = evaluate(catalog(models, [made]), models[0], {}, [made], places(tmp_path))
    assert collection_of(outcome.result, made, tmp_path / "data") == graded()
    data.write_text("{ }")
    with pytest.raises(DataInvalid, match=r"q\.jsonl is not what the result was made of"):
        collection_of(outcome.result, made, tmp_path / "data")


def test_results_that_left_items_out_have_no_qrels(tmp_path):
    stored = store(tmp_path, "m", "toys/a", HITS, counts={"left_out_queries": 1})
    with pytest.raises(HarnessError, match="left out items"):
        collection_of(stored.result, task(graded), tmp_path)


def test_the_form_of_mteb(tmp_path):
    about = {"started": "2026-01-01T00:00:00+00:00", "seconds": {"embed": 1.5, "search": 0.5}}
    stored = store(tmp_path, "org/m", "t/x", HITS, provenance=about)
    store(tmp_path, "org/m", "t/x", HITS, choices={"seed": 1})
    store(tmp_path, "org/m", "t/y", HITS, status="partial")
    files = mteb(read_results(tmp_path), tmp_path / "out")
    home = tmp_path / "out" / "org__m" / stored.result.identity_id
    assert files == [home / "model_meta.json", home / "t__x.json"]
    assert json.loads(files[1].read_text()) == {
        "dataset_revision": stored.result.protocol_id,
        "task_name": "t/x",
        "mteb_version": None,
        "scores": {
            "test": [
                {
                    "hit_rate_at_1": 0.5,
                    "ndcg_at_10": 0.625,
                    "main_score": 0.5,
                    "hf_subset": "default",
                    "languages": [],
                }
            ]
        },
        "evaluation_time": 2.0,
        "kg_co2_emissions": None,
        "date": "2026-01-01T00:00:00+00:00",
    }


def on_hub(name):
    need = Need(Path("x"), "by hand", hub=Hub("org/data", ("*",)))
    return task(graded, name, needs=[need])


def test_the_front_matter_of_a_model_card_is_read_back_by_the_hubs_library(tmp_path):
    stored = store(tmp_path, "m", "t/x", HITS)
    text = model_index([stored.result], {"t/x": on_hub("t/x")})
    first, second = ModelCard(f"{text}\n# m\n").data.eval_results
    assert (first.dataset_type, first.dataset_config, first.dataset_split) == ("org/data", "t/x", "test")
    assert (first.metric_type, first.metric_name, first.metric_value) == ("hit_at_1", "Hit@1", 0.5)
    assert first.metric_args == {"ci95": list(stored.result.metrics["hit_at_1"].ci95), "queries": 2}
    assert second.metric_name == "NDCG@10"


def test_eval_results_are_read_back_by_the_hubs_library(tmp_path):
    results = [store(tmp_path, "m", name, HITS).result for name in ("t/x", "t/y", "u/z")]
    tasks = {"t/x": on_hub("t/x"), "t/y": on_hub("t/y"), "u/z": task(graded, "u/z")}
    ((path, text),) = eval_results(results, tasks).items()
    assert path == ".eval_results/org__data.yaml"
    first, second = parse_eval_result_entries(yaml.safe_load(text))
    assert (first.dataset_id, first.task_id, first.value) == ("org/data", "t/x", 50.0)
    assert first.notes.startswith("Hit@1, 95 % CI [0.00, 100.00]; umr-harness protocol ")
    assert second.task_id == "t/y"


def test_a_card_is_of_one_model_and_of_plain_results(tmp_path):
    results = [store(tmp_path, name, "t/x", HITS).result for name in "ab"]
    with pytest.raises(HarnessError, match=r"here are results of a@.*, b@"):
        model_index(results, {"t/x": task(graded, "t/x")})
    odd = store(tmp_path, "c", "t/x", HITS, choices={"seed": 7}).result
    with pytest.raises(HarnessError, match="no complete result under the usual choices"):
        model_index([odd], {"t/x": task(graded, "t/x")})
