"""The folder to publish: every file there, every link kept, nothing missing made up."""

import csv
import json
import re
from pathlib import Path

import pytest
from test_boards import Page


@pytest.fixture
def report(cli):
    """A report on two of the demo's problems."""
    cli("eval", "-q", "-m", "random", "-t", "demo/composed,demo/right-caption")
    code, _, err = cli("report", "-s", "demo", "--out", "out", "--worst", 2, "--trec")
    assert code == 0, err
    return Path("out"), err


def test_the_folder_holds_every_form_and_every_link_leads_to_a_file(report):
    out, _ = report
    index = Page((out / "index.html").read_text())
    links = [a["href"] for a in index.of("a")]
    assert all((out / link).is_file() for link in links)
    for suffix in ("html", "md", "tex", "csv", "json"):
        assert f"leaderboard.{suffix}" in links
    assert next(csv.reader((out / "leaderboard.csv").open()))[0] == "model"
    assert len(index.of("svg")) == len([a for a in links if a.endswith(".svg")]) > 0
    assert not (out / "ablations.md").exists()  # no variant was measured


def test_galleries_are_there_for_the_tasks_that_have_runs(report):
    out, _ = report
    made = sorted(p.name for p in (out / "galleries").iterdir())
    assert made == ["demo-composed-random.html", "demo-right-caption-random.html"]
    page = Page((out / "galleries" / made[0]).read_text())
    assert len(page.of("article")) == 2
    assert page.of("svg")


def test_provenance_and_the_results_themselves_come_along(report):
    out, _ = report
    made = json.loads((out / "provenance.json").read_text())["results"]
    assert {r["task"] for r in made} == {"demo/composed", "demo/right-caption"}
    assert made[0]["provenance"]["command"].startswith("harness eval")
    copied = sorted(p.suffixes[-1] for p in (out / "results").rglob("*.*"))
    assert copied == [".json", ".json", ".parquet", ".parquet"]
    assert "harness eval -q -m random" in (out / "index.html").read_text()


def test_exports_for_other_tools_lie_in_a_folder_that_the_index_names(report):
    out, _ = report
    names = {p.name for p in (out / "exports").rglob("*") if p.is_file()}
    assert {"demo__composed.json", "model_meta.json", "README.md"} <= names
    (card,) = (out / "exports/cards/random").iterdir()
    assert "model-index" in (card / "README.md").read_text()
    assert (
        len(list((out / "exports/trec").rglob("*.run")))
        == len(list((out / "exports/trec").rglob("*.qrels")))
        == 2
    )
    index = (out / "index.html").read_text()
    for path in re.findall(r"<code>(exports/[^<]*)</code>", index):
        assert (out / path).exists()


def test_a_task_whose_data_changed_is_told_and_left_out(cli, monkeypatch):
    cli("data", "make-mini", "mbeir-local/cirr_task7", "mini")
    cli("eval", "-q", "-m", "random", "-t", "mbeir-local/cirr_task7", "--data", "mini")
    code, _, err = cli("report", "-s", "mbeir-local", "--reported", "--out", "out", "--data", "elsewhere")
    assert code == 0
    assert "no gallery of random on mbeir-local/cirr_task7: " in err
    assert not Path("out/galleries").exists()
    assert "U-MARVEL" in Path("out/leaderboard.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-s", "demo"), "no results folder results/runs"),
        ((), "nothing to report on: name suites with --suite"),
        (("-s", "dmeo"), "unknown suite 'dmeo'"),
        (("-s", "demo", "--runs", "."), "nothing to report on demo: run 'harness eval'"),
    ],
)
def test_what_cannot_be_reported_is_one_clear_line(cli, arguments, message):
    code, out, err = cli("report", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
