"""A query's negatives are those that its policy names, and none of them is a positive."""

from __future__ import annotations

import json

import numpy as np
import pytest
import training_toys as toys

from harness.digest import digest
from harness.errors import DataInvalid, UnknownName
from harness.models.training import lists
from harness.models.training.negatives import Negatives, choice
from harness.train import MANIFEST

A = {
    "q0": [("a0", 0.9), ("a4", 0.8), ("toys/b:b3", 0.71), ("a2", 0.69), ("both", 0.5), ("a7", 0.1)],
    "q1": [("a5", 0.6), ("a1", 0.5), ("a3", 0.4)],
    "q2": [("a2", 0.9), ("a0", 0.8)],
    "q3": [("a1", 0.3), ("a2", 0.2), ("a5", 0.1)],
    "q4": [("a4", 0.65), ("a6", 0.6), ("a7", 0.55), ("a0", 0.5)],
}
B = {f"q{i}": [("b5", 0.6), ("b4", 0.5), ("both", 0.4)] for i in range(4)}
GIVEN = {"toys/a": A, "toys/b": B}


def negatives(folder, given=GIVEN, *, tasks=toys.TASKS, inputs=None, **settings):
    """(what is found, the ids and the texts that a query is trained against)."""
    settings = {"negatives": 2, "policy": "top", "threshold": None, **settings}
    corpus = toys.corpus(tasks)
    if inputs is None:
        inputs = {"negatives": toys.table(folder, given)}
    found = Negatives.of(toys.stage(folder, inputs=inputs, **settings), corpus)
    texts = {c.parts: c.id for lesson in corpus.lessons for c in lesson.candidates}

    def of(task, row, seed=0):
        lesson = next(each for each in corpus.lessons if each.task == task)
        random = np.random.default_rng(seed)
        return [texts[n.parts] for n in found.added(lesson.visit(row, random), lesson, row, random).negatives]

    return of


def all_of(of, rows=5):
    return [of("toys/a", row) for row in range(rows)]


def test_without_a_mining_stage_there_are_none(tmp_path):
    assert Negatives.of(toys.stage(tmp_path), toys.corpus()) is None


def test_top_takes_the_first_that_are_not_labelled_whatever_the_flag_says(tmp_path):
    """No row of the table is flagged as a positive: the qrels say that a0 answers q0."""
    of = negatives(tmp_path)
    assert all_of(of, 2) == [["a4", "b3"], ["a5", "a3"]]
    assert of("toys/b", 3) == ["b5", "b4"]


def test_last_takes_them_from_the_end(tmp_path):
    of = negatives(tmp_path, policy="last")
    assert all_of(of, 2) == [["a7", "both"], ["a3", "a5"]]


def test_a_candidate_beyond_the_threshold_is_dropped(tmp_path):
    """0.71 > 0.7 >= 0.69."""
    assert negatives(tmp_path, threshold=0.7)("toys/a", 0) == ["a2", "both"]
    assert negatives(tmp_path, threshold=0.6)("toys/a", 0) == ["both", "a7"]
    assert negatives(tmp_path, threshold=0.71)("toys/a", 0) == ["b3", "a2"]


def test_fewer_are_repeated_from_the_first(tmp_path):
    assert negatives(tmp_path, negatives=4)("toys/a", 1) == ["a5", "a3", "a5", "a5"]


def test_where_nothing_is_left_they_are_drawn_anew_from_all_that_is_not_labelled(tmp_path):
    """Above 0.7 there is nothing but q2's positive and a0."""
    of = negatives(tmp_path, threshold=0.7)
    drawn = [of("toys/a", 2, seed) for seed in range(200)]
    assert {len(each) for each in drawn} == {2}
    assert drawn == [of("toys/a", 2, seed) for seed in range(200)]
    seen = {each for pair in drawn for each in pair}
    everything = {f"a{i}" for i in range(8)} | {f"b{i}" for i in range(6)} | {"both"}
    assert seen == everything - {"a2"}


def test_random_ones_of_a_local_table_are_of_the_query_s_own_pool(tmp_path):
    inputs = {"negatives": toys.table(tmp_path, GIVEN, pool="local")}
    of = negatives(tmp_path, inputs=inputs, policy="random", negatives=4)
    seen = {each for seed in range(100) for each in of("toys/b", 1, seed)}
    assert seen == {"b0", "b2", "b3", "b4", "b5", "both"}


