"""CIRCO: reading, wording, the official measures, faults in the files, and the submission."""

from __future__ import annotations

import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.collection import Collection, checked
from harness.content import Image, Text
from harness.errors import DataInvalid, DataMissing
from harness.evaluate import Outcome, evaluate, require_data
from harness.metrics import MAP, Hit, Metric, ranks_in_list
from harness.model import ModelSpec
from harness.plugins import circo_submission
from harness.registry import load_catalog
from harness.result import Result
from harness.run import Run
from harness.task import Protocol, Task
from harness.tasks import circo
from harness.tasks.miniature import picture
from harness.testing import check_task
from toys import Toy, places, spec

VAL, TEST = circo.TASKS
CUTS = (5, 10, 25, 50)
CHANGES = "I'm looking for a similar everyday image with the described changes."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    VAL.mini(folder)
    return folder


def entries_of(data: Path, split: str = "val") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((data / f"circo/annotations/{split}.json").read_text())
    return found


def texts(collection: Collection) -> list[str]:
    return [part.text for query in collection.queries for part in query.parts if isinstance(part, Text)]


@pytest.mark.parametrize("task", circo.TASKS, ids=lambda task: task.name)
def test_the_oracle_reaches_the_ceiling_and_a_constant_model_the_floor(task, tmp_path):
    check_task(task, tmp_path)


def test_a_query_is_the_reference_and_the_caption(data):
    collection, _ = checked(VAL.load(data, Protocol()))
    for query, entry in zip(collection.queries, entries_of(data), strict=True):
        file = data / f"circo/images/unlabeled2017/{entry['reference_img_id']:012d}.jpg"
        assert query.id == str(entry["id"])
        assert query.parts == (Image(file), Text(entry["relative_caption"]))
        assert query.instruction == CHANGES


def test_the_pool_is_every_listed_picture_in_file_order_references_among_them(data):
    listed = json.loads((data / "circo/annotations/image_info_unlabeled2017.json").read_text())["images"]
    collection, counts = checked(VAL.load(data, Protocol()))
    assert list(collection.pool.ids) == [str(image["id"]) for image in listed]
    assert list(collection.pool.ids) != sorted(collection.pool.ids, key=int)
    assert counts["candidates"] > 50  # further than any cut-off
    assert {str(entry["reference_img_id"]) for entry in entries_of(data)} <= set(collection.pool.ids)
    assert collection.exclude is None
    pictures = list((data / "circo/images/unlabeled2017").iterdir())
    assert len({file.read_bytes() for file in pictures}) == len(pictures) == len(listed)


def test_a_picture_listed_twice_is_one_candidate_and_counted(tmp_path):
    VAL.mini(tmp_path)
    change(tmp_path, "image_info_unlabeled2017", lambda info: info["images"].append(info["images"][0]))
    collection, counts = checked(VAL.load(tmp_path, Protocol()))
    assert (len(collection.pool), counts["repeats_dropped"]) == (92, 1)


def test_the_target_has_grade_two_and_the_other_ground_truths_one(data):
    collection = VAL.load(data, Protocol())
    for entry in entries_of(data):
        target, *others = entry["gt_img_ids"]
        assert target == entry["target_img_id"]
        assert collection.positives(str(entry["id"])) == {str(target): 2} | {str(id): 1 for id in others}


def test_aspects_are_groups(data):
    collection = VAL.load(data, Protocol())
    assert collection.groups == {
        "cardinality": ["0", "2", "5"],
        "compare_change": ["1", "5", "6"],
        "negation": ["2"],
        "comparative_statement": ["3"],
        "direct_addressing": ["4"],
    }


def test_the_truth_of_the_test_split_is_hidden_and_its_entries_have_none(data):
    collection = TEST.load(data, Protocol())
    assert (collection.qrels, collection.groups) == (None, {})
    assert {*entries_of(data, "test")[0]} == {"reference_img_id", "relative_caption", "shared_concept", "id"}
    assert list(collection.pool) == list(VAL.load(data, Protocol()).pool)


def test_a_task_has_one_split(data):
    with pytest.raises(DataInvalid, match="circo/val has no split 'test': use --split val"):
        VAL.load(data, Protocol(split="test"))


