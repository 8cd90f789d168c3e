"""Comparisons of stored outcomes: joined by id, averaged as the leaderboard does, corrected together."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from harness.comparison import as_json, compare, render
from harness.errors import HarnessError, ResultConflict
from harness.leaderboard import leaderboard
from harness.metrics import MRR, Hit
from harness.result import read_stored
from harness.selection import choose
from harness.statistics import holm, paired
from harness.task import Column, Suite
from toys import collection, store, task

TASKS = {
    t.name: t
    for t in (
        task(collection, "a/x"),
        task(collection, "a/y"),
        task(collection, "b/z", metrics=(MRR(10), Hit(1))),
    )
}
SUITE = Suite(
    "s",
    "S",
    (
        Column("A", "", ("a/x", "a/y")),
        Column("Z", "", ("b/z",)),
        Column("Z", "", ("b/z",), metric=Hit(1)),
        Column("X", "", ("a/x",), in_average=False),
    ),
)


def outcomes(seed, n=40, *, prefix="q", keys=("hit_at_1", "mrr_at_10")):
    rng = np.random.default_rng(seed)
    values = rng.choice([0.0, 0.5, 1.0], size=n)
    each = {"hit_at_1": (values == 1.0).astype(float), "mrr_at_10": values}
    return {key: {f"{prefix}{i}": float(v) for i, v in enumerate(each[key])} for key in keys}


def stored(folder, *models):
    for at, model in enumerate(models):
        for place, name in enumerate(TASKS):
            store(
                folder, model, name, outcomes(10 * at + place, prefix=name), headline=TASKS[name].headline.key
            )
    return read_stored(folder)


def compared(folder, *models, **more):
    return compare(choose(stored(folder, *models), models), [SUITE], TASKS, **more)


def test_a_line_for_each_task_and_metric_and_the_average(tmp_path):
    found = compared(tmp_path, "a", "b")
    assert [(line.title, line.metric) for line in found.lines] == [
        ("a/x", "R@1"),
        ("a/y", "R@1"),
        ("b/z", "MRR@10"),
        ("b/z", "R@1"),
        ("Average of s", None),
    ]


def test_scores_and_averages_are_those_of_the_leaderboard(tmp_path):
    found = compared(tmp_path, "a", "b")
    board = leaderboard([SUITE], TASKS, [s.result for s in read_stored(tmp_path)])
    for row in board.rows:
        mine = {
            line.title + (line.metric or ""): s.value
            for line in found.lines
            for s in line.scores
            if s.model == row.model
        }
        assert mine["Average of s"] == pytest.approx(row.average)
        assert mine["b/zMRR@10"] == pytest.approx(row.values[1])
        assert mine["a/xR@1"] == pytest.approx(row.values[3])


def test_every_p_is_corrected_for_all_tests_shown(tmp_path):
    found = compared(tmp_path, "a", "b", "c")
    tests = [pair.test for line in found.lines for pair in line.pairs]
    assert len(tests) == 5 * 3
    assert [t.adjusted for t in tests] == holm([t.p for t in tests])


def test_queries_are_joined_by_id_and_never_by_place(tmp_path):
    mine, theirs = outcomes(1, keys=("hit_at_1",)), outcomes(2, keys=("hit_at_1",))
    shuffled = {"hit_at_1": dict(reversed(theirs["hit_at_1"].items()))}
    store(tmp_path, "a", "a/x", mine)
    store(tmp_path, "b", "a/x", shuffled)
    suite = Suite("one", "", (Column("X", "", ("a/x",)),))
    found = compare(choose(read_stored(tmp_path), ["a", "b"]), [suite], TASKS)
    (line,) = found.lines
    values = [np.array(list(o["hit_at_1"].values())) for o in (mine, theirs)]
    wanted = paired([values[0]], [values[1]])
    test = line.pairs[0].test
    assert (test.wins, test.losses, test.p) == (wanted.wins, wanted.losses, wanted.p)


def test_the_same_queries_in_two_pools_are_resampled_together(tmp_path):
    """Two tasks with equal outcomes of the same queries tell no more than one of them."""
    suite = Suite("two", "", (Column("X", "", ("a/x",)), Column("Y", "", ("a/y",))))
    for at, model in enumerate("ab"):
        for name in ("a/x", "a/y"):
            store(tmp_path, model, name, outcomes(at, keys=("hit_at_1",)))
    found = compare(choose(read_stored(tmp_path), ["a", "b"]), [suite], TASKS)
    x, _, average = (line.pairs[0].test for line in found.lines)
    assert (*average.ci95, average.p, average.mdd) == pytest.approx((*x.ci95, x.p, x.mdd))


def test_other_queries_are_refused(tmp_path):
    store(tmp_path, "a", "a/x", outcomes(1))
    store(tmp_path, "b", "a/x", outcomes(2, n=39))
    with pytest.raises(
        ResultConflict, match=r"a/x: a and b were not scored on the same queries \(1 are in one"
    ):
        compare(choose(read_stored(tmp_path), ["a", "b"]), [SUITE], TASKS)


def test_without_a_task_there_is_no_average_and_a_note_says_so(tmp_path):
    for model in "ab":
        store(tmp_path, model, "a/x", outcomes(1))
    found = compare(choose(read_stored(tmp_path), ["a", "b"]), [SUITE], TASKS)
    assert [line.title for line in found.lines] == ["a/x"]
    assert found.notes == ("No average of s: not all have a/y, b/z.",)
    other = Suite("other", "", (Column("Z", "", ("b/z",)),))
    with pytest.raises(HarnessError, match="no common result of other: the models share a/x"):
        compare(choose(read_stored(tmp_path), ["a", "b"]), [other], TASKS)


def test_a_metric_replaces_the_columns_and_must_have_been_scored(tmp_path):
    found = compared(tmp_path, "a", "b", metric=MRR(10))
    assert {line.metric for line in found.lines} == {"MRR@10", None}
    with pytest.raises(HarnessError, match="a/x was not scored with Hit@7: it has Hit@1, MRR@10"):
        compared(tmp_path, "a", "b", metric=Hit(7))


def test_missing_outcomes_are_named(tmp_path):
    choices = choose(stored(tmp_path, "a", "b"), ["a", "b"])
    path = choices[1].results["a/y"].path.with_suffix(".queries.parquet")
    path.unlink()
    with pytest.raises(ResultConflict, match="is missing: copy it from where the result was made"):
        compare(choices, [SUITE], TASKS)


def test_the_table_of_two_shows_both_and_of_three_their_ranks(tmp_path):
    two = render(compared(tmp_path, "a", "b"), title="T")
    assert two.startswith("### T\n\n| Task ")
    assert "Pair" not in two
    three = render(compared(tmp_path, "a", "b", "c|d"), title="T")
    assert "| a − c\\|d" in three
    assert "(1–3)" in three
    rows = [line for line in three.splitlines() if line.startswith("| Average of s")]
    assert len(rows) == 4


def test_json_keeps_full_precision(tmp_path):
    found = compared(tmp_path, "a", "b")
    data = json.loads(as_json(found))
    assert data["lines"][0]["pairs"][0]["test"]["difference"] == found.lines[0].pairs[0].test.difference


def test_a_comparison_never_imports_torch(tmp_path):
    for model in "ab":
        store(tmp_path, model, "demo/composed", outcomes(ord(model)))
    script = (
        "import sys; from harness.cli import main\n"
        "for line in ('compare a b --runs .', 'bisect a b --runs .'):\n"
        "    sys.argv = ['harness', *line.split()]\n"
        "    try: main()\n"
        "    except SystemExit as exit_: assert not exit_.code, line\n"
        "assert not {'torch', 'transformers', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| demo/composed | R@1 " in done.stdout


def test_models_of_two_folders_are_compared_on_the_command_line(cli, tmp_path):
    for folder, model in (("here", "random"), ("there", "oracle")):
        assert (
            cli("eval", "-m", model, "-t", "demo/composed,demo/right-caption", "--workers", 0, "-o", folder)[
                0
            ]
            == 0
        )
    folders = ("--runs", "here", "--runs", "there")
    code, out, _ = cli("compare", "oracle", "random", *folders)
    assert code == 0
    assert "| demo/composed " in out
    assert "| Average of tasks" in out
    code, out, _ = cli(
        "compare", "oracle", "random", "-t", "demo/composed", "--metric", "mrr@10", "--json", *folders
    )
    assert code == 0
    (line,) = json.loads(out)["lines"]
    assert (line["title"], line["metric"]) == ("demo/composed", "MRR@10")
    assert line["scores"][0]["value"] == 1.0
    for arguments, message in (
        (["oracle"], "takes two models or more"),
        (["oracle", "random"], "there is no results folder results/runs"),
        (["oracle", "random", "-s", "mbeir-local", *folders], "no complete result of a task that all have"),
        (["oracle", "random", "--runs", "."], "no results lie in ."),
    ):
        code, _, err = cli("compare", *arguments)
        assert code == 2
        assert err.startswith("harness: ")
        assert message in err
