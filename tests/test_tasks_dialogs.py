"""VIST, Visual Dialog and multi-turn FashionIQ: parsers, wordings and faults, on their miniatures."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.collection import Collection, checked
from harness.content import Image, Part, Query, Text
from harness.encode import EngineOptions
from harness.errors import DataInvalid, DataMissing
from harness.evaluate import EvalOptions, Outcome, evaluate
from harness.media import open_picture
from harness.metrics import Hit
from harness.registry import load_catalog
from harness.task import MINIATURE, Protocol, Task
from harness.tasks import multiturn_fashioniq, visdial, vist
from harness.testing import check_task, expected, oracle_ranking

TASKS = {task.name: task for task in (*vist.TASKS, *visdial.TASKS, *multiturn_fashioniq.TASKS)}
VIST, VISDIAL, CHAINS = "vist/story-to-image", "visdial/dialog-to-image", "multiturn-fashioniq/all"
SIS = "vist/sis/val.story-in-sequence.json"
DIALOGS = "visdial/visdial_1.0_val.json"
QUERIES, GALLERY = "multiturnfashion/data/all.val.json", "multiturnfashion/image_splits/split.all.val.json"
FASHION = "M-BEIR/mbeir_images/fashioniq_images"
STORY = (
    "I will provide you with a series of images and captions from a story, and I need you to retrieve"
    " the image corresponding to the last caption."
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data root with all three miniatures."""
    for name in (VIST, VISDIAL, CHAINS):
        TASKS[name].mini(tmp_path / "data")
    return tmp_path / "data"


def load(name: str, data: Path, **protocol: Any) -> Collection:
    return TASKS[name].load(data, Protocol(**protocol))


def shown(parts: tuple[Part, ...]) -> list[str]:
    """Texts as they are, pictures as <file>."""
    return [part.text if isinstance(part, Text) else f"<{part.path.name}>" for part in parts]


def by_id(collection: Collection) -> dict[str, Query]:
    return {query.id: query for query in collection.queries}


