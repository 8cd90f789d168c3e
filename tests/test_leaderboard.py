import csv
import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest

from harness.boards import render
from harness.cli import main
from harness.leaderboard import leaderboard, tasks_suite
from harness.metrics import MRR, Hit
from harness.published import Reported
from harness.result import Result, Score
from harness.task import Column, Suite
from toys import task

TASKS = {
    t.name: t for t in (task(list, "a/x"), task(list, "a/y"), task(list, "b/z", metrics=(MRR(10), Hit(1))))
}
SUITE = Suite(
    "s", "Suite", (Column("X", "A", ("a/x",)), Column("Y", "A", ("a/y",)), Column("Z", "B", ("b/z",)))
)
SETTINGS = {"split": None, "profile": "default", "instructions": "hash", "seed": 0, "limit": None,
            "skip_broken": False, "compat": []}  # fmt: skip


def result(model, name, value, *, metric="hit_at_1", identity="i", started="2026-01-01", **fields):
    base = Result(
        model=model,
        identity={"weights": identity},
        identity_id=identity,
        task=name,
        protocol={**SETTINGS, "task": name, "version": 1},
        protocol_id="p",
        status="complete",
        metrics={metric: Score(value, (value, value), 10)},
        provenance={"started": started},
    )
    return dataclasses.replace(base, **fields)


def full(model, x, y, z, **more):
    return [
        result(model, "a/x", x, **more),
        result(model, "a/y", y, **more),
        result(model, "b/z", z, metric="mrr_at_10", **more),
    ]


def cells(board):
    return {row.label: row.values for row in board.rows}


def test_rows_come_best_first_with_the_plain_mean_last():
    board = leaderboard([SUITE], TASKS, [*full("low", 0.1, 0.2, 0.3), *full("high", 0.5, 0.25, 0.75)])
    assert [row.label for row in board.rows] == ["high", "low"]
    assert board.rows[0].average == pytest.approx(0.5)
    assert [h.metric for h in board.headings] == ["R@1", "R@1", "MRR@10"]


def test_markdown_golden():
    board = leaderboard([SUITE], TASKS, [*full("low", 0.1, 0.2, 0.3), *full("high", 0.5, 0.25, 0.123456)])
    assert render(board, "markdown").startswith(
        "### Suite\n"
        "\n"
        "|         |           A |             |           B |             |\n"
        "|:--------|------------:|------------:|------------:|------------:|\n"
        "| *Model* |     *X R@1* |     *Y R@1* |  *Z MRR@10* |       *Avg* |\n"
        "| high    |    **50.0** |    **25.0** | <u>12.3</u> |    **29.1** |\n"
        "| low     | <u>10.0</u> | <u>20.0</u> |    **30.0** | <u>20.0</u> |\n"
    )


def test_a_missing_cell_is_a_gap_and_makes_the_average_a_gap():
    unsupported = result("part", "a/y", 0, status="unsupported", metrics={})
    board = leaderboard(
        [SUITE], TASKS, [result("part", "a/x", 0.5), unsupported, *full("all", 0.1, 0.1, 0.1)]
    )
    assert cells(board)["part"] == (0.5, None, None)
    part = board.rows[1]
    assert (part.label, part.average) == ("part", None)
    text = render(board, "markdown")
    assert "–" in text
    assert "unsupported by part" in text


def test_columns_may_be_means_and_may_stay_out_of_the_average():
    suite = Suite("s", "S", (Column("mean", "", ("a/x", "a/y")), Column("Z", "", ("b/z",), in_average=False)))
    board = leaderboard([suite], TASKS, full("m", 0.2, 0.4, 0.9))
    assert board.rows[0].values == (pytest.approx(0.3), 0.9)
    assert board.rows[0].average == pytest.approx(0.3)
    incomplete = leaderboard([suite], TASKS, [result("m", "a/x", 0.2)])
    assert incomplete.rows[0].values == (None, None)


def test_a_column_never_mixes_data():
    old = full("old", 0.9, 0.9, 0.9, files={"x": "1"}, started="2026-01-01")
    new = full("new", 0.1, 0.1, 0.1, files={"x": "2"}, started="2026-02-01")
    board = leaderboard([SUITE], TASKS, [*old, *new])
    assert list(cells(board)) == ["new"]
    assert "Left out, as made on other data (task version, split or files): 3." in board.notes


