"""Flickr30K, MSCOCO, ShareGPT4V and Urban1K: readers, prompts of every profile, faults, and scores."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ir_measures
import pytest

from harness.collection import Collection, checked
from harness.content import Candidate, Image, Query, Text
from harness.encode import EngineOptions
from harness.errors import DataInvalid, DataMissing, NoSuchInstruction
from harness.evaluate import EvalOptions, evaluate
from harness.registry import load_catalog
from harness.run import Run
from harness.task import MINIATURE, Protocol, Task
from harness.tasks import coco, flickr, sharegpt4v, urban1k
from harness.testing import check_task

TASKS = (*flickr.TASKS, *coco.TASKS, *sharegpt4v.TASKS, *urban1k.TASKS)
BY_NAME = {task.name: task for task in TASKS}
SETS = ("flickr", "coco", "sharegpt4v", "urban1k")
PROFILES = ("default", "umarvel", "lamra")
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for task in TASKS:
        assert task.mini(folder) is None
    return folder


def load(name: str, data: Path, protocol: Protocol | None = None) -> Collection:
    return BY_NAME[name].load(data, protocol or Protocol())


def text(thing: Query | Candidate) -> str:
    (part,) = thing.parts
    assert isinstance(part, Text)
    return part.text


def picture(thing: Query | Candidate) -> Image:
    (part,) = thing.parts
    assert isinstance(part, Image)
    return part


def shown(thing: Query | Candidate) -> str:
    """What a model reads that puts an instruction behind a picture and before a text, `[…]` around it."""
    said = "" if thing.instruction is None else f"[{thing.instruction}]"
    words = "".join(part.text for part in thing.parts if isinstance(part, Text))
    return (
        "<image>" * any(isinstance(part, Image) for part in thing.parts)
        + said
        + (thing.separator if said and words else "")
        + words
    )


@every_task
def test_the_oracle_reaches_its_ceiling_and_a_constant_stays_below_chance(task: Task, tmp_path: Path) -> None:
    check_task(task, tmp_path)


@every_task
def test_nothing_is_dropped_or_out_of_reach(task: Task, data: Path) -> None:
    _, counts = checked(task.load(data, Protocol()))
    odd = ("repeats_dropped", "positives_outside_pool", "queries_without_qrels")
    assert [counts[name] for name in odd] == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "pictures", "captions"),
    [
        ("flickr", 1_000, 5_000),
        ("coco", 5_000, 25_000),
        ("sharegpt4v", 1_000, 1_000),
        ("urban1k", 1_000, 1_000),
    ],
)
def test_the_published_counts_are_verified_facts(name: str, pictures: int, captions: int) -> None:
    for way, queries, candidates in (
        ("text-to-image", captions, pictures),
        ("image-to-text", pictures, captions),
    ):
        counts = {"queries": queries, "candidates": candidates, "qrels": captions}
        task = BY_NAME[f"{name}/{way}"]
        assert task.unlike_published(counts) == []
        assert {fact.count: fact.evidence for fact in task.facts} == dict.fromkeys(counts, "V")


@every_task
def test_headline_is_the_hit_at_1_and_true_recall_stands_beside_it(task: Task) -> None:
    assert [str(m) for m in task.metrics] == [
        "Hit@1",
        "Hit@5",
        "Hit@10",
        "Recall@1",
        "Recall@5",
        "Recall@10",
        "MRR@10",
    ]


def test_titles_name_the_variant_of_coco() -> None:
    assert BY_NAME["coco/text-to-image"].title == (
        "MSCOCO 5K Karpathy, 25,000 captions (five per picture): caption → picture"
    )


# Who belongs to whom


@pytest.mark.parametrize(
    ("name", "captions", "folder"),
    [("flickr", "flickr_text.json", "images"), ("coco", "coco_text.json", "coco_images")],
)
def test_caption_j_belongs_to_picture_j_over_five(name: str, captions: str, folder: str, data: Path) -> None:
    listed = json.loads((data / name / captions).read_text())
    asked, shown = load(f"{name}/text-to-image", data), load(f"{name}/image-to-text", data)
    assert [text(q) for q in asked.queries] == [text(c) for c in shown.pool] == listed
    for j, query in enumerate(asked.queries):
        assert query.id == f"{j // 5}#{j % 5}"
        assert asked.positives(query.id) == {str(j // 5): 1}
    for i, query in enumerate(shown.queries):
        assert picture(query).path == data / name / folder / f"{i}.png"
        assert shown.positives(query.id) == {f"{i}#{n}": 1 for n in range(5)}
    assert [picture(c) for c in asked.pool] == [picture(q) for q in shown.queries]


@pytest.mark.parametrize("name", ["flickr", "coco"])
def test_a_caption_of_two_pictures_is_two_queries_each_for_its_own(name: str, data: Path) -> None:
    collection = load(f"{name}/text-to-image", data)
    captions = [text(q) for q in collection.queries]
    (repeated,) = {c for c in captions if captions.count(c) > 1}
    twins = [q.id for q in collection.queries if text(q) == repeated]
    assert len(twins) == 2
    assert [collection.positives(id) for id in twins] == [{id.split("#")[0]: 1} for id in twins]


def test_sharegpt4v_pairs_a_record_s_caption_and_picture(data: Path) -> None:
    records = json.loads((data / "sharegpt4v/datas_for_validation.json").read_text())
    asked, shown = load("sharegpt4v/text-to-image", data), load("sharegpt4v/image-to-text", data)
    for record, query, candidate in zip(records, asked.queries, asked.pool, strict=True):
        assert text(query) == record["caption"]
        assert picture(candidate).path == data / "sharegpt4v/val_data" / record["image_name"]
        assert asked.positives(query.id) == {candidate.id: 1} == {record["image_name"]: 1}
        assert shown.positives(candidate.id) == {query.id: 1}


def test_urban1k_pairs_equal_numbers_in_their_order_and_reads_the_first_line_stripped(data: Path) -> None:
    collection = load("urban1k/text-to-image", data)
    assert [c.id for c in collection.pool] == [str(n) for n in range(1, 13)]
    for query, candidate in zip(collection.queries, collection.pool, strict=True):
        file = data / f"Urban1k/caption/{candidate.id}.txt"
        assert text(query) == file.read_text().split("\n")[0].strip() != ""
        assert picture(candidate).path == data / f"Urban1k/image/{candidate.id}.jpg"
        assert collection.positives(query.id) == {candidate.id: 1}
    assert (data / "Urban1k/caption/3.txt").read_bytes().startswith(b"  ")
    assert "not read" in (data / "Urban1k/caption/10.txt").read_text()


def test_files_that_are_no_number_are_let_be(tmp_path: Path) -> None:
    flickr.mini(tmp_path)
    urban1k.mini(tmp_path)
    for other in (
        "flickr/images/.DS_Store",
        "flickr/images/06.png",
        "Urban1k/image/._1.jpg",
        "Urban1k/image/1.png",
    ):
        (tmp_path / other).touch()
    assert len(load("flickr/image-to-text", tmp_path).queries) == 6
    assert len(load("urban1k/image-to-text", tmp_path).queries) == 12


def test_the_folder_may_be_spelled_with_a_capital_k(tmp_path: Path) -> None:
    urban1k.mini(tmp_path)
    (tmp_path / "Urban1k").rename(tmp_path / "Urban1K")
    assert len(load("urban1k/image-to-text", tmp_path).queries) == 12


def test_pictures_are_not_looked_for_at_load(tmp_path: Path) -> None:
    sharegpt4v.mini(tmp_path)
    (tmp_path / "sharegpt4v/val_data/sa_1007.jpg").unlink()
    assert len(load("sharegpt4v/text-to-image", tmp_path).pool) == 6


# Prompts

T2I = "Find me an everyday image that matches the given caption."
I2T = "Find an image caption describing the following everyday image."
PLAIN, FORMATTED = "{caption}", "{Caption.}"
SENTENCE = "\nSummarize above sentence in one word: "
# (data set, profile) → what is asked and what is found, text to image and image to text
PROMPTS = {
    **{(name, "default"): (f"[{T2I}] {PLAIN}", "<image>", f"<image>[{I2T}]", PLAIN) for name in SETS},
    ("flickr", "umarvel"): (
        f"[{T2I}]{FORMATTED}{SENTENCE}",
        "<image>\nSummarize above image in one word: ",
        f"<image>[{I2T}]\nSummarize above image and sentence in one word: ",
        f"{FORMATTED}{SENTENCE}",
    ),
    ("sharegpt4v", "umarvel"): (f"[{T2I}]{PLAIN}", "<image>", "<image>", f"[{T2I}]{PLAIN}"),
    ("urban1k", "umarvel"): (
        PLAIN,
        f"<image>{{'<instruction_start>{I2T}<instruction_end>'}}",
        f"<image>{{'<instruction_start>{I2T}<instruction_end>'}}",
        PLAIN,
    ),
    ("flickr", "lamra"): (PLAIN, f"<image>[{I2T}]", f"<image>[{I2T}]", PLAIN),
    ("sharegpt4v", "lamra"): (PLAIN, f"<image>[{I2T}]", f"<image>[{I2T}]", PLAIN),
    ("urban1k", "lamra"): (PLAIN, f"<image>[{{'{I2T}'}}]", f"<image>[{{'{I2T}'}}]", PLAIN),
    ("coco", "umarvel"): (PLAIN, "<image>", "<image>", PLAIN),
    ("coco", "lamra"): (PLAIN, "<image>", "<image>", PLAIN),
}
FORMS = {
    "A drawing of one red square.": "A drawing of one red square.",
    "one red square by the sea": "One red square by the sea.",
    '"One red square" by the sea': 'One red square" by the sea.',
    "Somebody drew one red square by the sea, and nothing else . ": (
        "Somebody drew one red square by the sea, and nothing else ."
    ),
    "What a fine sheet with one red square by the sea!": "What a fine sheet with one red square by the sea!",
}
"""The captions of the first picture of flickr, and what U-MARVEL's format_string makes of them."""


