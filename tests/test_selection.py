"""Which stored results a name stands for, and every way in which a choice cannot be made."""

from __future__ import annotations

import dataclasses
import json

import pytest

from harness.errors import HarnessError, ResultConflict, UnknownName
from harness.result import read_stored
from harness.selection import choose, differing, disagreements, matching, shown
from toys import store

HITS = {"hit_at_1": {"q0": 1.0, "q1": 0.0}}


def test_a_name_stands_for_the_newest_result_of_each_cell_of_merged_folders(tmp_path):
    store(tmp_path / "here", "a", "t/x", HITS)
    new = store(tmp_path / "there", "a", "t/x", HITS, provenance={"started": "2026-02-01"})
    store(tmp_path / "there", "b", "t/x", HITS)
    found = [*read_stored(tmp_path / "there"), *read_stored(tmp_path / "here")]
    assert matching(found, "a") == [new]
    assert disagreements(found) == []


def test_copies_that_disagree_are_named(tmp_path):
    one = store(tmp_path / "here", "a", "t/x", HITS)
    two = store(tmp_path / "there", "a", "t/x", {"hit_at_1": {"q0": 1.0, "q1": 1.0}})
    (line,) = disagreements([one, two])
    assert line.startswith("t/x of a has two results that differ")
    assert f"harness bisect {one.path} {two.path}" in line


def test_an_identity_is_named_by_its_first_digits(tmp_path):
    one = store(tmp_path, "a", "t/x", HITS, identity={"dim": "8"})
    two = store(tmp_path, "a", "t/x", HITS, identity={"dim": "16"})
    for stored in (one, two):
        name = f"a@{stored.result.identity_id[:6]}"
        (choice,) = choose([one, two], [name])
        assert choice.results["t/x"] == stored
    with pytest.raises(UnknownName, match="unknown identity 'a@zz'"):
        choose([one, two], ["a@zz"])


def test_a_model_of_several_identities_lists_them_and_how_to_choose(tmp_path):
    one = store(tmp_path, "a", "t/x", HITS, identity={"dim": "8", "dtype": "fp32"})
    two = store(tmp_path, "a", "t/x", HITS, identity={"dim": "16", "dtype": "fp32"})
    other = store(tmp_path, "b", "t/x", HITS)
    with pytest.raises(HarnessError) as error:
        choose([one, two, other], ["a", "b"])
    for stored, dim in ((one, 8), (two, 16)):
        assert f"a@{stored.result.identity_id[:8]} (dim={dim}, t/x)" in str(error.value)


def test_one_system_under_two_names_is_noticed(tmp_path):
    one = store(tmp_path, "a", "t/x", HITS)
    name = f"a@{one.result.identity_id[:4]}"
    with pytest.raises(HarnessError, match=f"a and {name} are the same: "):
        choose([one], ["a", name])


def test_partial_results_of_another_identity_are_not_in_the_way(tmp_path):
    one = store(tmp_path, "a", "t/x", HITS)
    two = store(tmp_path, "a", "t/x", HITS, identity={"dim": "8"}, status="partial")
    assert choose([one, two], ["a"])[0].results == {"t/x": one}


def test_an_identity_of_other_tasks_is_not_in_the_way(tmp_path):
    one = store(tmp_path, "a", "t/x", HITS, identity={"dim": "8"})
    two = store(tmp_path, "a", "t/y", HITS, identity={"dim": "16"})
    assert choose([one, two], ["a"], {"t/y"})[0].results == {"t/y": two}


def test_without_a_common_task_everybodys_tasks_are_named(tmp_path):
    one = store(tmp_path, "a", "t/x", HITS)
    two = store(tmp_path, "b", "t/y", HITS)
    with pytest.raises(HarnessError, match="of a common task: a has t/x; b has t/y"):
        choose([one, two], ["a", "b"])
    with pytest.raises(HarnessError, match="a task that all have among t/z: a has t/x; b has t/y"):
        choose([one, two], ["a", "b"], {"t/z"})


