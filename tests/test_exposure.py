"""What a model was trained on is inherited, the nearest statement wins, and one source is enough."""

from __future__ import annotations

import dataclasses
import json

import pytest
from test_leaderboard import full

from harness.boards import render
from harness.exposure import exposure
from harness.leaderboard import leaderboard
from harness.task import Column, Suite
from toys import Toy, spec, task

A, B = task(list, "a/x", derived_from=("COCO",)), task(list, "b/y", derived_from=("COCO", "CC3M"))
UNSAID = task(list, "c/z")


def models(**more):
    base = dataclasses.replace(
        spec(Toy()), name="base", trained_on={"COCO": "its captions"}, held_out={"CC3M": "the paper"}
    )
    child = dataclasses.replace(spec(Toy()), name="child", parent="base", **more)
    return {"base": base, "child": child, "blank": dataclasses.replace(spec(Toy()), name="blank")}


@pytest.mark.parametrize(
    ("name", "asked", "status", "evidence"),
    [
        ("base", [A], "trained", ("COCO: its captions",)),
        ("base", [B], "trained", ("COCO: its captions", "CC3M: the paper")),
        ("base", [UNSAID], "unknown", ()),
        ("child", [A], "trained", ("COCO: its captions",)),
        ("blank", [A], "unknown", ()),
        ("nobody", [A], "unknown", ()),
        ("blank+base", [A], "trained", ("COCO: its captions",)),
    ],
)
def test_a_model_was_trained_on_a_task_where_it_or_its_parent_saw_one_source(name, asked, status, evidence):
    found = exposure(models(), name, asked)
    assert (found.status, found.evidence) == (status, evidence)


def test_the_nearest_statement_wins():
    without = models(held_out={"COCO": "left out in this ablation"})
    assert exposure(without, "child", [A]).status == "held out"
    assert exposure(without, "child", [B]).status == "held out"
    assert exposure(without, "base", [A]).status == "trained"
    assert exposure(models(trained_on={"CC3M": "stage 2"}), "child", [B]).status == "trained"


def test_held_out_needs_all_sources_and_all_parts():
    known = models(held_out={"COCO": "left out"})
    some = task(list, "d/w", derived_from=("COCO", "elsewhere"))
    assert exposure(known, "child", [some]).status == "unknown"
    assert exposure(known, "child+blank", [A]).status == "unknown"


def test_a_lineage_that_runs_in_a_circle_ends():
    loop = {"x": dataclasses.replace(spec(Toy()), name="x", parent="x")}
    assert exposure(loop, "x", [A]).status == "unknown"


TASKS = {
    "a/x": task(list, "a/x", derived_from=("COCO",)),
    "a/y": task(list, "a/y", derived_from=("CC3M",)),
}
SUITE = Suite("s", "Suite", (Column("X", "", ("a/x",)), Column("Y", "", ("a/y",))))


def test_the_table_marks_cells_and_averages_what_was_seen_apart():
    board = leaderboard([SUITE], TASKS, full("base", 0.75, 0.25, 0.5), models=models())
    (row,) = board.rows
    assert row.average == 0.5
    assert row.averages == {"trained": 0.75, "held out": 0.25}
    text = render(board, "markdown")
    assert "| Avg trained |" in text.replace("   ", " ").replace("  ", " ")
    assert "75.0ᵗ" in text
    assert "25.0ʰ" in text
    assert "base: COCO: its captions; CC3M: the paper." in text
    cells = json.loads(render(board, "json"))["rows"][0]["cells"]
    assert [c["exposure"] for c in cells] == ["trained", "held out"]
    assert render(board, "csv").splitlines()[0].endswith("Avg,Avg trained,Avg held out")


def test_a_table_of_which_nothing_is_known_stays_as_it_was():
    board = leaderboard([SUITE], TASKS, full("blank", 0.75, 0.25, 0.5), models=models())
    assert board.statuses == ()
    assert "Avg trained" not in render(board, "markdown")