@pytest.mark.parametrize(("name", "profile"), PROMPTS)
def test_every_profile_shows_both_sides_exactly_so(name: str, profile: str, data: Path) -> None:
    bare = load(f"{name}/text-to-image", data, Protocol(instructions="none"))
    captions = {query.id: text(query) for query in bare.queries}
    first = next(iter(bare.pool)).id
    sides = [
        side
        for way in ("text-to-image", "image-to-text")
        for made in [load(f"{name}/{way}", data, Protocol(profile=profile))]
        for side in (made.queries, made.pool)
    ]
    for prompt, side in zip(PROMPTS[name, profile], sides, strict=True):
        things = [thing for thing in side if thing.id.split("#")[0] == first]
        assert things
        for thing in things:
            caption = captions.get(thing.id, "")
            formatted = FORMS[caption] if FORMATTED in prompt else ""
            assert shown(thing) == prompt.replace(PLAIN, caption).replace(FORMATTED, formatted)
        assert len({(thing.instruction, thing.separator) for thing in side}) == 1


@pytest.mark.parametrize("profile", PROFILES)
@every_task
def test_only_the_code_bases_pin_the_pixels_and_only_of_urban1k(task: Task, profile: str, data: Path) -> None:
    collection = task.load(data, Protocol(profile=profile))
    pinned = task.name.startswith("urban1k") and profile != "default"
    images = [
        part
        for thing in (*collection.queries, *collection.pool)
        for part in thing.parts
        if isinstance(part, Image)
    ]
    assert {image.max_pixels for image in images} == {16_384 * 28 * 28 if pinned else None}