@pytest.mark.parametrize("profile", ["default", "umarvel", "lamra"])
@pytest.mark.parametrize("task", circo.TASKS, ids=lambda task: task.name)
def test_all_profiles_put_the_same_sentence_and_a_blank_before_the_caption(data, task, profile):
    collection = task.load(data, Protocol(profile=profile))
    assert {(q.instruction, q.separator) for q in collection.queries} == {(CHANGES, " ")}
    assert {c.instruction for c in collection.pool} == {None}
    assert texts(collection) == [e["relative_caption"] for e in entries_of(data, task.name[6:])]


def test_instructions_can_be_left_away(data):
    queries = VAL.load(data, Protocol(instructions="none")).queries
    assert {q.instruction for q in queries} == {None}


@pytest.mark.parametrize("task", circo.TASKS, ids=lambda task: task.name)
def test_the_shared_concept_comes_in_by_a_switch(data, task):
    shown = texts(task.load(data, Protocol(compat=(circo.SHARED_CONCEPT,))))
    assert shown[0] == (
        "Find a picture that also shows circle on a bright ground, but "
        + texts(task.load(data, Protocol()))[0]
    )


def test_what_is_missing_is_listed_with_where_to_get_it(tmp_path):
    with pytest.raises(
        DataMissing, match=r"4 files or folders are missing.*miccunifi/CIRCO.*cocodataset\.org"
    ):
        require_data(circo.TASKS, tmp_path, Protocol())


def change(data: Path, file: str, how: Callable[[Any], object]) -> None:
    path = data / f"circo/annotations/{file}.json"
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


ENTRY_FAULTS: Mapping[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no reference": (lambda e: e.pop("reference_img_id"), "no field 'reference_img_id'"),
    "no caption": (lambda e: e.pop("relative_caption"), "no field 'relative_caption'"),
    "no id": (lambda e: e.pop("id"), "no field 'id'"),
    "no target": (lambda e: e.pop("target_img_id"), "no field 'target_img_id'"),
    "no ground truths": (lambda e: e.pop("gt_img_ids"), "no field 'gt_img_ids'"),
    "no aspects": (lambda e: e.pop("semantic_aspects"), "no field 'semantic_aspects'"),
    "id twice": (lambda e: e.update(id=0), "query id 0 is there twice"),
    "id a text": (lambda e: e.update(id="1"), "id must be a whole number, not '1'"),
    "empty caption": (lambda e: e.update(relative_caption=" "), "relative_caption is an empty text"),
    "aspects a text": (
        lambda e: e.update(semantic_aspects="addition"),
        "semantic_aspects must be a list, not 'addition'",
    ),
    "aspects numbers": (
        lambda e: e.update(semantic_aspects=["addition", 3]),
        r"semantic_aspects\[1\] must be a text, not 3",
    ),
    "target no truth": (
        lambda e: e["gt_img_ids"].pop(0),
        r"target_img_id \d+ is not among its gt_img_ids",
    ),
    "truth unknown": (
        lambda e: e["gt_img_ids"].append(600_001),
        "gt_img_ids 600001 is not among the pictures of image_info_unlabeled2017.json",
    ),
    "reference unknown": (
        lambda e: e.update(reference_img_id=600_001),
        "reference_img_id 600001 is not among the pictures of image_info_unlabeled2017.json",
    ),
}


@pytest.mark.parametrize(("how", "says"), ENTRY_FAULTS.values(), ids=ENTRY_FAULTS)
def test_a_fault_is_named_with_file_and_entry(tmp_path, how, says):
    VAL.mini(tmp_path)
    change(tmp_path, "val", lambda entries: how(entries[1]))
    with pytest.raises(DataInvalid, match=rf"^\S+circo/annotations/val\.json, entry 1: {says}$"):
        VAL.load(tmp_path, Protocol())