def change(path: Path, edit: Callable[[Any], object]) -> None:
    """Edit a JSON file in place."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def run(task: Task, data: Path, folder: Path, **protocol: Any) -> Outcome:
    """An evaluation of the model that ranks by chance."""
    catalog = load_catalog()
    options = EvalOptions(
        data=data,
        output_dir=folder / "runs",
        cache_dir=folder / "cache",
        protocol=Protocol(**protocol),
        engine=EngineOptions(workers=0, quiet=True),
    )
    (outcome,) = evaluate(catalog, catalog.model("random"), {}, [task], options)
    return outcome


@pytest.mark.parametrize("name", TASKS)
def test_oracle_and_constant_score_what_sorting_lists_gives(name: str, tmp_path: Path) -> None:
    check_task(TASKS[name], tmp_path)


@pytest.mark.parametrize("name", TASKS)
def test_only_the_published_split_and_the_known_profiles_are_there(name: str, data: Path) -> None:
    assert load(name, data, split="val") == load(name, data)
    for wrong in ({"split": "test"}, {"profile": "uniir"}, {"compat": ("x",)}):
        with pytest.raises(DataInvalid, match=f"^{name} "):
            load(name, data, **wrong)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("profile", ["default", "umarvel", "lamra"])
def test_without_instructions_nothing_of_them_is_shown(name: str, profile: str, data: Path) -> None:
    asked, bare = (load(name, data, profile=profile, instructions=i) for i in ("first", "none"))
    assert {q.instruction for q in bare.queries} == {None}
    for query, without in zip(asked.queries, bare.queries, strict=True):
        lead = [STORY] if (name, profile) == (VIST, "umarvel") else []
        assert shown(query.parts) == lead + shown(without.parts)
    assert {c.instruction for c in asked.pool} == {None}
    assert list(asked.pool) == list(bare.pool) == list(load(name, data).pool)


# VIST


def test_story_is_four_pairs_and_the_last_caption(data: Path) -> None:
    query = by_id(load(VIST, data))["45530"]
    assert (query.instruction, query.separator) == (STORY, " ")
    # Pictures 11 to 14 of the miniature, in the story's order: the file has 1, 0, 2, 4, 3.
    assert shown(query.parts) == [
        "we saw one blue triangle by the sea . ",
        "<12960.jpg>",
        "we saw one yellow circle at noon . ",
        "<15210.jpg>",
        "we saw one yellow square in the park . ",
        "<17640.jpg>",
        "we saw one yellow ring on a wall . ",
        "<20250.jpg>",
        "we saw one yellow triangle under a lamp . ",
    ]


@pytest.mark.parametrize(
    ("profile", "instruction", "lead"), [("lamra", STORY, []), ("umarvel", None, [STORY])]
)
def test_code_bases_drop_the_fourth_pair_and_trust_the_order_of_the_file(
    profile: str, instruction: str | None, lead: list[str], data: Path
) -> None:
    collection = load(VIST, data, profile=profile)
    query = by_id(collection)["45530"]
    assert query.instruction == instruction
    assert instruction is None or query.separator == ""
    assert shown(query.parts) == [
        *lead,
        "we saw one yellow circle at noon . ",
        "<15210.jpg>",
        "we saw one blue triangle by the sea . ",
        "<12960.jpg>",
        "we saw one yellow square in the park . ",
        "<17640.jpg>",
        "we saw one yellow ring on a wall . ",
    ]
    # The last caption of the file is the fourth of the story, and its picture is the target;
    # the picture that is not shown (of the story's fifth) stays out of the ranking all the same.
    assert collection.positives("45530") == {"20250": 1}
    assert collection.exclude is not None
    assert collection.exclude["45530"] == ["15210", "12960", "17640", "23040"]
    assert shown(by_id(collection)["30355"].parts) == [
        *lead,
        *shown(by_id(load(VIST, data))["30355"].parts)[:6],
        "we saw one green circle under a lamp . ",
    ]


def test_pool_is_every_used_picture_sorted_by_its_id_as_text(data: Path) -> None:
    collection = load(VIST, data)
    ids = list(collection.pool.ids)
    assert ids == sorted(str(90 * n * n) for n in range(1, 21))
    assert ids[:3] == ["10890", "12960", "1440"]
    assert (data / "vist/images/val/39690.jpg").exists(), "a picture of no story"
    files = {c.id: c.parts[0].path.name for c in collection.pool if isinstance(c.parts[0], Image)}
    odd = {id: name for id, name in files.items() if name != f"{id}.jpg"}
    assert odd == {"9000": "9000.png", "26010": "26010.gif"}
    assert (data / "vist/images/val/15210.png").exists(), ".jpg is looked for first"
    (data / "vist/images/val/90.jpg").unlink()
    (missing,) = by_id(load(VIST, data))["30355"].parts[1:2]
    assert missing == Image(data / "vist/images/val/90.jpg")


def test_animated_gif_is_its_first_frame(data: Path) -> None:
    (moving,) = (c.parts[0] for c in load(VIST, data).pool if c.id == "26010")
    assert isinstance(moving, Image)
    picture = open_picture(moving)
    # A black circle, and then a red one.
    assert picture.size == (48, 40)
    red, green, blue = picture.getpixel((24, 20))  # type: ignore[misc]
    assert max(red, green, blue) < 60


def test_last_picture_that_the_story_showed_before_is_always_missed(data: Path) -> None:
    collection, counts = checked(load(VIST, data))
    assert collection.exclude is not None
    assert collection.exclude["30357"] == ["90", "7290", "9000", "10890"]
    assert collection.positives("30357") == {"7290": 1}
    assert (counts["queries"], counts["candidates"], counts["positives_outside_pool"]) == (6, 20, 0)
    best = expected(collection, TASKS[VIST], oracle_ranking(collection))
    assert best[Hit(1).key] == pytest.approx(5 / 6)


def test_ranking_without_the_context_gives_the_stored_scores(data: Path, tmp_path: Path) -> None:
    outcome = run(TASKS[VIST], data, tmp_path)
    assert outcome.result is not None
    (file,) = tmp_path.glob("runs/**/*.run.gz")
    rankings: defaultdict[str, list[str]] = defaultdict(list)
    for line in gzip.decompress(file.read_bytes()).decode().splitlines():
        query, _, candidate, *_ = line.split()
        rankings[query].append(candidate)
    stories = {q: shown(query.parts) for q, query in by_id(load(VIST, data)).items()}
    assert rankings.keys() == stories.keys()
    for story, ranking in rankings.items():
        context = {part.strip("<>").split(".")[0] for part in stories[story][1:8:2]}
        assert len(context) == 4
        assert len(ranking) == 20 - 4
        assert not context & set(ranking)
    targets = {id: next(iter(p)) for id, p in (load(VIST, data).qrels or {}).items()}
    for k in (1, 5, 10):
        hits = sum(targets[story] in ranking[:k] for story, ranking in rankings.items())
        assert outcome.result.metrics[Hit(k).key].value == pytest.approx(hits / 6)


# Visual Dialog


@pytest.mark.parametrize("profile", ["default", "umarvel", "lamra"])
def test_dialog_is_all_its_rounds_without_the_caption(profile: str, data: Path) -> None:
    collection = load(VISDIAL, data, profile=profile)
    query = collection.queries[1]
    assert (query.instruction, query.separator) == (
        "Find me an everyday image that matches the given dialog.",
        " ",
    )
    assert shown(query.parts) == [
        "Q: is the photo in color? A: yes. Q: is it close up? A: yes, it is. Q: how many shapes are there?"
        " A: two. Q: what color are they? A: red. Q: what shape are they? A: rings. Q: are there any people?"
        " A: no. Q: any animals? A: no. Q: is it sunny? A: i can't tell. Q: what is behind it? A: a plain"
        " ground. Q: is that all? A: yes."
    ]
    assert collection.positives(query.id) == {query.id: 1} == {"225160": 1}


def test_pool_is_the_pictures_in_the_order_of_the_dialogs(data: Path) -> None:
    collection = load(VISDIAL, data)
    assert [c.id for c in collection.pool] == [q.id for q in collection.queries]
    assert list(collection.pool.ids) != sorted(collection.pool.ids)
    folder = data / "visdial/VisualDialog_val2018"
    assert collection.pool.sequence[0].parts == (Image(folder / "VisualDialog_val2018_000000185565.jpg"),)


# Multi-turn FashionIQ


@pytest.mark.parametrize("profile", ["default", "umarvel", "lamra"])
def test_chain_is_a_picture_and_its_captions_for_each_turn(profile: str, data: Path) -> None:
    queries = by_id(load(CHAINS, data, profile=profile))
    assert list(queries) == [str(at) for at in range(13)]
    assert {q.instruction for q in queries.values()} == {
        "Find me a similar fashion image based on the following multi-round modifications."
    }
    assert shown(queries["0"].parts) == [
        "<B00MINI000.jpg>",
        "is longer",  # and an empty caption
        "<B00MINI001.jpg>",
        "shows three red circles and has another pattern",
    ]
    assert shown(queries["6"].parts) == [
        "<B00MINI023.jpg>",  # and nothing but empty captions
        "<B00MINI024.jpg>",
        "shows two blue circles and has another pattern",
        "<B00MINI025.jpg>",
        "shows three blue circles and has another pattern",
    ]
    assert shown(queries["11"].parts)[2:4] == ["<B00MINI047.jpg>", " has no sleeves and is the same"]
    assert sorted({sum(isinstance(p, Image) for p in q.parts) for q in queries.values()}) == [2, 3, 4]


def test_repeats_of_the_gallery_are_dropped_and_counted_and_references_stay(data: Path) -> None:
    collection, counts = checked(load(CHAINS, data))
    listed = json.loads((data / GALLERY).read_text())
    assert (counts["candidates"], counts["repeats_dropped"], counts["queries"]) == (36, 2, 13)
    assert list(collection.pool.ids) == list(dict.fromkeys(listed))
    assert len(listed) == 38
    assert collection.exclude is None
    references = {part.path.stem for q in collection.queries for part in q.parts if isinstance(part, Image)}
    assert references <= set(listed)
    assert collection.pool.sequence[0].parts == (Image(data / FASHION / "B00MINI010.jpg"),)
    # Chains 5 and 7 end in the picture that two galleries list.
    assert collection.positives("5") == collection.positives("7") == {"B00MINI022": 1}
    assert listed.count("B00MINI022") == 2


def test_categories_have_files_and_galleries_of_their_own(data: Path) -> None:
    sizes = {}
    for name in ("dress", "shirt", "toptee"):
        _, counts = checked(load(f"multiturn-fashioniq/{name}", data))
        sizes[name] = (counts["queries"], counts["candidates"], counts["repeats_dropped"])
    assert sizes == {"dress": (5, 13, 0), "shirt": (4, 12, 0), "toptee": (4, 13, 0)}


def test_miniature_never_writes_into_a_real_m_beir(tmp_path: Path) -> None:
    (tmp_path / "M-BEIR").mkdir()
    with pytest.raises(DataInvalid, match="M-BEIR is there and no miniature"):
        TASKS[CHAINS].mini(tmp_path)
    (tmp_path / "M-BEIR" / MINIATURE).write_text("{}")
    TASKS[CHAINS].mini(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    TASKS[CHAINS].mini(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / FASHION / "B00MINI000.jpg").exists()


# Faults

SIS_FAULTS: list[tuple[Callable[[Any], object], str]] = [
    (lambda f: f.pop("annotations"), "no field 'annotations'"),
    (lambda f: f["annotations"][3].append({}), r"annotation 3: a list of one object is wanted, not \["),
    (lambda f: f["annotations"][3][0].pop("text"), "annotation 3: no field 'text'"),
    (lambda f: f["annotations"][3][0].update(text=" "), "annotation 3: text is an empty text"),
    (lambda f: f["annotations"][3][0].update(photo_flickr_id=5), "photo_flickr_id must be a text, not 5"),
    (lambda f: f["annotations"][3][0].update(photo_flickr_id="../x"), r"'\.\./x' leads out of .*images/val"),
    (lambda f: f["annotations"][3][0].update(worker_arranged_photo_order="3"), "must be a whole number"),
    (lambda f: f["annotations"].pop(0), "story '30355' has 4 captions, not 5"),
    (lambda f: f["annotations"].extend(f["annotations"][:5]), "story '30355' has 10 captions, not 5"),
    (
        lambda f: f["annotations"][3][0].update(worker_arranged_photo_order=1),
        r"story '30355' has two captions in one place: orders \[0, 1, 1, 2, 4\]",
    ),
]
DIALOG_FAULTS: list[tuple[Callable[[Any], object], str]] = [
    (lambda f: f.pop("data"), "no field 'data'"),
    (lambda f: f["data"].pop("answers"), "data: no field 'answers'"),
    (lambda f: f["data"]["dialogs"][2].pop("image_id"), r"dialogs\[2\]: no field 'image_id'"),
    (lambda f: f["data"]["dialogs"][2].update(dialog=[]), r"dialogs\[2\]: the dialog has no round"),
    (
        lambda f: f["data"]["dialogs"][2].update(image_id=185565),
        r"dialogs\[2\]: image_id 185565 has a dialog already",
    ),
    (
        lambda f: f["data"]["dialogs"][2]["dialog"][4].update(question=11),
        r"dialogs\[2\]: dialog\[4\]: question 11 is none of the 11 questions",
    ),
    (
        lambda f: f["data"]["dialogs"][2]["dialog"][4].update(answer=-1),
        r"dialogs\[2\]: dialog\[4\]: answer -1 is none of the \d+ answers",
    ),
    (
        lambda f: f["data"]["dialogs"][2]["dialog"][4].update(answer="yes"),
        r"dialog\[4\]: answer must be a whole number, not 'yes'",
    ),
    (
        lambda f: f["data"]["dialogs"][2]["dialog"][4].update(answer=0),
        r"dialogs\[2\]: dialog\[4\]: answer 0 is an empty text",
    ),
]
CHAIN_FAULTS: list[tuple[Callable[[Any], object], str]] = [
    (lambda f: f[2].pop("target"), "entry 2: no field 'target'"),
    (lambda f: f[2].update(target=["B00MINI000"]), r"entry 2: target must be \[url, id\]"),
    (
        lambda f: f[2].update(target=["", "B0"]),
        r"entry 2: target 'B0' is not in the gallery .*split\.all\.val\.json",
    ),
    (lambda f: f[2].update(reference=[]), "entry 2: reference is empty"),
    (lambda f: f[2]["reference"][1].pop(), r"entry 2: reference\[1\] must be \[url, \[captions\], id\]"),
    (lambda f: f[2]["reference"].__setitem__(1, ["", "red", "B0"]), r"entry 2: reference\[1\] must be"),
    (lambda f: f[2]["reference"].__setitem__(1, ["", [None], "B0"]), r"entry 2: reference\[1\] must be"),
    (
        lambda f: f[2]["reference"].__setitem__(0, ["", ["red"], "../../B0"]),
        r"entry 2: reference\[0\] '\.\./\.\./B0\.jpg' leads out of",
    ),
]
GALLERY_FAULTS: list[tuple[Callable[[Any], object], str]] = [
    (lambda f: f.__setitem__(4, ""), "entry 4 is an empty text"),
    (lambda f: f.__setitem__(4, {"id": "B0"}), "entry 4 must be a text"),
    (lambda f: f.__setitem__(4, "/B0"), "entry 4 '/B0.jpg' leads out of"),
]


@pytest.mark.parametrize(
    ("name", "file", "edit", "said"),
    [
        *((VIST, SIS, *fault) for fault in SIS_FAULTS),
        *((VISDIAL, DIALOGS, *fault) for fault in DIALOG_FAULTS),
        *((CHAINS, QUERIES, *fault) for fault in CHAIN_FAULTS),
        *((CHAINS, GALLERY, *fault) for fault in GALLERY_FAULTS),
    ],
)
def test_a_fault_is_one_line_with_file_record_and_reason(
    name: str, file: str, edit: Callable[[Any], object], said: str, data: Path
) -> None:
    change(data / file, edit)
    with pytest.raises(DataInvalid, match=said) as error:
        load(name, data)
    assert str(error.value).startswith(str(data / file))
    assert "\n" not in str(error.value)


def test_places_in_a_story_matter_only_where_the_order_is_read(data: Path) -> None:
    change(data / SIS, lambda f: f["annotations"][3][0].update(worker_arranged_photo_order=1))
    for profile in ("lamra", "umarvel"):
        assert len(load(VIST, data, profile=profile).queries) == 6


@pytest.mark.parametrize(("name", "file"), [(VIST, SIS), (VISDIAL, DIALOGS), (CHAINS, QUERIES)])
def test_file_that_is_missing_or_no_record_is_named(name: str, file: str, data: Path) -> None:
    (data / file).write_text('"x"')
    with pytest.raises(DataInvalid, match=f"{file}: .* is wanted, not 'x'"):
        load(name, data)
    (data / file).unlink()
    with pytest.raises(
        DataMissing, match=f"{file} is missing: harness data fetch, or take the folder .*LamRA_Eval"
    ):
        load(name, data)


def test_gallery_that_is_no_list_is_named(data: Path) -> None:
    (data / GALLERY).write_text("{}")
    with pytest.raises(
        DataInvalid, match=r"split\.all\.val\.json: a list of picture ids is wanted, not \{\}"
    ):
        load(CHAINS, data)


@pytest.mark.parametrize(
    ("name", "file", "queries"),
    [
        # The target of one story: a query that loses its positive goes with it.
        (VIST, "vist/images/val/5760.jpg", 5),
        (VISDIAL, "visdial/VisualDialog_val2018/VisualDialog_val2018_000000185565.jpg", 8),
        (CHAINS, f"{FASHION}/B00MINI029.jpg", 12),
    ],
)
def test_missing_picture_is_named_and_left_out_only_if_asked(
    name: str, file: str, queries: int, data: Path, tmp_path: Path
) -> None:
    (data / file).unlink()
    outcome = run(TASKS[name], data, tmp_path)
    assert outcome.result is None
    assert outcome.error is not None
    assert str(data / file) in outcome.error
    left = run(TASKS[name], data, tmp_path, skip_broken=True).result
    assert left is not None
    assert left.metrics[Hit(1).key].n == queries
