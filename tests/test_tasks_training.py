"""The data sets that are there to train on: their files, what asks for what, and their faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.collection import Collection, checked
from harness.content import Image, Text
from harness.data import status
from harness.errors import DataInvalid, NoSuchInstruction
from harness.task import Protocol, Task
from harness.tasks import cc3m, nli, sharegpt4v_train, tart

TASKS = (nli.TASK, cc3m.TASK, sharegpt4v_train.TASK, tart.TASK)
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
TRAIN = Protocol(split="train")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for task in TASKS:
        task.mini(tmp_path)
    return tmp_path


def asked(collection: Collection) -> dict[str, tuple[str | None, str]]:
    return {q.id: (q.instruction, texts(q.parts)) for q in collection.queries}


def texts(parts: Any) -> str:
    (part,) = parts
    assert isinstance(part, Text)
    return part.text


def shown(collection: Collection) -> dict[str, str]:
    return {c.id: texts(c.parts) for c in collection.pool}


def written(data: Path, csv: str) -> Collection:
    (data / "nli_for_simcse.csv").write_text(csv, encoding="utf-8", newline="")
    return nli.load(data, TRAIN)


@every_task
def test_training_is_the_only_split(task: Task, data: Path) -> None:
    collection, counts = checked(task.load(data, TRAIN))
    assert collection == checked(task.load(data, Protocol()))[0]
    assert counts["positives_outside_pool"] == counts["queries_without_qrels"] == 0
    assert counts["repeats_dropped"] == 0
    with pytest.raises(DataInvalid, match=f"{task.name} has no split 'test': use --split train"):
        task.load(data, Protocol(split="test"))
    with pytest.raises(NoSuchInstruction):
        task.load(data, Protocol(instructions="2"))


@every_task
def test_a_miniature_is_told_from_the_real_data(task: Task, data: Path) -> None:
    (state,) = status(data, [task], Protocol())
    assert state.miniature
    assert state.findings == ()
    task.mini(data)
    marker = next(p for p in data.rglob("*miniature.json") if task.needs(TRAIN)[0].path.parts[0] in str(p))
    marker.unlink()
    with pytest.raises(DataInvalid, match="is there and no miniature: choose another folder"):
        task.mini(data)


def test_nli_asks_the_first_sentence_for_the_second_and_keeps_the_third_as_a_candidate(data: Path) -> None:
    collection = written(data, 'sent0,sent1,hard_neg\r\na dog  runs,an animal,"no dog, ever"\r\n')
    assert asked(collection) == {"0": (None, "a dog  runs")}
    assert shown(collection) == {"0/sent1": "an animal", "0/hard_neg": "no dog, ever"}
    assert collection.qrels == {"0": {"0/sent1": 1}}


def test_equal_texts_are_one_candidate_and_equal_questions_share_their_answers(data: Path) -> None:
    collection = written(data, "hard_neg,sent0,sent1\nn0,q,a0\na0,r,a1\nn2,q,a1\n")
    assert shown(collection) == {"0/sent1": "a0", "0/hard_neg": "n0", "1/sent1": "a1", "2/hard_neg": "n2"}
    assert collection.qrels == {
        "0": {"0/sent1": 1, "1/sent1": 1},
        "1": {"1/sent1": 1},
        "2": {"0/sent1": 1, "1/sent1": 1},
    }


@pytest.mark.parametrize(
    ("csv", "says"),
    [
        ("sent0,sent1\na,b\n", r"nli_for_simcse\.csv has no column hard_neg: its first line must name"),
        ("", r"has no column sent0, sent1, hard_neg"),
        ("sent0,sent1,hard_neg\n", r"nli_for_simcse\.csv holds no row"),
        ("sent0,sent1,hard_neg\na,b,c\na,b\n", r"line 3: 2 cells, 3 columns"),
        ("sent0,sent1,hard_neg\na,b," + "x" * 140_000, r"is no CSV in UTF-8 \(field larger"),
    ],
)
def test_a_csv_that_is_none_of_simcse_s_is_one_line(data: Path, csv: str, says: str) -> None:
    with pytest.raises(DataInvalid, match=says):
        written(data, csv)


def test_a_csv_that_is_not_utf_8_is_told(data: Path) -> None:
    (data / "nli_for_simcse.csv").write_bytes(b"sent0,sent1,hard_neg\n\xff,a,b\n")
    with pytest.raises(DataInvalid, match="is no CSV in UTF-8"):
        nli.load(data, TRAIN)


def test_both_layouts_of_cc3m_give_the_same(data: Path) -> None:
    published = cc3m.load(data, TRAIN)
    folder = data / "cc3m-595k"
    rows = json.loads((folder / "chat.json").read_text())
    released = {
        row["id"]: {
            "h5v": f"/somewhere/cc3m-595k/images/{row['image']}",
            "h5a": "none.hdf5",
            "text": "",
            "instruct_ans": [row["conversations"][1]["value"]],
        }
        for row in rows
    }
    (folder / "chat.json").unlink()
    (folder / "train_anno.json").write_text(json.dumps(released))
    assert all(need.find(data) for need in cc3m.TASK.needs(TRAIN))
    assert cc3m.load(data, TRAIN) == published


def test_cc3m_asks_the_caption_in_m_beir_s_form_for_pictures_below_the_data_folder(data: Path) -> None:
    collection = cc3m.load(data, TRAIN)
    assert asked(collection)["0"] == (None, "Three red circles in the park .")
    first = next(iter(collection.pool))
    assert first.parts == (Image(data / "cc3m-595k/images/GCC_train_000000000.jpg"),)
    assert collection.qrels is not None
    # Pictures 1 and 3 show one thing and have one caption: each row is right with either.
    twins = {"GCC_train_000000001.jpg": 1, "GCC_train_000000003.jpg": 1}
    assert collection.qrels["1"] == collection.qrels["3"] == twins


def test_a_long_caption_asks_for_its_picture_in_the_folder_of_its_source(data: Path) -> None:
    collection = sharegpt4v_train.load(data, TRAIN)
    assert list(collection.pool.ids) == [f"{('sam', 'coco')[i % 2]}/{i:06}.jpg" for i in range(5)]
    assert collection.qrels is not None
    assert collection.qrels["0"] == collection.qrels["5"] == {"sam/000000.jpg": 1}
    assert len(collection.queries) == 6


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("/mnt/data/x/ShareGPT4V/data/sam/1.jpg", "sam/1.jpg"),
        ("/elsewhere/sam/1.jpg", "1.jpg"),
        ("sam/1.jpg", "sam/1.jpg"),
        ("/mnt/data/../../etc/passwd", None),
        ("../1.jpg", None),
        ("/mnt/data/", None),
    ],
)
def test_no_path_of_a_file_leads_out_of_the_data_folder(data: Path, written: str, found: str | None) -> None:
    path = data / "sharegpt4v-train/sharegpt4v_256.json"
    path.write_text(json.dumps([{"image": written, "txt": "A thing."}]))
    if found is None:
        with pytest.raises(DataInvalid, match=r"entry 0: picture '.*' leads out of .*sharegpt4v-train/data"):
            sharegpt4v_train.load(data, TRAIN)
    else:
        assert list(sharegpt4v_train.load(data, TRAIN).pool.ids) == [found]


def test_tart_asks_with_the_instruction_of_the_row_and_has_its_negatives_in_the_pool(data: Path) -> None:
    row = {
        "instruction": "find the answer",
        "query_text": "how tall is it",
        "pos_text": "very tall",
        "neg_text": "A zebra.",
        "hard_neg_text": None,
    }
    (data / "TART/tart_dual_first_vision.json").write_text(json.dumps([row]))
    collection = tart.load(data, TRAIN)
    assert asked(collection) == {"0": ("Find the answer.", "how tall is it.")}
    assert shown(collection) == {"0/pos_text": "Very tall.", "0/neg_text": "A zebra."}
    bare = tart.load(data, Protocol(split="train", instructions="none"))
    assert asked(bare) == {"0": (None, "How tall is it.")}


def test_one_text_under_two_instructions_asks_two_things(data: Path) -> None:
    collection = tart.load(data, TRAIN)
    told = asked(collection)
    assert told["0"][1] == told["1"][1]
    assert collection.qrels is not None
    assert (collection.qrels["0"], collection.qrels["1"]) == ({"0/pos_text": 1}, {"1/pos_text": 1})
    assert not {"2/neg_text", "3/hard_neg_text"} & set(collection.pool.ids)


@pytest.mark.parametrize(
    ("task", "path", "spoil", "says"),
    [
        (cc3m.TASK, "cc3m-595k/chat.json", lambda r: r[1].pop("image"), "entry 1: no field 'image'"),
        (cc3m.TASK, "cc3m-595k/chat.json", lambda r: r[2]["conversations"].pop(), "entry 2: no caption"),
        (cc3m.TASK, "cc3m-595k/chat.json", list.clear, r"chat\.json holds no row"),
        (
            tart.TASK,
            "TART/tart_dual_first_vision.json",
            lambda r: r[0].pop("pos_text"),
            "no field 'pos_text'",
        ),
    ],
)
def test_faults_are_told_with_their_record(
    data: Path, task: Task, path: str, spoil: Callable[[Any], object], says: str
) -> None:
    rows = json.loads((data / path).read_text())
    spoil(rows)
    (data / path).write_text(json.dumps(rows))
    with pytest.raises(DataInvalid, match=says):
        task.load(data, TRAIN)