def test_a_lacking_shared_concept_matters_where_it_is_asked_for(tmp_path):
    VAL.mini(tmp_path)
    change(tmp_path, "val", lambda entries: entries[1].pop("shared_concept"))
    assert len(VAL.load(tmp_path, Protocol()).queries) == 7
    with pytest.raises(DataInvalid, match=r"val\.json, entry 1: no field 'shared_concept'"):
        VAL.load(tmp_path, Protocol(compat=(circo.SHARED_CONCEPT,)))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (lambda info: info.pop("images"), r"2017\.json: no field 'images'"),
        (lambda info: info["images"][3].pop("id"), r"2017\.json: images\[3\]: no field 'id'"),
        (lambda info: info["images"][3].update(id="3"), r"images\[3\]: id must be a whole number, not '3'"),
    ],
)
def test_a_fault_in_the_list_of_pictures_is_named(tmp_path, how, says):
    VAL.mini(tmp_path)
    change(tmp_path, "image_info_unlabeled2017", how)
    with pytest.raises(DataInvalid, match=says):
        VAL.load(tmp_path, Protocol())


CATALOG = load_catalog()
RANDOM = CATALOG.model("random")


def run(task: Task, data: Path, folder: Path, model: ModelSpec = RANDOM, **protocol: Any) -> Outcome:
    options = replace(places(folder, **protocol), data=data)
    (outcome,) = evaluate(CATALOG, model, {}, [task], options)
    return outcome


def evaluated(
    task: Task, data: Path, folder: Path, model: ModelSpec = RANDOM, **protocol: Any
) -> tuple[Result, Run]:
    """The result, and the run that was stored beside it."""
    result = run(task, data, folder, model, **protocol).result
    assert result is not None
    return result, Run.read((folder / "runs" / result.path).with_suffix(".run.gz"))


def test_a_missing_picture_is_named(tmp_path):
    VAL.mini(tmp_path / "data")
    (gone, *_) = sorted((tmp_path / "data/circo/images/unlabeled2017").iterdir())
    gone.unlink()
    outcome = run(VAL, tmp_path / "data", tmp_path)
    assert outcome.error is not None
    assert gone.name in outcome.error


