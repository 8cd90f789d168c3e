"""CC-Neg and SugarCrepe: loaders, prompts, conversion and score, on miniatures of the original folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.collection import Collection
from harness.content import Image, Item, Text
from harness.errors import DataInvalid, DataMissing
from harness.evaluate import evaluate
from harness.registry import load_catalog
from harness.task import Protocol, Task
from harness.tasks import ccneg, miniature, sugarcrepe
from harness.testing import check_task
from harness.unpickle import read_pickle
from toys import places

CCNEG = ccneg.TASKS[0]
SUGARCREPE = {task.name.removeprefix("sugarcrepe/"): task for task in sugarcrepe.TASKS}
EVERYDAY = "Find an image caption describing the following everyday image."
UMARVEL = "Find an image caption describing the following image."

Change = Callable[[Any], Any]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    CCNEG.mini(folder)
    sugarcrepe.TASKS[0].mini(folder)
    return folder


def load(task: Task, data: Path, **protocol: Any) -> Collection:
    return task.load(data, Protocol(**protocol))


def texts(collection: Collection) -> dict[str, str]:
    """The captions by the ids of the candidates."""
    found = {}
    for candidate in collection.pool:
        (part,) = candidate.parts
        assert isinstance(part, Text)
        found[candidate.id] = part.text
    return found


def edit(file: Path, change: Change) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@pytest.mark.parametrize("task", [CCNEG, *sugarcrepe.TASKS], ids=lambda task: task.name)
def test_tasks_keep_the_contract(task: Task, tmp_path: Path) -> None:
    check_task(task, tmp_path)


@pytest.mark.parametrize("task", [CCNEG, *sugarcrepe.TASKS], ids=lambda task: task.name)
def test_a_picture_is_asked_for_among_its_own_two_captions(task: Task, data: Path) -> None:
    collection = load(task, data)
    for query in collection.queries:
        assert collection.scope[query.id] == [f"{query.id}:right", f"{query.id}:wrong"]
        assert collection.qrels[query.id] == {f"{query.id}:right": 1}
    assert [c.id for c in collection.pool] == [c for q in collection.queries for c in collection.scope[q.id]]


def test_the_published_counts_are_seven_thousand_five_hundred_and_eleven_and_forty_thousand() -> None:
    counts = {task.name: {f.count: f.value for f in task.facts} for task in (CCNEG, *sugarcrepe.TASKS)}
    assert counts.pop("ccneg/right-caption") == {"queries": 40_000, "candidates": 80_000}
    assert sum(count["queries"] for count in counts.values()) == 7511
    assert all(count["candidates"] == 2 * count["queries"] for count in counts.values())


@pytest.mark.parametrize("dim", [1, 64])
def test_the_score_is_the_share_of_rights_that_are_strictly_above_as_in_sugarcrepe_s_script(
    data: Path, tmp_path: Path, dim: int
) -> None:
    # vectors of one dimension are 1 or -1, so that about half of the pairs tie
    catalog = load_catalog()
    options = {"dim": str(dim)}
    model = catalog.models["random"].open(options)

    def row(*parts: Any) -> Any:
        return model.prepare([Item("query", parts)])[0].astype("float64")

    for name in ("ccneg/right-caption", "sugarcrepe/swap_att", "sugarcrepe/add_obj"):
        task = {CCNEG.name: CCNEG, **{t.name: t for t in sugarcrepe.TASKS}}[name]
        (outcome,) = evaluate(catalog, catalog.models["random"], options, [task], places(tmp_path))
        collection = load(task, data)
        captions = texts(collection)
        correct = 0
        for query in collection.queries:
            picture = row(*query.parts)
            pos_score = picture @ row(Text(captions[f"{query.id}:right"]))
            neg_score = picture @ row(Text(captions[f"{query.id}:wrong"]))
            correct += 1 if pos_score > neg_score else 0
        assert outcome.result is not None
        assert outcome.result.metrics["accuracy"].value == pytest.approx(correct / len(collection.queries))


# SugarCrepe


def test_sugarcrepe_reads_rows_as_they_are(data: Path) -> None:
    collection = load(SUGARCREPE["swap_obj"], data)
    # a key is missing, as 108 is in the real file
    assert [q.id for q in collection.queries] == ["0", "1", "3", "4", "5", "6", "7"]
    captions = texts(collection)
    assert captions["0:right"] == "two red rings and not three green rings"
    assert captions["0:wrong"] == "three green rings and not two red rings"
    assert captions["1:right"].endswith("rings.")
    assert captions["1:wrong"].endswith("rings")
    assert captions["4:right"] == " three yellow rings and not three black circles\n"


def test_sugarcrepe_rows_may_share_a_picture(data: Path) -> None:
    for task in sugarcrepe.TASKS:
        pictures = [q.parts for q in load(task, data).queries]
        assert len(pictures) == 7
        assert len(set(pictures)) == 6
        assert pictures[0] == (Image(data / "sugar-crepe/images/val2017/000000055433.jpg"),)


@pytest.mark.parametrize("subset", SUGARCREPE)
@pytest.mark.parametrize("profile", ["default", "umarvel", "lamra"])
def test_sugarcrepe_s_prompts(data: Path, subset: str, profile: str) -> None:
    wanted = {
        "default": EVERYDAY,
        "umarvel": UMARVEL if subset in ("add_att", "add_obj", "replace_att", "replace_obj") else None,
        "lamra": None,
    }[profile]
    collection = load(SUGARCREPE[subset], data, profile=profile)
    assert {q.instruction for q in collection.queries} == {wanted}
    assert {c.instruction for c in collection.pool} == {None}
    assert texts(collection) == texts(load(SUGARCREPE[subset], data))
    bare = load(SUGARCREPE[subset], data, profile=profile, instructions="none")
    assert {q.instruction for q in bare.queries} == {None}


def without(name: str) -> Change:
    return lambda row: {k: v for k, v in row.items() if k != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda row: {**row, "negative_caption": row["caption"]},
            "caption and negative_caption are both ' three",
        ),
        (lambda row: {**row, "caption": " "}, "caption is an empty text"),
        (lambda row: {**row, "negative_caption": ""}, "negative_caption is an empty text"),
        (lambda row: {**row, "caption": ["a"]}, r"caption must be a text, not \['a'\]"),
        (without("caption"), "no field 'caption'"),
        (without("negative_caption"), "no field 'negative_caption'"),
        (without("filename"), "no field 'filename'"),
        (lambda row: {**row, "filename": "../../x.jpg"}, r"filename '\.\./\.\./x\.jpg' leads out of"),
        (lambda row: "text", "an object is wanted, not 'text'"),
    ],
)
def test_a_bad_row_of_sugarcrepe_is_named(data: Path, change: Change, said: str) -> None:
    edit(data / "sugar-crepe/data/swap_obj.json", lambda rows: {**rows, "4": change(rows["4"])})
    with pytest.raises(DataInvalid, match=rf"swap_obj\.json, entry 4: {said}"):
        load(SUGARCREPE["swap_obj"], data)


@pytest.mark.parametrize(("content", "said"), [("{", "is not JSON"), ("[]", "an object is wanted, not")])
def test_a_file_of_sugarcrepe_that_holds_no_rows_is_named(data: Path, content: str, said: str) -> None:
    (data / "sugar-crepe/data/swap_obj.json").write_text(content)
    with pytest.raises(DataInvalid, match=rf"swap_obj\.json:? {said}"):
        load(SUGARCREPE["swap_obj"], data)


def test_a_missing_file_of_sugarcrepe_is_named_with_where_to_get_it(data: Path) -> None:
    (data / "sugar-crepe/data/swap_obj.json").unlink()
    with pytest.raises(DataMissing, match=r"swap_obj\.json is missing: .*github\.com/RAIVNLab/sugar-crepe"):
        load(SUGARCREPE["swap_obj"], data)


@pytest.mark.parametrize("task", [CCNEG, SUGARCREPE["add_obj"]], ids=["ccneg", "sugarcrepe"])
def test_a_missing_picture_is_named(data: Path, tmp_path: Path, task: Task) -> None:
    (part,) = load(task, data).queries[1].parts
    assert isinstance(part, Image)
    part.path.unlink()
    catalog = load_catalog()
    (outcome,) = evaluate(catalog, catalog.models["random"], {}, [task], places(tmp_path))
    assert part.path.name in (outcome.error or "")


# CC-Neg


def test_ccneg_takes_commas_out_of_the_wrong_caption_only(data: Path) -> None:
    captions = texts(load(CCNEG, data))
    assert captions["1:right"] == "three green circles, at noon"
    assert captions["1:wrong"] == "a picture at noon but no circles not one"
    assert "but no circles, not one" in (data / "ccneg/ccneg.jsonl").read_text()


def test_ccneg_is_the_last_rows_under_their_place_in_the_file(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = load(CCNEG, data)
    assert [q.id for q in everything.queries] == [str(i) for i in range(8)]
    monkeypatch.setattr(ccneg, "_EVALUATED", 3)
    last = load(CCNEG, data)
    assert list(last.queries) == list(everything.queries)[5:]
    assert list(last.pool) == list(everything.pool)[10:]


@pytest.mark.parametrize(("profile", "wanted"), [("default", EVERYDAY), ("umarvel", None), ("lamra", None)])
def test_ccneg_s_prompts(data: Path, profile: str, wanted: str | None) -> None:
    collection = load(CCNEG, data, profile=profile)
    assert {q.instruction for q in collection.queries} == {wanted}
    assert {c.instruction for c in collection.pool} == {None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: {**row, "caption": ""}, "caption is an empty text"),
        (lambda row: {**row, "negative": " ,"}, "negative without commas is an empty text"),
        (lambda row: {**row, "image": "/etc/passwd"}, "image '/etc/passwd' leads out of"),
        (without("image"), "no field 'image'"),
        (without("caption"), "no field 'caption'"),
        (without("negative"), "no field 'negative'"),
    ],
)
def test_a_bad_row_of_ccneg_is_named(data: Path, change: Change, said: str) -> None:
    file = data / "ccneg/ccneg.jsonl"
    lines = file.read_text().splitlines()
    lines[4] = json.dumps(change(json.loads(lines[4])))
    file.write_text("\n".join(lines))
    with pytest.raises(DataInvalid, match=rf"ccneg\.jsonl, line 5: {said}"):
        load(CCNEG, data)


def test_ccneg_that_is_not_converted_is_told_how_to(data: Path) -> None:
    (data / "ccneg/ccneg.jsonl").unlink()
    with pytest.raises(
        DataMissing, match=r"ccneg\.jsonl is missing: harness data fetch, or put .*pt .*data convert ccneg"
    ):
        load(CCNEG, data)


def convert(task: Task, data: Path) -> list[str]:
    assert task.convert is not None
    return list(task.convert(data))


def test_ccneg_converts_to_what_the_miniature_has(data: Path) -> None:
    file = data / "ccneg/ccneg.jsonl"
    wanted = file.read_text()
    file.unlink()
    (data / "ccneg/ccneg_preprocessed.pt").rename(data / "ccneg/CCNeg_Preprocessed.pt")
    assert convert(CCNEG, data) == [f"wrote {file}: 8 captions, each with its negative"]
    assert file.read_text() == wanted
    (data / "ccneg/CCNeg_Preprocessed.pt").unlink()
    with pytest.raises(DataMissing, match=r"ccneg_preprocessed\.pt is missing: .*jaisidhsingh/CoN-CLIP"):
        convert(CCNEG, data)


def test_the_original_of_the_miniature_is_what_torch_loads(data: Path) -> None:
    import torch

    content = torch.load(data / "ccneg/ccneg_preprocessed.pt", weights_only=True)
    assert content["image_paths"][0].startswith(
        "/workspace/datasets/cc3m/cc3m_subset_images_extracted_final/"
    )
    assert content["annotations"][3]["sop_data"]["negative-prompt"].count(",") == 2
    assert len(content["annotations"]) == 8


def entry(at: int, change: Change) -> Change:
    def changed(content: Any) -> Any:
        content["annotations"][at] = change(content["annotations"][at])
        return content

    return changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (entry(3, without("json")), ", entry 3: annotations: no field 'json'"),
        (
            entry(3, lambda a: {**a, "sop_data": {}}),
            ", entry 3: annotations: sop_data: no field 'negative-prompt'",
        ),
        (
            entry(3, lambda a: {**a, "json": {"caption": 5}}),
            ", entry 3: annotations: json: caption must be a text, not 5",
        ),
        (entry(3, lambda a: "text"), ", entry 3: annotations: an object is wanted, not 'text'"),
        (lambda c: {**c, "image_paths": c["image_paths"][:6]}, ", entry 6: 6 image_paths, but 8 annotations"),
        (lambda c: {**c, "annotations": c["annotations"][:7]}, ", entry 7: 8 image_paths, but 7 annotations"),
        (lambda c: {**c, "image_paths": ["/x.jpg"] * 8}, r", entry 0: image_paths '/x\.jpg' lies neither in"),
        (lambda c: {**c, "image_paths": [5] * 8}, ", entry 0: image_paths must be a text, not 5"),
        (
            lambda c: {**c, "image_paths": {"a": "b"}},
            ": image_paths must be a list of entries, not {'a': 'b'}",
        ),
        (lambda c: {**c, "annotations": []}, r": annotations must be a list of entries, not \[\]"),
        (without("annotations"), ": no list 'annotations' in it"),
        (lambda c: [1, 2], ": no list 'image_paths' in it"),
    ],
)
def test_a_fault_in_the_original_of_ccneg_is_named_and_writes_nothing(
    data: Path, change: Change, said: str
) -> None:
    original, converted = data / "ccneg/ccneg_preprocessed.pt", data / "ccneg/ccneg.jsonl"
    before = converted.read_text()
    content: dict[str, Any] = {"image_paths": [], "annotations": []}
    for key, _, value in read_pickle(original):
        if key in content:
            content[key].append(value)
    original.write_bytes(miniature.pickled(change(content)))
    with pytest.raises(DataInvalid, match=rf"ccneg_preprocessed\.pt{said}"):
        convert(CCNEG, data)
    assert converted.read_text() == before


def test_a_malicious_original_of_ccneg_executes_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    (data / "ccneg/ccneg_preprocessed.pt").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    with pytest.raises(DataInvalid, match=r"\.pt refers to os\.system: .* nothing was executed"):
        convert(CCNEG, data)
    assert not (data / "executed").exists()
