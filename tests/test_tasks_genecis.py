"""GeneCIS: galleries, wording, places of the target, faults in the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.collection import Collection, checked
from harness.content import Image, Text
from harness.errors import DataInvalid, DataMissing
from harness.evaluate import evaluate, require_data
from harness.registry import load_catalog
from harness.run import Run
from harness.task import Protocol, Task
from harness.tasks import genecis
from harness.testing import check_task
from toys import places

TASKS = {task.name.removeprefix("genecis/"): task for task in genecis.TASKS}
GALLERIES = {"change_object": 15, "focus_object": 15, "change_attribute": 15, "focus_attribute": 10}
CHANGES = "I'm looking for a similar everyday image with the described changes."
every_task = pytest.mark.parametrize("name", TASKS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    genecis.TASKS[0].mini(folder)
    return folder


def load(name: str, data: Path, **protocol: Any) -> Collection:
    return checked(TASKS[name].load(data, Protocol(**protocol)))[0]


def templates(name: str, data: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((data / f"genecis/annotations/{name}.json").read_text())
    return found


def change(name: str, data: Path, template: int, how: Callable[[dict[str, Any]], object]) -> None:
    entries = templates(name, data)
    how(entries[template])
    (data / f"genecis/annotations/{name}.json").write_text(json.dumps(entries))


@pytest.mark.parametrize("task", genecis.TASKS, ids=lambda task: task.name)
def test_the_oracle_reaches_the_ceiling_and_a_constant_model_the_floor(task, tmp_path):
    check_task(task, tmp_path)


@every_task
def test_a_query_is_the_reference_and_the_condition_and_seeks_the_target_in_its_gallery(data, name):
    collection = load(name, data)
    for number, (query, entry) in enumerate(zip(collection.queries, templates(name, data), strict=True)):
        assert query.id == str(number)
        assert query.parts[1:] == (Text(entry["condition"]),)
        gallery = collection.scope[query.id]
        assert collection.positives(query.id) == {gallery[0]: 1}
        assert len(set(gallery)) == len(gallery)
        if (name, number) != ("change_object", 5):
            assert len(gallery) == GALLERIES[name]


@pytest.mark.parametrize("name", ["change_object", "focus_object"])
def test_objects_are_whole_pictures_that_templates_share(data, name):
    collection = load(name, data)
    pictures = {candidate.id: candidate.parts for candidate in collection.pool}
    folder = data / "genecis/val2017"
    for query, entry in zip(collection.queries, templates(name, data), strict=True):
        target, *others = (role["val_image_id"] for role in (entry["target"], *entry["gallery"]))
        assert query.parts[0] == Image(folder / f"{entry['reference']['val_image_id']:012d}.jpg")
        assert collection.scope[query.id] == [str(id) for id in dict.fromkeys([target, *others])]
        assert pictures[str(target)] == (Image(folder / f"{target:012d}.jpg"),)
    assert len(pictures) < sum(map(len, collection.scope.values()))


@pytest.mark.parametrize("name", ["change_attribute", "focus_attribute"])
def test_attributes_are_crops_named_by_picture_template_and_slot(data, name):
    collection = load(name, data)
    pictures = {candidate.id: candidate.parts for candidate in collection.pool}
    folder = data / f"genecis/vg/{name}"
    for number, entry in enumerate(templates(name, data)):
        reference = entry["reference"]["image_id"]
        assert collection.queries[number].parts[0] == Image(folder / f"{reference}_{number}_0.jpg")
        roles = [entry["target"], *entry["gallery"]]
        ids = [f"{role['image_id']}_{number}_{slot}" for slot, role in enumerate(roles, start=1)]
        assert collection.scope[str(number)] == ids
        assert [pictures[id] for id in ids] == [(Image(folder / f"{id}.jpg"),) for id in ids]
    assert len(pictures) == sum(map(len, collection.scope.values()))


def test_a_target_that_its_gallery_repeats_is_one_candidate(data):
    entry = templates("change_object", data)[5]
    assert entry["gallery"][13] == entry["target"]
    gallery = load("change_object", data).scope["5"]
    assert len(gallery) == 14
    assert gallery[0] == str(entry["target"]["val_image_id"])


@pytest.mark.parametrize("name", ["change_attribute", "focus_attribute"])
def test_ids_may_be_texts_of_digits(tmp_path, name):
    TASKS[name].mini(tmp_path)
    before = load(name, tmp_path)

    def as_texts(entry: dict[str, Any]) -> None:
        for role in (entry["reference"], entry["target"], *entry["gallery"]):
            role["image_id"] = str(role["image_id"])

    change(name, tmp_path, 0, as_texts)
    assert load(name, tmp_path) == before


WORDINGS = {
    ("change_object", "default"): CHANGES,
    ("focus_object", "default"): "I'm looking for an image with the same object as described.",
    ("change_attribute", "default"): CHANGES,
    ("focus_attribute", "default"): "I'm looking for an image with the same attributes as described.",
    ("change_object", "lamra"): CHANGES,
    ("focus_object", "lamra"): CHANGES,
    ("change_attribute", "lamra"): CHANGES,
    ("focus_attribute", "lamra"): "I'm looking for an image with the same attributes as described.",
    **dict.fromkeys(
        [("change_object", "umarvel"), ("focus_object", "umarvel"), ("change_attribute", "umarvel")],
        "I want you to retrieve an similar image with the described changes."
        " Show me an image that best captures the following the described changes.",
    ),
    ("focus_attribute", "umarvel"): "I want you to retrieve an image with the same attributes as described."
    " Show me an image that best captures the following the same attributes.",
}


@pytest.mark.parametrize(("name", "profile"), WORDINGS)
def test_wording(data, name, profile):
    collection = load(name, data, profile=profile)
    assert {(q.instruction, q.separator) for q in collection.queries} == {(WORDINGS[name, profile], " ")}
    assert {c.instruction for c in collection.pool} == {None}
    bare = load(name, data, profile=profile, instructions="none")
    assert {q.instruction for q in bare.queries} == {None}


@pytest.mark.parametrize(
    ("profile", "shown"), [("default", "square"), ("lamra", "square"), ("umarvel", "Square.")]
)
def test_u_marvel_alone_brings_conditions_into_m_beir_s_form(data, profile, shown):
    assert load("change_object", data, profile=profile).queries[0].parts[1] == Text(shown)


@every_task
def test_what_a_task_has_not_is_refused(data, name):
    for asked, says in (({"split": "val"}, "split 'val'"), ({"profile": "uniir"}, "profile 'uniir'")):
        with pytest.raises(DataInvalid, match=f"genecis/{name} has no {says}"):
            load(name, data, **asked)


@every_task
def test_hits_are_the_place_of_the_target_in_its_gallery(data, tmp_path, name):
    """As eval_functions.py of facebookresearch/genecis: the rank of slot 0 in [target] + gallery."""
    catalog = load_catalog()
    options = replace(places(tmp_path), data=data)
    (outcome,) = evaluate(catalog, catalog.model("random"), {}, [TASKS[name]], options)
    assert outcome.result is not None
    run = Run.read((tmp_path / "runs" / outcome.result.path).with_suffix(".run.gz"))
    scope = load(name, data).scope
    ranks = []
    for at, query in enumerate(run.query_ids):
        scores = dict(run.ranking(at))
        assert set(scores) == set(scope[query])
        ranks.append(sum(scores[id] > scores[scope[query][0]] for id in scope[query]))
    for k in (1, 2, 3):
        hits = sum(rank < k for rank in ranks) / len(ranks)
        assert outcome.result.metrics[f"hit_at_{k}"].value == pytest.approx(hits)
    assert outcome.result.headline == "hit_at_1"


def test_what_is_missing_is_listed_with_where_to_get_it(tmp_path):
    with pytest.raises(
        DataMissing,
        match=r"7 files or folders are missing.*LamRA_Eval.*facebookresearch/genecis.*val2017\.zip",
    ):
        require_data(genecis.TASKS, tmp_path, Protocol())


def test_a_missing_crop_is_named(tmp_path):
    data = tmp_path / "data"
    TASKS["focus_attribute"].mini(data)
    (gone, *_) = sorted((data / "genecis/vg/focus_attribute").iterdir())
    gone.unlink()
    catalog = load_catalog()
    (outcome,) = evaluate(
        catalog, catalog.model("random"), {}, [TASKS["focus_attribute"]], replace(places(tmp_path), data=data)
    )
    assert outcome.error is not None
    assert gone.name in outcome.error


FAULTS: Mapping[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "no condition": ("change_object", lambda e: e.pop("condition"), ": no field 'condition'"),
    "no reference": ("change_object", lambda e: e.pop("reference"), ": no field 'reference'"),
    "no target": ("focus_attribute", lambda e: e.pop("target"), ": no field 'target'"),
    "no gallery": ("focus_object", lambda e: e.pop("gallery"), ": no field 'gallery'"),
    "no object id": (
        "change_object",
        lambda e: e["target"].pop("val_image_id"),
        ": target: no field 'val_image_id'",
    ),
    "no attribute id": (
        "change_attribute",
        lambda e: e["gallery"][3].pop("image_id"),
        r": gallery\[3\]: no field 'image_id'",
    ),
    "id a word": (
        "focus_object",
        lambda e: e["reference"].update(val_image_id="cat"),
        ": reference: val_image_id must be a whole number, not 'cat'",
    ),
    "id a path": (
        "focus_attribute",
        lambda e: e["target"].update(image_id="../7"),
        r": target: image_id must be a whole number, not '\.\./7'",
    ),
    "empty condition": ("change_object", lambda e: e.update(condition=" "), ": condition is an empty text"),
    "role no object": (
        "change_object",
        lambda e: e.update(target=17),
        ": target: an object is wanted, not 17",
    ),
    "gallery no list": (
        "change_object",
        lambda e: e.update(gallery={}),
        ": gallery must be a list, not {}",
    ),
    "gallery empty": (
        "change_attribute",
        lambda e: e.update(gallery=[]),
        ": its gallery holds nothing beside the target",
    ),
    "gallery the target alone": (
        "change_object",
        lambda e: e.update(gallery=[e["target"], e["target"]]),
        ": its gallery holds nothing beside the target",
    ),
    "target the reference": (
        "change_object",
        lambda e: e.update(target=e["reference"]),
        r": its reference \d+ is in its gallery too",
    ),
}


@pytest.mark.parametrize(("name", "how", "says"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_with_file_and_template(tmp_path, name, how, says):
    TASKS[name].mini(tmp_path)
    change(name, tmp_path, 2, how)
    with pytest.raises(DataInvalid, match=rf"^\S+genecis/annotations/{name}\.json, entry 2{says}$"):
        load(name, tmp_path)


def test_sources_and_published_counts_are_known() -> None:
    def published(task: Task) -> list[tuple[str, int, str]]:
        return [(fact.count, fact.value, fact.evidence) for fact in task.facts]

    assert {name: (task.derived_from, published(task)) for name, task in TASKS.items()} == {
        "change_object": (("COCO val2017",), [("queries", 1960, "V")]),
        "focus_object": (("COCO val2017",), [("queries", 1960, "V")]),
        "change_attribute": (("Visual Genome",), [("queries", 2112, "L")]),
        "focus_attribute": (("Visual Genome",), [("queries", 2000, "L")]),
    }
