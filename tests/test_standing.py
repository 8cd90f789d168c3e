"""Standings: rows of one's own that stored outcomes cannot tell from the best, and intervals of means."""

import dataclasses
import json

import numpy as np
import pytest
from test_boards import Page, cells
from test_leaderboard import SUITE, TASKS, row

from harness.boards import render
from harness.leaderboard import leaderboard
from harness.result import read_stored
from harness.standing import standing
from harness.statistics import sum_ci
from harness.task import Column, Suite
from toys import store

TWO = Suite("s", "S", (Column("X", "", ("a/x",)), Column("Y", "", ("a/y",), in_average=False)))
GOOD, NEAR, POOR = 36, 33, 4
"""Of 40 queries, right ones. 36 against 33 differ in 3 queries: p = 2 · 0.5³ = 0.25."""


def put(folder, model, name, right, *, first="q", **more):
    values = {f"{first}{i:02}": float(i < right) for i in range(40)}
    return store(folder, model, name, {"hit_at_1": values}, **more)


def boarded(folder, suite=TWO, **more):
    found = read_stored(folder)
    board = leaderboard([suite], TASKS, [s.result for s in found], **more)
    return standing(board, [suite], TASKS, found)


def tied(board):
    return {r.label: [s and s.tied for s in r.standings] for r in board.rows}


@pytest.fixture
def three(tmp_path):
    for model, x, y in (("good", GOOD, NEAR), ("near", NEAR, GOOD), ("poor", POOR, POOR)):
        put(tmp_path, model, "a/x", x)
        put(tmp_path, model, "a/y", y)
    return tmp_path


def test_rows_tied_with_the_best_are_known_for_each_column_and_the_average(three):
    board = boarded(three)
    assert tied(board) == {
        "good": [None, "near", None],
        "near": ["good", None, "good"],
        "poor": [None, None, None],
    }
    assert any(note.startswith("≈: tied with the best of our rows") for note in board.notes)


def test_a_re_ranked_row_is_beside_its_own_kind_and_a_check_beside_none(three):
    put(three, "near+r", "a/x", NEAR)
    put(three, "oracle", "a/x", GOOD, check=True)
    put(three, "tuned", "a/x", GOOD, identity={"oracle": "yes"})
    found = tied(boarded(three))
    assert found["near+r"] == [None, None, None]
    assert found["oracle"] == []
    assert found["tuned"] == [None, None, None]
    assert found["near"][0] == "good"


def test_other_queries_are_not_tested(three):
    put(three, "other", "a/x", GOOD, first="z")
    found = tied(boarded(three))
    assert found["other"][0] is None
    assert found["near"][0] == "good"


def test_missing_outcomes_leave_the_score_and_are_said(three):
    lost = put(three, "lost", "a/x", NEAR).path.with_suffix(".queries.parquet")
    lost.unlink()
    board = boarded(three)
    assert tied(board)["lost"] == [None, None, None]
    assert next(r for r in board.rows if r.label == "lost").values[0] == NEAR / 40
    (note,) = [n for n in board.notes if n.startswith("Not tested for ties: ")]
    assert str(lost) in note
    assert "missing" in note


def test_means_of_tasks_have_the_interval_of_their_queries(tmp_path):
    suite = Suite("s", "S", (Column("Both", "", ("a/x", "a/y")), Column("X", "", ("a/x",))))
    put(tmp_path, "m", "a/x", GOOD)
    put(tmp_path, "m", "a/y", POOR, first="r")
    (mine,) = boarded(tmp_path, suite).rows
    x, y = (np.repeat([1.0, 0.0], [n, 40 - n]) for n in (GOOD, POOR))
    assert mine.interval(0, "hit_at_1") == sum_ci([x / 2, y / 2])
    assert mine.interval(1, "hit_at_1") == mine.scored[1][0].metrics["hit_at_1"].ci95
    # Columns and tasks weigh the same: ((x + y) / 2 + x) / 2.
    assert mine.standing(2).ci95 == pytest.approx(sum_ci([0.75 * x, 0.25 * y]))


def test_the_average_has_the_ranks_that_tests_of_all_pairs_leave(three):
    suite = dataclasses.replace(TWO, columns=(TWO.columns[0], Column("Y", "", ("a/y",))))
    board = boarded(three, suite)
    assert {r.label: r.standing(2).rank for r in board.rows} == {
        "good": (1, 2), "near": (1, 2), "poor": (3, 3),
    }  # fmt: skip


def test_every_form_marks_a_tie(three):
    board = boarded(three)
    assert "| near    | <u>82.5</u>≈ |     **90.0** |" in render(board, "markdown")
    assert r"\underline{82.5}\textsuperscript{$\approx$}" in render(board, "latex")
    found = {r["label"]: r for r in json.loads(render(board, "json"))["rows"]}
    assert [c["tied"] for c in found["near"]["cells"]] == [True, False]
    assert (found["near"]["average_tied"], found["good"]["average_tied"]) == (True, False)
    assert found["good"]["cells"][0]["ci95"][1] <= 1
    page = Page(render(board, "html"))
    average, x, y = cells(page, "near")[1:]
    assert ("≈" in average[1], "≈" in x[1], "≈" in y[1]) == (True, True, False)
    said = [page.details()[int(i)] for i in x[0]["data-l"].split()]
    assert said[1] == "≈ Tied with good: a paired test does not tell the two apart."


def test_a_board_of_published_rows_is_left_as_it_is():
    board = leaderboard([SUITE], TASKS, [], reported=row("P", 0.5, 0.5, 0.5))
    assert standing(board, [SUITE], TASKS, []) is board


def test_a_single_row_is_tied_with_nobody(tmp_path):
    put(tmp_path, "m", "a/x", GOOD)
    assert tied(boarded(tmp_path)) == {"m": [None, None, None]}
    assert not any("≈" in note for note in boarded(tmp_path).notes)
