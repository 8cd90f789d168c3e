"""Result folders that are not as they should be: every command that reads them says so in one clear line."""

import json
from pathlib import Path

import pytest

from harness.digest import digest
from toys import store

TASK = "demo/composed"
LEADERBOARD = ("leaderboard", "demo")
COMPARE = ("compare", "m", "n", "-s", "demo")
INSPECT = ("inspect", "-m", "m", "-t", TASK)
BISECT = ("bisect", "m", "n", "--task", TASK)
REPORT = ("report", "-s", "demo", "--worst", 1)
EVERY = (LEADERBOARD, COMPARE, INSPECT, BISECT, REPORT)


def put(model="m", task=TASK, **fields):
    return store(Path("runs"), model, task, {"hit_at_1": {f"q{i}": float(i % 2) for i in range(9)}}, **fields)


def changed(path, *, sealed, **values):
    """Change a result by hand; `sealed`: with a checksum that fits again."""
    data = json.loads(path.read_text()) | values
    if sealed:
        data["checksum"] = digest({k: v for k, v in data.items() if k not in ("provenance", "checksum")})
    path.write_text(json.dumps(data))


def refused(cli, command, *messages):
    code, out, err = cli(*command, "--runs", "runs")
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1
    for message in messages:
        assert message in err


@pytest.mark.parametrize("command", EVERY, ids=lambda c: c[0])
def test_an_empty_folder(cli, command):
    Path("runs").mkdir()
    refused(cli, command, "no")


@pytest.mark.parametrize("command", [LEADERBOARD, COMPARE, REPORT], ids=lambda c: c[0])
def test_partial_results_alone(cli, command):
    for model in "mn":
        put(model, status="partial", choices={"limit": 9})
    refused(cli, command, "demo")


def test_a_leaderboard_of_partial_results_says_how_many_there_are(cli):
    put(status="partial", choices={"limit": 9})
    refused(cli, LEADERBOARD, "no complete result of demo in runs (1 made with --limit): run 'harness eval'")


@pytest.mark.parametrize("command", EVERY, ids=lambda c: c[0])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 99, "sealed": True}, "was written by a newer harness (schema 99, here 1): upgrade"),
        ({"headline": "mrr_at_10", "sealed": False}, "was changed after it was written"),
        ({"metrics": 5, "sealed": True}, "is not a readable result"),
    ],
)
def test_a_result_of_a_newer_schema_edited_or_broken(cli, command, values, message):
    path = put().path
    put("n")
    changed(path, **values)
    refused(cli, command, str(path), message)


def test_a_missing_run(cli):
    cli("eval", "-q", "-m", "random", "-t", TASK, "-o", "runs")
    (run,) = Path("runs").rglob("*.run.gz")
    run.unlink()
    refused(cli, ("inspect", "-m", "random", "-t", TASK), f"{run} is missing: copy it")


def test_missing_outcomes(cli):
    put()
    path = put("n").path.with_suffix(".queries.parquet")
    path.unlink()
    refused(cli, COMPARE, f"{path} is missing: copy it")


def test_no_task_in_common(cli):
    put()
    put("n", "demo/text-to-image")
    refused(cli, COMPARE, "m has demo/composed; n has demo/text-to-image")


def test_mixed_fingerprints(cli):
    put()
    put("n", files={"a.png": "1"}, choices={"version": "2"}, provenance={"started": "2026-02-02"})
    refused(cli, COMPARE, "were not scored under one protocol, they differ in version")
    code, out, _ = cli(*LEADERBOARD, "--runs", "runs")
    assert code == 0
    assert "Left out, as made on other data (task version, split or files): 1." in out
    assert "| m " not in out


def test_a_name_with_markup_and_lines_stays_on_one_line(cli):
    put("<b>|a\n`x`</b>")
    refused(cli, COMPARE, "unknown model 'm'", "<b>|a `x`</b>")