@pytest.mark.parametrize("profile", PROFILES)
@every_task
def test_without_instructions_nobody_is_told_anything(task: Task, profile: str, data: Path) -> None:
    collection = task.load(data, Protocol(profile=profile, instructions="none"))
    for thing in (*collection.queries, *collection.pool):
        assert thing.instruction is None
        assert len(thing.parts) == 1
        assert isinstance(thing.parts[0], Image) or "Summarize" not in text(thing)


@every_task
@pytest.mark.parametrize(
    ("protocol", "error", "message"),
    [
        (Protocol(split="val"), DataInvalid, "has no split 'val': use --split test"),
        (Protocol(profile="unime"), DataInvalid, "has no profile 'unime': use --prompt-profile default or"),
        (Protocol(compat=("x",)), DataInvalid, "knows no compat 'x'"),
        (Protocol(instructions="2"), NoSuchInstruction, "has one instruction, no number 2"),
    ],
)
def test_what_a_task_does_not_have_is_refused(
    task: Task, protocol: Protocol, error: type[Exception], message: str, data: Path
) -> None:
    with pytest.raises(error, match=f"{task.name} {message}"):
        task.load(data, protocol)


# Bad input


def rewritten(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def change_file(root: Path) -> None:
        content = json.loads((root / file).read_text())
        (root / file).write_text(json.dumps(change(content)))

    return change_file


def replaced(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda root: (root / file).write_bytes(content) and None


def removed(file: str) -> Callable[[Path], None]:
    return lambda root: (root / file).unlink()


def emptied(folder: str) -> Callable[[Path], None]:
    return lambda root: [p.unlink() for p in (root / folder).iterdir()] and None


def a_file_instead(folder: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        emptied(folder)(root)
        (root / folder).rmdir()
        (root / folder).touch()

    return change


FIVES = "flickr/flickr_text.json"
RECORDS = "sharegpt4v/datas_for_validation.json"
FAULTS = [
    (
        rewritten(FIVES, lambda texts: texts[:-1]),
        r"flickr_text\.json holds 29 captions, no multiple of five: a picture has five",
    ),
    (
        rewritten(FIVES, lambda texts: texts[:-5]),
        r"flickr_text\.json has captions for 5 pictures, but .*/images holds 6: .* out of step",
    ),
    (
        removed("flickr/images/5.png"),
        r"flickr_text\.json has captions for 6 pictures, but .*/images holds 5: .* out of step",
    ),
    (removed("flickr/images/2.png"), r"images/2\.png is missing: 5\.png is there, .* without a gap"),
    (removed("flickr/images/0.png"), r"images/0\.png is missing"),
    (rewritten(FIVES, lambda texts: ["  ", *texts[1:]]), r"flickr_text\.json, caption 0 is an empty text"),
    (
        rewritten(FIVES, lambda texts: [*texts[:7], None, *texts[8:]]),
        r"flickr_text\.json, caption 7 must be a text, not None",
    ),
    (
        rewritten(FIVES, lambda texts: dict(enumerate(texts[:1]))),
        r"flickr_text\.json: a list of captions is wanted, not \{'0'",
    ),
    (
        lambda root: (replaced(FIVES, b"[]")(root), emptied("flickr/images")(root)),
        r"flickr_text\.json holds no caption",
    ),
    (replaced(FIVES, b"[1"), r"flickr_text\.json is not JSON"),
    (a_file_instead("flickr/images"), r"images cannot be listed \(not a directory\)"),
    (
        rewritten("coco/coco_text.json", lambda texts: texts[1:]),
        r"coco_text\.json holds 29 captions, no multiple of five",
    ),
    (
        rewritten(RECORDS, lambda records: [records[0], {"caption": "x"}]),
        r"datas_for_validation\.json, entry 1: no field 'image_name'",
    ),
    (
        rewritten(RECORDS, lambda records: [{"image_name": "x.jpg"}]),
        r"datas_for_validation\.json, entry 0: no field 'caption'",
    ),
    (
        rewritten(RECORDS, lambda records: [*records, records[1]]),
        r"entry 6: image_name 'sa_1007\.jpg' stands in .*datas_for_validation\.json, entry 1 too",
    ),
    (
        rewritten(RECORDS, lambda records: [{**records[0], "caption": "\n"}]),
        r"datas_for_validation\.json, entry 0: caption is an empty text",
    ),
    (
        rewritten(RECORDS, lambda records: [{**records[0], "image_name": "../../x.jpg"}]),
        r"entry 0: image_name '\.\./\.\./x\.jpg' leads out of .*val_data",
    ),
    (replaced(RECORDS, b"[]"), r"datas_for_validation\.json holds no caption"),
    (
        removed("Urban1k/image/7.jpg"),
        r"caption/7\.txt is there, .*/image/7\.jpg is not: captions and pictures are out of step",
    ),
    (
        removed("Urban1k/caption/7.txt"),
        r"image/7\.jpg is there, .*/caption/7\.txt is not: captions and pictures are out of step",
    ),
    (replaced("Urban1k/caption/4.txt", b" \nA street.\n"), r"caption/4\.txt, line 1 is an empty text"),
    (replaced("Urban1k/caption/4.txt", b""), r"caption/4\.txt, line 1 is an empty text"),
    (replaced("Urban1k/caption/4.txt", b"caf\xe9\n"), r"caption/4\.txt is not UTF-8"),
    (
        lambda root: (removed("Urban1k/caption/4.txt")(root), (root / "Urban1k/caption/4.txt").mkdir()),
        r"caption/4\.txt cannot be read \(is a directory\)",
    ),
    (
        lambda root: (emptied("Urban1k/caption")(root), emptied("Urban1k/image")(root)),
        r"Urban1k/caption holds no caption",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=[message[:40] for _, message in FAULTS])
def test_a_fault_is_one_line_with_the_file_and_the_record(
    spoil: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    for task in TASKS:
        task.mini(tmp_path)
    spoil(tmp_path)
    faults = [fault for task in TASKS if (fault := fault_of(task, tmp_path))]
    assert len(faults) == 2, "both tasks of the spoilt data set, and no other"
    for fault in faults:
        assert re.search(message, fault)
        assert "\n" not in fault


def fault_of(task: Task, data: Path) -> str | None:
    try:
        task.load(data, Protocol())
    except DataInvalid as error:
        return str(error)
    return None


@every_task
def test_a_missing_file_or_folder_is_named_with_where_to_get_it(task: Task, tmp_path: Path) -> None:
    for need in task.needs(Protocol()):
        with pytest.raises(
            DataMissing, match=rf"{need.path} is missing: harness data fetch, or .*huggingface\.co"
        ):
            need.require(tmp_path)
    with pytest.raises(DataMissing):
        task.load(tmp_path, Protocol())


def test_a_miniature_says_that_it_is_one_and_never_lands_in_real_data(tmp_path: Path) -> None:
    flickr.mini(tmp_path)
    assert (tmp_path / "flickr" / MINIATURE).is_file()
    (tmp_path / "flickr" / MINIATURE).unlink()
    with pytest.raises(DataInvalid, match="flickr is there and no miniature"):
        flickr.mini(tmp_path)


# Scores


@pytest.mark.parametrize("task", flickr.TASKS, ids=lambda task: task.name)
def test_scores_of_a_random_ranking_are_those_of_ir_measures(task: Task, data: Path, tmp_path: Path) -> None:
    catalog = load_catalog()
    engine = EngineOptions(workers=0, quiet=True)
    places = EvalOptions(data=data, output_dir=tmp_path, cache_dir=tmp_path / "cache", engine=engine)
    (outcome,) = evaluate(catalog, catalog.model("random"), {}, [task], places)
    assert outcome.result is not None, outcome.error
    stored = Run.read((tmp_path / outcome.result.path).with_suffix(".run.gz"))
    collection = task.load(data, Protocol())
    qrels = {q.id: collection.positives(q.id) for q in collection.queries}
    ranked = {q: dict(stored.ranking(i)) for i, q in enumerate(stored.query_ids)}
    measures = {
        **{f"hit_at_{k}": ir_measures.Success @ k for k in (1, 5, 10)},
        **{f"recall_at_{k}": ir_measures.R @ k for k in (1, 5, 10)},
        "mrr_at_10": ir_measures.RR @ 10,
    }
    theirs = ir_measures.calc_aggregate(list(measures.values()), qrels, ranked)
    ours = {name: score.value for name, score in outcome.result.metrics.items()}
    assert ours == pytest.approx({name: theirs[measure] for name, measure in measures.items()})
    assert 0 < ours["hit_at_5"] < 1