def official(
    rankings: Mapping[int, Sequence[int]], entries: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float], dict[str, float]]:
    """The measures of miccunifi/CIRCO src/evaluation.py, written anew in plain loops: mAP@K over all
    ground truths, Recall@K of the single target, mAP@10 of each semantic aspect."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    aspects: defaultdict[str, list[float]] = defaultdict(list)
    for entry in entries:
        ranking, truths = rankings[entry["id"]], entry["gt_img_ids"]
        for k in CUTS:
            found, total = 0, 0.0
            for place, id in enumerate(ranking[:k], start=1):
                if id in truths:
                    found += 1
                    total += found / place
            values[f"map_at_{k}"].append(total / min(len(truths), k))
            values[f"hit_rel2_at_{k}"].append(float(entry["target_img_id"] in ranking[:k]))
        for aspect in entry["semantic_aspects"]:
            aspects[aspect].append(values["map_at_10"][-1])

    def means(lists: Mapping[str, list[float]]) -> dict[str, float]:
        return {name: sum(each) / len(each) for name, each in lists.items()}

    return means(values), means(aspects)


def test_a_stored_run_has_the_official_scores(data, tmp_path):
    result, stored = evaluated(VAL, data, tmp_path)
    rankings = {int(q): [int(id) for id, _ in stored.ranking(at)] for at, q in enumerate(stored.query_ids)}
    scores, aspects = official(rankings, entries_of(data))
    assert 0 < scores["map_at_5"] < scores["map_at_50"] < 1
    assert {name: result.metrics[name].value for name in scores} == pytest.approx(scores, abs=1e-12)
    assert {name: group["map_at_10"].value for name, group in result.groups.items()} == pytest.approx(
        aspects, abs=1e-12
    )
    assert result.headline == "map_at_5"


def measured(
    rankings: Mapping[int, Sequence[int]], entries: Sequence[Mapping[str, Any]], metric: Metric
) -> float:
    """What our metric makes of the same lists."""
    truths = [entry["gt_img_ids"] for entry in entries]
    grades = [1 + (id == entry["target_img_id"]) for entry in entries for id in entry["gt_img_ids"]]
    places = ranks_in_list(
        np.cumsum([0, *map(len, truths)]),
        np.array([id for found in truths for id in found], dtype=np.int32),
        grade=np.array(grades, dtype=np.int64),
        rows=np.array([rankings[entry["id"]] for entry in entries], dtype=np.int32),
    )
    return float(metric(places).mean())


def test_220_rankings_have_the_official_scores():
    rng = random.Random(7)
    entries, rankings = [], {}
    for id in range(220):
        truths = rng.sample(range(400), rng.choice([1, 1, 2, 3, 4, 6, 9, 14]))
        entries.append({"id": id, "target_img_id": truths[0], "gt_img_ids": truths, "semantic_aspects": []})
        rankings[id] = rng.sample(range(400), 50)
    scores, _ = official(rankings, entries)
    ours = {metric.key: measured(rankings, entries, metric) for metric in VAL.metrics[:8]}
    assert list(ours) == [metric.key for metric in (*map(MAP, CUTS), *(Hit(k, rel=2) for k in CUTS))]
    assert ours == pytest.approx(scores, abs=1e-12)
    assert 0.01 < scores["map_at_5"] < scores["hit_rel2_at_50"] < 0.3


def test_one_query_by_hand():
    # Ground truths in places 1, 4 and 30, the target in place 4.
    ranking = list(range(100, 150))
    entry = {"id": 0, "target_img_id": 103, "gt_img_ids": [103, 100, 129], "semantic_aspects": []}
    by_hand = {
        MAP(5): (1 / 1 + 2 / 4) / 3,
        MAP(10): (1 / 1 + 2 / 4) / 3,
        MAP(50): (1 / 1 + 2 / 4 + 3 / 30) / 3,
        Hit(5, rel=2): 1,
        Hit(1): 1,
    }
    for metric, value in by_hand.items():
        assert measured({0: ranking}, [entry], metric) == pytest.approx(value)
    # Seven ground truths, two of them in places 2 and 3: at 5 the most that can be found is five.
    entry |= {"target_img_id": 1, "gt_img_ids": [1, 101, 102, 2, 3, 4, 5]}
    assert measured({0: ranking}, [entry], MAP(5)) == pytest.approx((1 / 2 + 2 / 3) / 5)
    assert measured({0: ranking}, [entry], MAP(10)) == pytest.approx((1 / 2 + 2 / 3) / 7)
    assert measured({0: ranking}, [entry], Hit(50, rel=2)) == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """800 test queries on 60 pictures."""
    data = tmp_path_factory.mktemp("whole")
    pictures = data / "circo/images/unlabeled2017"
    pictures.mkdir(parents=True)
    ids = [7 * n + 1 for n in range(60)]
    for n, id in enumerate(ids):
        (pictures / f"{id:012d}.jpg").write_bytes(picture(n))
    entries = [
        {
            "reference_img_id": ids[n % 60],
            "relative_caption": f"is number {n}",
            "shared_concept": "-",
            "id": n,
        }
        for n in reversed(range(800))
    ]
    (data / "circo/annotations").mkdir()
    images = {"images": [{"id": id} for id in ids]}
    (data / "circo/annotations/image_info_unlabeled2017.json").write_text(json.dumps(images))
    (data / "circo/annotations/test.json").write_text(json.dumps(entries))
    return data


def test_the_whole_test_split_gives_a_submission_in_the_order_of_the_run(whole, tmp_path, capsys):
    result, stored = evaluated(TEST, whole, tmp_path)
    assert (result.status, result.metrics) == ("unscored", {})
    path = (tmp_path / "runs" / result.path).with_suffix(".submission.json")
    circo_submission.validate(path)
    answers = json.loads(path.read_text())
    assert list(answers) == [str(n) for n in range(800)]
    for at, query in enumerate(stored.query_ids):
        assert answers[query] == [int(id) for id, _ in stored.ranking(at)]
    assert len({tuple(ids) for ids in answers.values()}) > 700
    err = capsys.readouterr().err
    assert err == f"circo/test: {path} can be submitted at https://circo.micc.unifi.it\n"


def no_submission(folder: Path, err: str) -> str:
    assert list(folder.rglob("*.run.gz"))
    assert not list(folder.rglob("*.submission.json"))
    (line,) = err.splitlines()
    return line


def test_a_limited_run_gives_none_even_where_it_has_every_query(whole, tmp_path, capsys):
    evaluated(TEST, whole, tmp_path, limit=1000)
    assert no_submission(tmp_path, capsys.readouterr().err) == (
        "circo/test: no submission: made with --limit 1000"
    )


def test_a_miniature_gives_none(data, tmp_path, capsys):
    evaluated(TEST, data, tmp_path)
    assert no_submission(tmp_path, capsys.readouterr().err) == (
        "circo/test: no submission: it takes the 800 queries 0 to 799, here are 6"
    )


def test_what_skip_broken_leaves_out_is_no_whole_test_split(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "data")
    (tmp_path / "data/circo/images/unlabeled2017/000000000008.jpg").write_bytes(b"broken")
    result, _ = evaluated(TEST, tmp_path / "data", tmp_path, spec(Toy()), skip_broken=True)
    # 8 is the second of 60 pictures: the reference of queries 1, 61, … 781
    assert (result.counts["left_out_queries"], result.counts["left_out_candidates"]) == (14, 1)
    assert no_submission(tmp_path, capsys.readouterr().err) == (
        "circo/test: no submission: --skip-broken left out 15 queries and candidates"
    )


@pytest.fixture(scope="module")
def answered(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Run]:
    return evaluated(TEST, whole, tmp_path_factory.mktemp("answered"))


def test_rankings_of_fewer_than_50_give_none_and_an_old_submission_goes(answered, tmp_path, capsys):
    result, stored = answered
    old = tmp_path / f"{result.protocol_id}.submission.json"
    circo_submission.export(result, stored, tmp_path)
    assert old.exists()
    rows = stored.rows.copy()
    rows[3, 49:] = -1
    capsys.readouterr()
    circo_submission.export(result, replace(stored, rows=rows), tmp_path)
    assert not old.exists()
    assert capsys.readouterr().err == (
        "circo/test: no submission: it takes 50 pictures for each query, a ranking here has 49\n"
    )


def test_other_tasks_are_none_of_its_business(answered, tmp_path, capsys):
    result, stored = answered
    circo_submission.export(replace(result, task="circo/val"), stored, tmp_path)
    assert (list(tmp_path.iterdir()), capsys.readouterr().err) == ([], "")


def test_a_run_that_names_a_picture_twice_is_refused_when_read_back(answered, tmp_path):
    result, stored = answered
    rows = stored.rows.copy()
    rows[:, 7] = rows[:, 6]
    with pytest.raises(DataInvalid, match=r"submission\.json, query 0: picture \d+ is there twice"):
        circo_submission.export(result, replace(stored, rows=rows), tmp_path)


SUBMISSION_FAULTS: Mapping[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "query missing": (lambda a: a.pop("417"), ": no answer to query 417"),
    "query unknown": (
        lambda a: a.update({"800": a["0"]}),
        ", query 800: the test split has the queries 0 to 799",
    ),
    "no list": (lambda a: a.update({"5": "9761"}), ", query 5: a list of 50 ids is wanted, not '9761'"),
    "too few": (lambda a: a["5"].pop(), ", query 5: a list of 50 ids is wanted, not 49 of them"),
    "too many": (lambda a: a["5"].append(3), ", query 5: a list of 50 ids is wanted, not 51 of them"),
    "a text": (lambda a: a["5"].__setitem__(2, "97"), ", query 5: ids must be whole numbers, not '97'"),
    "a fraction": (lambda a: a["5"].__setitem__(2, 9.5), ", query 5: ids must be whole numbers, not 9.5"),
    "a truth value": (
        lambda a: a["5"].__setitem__(2, True),
        ", query 5: ids must be whole numbers, not True",
    ),
    "twice": (lambda a: a["5"].__setitem__(2, a["5"][0]), r", query 5: picture \d+ is there twice"),
}


@pytest.mark.parametrize(("how", "says"), SUBMISSION_FAULTS.values(), ids=SUBMISSION_FAULTS)
def test_validation_names_the_query_and_what_is_wrong(tmp_path, how, says):
    answers = {str(query): list(range(query, query + 50)) for query in range(800)}
    path = tmp_path / "submission.json"
    path.write_text(json.dumps(answers))
    circo_submission.validate(path)
    how(answers)
    path.write_text(json.dumps(answers))
    with pytest.raises(DataInvalid, match=rf"submission\.json{says}$"):
        circo_submission.validate(path)


@pytest.mark.parametrize(("text", "says"), [("[1]", "an object is wanted"), ("{", "is not JSON")])
def test_what_is_no_object_is_no_submission(tmp_path, text, says):
    path = tmp_path / "submission.json"
    path.write_text(text)
    with pytest.raises(DataInvalid, match=says):
        circo_submission.validate(path)