def test_rows_of_one_model_are_told_apart_by_what_differs():
    seeds = [
        result("m", "a/x", v, protocol={**SETTINGS, "version": 1, "seed": s}) for s, v in ((0, 0.1), (1, 0.2))
    ]
    board = leaderboard([SUITE], TASKS, seeds)
    assert sorted(cells(board)) == ["m (seed=0)", "m (seed=1)"]
    weights = [result("m", "a/x", 0.1, identity="w1"), result("m", "a/x", 0.2, identity="w2")]
    assert sorted(cells(leaderboard([SUITE], TASKS, weights))) == ["m (weights=w1)", "m (weights=w2)"]


def test_the_four_instructions_behind_a_mean_are_no_rows_of_their_own():
    results = [
        result("m", "a/x", v, protocol={**SETTINGS, "version": 1, "instructions": name})
        for name, v in (("1", 0.1), ("2", 0.3), ("all", 0.2), ("hash", 0.25))
    ]
    assert sorted(cells(leaderboard([SUITE], TASKS, results))) == [
        "m (instructions=all)",
        "m (instructions=hash)",
    ]
    assert len(leaderboard([SUITE], TASKS, results[:2]).rows) == 2


def test_another_profile_is_marked():
    other = result("m", "a/x", 0.5, protocol={**SETTINGS, "version": 1, "profile": "lamra"})
    board = leaderboard([SUITE], TASKS, [other, *full("n", 0.1, 0.1, 0.1)])
    text = render(board, "markdown")
    assert "**50.0**†" in text
    assert "†: made under another prompt profile" in text
    assert "<u>10.0</u> " in text


def test_checks_are_shown_last_and_never_ranked():
    check = full("oracle", 1.0, 1.0, 1.0, check=True)
    board = leaderboard([SUITE], TASKS, [*check, *full("m", 0.1, 0.1, 0.1), *full("n", 0.2, 0.2, 0.2)])
    assert [row.label for row in board.rows] == ["n", "m", "oracle"]
    text = render(board, "markdown")
    assert "oracle *check*" in text
    assert "**20.0**" in text
    assert "**100.0**" not in text


def test_partial_results_stay_out_unless_asked_for():
    part = [
        dataclasses.replace(r, status="partial", protocol={**r.protocol, "limit": 5})
        for r in full("m", 0.5, 0.5, 0.5)
    ]
    assert leaderboard([SUITE], TASKS, part).rows == ()
    board = leaderboard([SUITE], TASKS, [*part, *full("m", 0.1, 0.1, 0.1)], limit=5)
    assert board.rows[0].values == (0.5, 0.5, 0.5)
    assert any(note.startswith("PARTIAL") for note in board.notes)


def test_one_row_is_neither_best_nor_second():
    text = render(leaderboard([SUITE], TASKS, full("only", 0.1, 0.2, 0.3)), "markdown")
    assert "**" not in text.replace("*check*", "")
    assert "<u>" not in text


def test_values_that_look_equal_share_the_mark():
    board = leaderboard(
        [SUITE], TASKS, [*full("a", 0.50001, 0, 0), *full("b", 0.50002, 0, 0), *full("c", 0.4, 0, 0)]
    )
    text = render(board, "markdown")
    assert text.count("**50.0**") == 2
    assert "<u>40.0</u>" in text


def test_names_cannot_break_the_table():
    board = leaderboard([SUITE], TASKS, full("evil|<b>*x*\n", 0.1, 0.2, 0.3))
    line = next(line for line in render(board, "markdown").splitlines() if "evil" in line)
    assert r"evil\|\<b\>\*x\*" in line


