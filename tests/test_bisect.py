"""Bisect: each side alone, several together, and the queries that carry a difference."""

from __future__ import annotations

import json

import pytest

from harness.bisect import as_json, bisect, cell, render
from harness.errors import HarnessError
from toys import store

HITS = {"hit_at_1": {"q0": 1.0, "q1": 0.0, "q2": 1.0}}
FLIPPED = {"hit_at_1": {"q2": 0.0, "q1": 1.0, "q0": 1.0}}
FEWER = {"hit_at_1": {"q0": 1.0, "q1": 0.0}}


def found(tmp_path, second=FLIPPED, **more):
    one = store(tmp_path / "one", "a", "t/x", HITS)
    return bisect(one, store(tmp_path / "two", more.pop("model", "a"), "t/x", second, **more))


def keys(bisection):
    return [(gap.side, gap.key) for gap in bisection.gaps]


def test_another_model_side_is_told_key_by_key(tmp_path):
    told = found(tmp_path, identity={"dim": "8"})
    assert keys(told) == [("model", "dim")]
    assert (
        "What differs is the model's side (dim), not the choices of the protocol and not the data"
        in told.verdict
    )
    assert "2 of 3 common queries changed: 1 better in the second, 1 worse." in told.verdict
    assert [(f.query, f.first, f.second) for f in told.flips] == [("q1", 0.0, 1.0), ("q2", 1.0, 0.0)]


def test_another_protocol_and_other_data_are_told_apart(tmp_path):
    told = found(tmp_path, choices={"seed": 3})
    assert keys(told) == [("task", "seed")]
    assert "the choices of the protocol (seed), not the model's side" in told.verdict
    told = found(tmp_path, choices={"files": {"q.jsonl": "ff"}})
    assert keys(told) == [("data", "files.q.jsonl")]
    assert "the data files (files.q.jsonl)" in told.verdict


def test_several_sides_cannot_be_told_apart(tmp_path):
    told = found(tmp_path, identity={"dim": "8"}, choices={"seed": 3})
    assert "change one at a time" in told.verdict


def test_what_is_left_is_the_machine_then_the_items_then_chance(tmp_path):
    device = {"started": "2026-03-01", "device": "gpu", "libraries": {"torch": "2"}}
    told = found(tmp_path, provenance=device)
    assert keys(told) == [("machine", "device"), ("machine", "libraries.torch")]
    assert "what is left is the machine (device, libraries.torch)" in told.verdict
    assert (
        "the items that were read (left_out_queries)"
        in found(tmp_path, counts={"left_out_queries": 1}).verdict
    )
    assert "are not deterministic" in found(tmp_path).verdict


def test_equal_results_leave_nothing_to_explain(tmp_path):
    told = found(tmp_path, HITS)
    assert "Both score 66.7 in Hit@1." in told.verdict
    assert "there is nothing to explain" in told.verdict


def test_queries_of_one_side_only_are_counted(tmp_path):
    told = found(tmp_path, FEWER, choices={"limit": 2}, status="partial")
    assert told.only == (1, 0)
    assert "1 queries are only in the first, 0 only in the second." in told.verdict


def test_missing_outcomes_leave_the_ids(tmp_path):
    one = store(tmp_path / "one", "a", "t/x", HITS)
    two = store(tmp_path / "two", "a", "t/x", HITS, identity={"dim": "8"})
    two.path.with_suffix(".queries.parquet").unlink()
    told = bisect(one, two)
    assert keys(told) == [("model", "dim")]
    assert "No query can be compared" in told.verdict


def test_only_one_cell_is_bisected(tmp_path):
    one, two = (store(tmp_path, "a", name, HITS) for name in ("t/x", "t/y"))
    with pytest.raises(HarnessError, match="only results of one task can be told apart"):
        bisect(one, two)
    with pytest.raises(HarnessError, match="a stands for 2 results, add --task, or name a result file"):
        cell([one, two], "a", None)
    assert cell([one, two], "a", "t/y") == two
    with pytest.raises(HarnessError, match="a has no result of t/z"):
        cell([one, two], "a", "t/z")


def test_the_verdict_comes_first_then_the_tables(tmp_path):
    text = render(found(tmp_path, identity={"di|m": "8"}), "one", "two")
    head, verdict, gaps, flips = text.split("\n\n")
    assert head == "### t/x: one and two"
    assert verdict.startswith("Both score 66.7 in Hit@1.")
    assert "di\\|m" in gaps
    assert flips.splitlines()[2].split("|")[1].strip() == "q1"
    data = json.loads(as_json(found(tmp_path)))
    assert data["flips"][0] == {"query": "q1", "first": 0.0, "second": 1.0}


def test_seeds_are_bisected_on_the_command_line(cli, tmp_path):
    for seed in (0, 1):
        assert cli("eval", "-m", "random", "-t", "demo/composed", "--seed", seed, "--workers", 0)[0] == 0
    first, second = sorted((tmp_path / "results").rglob("*.json"))
    code, out, _ = cli("bisect", first, second)
    assert code == 0
    assert "the choices of the protocol (seed)" in out
    code, _, err = cli("bisect", "random", second)
    assert code == 2
    assert "random stands for 2 results" in err
