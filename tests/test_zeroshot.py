"""The zero-shot suites as a whole: documented prompts, one command, a full table, known ceilings."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from harness.collection import checked
from harness.registry import load_catalog
from harness.task import Protocol

CATALOG = load_catalog()
ROOT = Path(__file__).parent.parent
TASKS = [
    t for name, t in CATALOG.tasks.items() if name in {*CATALOG.suites["zeroshot-all"].tasks, "circo/test"}
]


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for write in dict.fromkeys(task.mini for task in TASKS):
        write(folder)
    return folder


def documented() -> dict[str, str]:
    """Task glob → instruction, from the table in tasks/README.md."""
    page = (ROOT / "tasks" / "README.md").read_text(encoding="utf-8")
    table = page.partition("| task | instruction of the profile `default` |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    return {glob: text.strip() for globs, text in rows for glob in re.findall(r"`([^`]+)`", globs)}


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_the_readme_lists_the_instruction_of_every_task(task, mini):
    wanted = {text for glob, text in documented().items() if fnmatchcase(task.name, glob)}
    collection = task.load(mini, Protocol())
    assert {q.instruction for q in collection.queries} == wanted
    assert {c.instruction for c in collection.pool} == {None}


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_profiles_change_prompts_and_never_who_answers_whom(task, mini):
    plain, _ = checked(task.load(mini, Protocol()))
    for profile in ("umarvel", "lamra"):
        other, _ = checked(task.load(mini, Protocol(profile=profile)))
        assert [q.id for q in other.queries] == [q.id for q in plain.queries]
        assert [c.id for c in other.pool] == [c.id for c in plain.pool]
        if task.name != "vist/story-to-image":  # their code bases trust the file for the order of a story
            assert (other.qrels, other.scope) == (plain.qrels, plain.scope)
        bare = task.load(mini, Protocol(profile=profile, instructions="none"))
        assert {x.instruction for x in (*bare.queries, *bare.pool)} == {None}


def test_the_suites_are_the_columns_of_the_papers():
    suites = CATALOG.suites
    papers = [[n for n in CATALOG.reported() if name in n.suites and n.own] for name in suites]
    assert any(papers)
    image, video = suites["zeroshot-image"], suites["zeroshot-video"]
    assert suites["zeroshot"].columns == (*image.columns, *video.columns)
    assert set(suites["zeroshot-all"].tasks) - set(suites["zeroshot"].tasks) == {
        "coco/text-to-image",
        "coco/image-to-text",
        "vist/story-to-image",
    }
    reported = json.loads((ROOT / "results/reported/umarvel.json").read_text())["tables"]
    for suite in (image, video):
        (table,) = [t for t in reported if suite.name in t.get("suites", ())]
        printed = [c["task"] for c in table["columns"]]
        ours = [{*column.tasks, column.tasks[0].partition("/")[0]} for column in suite.columns]
        assert all(name in names for name, names in zip(printed, ours, strict=True))


def test_one_command_fills_the_whole_table(cli, mini, tmp_path):
    code, out, err = cli(
        "eval", "-m", "random", "-s", "zeroshot-all", "--data", str(mini), "-o", str(tmp_path / "runs"), "-q"
    )
    assert code == 0
    assert all("is not above chance" in line for line in err.splitlines())  # as random vectors should be
    row = next(line for line in out.splitlines() if line.startswith("| random"))
    assert "–" not in row
    assert "Not the published data, by their counts" in out
    code, out, _ = cli("leaderboard", "genecis", "--runs", str(tmp_path / "runs"), "--format", "json")
    (row,) = json.loads(out)["rows"]
    values = [c["value"] for c in row["cells"] if c["metric"] == "R@1"]
    assert row["average"] == pytest.approx(sum(values) / 4)


def test_the_data_commands_know_every_set(cli, mini):
    code, out, _ = cli("data", "status", "zeroshot-all", "circo/test", "--data", str(mini), "--deep")
    assert code == 0
    assert out.count("ok") == len(TASKS)
    code, out, _ = cli("data", "convert", "ccneg", "msvd", "--data", str(mini))
    assert code == 0
    assert out.count("wrote") == 2


def test_what_is_missing_is_listed_with_where_to_get_it(cli, tmp_path):
    code, _, err = cli("eval", "-m", "random", "-s", "zeroshot-all", "--data", str(tmp_path / "none"))
    assert code == 2
    for folder in ("flickr", "Urban1k", "circo", "genecis", "vist", "visdial", "ccneg", "MSVD", "msrvtt"):
        assert f"/none/{folder}" in err
    assert "harness data fetch" in err