def test_csv_and_json_keep_full_precision():
    board = leaderboard([SUITE], TASKS, [*full("m", 1 / 3, 0.2, 0.3), result("n", "a/x", 0.1)])
    rows = list(csv.reader(io.StringIO(render(board, "csv"))))
    about = ["model", "identity_id", "check", "block", "size", "sources"]
    assert rows[0] == [*about, "A/X R@1", "A/Y R@1", "B/Z MRR@10", "Avg"]
    assert float(rows[1][6]) == 1 / 3
    assert rows[2][7:] == ["", "", ""]
    data = json.loads(render(board, "json"))
    assert data["rows"][0]["cells"][0] == {
        "group": "A",
        "title": "X",
        "metric": "R@1",
        "value": 1 / 3,
        "ci95": [1 / 3, 1 / 3],
        "tied": False,
        "exposure": "unknown",
        "evidence": [],
    }
    assert data["rows"][1]["average"] is None


def test_tasks_alone_make_a_suite_grouped_by_data_set():
    suite = tasks_suite(list(TASKS.values()))
    assert [(c.group, c.title) for c in suite.columns] == [("a", "x"), ("a", "y"), ("b", "z")]


def test_several_suites_stand_side_by_side():
    other = Suite("t", "Other", (Column("Z", "B", ("b/z",), metric=Hit(1)),))
    board = leaderboard([SUITE, other], TASKS, full("m", 0.1, 0.2, 0.3))
    assert board.title == "Suite + Other"
    assert board.headings[3].metric == "R@1"
    assert board.rows[0].values[3] is None


HIT = Hit(1)


def number(model, name, value, *, metric=HIT, setting="single model", paper="p", **more):
    fields = {"title": paper.upper(), "table": "T1", "grade": "A", "source": "its file", "suites": ("s",)}
    return Reported(
        paper=paper, model=model, task=name, metric=metric, value=value, setting=setting, **(fields | more)
    )


def row(model, x, y, z, average=None, **more):
    cells = [number(model, "a/x", x, **more), number(model, "a/y", y, **more)]
    cells.append(number(model, "b/z", z, metric=MRR(10), **more))
    return cells if average is None else [*cells, number(model, "s", average, metric=None, **more)]


def test_published_rows_stand_in_italics_in_two_blocks_with_their_sources_below():
    published = [
        *row("Theirs", 0.6, 0.2, 0.7, 0.51, size="7B"),
        *row("Theirs+", 0.9, 0.8, 0.7, setting="recall-then-rerank", paper="q", note="read twice"),
    ]
    board = leaderboard([SUITE], TASKS, full("m", 0.5, 0.25, 0.123456), reported=published)
    assert render(board, "markdown") == (
        "### Suite\n"
        "\n"
        "|                      |        |           A |               |           B |             |\n"
        "|:---------------------|-------:|------------:|--------------:|------------:|------------:|\n"
        "| *Model*              | *Size* |     *X R@1* |       *Y R@1* |  *Z MRR@10* |       *Avg* |\n"
        "| *single model*       |        |             |               |             |             |\n"
        "| Theirs <sup>1</sup>  |     7B |  ***60.0*** | <u>*20.0*</u> |  ***70.0*** |  ***51.0*** |\n"
        "| m                    |        | <u>50.0</u> |      **25.0** | <u>12.3</u> | <u>29.1</u> |\n"
        "| *+ rerank*           |        |             |               |             |             |\n"
        "| Theirs+ <sup>2</sup> |        |      *90.0* |        *80.0* |      *70.0* |      *80.0* |\n"
        "\n"
        "R@k is hit@k: the share of queries with a relevant candidate among the first k.  \n"
        "*Italics*: published, not measured here; the average is the printed one where there is one.  \n"
        "<sup>1</sup> P, T1: its file; grade A  \n"
        "<sup>2</sup> Q, T1: its file; grade A; read twice  \n"
    )


def test_what_was_published_of_our_model_stands_right_below_it():
    published = [
        *row("other", 0.5, 0.5, 0.5),
        *row("Ours", 0.1, 0.1, 0.1, plugin="m"),
        *row("Ours", 0.2, 0.2, 0.2, plugin="m", paper="q"),
        *row("Ours+", 0.9, 0.9, 0.9, plugin="m", setting="recall-then-rerank"),
    ]
    mine = [*full("m", 0.9, 0.9, 0.9), *full("m", 0.3, 0.3, 0.3, identity="w2"), *full("m+r", 0.1, 0.1, 0.1)]
    board = leaderboard([SUITE], TASKS, mine, reported=published)
    assert [r.label for r in board.rows] == [
        "m (weights=i)", "Ours", "Ours", "other", "m (weights=w2)", "Ours+", "m+r"
    ]  # fmt: skip
    assert [r.sources != () for r in board.rows] == [False, True, True, True, False, True, False]


