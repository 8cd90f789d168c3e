"""The ablation report: every variant below what it varies, with the difference, published and measured."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from test_leaderboard import SUITE, TASKS, full

from harness.ablations import ablations, averaged, render
from harness.published import Reported
from harness.result import Stored
from harness.task import Suite
from toys import Toy, spec, store

BASE = dataclasses.replace(spec(Toy()), name="base")
MODELS = {
    "alone": dataclasses.replace(BASE, name="alone"),
    "base": BASE,
    "causal": dataclasses.replace(
        BASE, name="causal", parent="base", change="causal attention", paper_ref="T1"
    ),
    "last": dataclasses.replace(BASE, name="last", parent="causal", change="last token"),
    "small": dataclasses.replace(BASE, name="small", parent="base", change="a | small batch"),
}


def mean(plugin, value, *, suite="s", **more):
    return Reported(
        paper="p",
        title="P",
        table="Table 1",
        model=plugin,
        task=suite,
        metric=None,
        value=value,
        setting="single model",
        grade="C",
        source="",
        plugin=plugin,
        suites=("ablations",),
        **more,
    )


NUMBERS = [mean("base", 0.632), mean("causal", 0.566), mean("small", 0.572), mean("other", 0.9, suite="x")]


def report(results=()):
    stored = [r if isinstance(r, Stored) else Stored(r, Path("nowhere") / r.path) for r in results]
    return ablations(MODELS, [SUITE], TASKS, stored, NUMBERS)


def test_variants_follow_what_they_vary_and_a_model_without_kin_is_left_out():
    assert [(v.name, v.depth) for v in report()] == [("base", 0), ("causal", 1), ("last", 2), ("small", 1)]


def test_differences_are_from_the_parent_in_the_same_kind_of_number():
    found = {v.name: v for v in report([*full("base", 0.5, 0.5, 0.5), *full("last", 0.25, 0.25, 0.25)])}
    assert found["causal"].published["s"].delta == 0.566 - 0.632
    assert found["base"].published["s"].delta is None
    assert found["last"].measured["s"].value == 0.25
    assert found["last"].measured["s"].delta is None  # its parent was not measured
    assert "s" not in found["last"].published


def made(folder, model, seed, **more):
    rng = np.random.default_rng(seed)
    keys = {"a/x": "hit_at_1", "a/y": "hit_at_1", "b/z": "mrr_at_10"}
    values = {name: rng.integers(0, 2, size=30).astype(float) for name in keys}
    by_query = {name: {f"{name}{i}": float(v) for i, v in enumerate(values[name])} for name in keys}
    return [store(folder, model, name, {keys[name]: by_query[name]}, **more) for name in keys], values


def test_measured_differences_have_the_interval_of_the_paired_queries(tmp_path):
    parents, a = made(tmp_path, "base", 1)
    children, b = made(tmp_path, "causal", 2)
    average = {v.name: v for v in report([*parents, *children])}["causal"].measured["s"]
    gaps = [b[name] - a[name] for name in a]
    assert average.delta == pytest.approx(sum(g.mean() for g in gaps) / 3)
    rng = np.random.default_rng(0)
    drawn = sum(g[rng.integers(0, 30, size=(10_000, 30))].mean(axis=1) for g in gaps) / 3
    assert average.ci95 == pytest.approx(
        tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.012
    )  # the next value up or down
    text = render(report([*parents, *children]), [SUITE], "markdown")
    low, high = average.ci95
    assert f"({100 * average.delta:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])" in text


def test_without_common_protocol_or_outcomes_a_difference_has_no_interval(tmp_path):
    parents, _ = made(tmp_path, "base", 1)
    children, _ = made(tmp_path, "causal", 2, choices={"seed": 1})
    average = {v.name: v for v in report([*parents, *children])}["causal"].measured["s"]
    assert (average.delta is None, average.ci95) == (False, None)
    for stored in parents:
        stored.path.with_suffix(".queries.parquet").unlink()
    children, _ = made(tmp_path, "causal", 2)
    assert {v.name: v for v in report([*parents, *children])}["causal"].measured["s"].ci95 is None


def test_the_tree_and_the_table_come_out_as_markdown():
    text = render(report(), [SUITE], "markdown")
    table = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert table[0] == ["Variant", "Change", "Paper", "s, published"]
    assert table[3] == ["causal", "causal attention", "T1", "56.6 (-6.6)"]
    tree = text.partition("```\n")[2].partition("```")[0]
    assert tree.splitlines() == [
        "base  63.2",
        "├── causal  56.6 (-6.6)  causal attention",
        "│   └── last  last token",
        "└── small  57.2 (-6.0)  a | small batch",
    ]


def test_markup_in_a_change_does_not_break_the_table():
    text = render(report(), [SUITE], "markdown")
    row = next(line for line in text.splitlines() if line.startswith("| small"))
    assert row.replace("\\|", "").count("|") == 5


def test_csv_and_json_keep_full_precision():
    rows = list(csv.DictReader(io.StringIO(render(report(), [SUITE], "csv"))))
    assert rows[1]["s published delta"] == repr(0.566 - 0.632)
    data = json.loads(render(report(), [SUITE], "json"))
    assert data[1]["published"]["s"]["value"] == 0.566


def test_the_suites_are_those_that_papers_average_ablations_over():
    suites = {"s": SUITE, "t": Suite("t", "T", SUITE.columns)}
    assert averaged(suites, NUMBERS) == [SUITE]


def test_it_is_a_table_of_its_own(cli):
    code, _, err = cli("leaderboard", "ablations", "mbeir-local")
    assert code == 2
    assert "ablations is a table of its own: ask for it alone" in err
    code, out, _ = cli("leaderboard", "ablations")
    assert code == 0
    assert out.startswith("### Ablations")