def test_released_strategies_go_by_the_name_of_the_task():
    """§B.4 of the notes on the released code: what is neither random nor last is top."""
    by_choice = {
        policy: {
            task: choice(policy, f"mbeir-local/{task}")
            for task in ("mscoco_task0", "cirr_task7", "oven_task8")
        }
        for policy in ("two-strategy", "three-strategy")
    }
    assert by_choice == {
        "two-strategy": {"mscoco_task0": "random", "cirr_task7": "random", "oven_task8": "top"},
        "three-strategy": {"mscoco_task0": "last", "cirr_task7": "top", "oven_task8": "top"},
    }
    assert choice("two-strategy", "stamps/text-to-image-en") == "top"
    with pytest.raises(UnknownName, match="unknown policy 'tpo': did you mean top"):
        choice("tpo", "toys/a")


def test_a_table_in_any_order_and_read_in_pieces_gives_the_same(tmp_path, monkeypatch):
    expected = all_of(negatives(tmp_path))
    toys.shuffled(tmp_path / lists.MINED)
    inputs = {"negatives": tmp_path}
    assert all_of(negatives(tmp_path, inputs=inputs)) == expected
    monkeypatch.setattr(lists, "_BLOCK", 3)
    assert all_of(negatives(tmp_path, inputs=inputs)) == expected
    backwards = all_of(negatives(tmp_path, inputs=inputs, policy="last"))
    assert backwards[:2] == [["a7", "both"], ["a3", "a5"]]


def test_two_mining_stages_give_k_negatives_each(tmp_path):
    local = {"toys/a": {q: [("a6", 0.4), ("a7", 0.3)] for q in A}, "toys/b": B}
    inputs = {
        "negatives": toys.table(tmp_path / "one", GIVEN),
        "negatives-local": toys.table(tmp_path / "two", local),
    }
    assert negatives(tmp_path, inputs=inputs)("toys/a", 1) == ["a5", "a3", "a6", "a7"]


def test_teacher_scores_serve_as_negatives_too(tmp_path):
    inputs = {"negatives": toys.scored(tmp_path, GIVEN, depth=100)}
    assert negatives(tmp_path, inputs=inputs)("toys/a", 1) == ["a5", "a3"]


@pytest.mark.parametrize(
    ("given", "settings", "line"),
    [
        (
            {"toys/a": A},
            {},
            "has nothing for 4 of 9 queries, such as 'q0' of toys/b: give both stages the same tasks",
        ),
        (GIVEN, {"threshold": 0.05}, "leaves no query a negative at threshold 0.05: raise it"),
    ],
    ids=["a query that was not mined", "nothing below the threshold"],
)
def test_a_table_that_cannot_be_used_is_an_error_that_says_why(tmp_path, given, settings, line):
    with pytest.raises(DataInvalid, match=line):
        negatives(tmp_path, given, **settings)


def test_a_candidate_that_the_pools_do_not_have_is_an_error(tmp_path):
    """The table names a7, this stage's pool ends with a5."""
    with pytest.raises(
        DataInvalid, match="candidate 'a7' of query 'q0' of toys/a is not in the pool of toys/a"
    ):
        negatives(tmp_path, tasks=(toys.task("a", 5, 6), toys.TASKS[1]))


def test_a_table_of_another_model_is_an_error_one_of_an_ancestor_is_not(tmp_path):
    def artefact(name, **needs):
        made_of = {"stage": name, "settings": {}, "needs": needs, "files": {}}
        folder = tmp_path / f"{name}-{digest(made_of)}"
        folder.mkdir()
        (folder / MANIFEST).write_text(json.dumps({"made_of": made_of, "outputs": {}}))
        return folder

    nli = artefact("nli")
    mbeir, other = artefact("mbeir", model=nli.name), artefact("cc3m", model=nli.name)
    for model in (mbeir.name, nli.name, "the-base"):
        inputs = {"model": mbeir, "negatives": toys.table(tmp_path / "mined", GIVEN, model=model)}
        assert negatives(tmp_path, inputs=inputs)("toys/a", 1) == ["a5", "a3"]
    inputs["negatives"] = toys.table(tmp_path / "mined", GIVEN, model=other.name)
    with pytest.raises(DataInvalid, match=r"is a mining table of another model: cc3m-.* starts from mbeir-"):
        negatives(tmp_path, inputs=inputs)