def test_a_published_average_is_the_printed_one_of_one_suite_and_computed_otherwise():
    published = row("a", 0.1, 0.2, 0.3, 0.21)
    assert leaderboard([SUITE], TASKS, [], reported=published).rows[0].average == 0.21
    both = leaderboard([SUITE, Suite("t", "T", SUITE.columns)], TASKS, [], reported=published)
    assert both.rows[0].average == pytest.approx(0.2)
    only = leaderboard([SUITE], TASKS, [], reported=published[-1:])
    assert (only.rows[0].values, only.rows[0].average) == ((None, None, None), 0.21)


def test_tables_of_one_paper_are_joined_and_those_about_other_suites_left_out():
    published = [
        number("a", "a/x", 0.1),
        number("a", "a/y", 0.2, table="T2"),
        number("b", "a/x", 0.3, suites=("other",)),
        number("c", "a/x", 0.4, metric=Hit(5)),
    ]
    board = leaderboard([SUITE], TASKS, [], reported=published)
    assert cells(board) == {"a": (0.1, 0.2, None)}
    assert board.rows[0].sources == ("P, T1: its file; grade A", "P, T2: its file; grade A")


def test_a_data_sets_number_stands_in_the_column_over_its_tasks():
    suite = Suite("s", "S", (Column("A", "", ("a/x", "a/y")), Column("B", "", ("a/x", "b/z"), metric=Hit(1))))
    board = leaderboard([suite], TASKS, [], reported=[number("m", "a", 0.4), number("m", "a/x", 0.1)])
    assert board.rows[0].values == (0.4, None)


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["harness", "leaderboard", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run


@pytest.mark.parametrize(
    ("golden", "arguments"),
    [
        ("umarvel-local.md", ("mbeir-local", "--reported", "--paper", "umarvel")),
        ("umarvel-global.md", ("mbeir-global", "--paper", "umarvel")),
        ("lamra-local.md", ("mbeir-local", "--paper", "lamra")),
        ("lamra-heldout.md", ("mbeir-heldout", "--paper", "lamra")),
        ("umarvel-zeroshot.md", ("zeroshot-image", "zeroshot-video", "--paper", "umarvel")),
    ],
)
def test_the_tables_of_the_papers_come_out_cell_for_cell(cli, golden, arguments):
    """Every cell of the files was compared with the list of numbers read from the papers' pictures."""
    code, out, _ = cli(*arguments)
    assert code == 0
    assert out == (Path(__file__).parent / "golden" / golden).read_text(encoding="utf-8")


def test_all_papers_are_shown_with_grade_b_and_second_hand_ones_on_demand(cli):
    _, out, _ = cli("mbeir-local", "--reported", "--format", "json")
    models = {r["model"] for r in json.loads(out)["rows"]}
    assert {"U-MARVEL (Qwen2-VL-7B)", "BLIP2", "ARR-RL-8B (init Qwen3-VL-Embedding-8B)"} <= models
    assert "Retrv-R1-7B" not in models
    _, out, _ = cli("mbeir-local", "--reported", "--grade", "C", "--format", "json")
    assert "Retrv-R1-7B" in {r["model"] for r in json.loads(out)["rows"]}
    _, out, _ = cli("mbeir-local", "--reported", "--grade", "A", "--format", "json")
    assert {r["model"] for r in json.loads(out)["rows"]} < models


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mbeir-local",), "no results folder results/runs"),
        (("demo", "--reported"), "nothing is published for"),
        (("mbeir-local", "--reported", "--runs", "nowhere"), "no results folder nowhere"),
        (("mbeir-local", "--paper", "umarvl"), "unknown paper 'umarvl': did you mean umarvel?"),
        (("mbeir-local", "--reported", "--grade", "Z"), "unknown grade 'Z': known: A, B, C"),
    ],
)
def test_a_leaderboard_without_rows_to_show_is_one_clear_line(cli, arguments, message):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert message in err