def test_partial_results_are_never_compared(tmp_path):
    one = store(tmp_path, "a", "t/x", HITS)
    two = store(tmp_path, "b", "t/x", HITS, choices={"limit": 2}, status="partial")
    with pytest.raises(HarnessError, match=r"a has t/x; b has t/x \(partial\)"):
        choose([one, two], ["a", "b"])


def test_unequal_protocols_name_the_keys_that_differ(tmp_path):
    one = store(tmp_path, "a", "t/x", HITS, choices={"seed": 1, "files": {"q.jsonl": "aa"}})
    two = store(tmp_path, "b", "t/x", HITS, choices={"files": {"q.jsonl": "bb"}})
    with pytest.raises(ResultConflict) as error:
        choose([one, two], ["a", "b"])
    assert "they differ in seed (1 and 0), files.q.jsonl (aa and bb)" in str(error.value)


def test_of_several_common_protocols_the_usual_one_is_taken(tmp_path):
    stored = [
        store(tmp_path, model, "t/x", HITS, choices={"instructions": policy})
        for model in ("a", "b")
        for policy in ("1", "hash", "all")
    ]
    for choice in choose(stored, ["a", "b"]):
        assert choice.results["t/x"].result.protocol["instructions"] == "hash"
    unusual = [s for s in stored if s.result.protocol["instructions"] != "hash"]
    with pytest.raises(
        HarnessError, match=r"2 protocols, name result files: .*instructions=1.*instructions=all"
    ):
        choose(unusual, ["a", "b"])
    ones = [str(s.path) for s in unusual if s.result.protocol["instructions"] == "1"]
    first, second = choose([], ones)
    assert (first.label, second.label) == ("a", "b")


def test_two_files_of_one_cell_are_told_apart_by_their_names(tmp_path):
    here, there = (store(tmp_path / name, "a", "t/x", HITS) for name in ("here", "there"))
    choices = choose([], [str(here.path), str(there.path)])
    assert [c.label for c in choices] == [str(here.path), str(there.path)]


def test_a_check_models_identities_are_one_model(tmp_path):
    stored = [
        store(tmp_path, "oracle", name, HITS, identity={"qrels": name}, check=True) for name in ("t/x", "t/y")
    ]
    assert list(choose(stored, ["oracle"])[0].results) == ["t/x", "t/y"]


def test_bad_names_and_files_give_one_line(tmp_path):
    one = store(tmp_path, "model", "t/x", HITS)
    with pytest.raises(HarnessError, match="model is named twice"):
        choose([one], ["model", "model"])
    with pytest.raises(UnknownName, match="unknown model 'modle': did you mean model"):
        choose([one], ["modle", "model"])
    with pytest.raises(ResultConflict, match=r"nowhere\.json is not a readable result"):
        choose([one], ["nowhere.json", "model"])
    one.path.write_text(one.path.read_text().replace('"value": 0.5', '"value": 0.9'))
    with pytest.raises(ResultConflict, match="was changed after it was written"):
        choose([], [str(one.path), "model"])
    newer = json.loads(json.dumps(dataclasses.asdict(one.result))) | {"schema": 99}
    one.path.write_text(json.dumps(newer))
    with pytest.raises(ResultConflict, match="newer harness"):
        choose([], [str(one.path), "model"])


def test_differences_of_nested_mappings():
    a = {"x": 1, "files": {"p": "1", "q": "2"}, "git": None}
    b = {"x": 1, "files": {"q": "3", "r": "4"}, "git": {"dirty": True}}
    assert differing(a, b) == {
        "files.p": ("1", None),
        "files.q": ("2", "3"),
        "files.r": (None, "4"),
        "git.dirty": (None, True),
    }


def test_long_values_are_cut():
    assert shown(["a"]) == '["a"]'
    assert len(shown("x" * 99)) == 38
