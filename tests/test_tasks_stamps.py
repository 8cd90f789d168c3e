"""The stamps' parser and tasks, on the miniature of the original folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.collection import Collection, checked
from harness.content import Image, Text
from harness.errors import DataInvalid, DataMissing, NoSuchInstruction
from harness.task import Need, Protocol, Task
from harness.tasks import stamps

BY_NAME = {task.name: task for task in stamps.TASKS}
KINDS = ("text-to-image-en", "image-to-text-en", "image-to-category", "category-to-image", "translation")
every_task = pytest.mark.parametrize("task", stamps.TASKS, ids=lambda task: task.name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    stamps.TASKS[0].mini(folder)
    return folder


def load(name: str, data: Path, protocol: Protocol | None = None) -> Collection:
    return BY_NAME[f"stamps/{name}"].load(data, protocol or Protocol())


def positives(collection: Collection) -> dict[str, Mapping[str, int]]:
    return {q.id: collection.positives(q.id) for q in collection.queries}


def captions(collection: Collection) -> dict[str, str]:
    found = {}
    for query in collection.queries:
        (part,) = query.parts
        assert isinstance(part, Text)
        found[query.id] = part.text
    return found


@every_task
def test_collection_is_complete_and_the_same_at_every_load(task: Task, data: Path) -> None:
    collection, counts = checked(task.load(data, Protocol()))
    assert (
        counts["repeats_dropped"] == counts["positives_outside_pool"] == counts["queries_without_qrels"] == 0
    )
    assert collection == checked(task.load(data, Protocol()))[0]
    assert [need.require(data) for need in task.needs(Protocol())] == [data / "stamps"]


def test_pool_is_every_captioned_picture_in_the_order_of_its_path(data: Path) -> None:
    collection = load("text-to-image-en", data)
    assert [c.id for c in collection.pool] == [
        "animals/birds/cartoon/duck",
        "animals/birds/penguin",
        "animals/birds/robin",
        "animals/fish/shark",
        "animals/mammals/cats/lion",
        "animals/mammals/cats/lion2",
        "food/fruit/apple",
        "food/fruit/cartoon/apple",
        "food/vegetables/carrot",
        "plants/flowers/rose",
        "plants/trees/oak",
        "town/street lamp",
        "vehicles/flight/planes/glider",
    ]
    for candidate in collection.pool:
        assert candidate.parts == (Image(data / "stamps" / f"{candidate.id}.png"),)


@pytest.mark.parametrize(
    ("left_out", "why_there"),
    [
        ("symbols/shapes/star", "txt"),
        ("vehicles/ship/tug", "svg"),
        ("animals/birds/penguin_mirror", "png"),
    ],
)
def test_symbols_drawings_and_pictures_without_text_are_left_out(
    data: Path, left_out: str, why_there: str
) -> None:
    assert (data / "stamps" / f"{left_out}.{why_there}").exists()
    assert left_out not in {c.id for c in load("text-to-image-en", data).pool}


def test_a_caption_s_query_is_named_after_its_first_picture_and_finds_all_of_them(data: Path) -> None:
    found = positives(load("text-to-image-en", data))
    assert found["en:animals/mammals/cats/lion"] == {
        "animals/mammals/cats/lion": 1,
        "animals/mammals/cats/lion2": 1,
    }
    assert found["en:food/fruit/apple"] == {"food/fruit/apple": 1, "food/fruit/cartoon/apple": 1}
    # 13 pictures, one without a caption, two captions that stand twice
    assert len(found) == 13 - 1 - 2
    assert sum(map(len, found.values())) == 13 - 1


def test_captions_are_stripped(data: Path) -> None:
    assert captions(load("text-to-image-en", data))["en:food/vegetables/carrot"] == "A carrot."


def test_a_language_has_its_own_captions_on_the_same_pictures(data: Path) -> None:
    english, german = load("text-to-image-en", data), load("text-to-image-de", data)
    assert captions(german)["de:animals/mammals/cats/lion"] == "Ein Löwe."
    assert list(german.pool) == list(english.pool)


def test_a_picture_without_a_translation_is_not_asked_for_but_stays_in_the_pool(data: Path) -> None:
    german = load("text-to-image-de", data)
    assert "de:plants/flowers/rose" not in positives(german)
    assert "plants/flowers/rose" in {c.id for c in german.pool}
    assert "fr:plants/flowers/rose" in positives(load("text-to-image-fr", data))


def test_bad_bytes_are_replaced(data: Path) -> None:
    assert captions(load("text-to-image-fr", data))["fr:animals/birds/robin"] == "Un rouge-gorge�."


def test_image_to_text_asks_for_the_one_caption_of_a_picture(data: Path) -> None:
    collection = load("image-to-text-en", data)
    found = positives(collection)
    assert found["animals/mammals/cats/lion2"] == {"en:animals/mammals/cats/lion": 1}
    assert "town/street lamp" not in found
    assert len(found) == 12
    assert len(collection.pool) == 10


@pytest.mark.parametrize(
    ("id", "category"),
    [
        ("animals/birds/cartoon/duck", ("animals", "birds")),
        ("animals/birds/penguin", ("animals", "birds")),
        ("animals/mammals/bears/toys/teddy", ("animals", "mammals")),
        ("town/cartoon/house", ("town",)),
        ("clothes/glove", ("clothes",)),
    ],
)
def test_a_category_is_two_folders_and_never_a_drawing_style(id: str, category: tuple[str, ...]) -> None:
    assert stamps.Stamp(id, Path(f"{id}.png"), {}).category == category


def test_category_grades_two_in_the_folder_and_one_beside_it_and_never_the_picture_itself(data: Path) -> None:
    collection = load("image-to-category", data)
    assert positives(collection)["animals/birds/robin"] == {
        "animals/birds/cartoon/duck": 2,
        "animals/birds/penguin": 2,
        "animals/fish/shark": 1,
        "animals/mammals/cats/lion": 1,
        "animals/mammals/cats/lion2": 1,
    }
    assert collection.exclude == {q.id: [q.id] for q in collection.queries}


def test_a_picture_alone_in_its_top_folder_is_no_category_query(data: Path) -> None:
    collection = load("image-to-category", data)
    assert {"town/street lamp", "vehicles/flight/planes/glider"} <= {c.id for c in collection.pool}
    assert {q.id.split("/")[0] for q in collection.queries} == {"animals", "food", "plants"}


def test_instructions_can_be_left_away(data: Path) -> None:
    for name in KINDS:
        assert all(q.instruction for q in load(name, data).queries)
        assert not any(q.instruction for q in load(name, data, Protocol(instructions="none")).queries)


@pytest.mark.parametrize("name", ["text-to-image-de", "image-to-text-en", "image-to-category"])
def test_unknown_splits_are_refused(data: Path, name: str) -> None:
    with pytest.raises(
        DataInvalid, match=f"stamps/{name} has no split 'val': use --split all or train or test"
    ):
        load(name, data, Protocol(split="val"))


@pytest.mark.parametrize("name", KINDS)
def test_train_and_test_share_no_picture_no_caption_and_no_query(data: Path, name: str) -> None:
    whole, train, test = (load(name, data, Protocol(split=split)) for split in ("all", "train", "test"))
    assert whole == load(name, data)
    assert set(train.pool.ids) | set(test.pool.ids) == set(whole.pool.ids)
    assert not set(train.pool.ids) & set(test.pool.ids)
    if name != "category-to-image":
        asked = [{q.parts for q in one.queries} for one in (train, test)]
        assert not asked[0] & asked[1]
    for one in (train, test):
        _, counts = checked(one)
        assert counts["positives_outside_pool"] == counts["queries_without_qrels"] == 0
        assert one.pool.name != whole.pool.name


def test_stamps_with_a_caption_in_common_stay_together_through_any_language() -> None:
    told = {
        "a/one": {"en": "A mouse."},
        "a/two": {"en": "a  MOUSE!"},
        "b/three": {"en": "A hare.", "de": "Ein Hase."},
        "b/four": {"en": "A rabbit.", "de": "ein Hase"},
        "b/five": {"en": "A rabbit.", "fr": "Un lapin."},
        "c/six": {"en": "A lapin.", "fr": "un chat"},
    }
    groups = stamps._groups([stamps.Stamp(id, Path(f"{id}.png"), c) for id, c in told.items()])
    assert groups == {
        "a/one": "a/one",
        "a/two": "a/one",
        "b/three": "b/five",
        "b/four": "b/five",
        "b/five": "b/five",
        "c/six": "c/six",
    }


def test_about_one_group_in_five_is_held_out() -> None:
    held_out = sum(stamps._is_held_out(f"animals/{i}") for i in range(1000))
    # 200 expected, standard deviation sqrt(1000 * 0.2 * 0.8) = 12.6
    assert abs(held_out - 200) < 4 * 12.6


def test_a_translation_asks_for_the_english_captions_of_its_pictures(data: Path) -> None:
    collection = load("translation", data)
    assert captions(collection)["de:animals/mammals/cats/lion"] == "Ein Löwe."
    assert positives(collection)["de:animals/mammals/cats/lion"] == {"en:animals/mammals/cats/lion": 1}
    assert not any(q.id.startswith("en:") for q in collection.queries)
    assert "de:plants/flowers/rose" not in positives(collection)
    assert [c.id for c in collection.pool] == [c.id for c in load("image-to-text-en", data).pool]


def test_a_category_asks_for_its_pictures_and_a_top_folder_for_all_below_it(data: Path) -> None:
    collection = load("category-to-image", data)
    told, found = captions(collection), positives(collection)
    assert told["animals/birds"] == "Animals, birds."
    assert set(found["animals/birds"]) == {
        "animals/birds/cartoon/duck", "animals/birds/penguin", "animals/birds/robin",
    }  # fmt: skip
    assert told["animals"] == "Animals."
    assert set(found["animals"]) == {id for id in collection.pool.ids if id.startswith("animals/")}


@every_task
def test_instructions_are_drawn_from_the_wordings_of_the_split(task: Task, data: Path) -> None:
    assert task.wordings is not None
    for split in stamps.SPLITS:
        protocol = Protocol(split=split)
        told = task.wordings(data, protocol)
        assert len(told) == (1 if split == "all" else 3)
        assert {q.instruction for q in task.load(data, protocol).queries} <= set(told)
        assert task.wordings(data, Protocol(split=split, instructions="none")) == ()
    second = Protocol(split="train", instructions="2")
    assert {q.instruction for q in task.load(data, second).queries} == {told[1]}
    seeds = [
        [q.instruction for q in task.load(data, Protocol(split="train", seed=seed)).queries]
        for seed in (0, 1)
    ]
    assert seeds[0] != seeds[1]
    with pytest.raises(NoSuchInstruction, match="has one instruction, no number 2"):
        task.load(data, Protocol(instructions="2"))


def test_a_folder_without_captioned_pictures_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "stamps" / "animals").mkdir(parents=True)
    with pytest.raises(
        DataInvalid, match=r"holds no picture with a caption.*apt-get install tuxpaint-stamps-default"
    ):
        load("text-to-image-en", tmp_path)


def test_a_language_that_no_text_has_is_refused(tmp_path: Path) -> None:
    stamps.TASKS[0].mini(tmp_path)
    for text in (tmp_path / "stamps").rglob("*.txt"):
        text.write_text("A thing.\nfr.utf8=Une chose.\n", encoding="utf-8")
    with pytest.raises(DataInvalid, match=r"no caption in German \(de\.utf8=\)"):
        load("text-to-image-de", tmp_path)


def test_an_unreadable_text_is_named(tmp_path: Path) -> None:
    stamps.TASKS[0].mini(tmp_path)
    text = tmp_path / "stamps/animals/birds/robin.txt"
    text.unlink()
    text.mkdir()
    with pytest.raises(DataInvalid, match=r"robin\.txt cannot be read \(Is a directory\)"):
        load("text-to-image-en", tmp_path)


def test_missing_stamps_are_named_with_the_package(tmp_path: Path) -> None:
    need = Need(stamps._NEED.path, stamps._NEED.source)
    with pytest.raises(DataMissing, match="stamps is missing: apt-get install tuxpaint-stamps-default"):
        need.require(tmp_path)


def test_the_mini_has_transparent_and_opaque_pictures_that_all_differ(data: Path) -> None:
    from PIL import Image as Picture

    modes, contents = set(), set()
    for candidate in load("text-to-image-en", data).pool:
        (part,) = candidate.parts
        assert isinstance(part, Image)
        with Picture.open(part.path) as picture:
            modes.add(picture.mode)
            contents.add(picture.convert("RGBA").tobytes())
    assert modes == {"RGB", "RGBA"}
    assert len(contents) == 13


def test_suite_and_tasks_agree() -> None:
    assert set(stamps.SUITE.tasks) <= set(BY_NAME)
    assert len(BY_NAME) == len(stamps.LANGUAGES) + 4
    assert len(set(stamps.LANGUAGES.values())) == len(stamps.LANGUAGES) == 57
