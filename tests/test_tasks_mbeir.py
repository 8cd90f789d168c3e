"""M-BEIR on its miniature: reading, instructions, pools, known scores, analysis, faults in the files."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.collection import Collection, Pool, checked
from harness.content import Candidate, Image, Query, Text, item
from harness.digest import Digests
from harness.errors import DataInvalid, DataMissing, HarnessError, NoSuchInstruction
from harness.evaluate import evaluate, require_data
from harness.leaderboard import leaderboard
from harness.media import open_picture
from harness.metrics import Hit
from harness.model import ModelSpec
from harness.result import Result, Score
from harness.run import Run
from harness.store import key
from harness.task import Protocol, Task, draw
from harness.tasks import mbeir
from harness.tasks.mbeir_layout import (
    BY_NAME,
    DID_SPAN,
    QID_SPAN,
    ROWS,
    Row,
    formatted,
    named,
    number,
    read_instructions,
)
from harness.tasks.mbeir_world import SIZES, files, mini, world
from harness.tasks.wording import following
from harness.testing import CheckFrontend
from toys import Toy, catalog, places, spec

TASKS = {task.name: task for task in mbeir.TASKS}
WORLD = world()
DOMAINS = {row.dataset_id: row.domain for row in ROWS}
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    mini(folder)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A miniature that the test may spoil."""
    mini(tmp_path / "data")
    return tmp_path / "data"


def load(name: str, data: Path, **choices: Any) -> Collection:
    return TASKS[f"mbeir-{name}"].load(data, Protocol(**choices))


def run(
    model: ModelSpec,
    names: Sequence[str],
    data: Path,
    folder: Path,
    *,
    protocol: Protocol | None = None,
    **more: Any,
) -> dict[str, Result]:
    tasks = [TASKS[f"mbeir-{name}"] for name in names]
    options = dataclasses.replace(places(folder, **more), data=data, protocol=protocol or Protocol())
    outcomes = evaluate(catalog([model], tasks), model, {}, tasks, options)
    assert [o.error for o in outcomes] == [None] * len(outcomes)
    return {o.task.removeprefix("mbeir-"): o.result for o in outcomes if o.result is not None}


def run_of(result: Result, folder: Path) -> Run:
    return Run.read((folder / "runs" / result.path).with_suffix(".run.gz"))


def check(name: str, build: Callable[[Collection], CheckFrontend]) -> ModelSpec:
    return dataclasses.replace(spec(Toy()), name=name, check=build)


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def edit(path: Path, change: Callable[[list[str]], object]) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    change(lines)
    path.write_text("\n".join(lines), encoding="utf-8")


def rewrite(path: Path, line: int, **fields: Any) -> None:
    """Change fields of the object on a line (from 1); None written as `...` takes the key out."""

    def change(lines: list[str]) -> None:
        row = json.loads(lines[line - 1]) | fields
        lines[line - 1] = json.dumps({k: v for k, v in row.items() if v is not ...}, ensure_ascii=False)

    edit(path, change)


def faults(name: str, data: Path, *, deep: bool = True, **choices: Any) -> list[str]:
    verify = TASKS[f"mbeir-{name}"].verify
    assert verify is not None
    return list(verify(data, Protocol(**choices), deep))


# The table


def test_the_table_has_the_published_totals_and_the_order_of_the_papers():
    assert len(ROWS) == 16
    assert sum(row.queries for row in ROWS) == 190_573
    assert sum(row.pool for row in ROWS) == 5_609_079
    assert sum(row.qrels for row in ROWS) == 1_088_191
    assert sum(BY_NAME[name].pool for name in mbeir.HELD_OUT) == 2_145_273
    by_modality = Counter()
    for row in ROWS:
        by_modality[row.wanted] += row.pool
    assert by_modality == {"image": 885_040, "text": 2_456_859, "image,text": 2_267_180}
    assert {row.name: row.k for row in ROWS if row.k != 5} == {
        "fashion200k_task0": 10,
        "fashion200k_task3": 10,
        "fashioniq_task7": 10,
    }
    groups = [column.group for column in mbeir.SUITES[0].columns]
    assert list(dict.fromkeys(groups)) == ["T→I", "T→T", "T→IT", "I→T", "I→I", "IT→T", "IT→I", "IT→IT"]
    assert [c.title for c in mbeir.SUITES[0].columns][:6] == [
        "VisualNews", "MSCOCO", "Fashion200K", "WebQA", "EDIS", "WebQA",
    ]  # fmt: skip


def test_tasks_and_suites_have_the_fixed_names():
    assert len(TASKS) == 37
    assert {t.partition("/")[0] for t in TASKS} == {"mbeir-local", "mbeir-global", "mbeir-heldout"}
    suites = {suite.name: suite for suite in mbeir.SUITES}
    assert [len(suite.columns) for suite in suites.values()] == [16, 16, 10, 5]
    assert suites["mbeir-heldout"].tasks[4:6] == ("mbeir-local/infoseek_task8", "mbeir-heldout/nights_task4")
    assert suites["mbeir-heldout-uniir"].tasks == (
        "mbeir-global/webqa_task1",
        "mbeir-global/webqa_task2",
        "mbeir-global/oven_task6",
        "mbeir-global/cirr_task7",
        "mbeir-global/oven_task8",
    )
    for name, task in TASKS.items():
        assert task.headline == Hit(BY_NAME[name.partition("/")[2]].k)
        keys = [metric.key for metric in task.metrics]
        assert len(keys) == len(set(keys))
        for k in (1, 5, 10, 50):
            assert {f"hit_at_{k}", f"recall_at_{k}"} <= set(keys)


def test_ids_go_to_integers_and_back():
    assert number("8:4170", DID_SPAN) == 80_004_170
    assert number("9:6", QID_SPAN) == 4_500_006
    for id in ("0:1", "5:9999999", "9:24809"):
        assert named(number(id, DID_SPAN), DID_SPAN) == id
    for wrong in ("5", "5:", ":5", "5:0", "5:10000000", "a:1", "5:-1", "5:1:2", "٥:1", ""):
        assert number(wrong, DID_SPAN) is None


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (None, ""),
        ("", ""),
        ("  \r\n ", ""),
        ('""', ""),
        ("a dog", "A dog."),
        ("A dog.", "A dog."),
        ("is it a dog?", "Is it a dog?"),
        ("run!", "Run!"),
        ("a\rb\r", "Ab."),
        ('"a dog" barks', 'A dog" barks.'),
        ('he says "go"', 'He says "go.'),
        ('" a dog "', " a dog ."),
        ("überall", "Überall."),
        ("ßa", "SSa."),
        ("3 dogs", "3 dogs."),
        ("dogs ...", "Dogs ..."),
    ],
)
def test_texts_are_shown_as_the_official_code_shows_them(raw, shown):
    assert formatted(raw) == shown


def test_instruction_and_text_joined_are_the_official_query_text():
    def official(text: str | None) -> str:
        """The rules of format_string in words: see spec of UniIR's preprocessing."""
        text = (text or "").replace("\r", "")
        text = text.strip().strip('"')
        if text == "":
            return text
        ending = "" if text.endswith((".", "?", "!")) else "."
        return text[:1].upper() + text[1:] + ending

    instruction = official("find a picture")
    assert instruction == "Find a picture."
    raw = ["a dog", '"a dog" barks', " a dog ", "", "A dog.", "is it?", 'he says "go"', "a\rb", "\r"]
    for text in raw:
        joined = instruction + " " + following(instruction, text)
        assert joined.strip() == official(f"{instruction} {text}")
    # What is formatted already stays as it is, with an instruction and without.
    for text in map(official, raw):
        if not text.startswith(" "):
            assert following(instruction, text) == text == following(None, text)


# The miniature


def test_the_miniature_is_small_complete_and_always_the_same(data, tmp_path):
    mini(tmp_path)
    first, second = (
        {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (data, tmp_path)
    )
    assert first == second == dict(files())
    assert sum(map(len, first.values())) < 3_000_000
    names = Counter(name.rpartition("/")[0].removeprefix("M-BEIR/") for name in first)
    assert {n: c for n, c in names.items() if "images" not in n} == {
        "query/test": 16, "query/val": 16, "query/train": 10, "query/union_train": 1, "query/union_val": 1,
        "cand_pool/local": 18, "cand_pool/global": 3, "instructions": 1,
        "qrels/test": 16, "qrels/val": 16, "qrels/train": 10, "M-BEIR": 3,
    }  # fmt: skip


def test_the_miniature_never_replaces_the_real_data(tmp_path):
    (tmp_path / "M-BEIR" / "query").mkdir(parents=True)
    with pytest.raises(DataInvalid, match="no miniature: choose another folder"):
        mini(tmp_path)


@every_row
def test_counts_are_those_of_the_table_of_sizes(row, data):
    queries, pool = SIZES[row.name]
    _, counts = checked(load(f"local/{row.name}", data))
    assert (counts["queries"], counts["candidates"]) == (queries, pool)
    assert (counts["repeats_dropped"], counts["queries_without_qrels"]) == (0, 0)
    assert len(load(f"global/{row.name}", data).pool) == 413
    assert sum(q for q, _ in SIZES.values()) == 149


def test_the_global_file_is_the_sorted_concatenation_of_disjoint_pools(data):
    root = data / "M-BEIR"
    rows = [r for row in ROWS for r in jsonl(data / row.pool_file("test"))]
    dids = [r["did"] for r in rows]
    assert len(set(dids)) == len(dids) == 413
    in_order = sorted(rows, key=lambda r: number(r["did"], DID_SPAN))
    assert jsonl(root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl") == in_order
    assert list(load("global/cirr_task7", data).pool.ids) == dids
    assert list(load("heldout/oven_task6", data).pool.ids) == [
        r["did"] for name in mbeir.HELD_OUT for r in jsonl(data / BY_NAME[name].pool_file("test"))
    ]


def test_ids_begin_anew_in_every_split_for_queries_and_never_for_candidates(data):
    for dataset in {row.dataset for row in ROWS}:
        mine = [row for row in ROWS if row.dataset == dataset]
        for split in ("test", "val", "train"):
            paths = dict.fromkeys(data / row.query_file(split) for row in mine)
            numbers = sorted(number(r["qid"], QID_SPAN) % QID_SPAN for path in paths for r in jsonl(path))
            assert numbers == list(range(1, len(numbers) + 1))
    for dataset_id in range(10):
        dids = [t.did for t in WORLD.candidates().values() if t.did.startswith(f"{dataset_id}:")]
        assert sorted(int(d.partition(":")[2]) for d in dids) == list(range(1, len(dids) + 1))
    val, test = (load("local/cirr_task7", data, split=split) for split in ("val", "test"))
    assert {"8:1", "8:2"} <= set(val.qrels) & set(test.qrels)
    assert val.qrels["8:1"] != test.qrels["8:1"]


def test_coco_has_pools_of_its_own_for_every_split_and_one_caption_of_two_pictures(data):
    test, val = (load("local/mscoco_task0", data, split=split) for split in ("test", "val"))
    assert not set(test.pool.ids) & set(val.pool.ids)
    positives = Counter(len(grades) for grades in test.qrels.values())
    assert positives == {1: 28, 2: 1}
    captions = load("local/mscoco_task3", data)
    assert Counter(len(grades) for grades in captions.qrels.values()) == {3: 10}
    assert len({c for grades in captions.qrels.values() for c in grades}) == 29


def test_positives_negatives_and_links_are_as_in_the_original(data):
    def counts(name: str) -> list[int]:
        return [len(a.positives) for a in WORLD.queries[name, "test"]]

    assert max(counts("fashion200k_task0")) == 5
    assert (min(counts("webqa_task1")), max(counts("webqa_task1"))) == (2, 4)
    assert (min(counts("edis_task2")), max(counts("edis_task2"))) == (1, 4)
    for row in ROWS:
        negatives = {bool(r["neg_cand_list"]) for r in jsonl(data / row.query_file("test"))}
        assert negatives == {row.dataset in ("EDIS", "CIRR", "NIGHTS")}
    for name in ("oven_task6", "oven_task8"):
        for asked in WORLD.queries[name, "test"]:
            own = [did for did in asked.positives if did.startswith("5:")]
            assert len(own) == 1
            assert 2 <= len(asked.positives) - 1 <= 6
    linked = [a for a in WORLD.queries["infoseek_task6", "test"] if any(d[0] == "5" for d in a.positives)]
    assert len(linked) == 6
    assert [a for a in linked if len(a.positives) == 1]
    outside = {
        row.name: checked(load(f"local/{row.name}", data))[1]["positives_outside_pool"] for row in ROWS
    }
    assert {n for n, count in outside.items() if count} == {
        "oven_task6", "infoseek_task6", "oven_task8", "infoseek_task8",
    }  # fmt: skip
    assert outside["oven_task6"] == 6 + 4 + 3 + 3 + 8 * 2


def test_duplicates_and_odd_pictures_are_there(data):
    root = data / "M-BEIR"
    pictures = {
        row.name: [
            (root / r["img_path"]).read_bytes()
            for r in jsonl(data / row.pool_file("test"))
            if r.get("img_path")
        ]
        for row in ROWS
    }
    assert Counter(Counter(pictures["visualnews_task0"]).values()) == {1: 18, 6: 1}
    texts = Counter(r["txt"] for r in jsonl(data / BY_NAME["webqa_task1"].pool_file("test")))
    assert Counter(texts.values()) == {1: 28, 2: 1}
    sizes, modes = set(), set()
    from PIL import Image as Pil

    for found in pictures.values():
        for content in found:
            with Pil.open(io.BytesIO(content)) as picture:
                sizes.add(picture.size)
                modes.add(picture.mode)
    assert {(2800, 14), (400, 1)} <= sizes
    assert modes == {"RGB", "L"}
    for name in ("oven_task8", "infoseek_task8"):
        for candidate in load(f"local/{name}", data).pool:
            shown = open_picture(candidate.parts[0])
            assert max(shown.size) <= 200 * min(shown.size)
    for name in ("cirr_task7", "fashioniq_task7"):
        collection = load(f"local/{name}", data)
        assert {q.parts[0] for q in collection.queries} <= {c.parts[0] for c in collection.pool}


def test_missing_keys_nulls_and_odd_texts_are_there_and_read(data):
    def keys(path: Path) -> set[str]:
        return {k for row in jsonl(path) for k in row}

    assert "txt" not in keys(data / BY_NAME["cirr_task7"].pool_file("test"))
    assert "src_content" not in keys(data / BY_NAME["visualnews_task0"].pool_file("test"))
    assert "query_txt" not in keys(data / BY_NAME["visualnews_task3"].query_file("test"))
    assert "query_txt" in keys(data / BY_NAME["nights_task4"].query_file("test"))
    for name in ("cirr_task7", "nights_task4", "visualnews_task0"):
        assert {type(p) for c in load(f"local/{name}", data).pool for p in c.parts} == {Image}
    shown = [c.parts[0].text for c in load("local/visualnews_task3", data).pool]
    assert "" in shown
    assert any(text.startswith("Überall") for text in shown)
    assert not any(text.startswith('"') or "\r" in text for text in shown)
    assert all(text == "" or text[-1] in ".?!" for text in shown)
    longest = max(len(c.parts[0].text.split()) for c in load("local/oven_task6", data).pool)
    assert longest > 1024
    composed = load("local/oven_task6", data).queries
    assert [type(p) for p in composed[0].parts] == [Image, Text]
    assert [q for q in composed if q.parts[1] == Text("")]


def test_the_archive_in_two_parts_holds_the_pictures(data):
    parts = sorted((data / "M-BEIR").glob("mbeir_images.tar.gz.part-*"))
    assert [p.name[-2:] for p in parts] == ["00", "01"]
    packed = gzip.decompress(b"".join(p.read_bytes() for p in parts))
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        names = tar.getnames()
        assert set(names) == set(WORLD.pictures)
        first = tar.extractfile(names[0])
        assert first is not None
        assert first.read() == (data / "M-BEIR" / names[0]).read_bytes()


# Reading


def test_a_composed_query_is_the_picture_then_the_text_with_an_instruction(data):
    row = jsonl(data / BY_NAME["cirr_task7"].query_file("test"))[0]
    query = load("local/cirr_task7", data, instructions="first").queries[0]
    assert query == Query(
        row["qid"],
        (Image(data / "M-BEIR" / row["query_img_path"]), Text(row["query_txt"] + ".")),
        "Find the picture in CIRR that answers the given picture with its text.",
    )
    bare = load("local/cirr_task7", data, instructions="none").queries[0]
    assert bare.instruction is None
    assert bare.parts[1] == Text(formatted(row["query_txt"]))


@every_row
def test_queries_and_candidates_have_the_modalities_of_the_table_and_candidates_no_instruction(row, data):
    collection = load(f"local/{row.name}", data)
    assert {item(q).modality for q in collection.queries} == {row.asked}
    assert (
        {item(c).modality for c in collection.pool}
        == {row.wanted}
        == set(collection.pool.candidates.modalities)
    )
    assert all(c.instruction is None for c in collection.pool)
    assert all(q.instruction for q in collection.queries)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"txt": "", "modality": "image"}, [Image]),
        ({"txt": "", "modality": "image,text"}, [Image, Text]),
        ({"txt": "a", "modality": "text,image"}, [Image, Text]),
        ({"txt": None, "modality": "image"}, [Image]),
        ({"txt": ..., "modality": "image,text"}, [Image]),
        ({"txt": "a", "modality": None}, [Image, Text]),
        ({"txt": "a", "img_path": None, "modality": "image"}, [Text]),
        ({"txt": "", "img_path": ..., "modality": "text"}, [Text]),
    ],
)
def test_parts_are_what_is_there_and_named_by_the_modality(own, fields, parts):
    path = own / BY_NAME["edis_task2"].pool_file("test")
    rewrite(path, 2, **fields)
    assert [type(p) for p in list(load("local/edis_task2", own).pool)[1].parts] == parts


def test_every_policy_gives_its_instruction(data):
    prompts = read_instructions(data, BY_NAME["mscoco_task3"])
    assert prompts[1] == "Show me a text from MSCOCO for this picture."
    by_policy = {
        policy: [q.instruction for q in load("local/mscoco_task3", data, instructions=policy).queries]
        for policy in ("hash", "first", "none", "1", "2", "3", "4")
    }
    assert set(by_policy["none"]) == {None}
    for n in range(4):
        assert set(by_policy[str(n + 1)]) == {prompts[n]}
    assert by_policy["first"] == by_policy["1"]
    drawn = [
        prompts[
            int.from_bytes(hashlib.blake2b(f"0:mscoco_task3:{q.id}".encode(), digest_size=8).digest()) % 4
        ]
        for q in load("local/mscoco_task3", data).queries
    ]
    assert by_policy["hash"] == drawn
    assert len(set(drawn)) > 1


def test_the_drawn_instruction_depends_on_seed_and_query_alone(data):
    def drawn(name: str, **choices: Any) -> dict[str, str | None]:
        return {q.id: q.instruction for q in load(name, data, **choices).queries}

    local = drawn("local/oven_task6")
    assert local == drawn("global/oven_task6") == drawn("heldout/oven_task6")
    assert drawn("local/oven_task6", seed=1) != local
    few = load("global/oven_task6", data).limited(3)
    assert [q.instruction for q in few.queries] == list(local.values())[:3]
    counts = Counter(draw(Protocol(), "x", str(n), "abcd") for n in range(4000))
    # Four standard deviations around 1000: sqrt(4000 · 1/4 · 3/4) = 27.4.
    assert all(abs(count - 1000) < 110 for count in counts.values())


def test_an_empty_prompt_cell_is_no_instruction(data):
    assert len(read_instructions(data, BY_NAME["nights_task4"])) == 3
    assert {q.instruction for q in load("local/nights_task4", data).queries} <= set(
        read_instructions(data, BY_NAME["nights_task4"])
    )
    with pytest.raises(NoSuchInstruction, match=r"nights_task4 has 3 instructions, no number 4: use"):
        load("local/nights_task4", data, instructions="4")


def test_the_compat_switch_gives_pictures_an_empty_text(data):
    padded = load("global/nights_task4", data, compat=("umarvel-image-prompt",))
    plain = load("global/nights_task4", data)
    kinds = Counter(tuple(type(p) for p in c.parts) for c in plain.pool)
    assert Counter(tuple(type(p) for p in c.parts) for c in padded.pool) == {
        (Text,): kinds[Text,],
        (Image, Text): kinds[Image, Text] + kinds[Image,],
    }
    assert kinds[Image,] == 24 + 10 + 20 + 16 + 16 + 14
    assert padded.queries == plain.queries
    changed = [c for c, p in zip(padded.pool, plain.pool, strict=True) if c != p]
    assert {c.parts[1] for c in changed} == {Text("")}


def test_val_and_train_are_selectable(data):
    for name in ("local/edis_task2", "global/edis_task2", "heldout/oven_task8"):
        for split, queries in (("val", 4), ("train", 6)):
            collection, counts = checked(load(name, data, split=split))
            assert counts["queries"] == queries
            assert counts["queries_without_qrels"] == 0
            assert all(collection.qrels[q.id] for q in collection.queries)
            assert collection.pool.name.endswith(split)
    train = load("global/edis_task2", data, split="train")
    path = data / "M-BEIR/cand_pool/global/mbeir_union_train_cand_pool.jsonl"
    assert set(train.pool.ids) == {r["did"] for r in jsonl(path)}
    local = load("local/webqa_task2", data, split="train")
    assert {item(c).modality for c in local.pool} == {"image,text"}
    assert {c.id.partition(":")[0] for c in local.pool} == {"2"}
    mixed = jsonl(data / "M-BEIR/query/train/mbeir_webqa_train.jsonl")
    assert {q.id for q in local.queries} == {r["qid"] for r in mixed if r["task_id"] == 2}
    assert {r["task_id"] for r in mixed} == {1, 2}


@every_row
def test_training_pools_are_a_task_s_own_but_for_oven_and_infoseek_which_share_theirs(row, data):
    path = data / "M-BEIR/cand_pool/global/mbeir_union_train_cand_pool.jsonl"
    sets = {5, 6} if row.dataset_id in (5, 6) else {row.dataset_id}
    wanted = {
        r["did"]
        for r in jsonl(path)
        if int(r["did"].partition(":")[0]) in sets
        and set(r["modality"].split(",")) == set(row.wanted.split(","))
    }
    collection, counts = checked(load(f"local/{row.name}", data, split="train"))
    assert wanted
    assert set(collection.pool.ids) == wanted
    assert len(collection.pool) == len(wanted)
    assert counts["positives_outside_pool"] == 0


def test_oven_and_infoseek_train_in_one_and_the_same_pool(data):
    for task in (6, 8):
        oven, infoseek = (
            load(f"local/{name}_task{task}", data, split="train") for name in ("oven", "infoseek")
        )
        assert list(oven.pool) == list(infoseek.pool)


def test_the_train_pool_is_cut_into_tasks_once(data, monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    first = load("local/edis_task2", data, split="train")
    monkeypatch.setattr(mbeir, "_homes", None)
    assert list(load("local/edis_task2", data, split="train").pool) == list(first.pool)
    assert len(load("local/cirr_task7", data, split="train").pool)


@every_row
def test_training_rows_are_the_task_s_part_of_the_up_sampled_file_in_its_order(row, data):
    union = jsonl(data / "M-BEIR/query/union_train/mbeir_union_up_train.jsonl")
    wanted = [
        r["qid"]
        for r in union
        if r["qid"].partition(":")[0] == str(row.dataset_id) and r["task_id"] == row.task_id
    ]
    for place in ("local", "global"):
        task = TASKS[f"mbeir-{place}/{row.name}"]
        assert list(task.rows(data, Protocol(split="train"))) == wanted
    assert set(wanted) == {q.id for q in load(f"local/{row.name}", data, split="train").queries}
    small = row.dataset in ("WebQA", "EDIS", "NIGHTS", "FashionIQ", "CIRR")
    assert (len(wanted) > len(set(wanted))) == small


def test_training_rows_are_read_once_and_are_none_of_another_split(data, own, monkeypatch, tmp_path):
    task = TASKS["mbeir-local/cirr_task7"]
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    first = task.rows(data, Protocol(split="train"))
    with monkeypatch.context() as patched:
        patched.setattr(mbeir, "_union_rows", None)
        assert task.rows(data, Protocol(split="train")) == first
    with pytest.raises(DataInvalid, match="use --split train"):
        task.rows(data, Protocol())
    rewrite(own / "M-BEIR/query/union_train/mbeir_union_up_train.jsonl", 4, task_id=5)
    with pytest.raises(
        DataInvalid, match=r"mbeir_union_up_train\.jsonl, line 4: qid .* task_id 5 is in none"
    ):
        task.rows(own, Protocol(split="train"))


def test_the_union_of_training_rows_is_a_need_of_training_alone(data, own):
    task = TASKS["mbeir-local/cirr_task7"]
    for split, there in (("train", True), ("val", False), (None, False)):
        names = {need.path.name for need in task.needs(Protocol(split=split))}
        assert ("mbeir_union_up_train.jsonl" in names) == there
    (own / "M-BEIR/query/union_train/mbeir_union_up_train.jsonl").unlink()
    (line,) = faults("local/cirr_task7", own, split="train", deep=False)
    assert "mbeir_union_up_train.jsonl is missing" in line


def test_wordings_are_the_prompts_that_are_drawn_from(data):
    prompts = read_instructions(data, BY_NAME["nights_task4"])
    task = TASKS["mbeir-global/nights_task4"]
    assert task.wordings(data, Protocol()) == prompts
    assert task.wordings(data, Protocol(instructions="2")) == (prompts[1],)
    assert task.wordings(data, Protocol(instructions="none")) == ()


def test_needs_are_what_is_read_and_pictures_are_media(data):
    for name, task in TASKS.items():
        needs = task.needs(Protocol())
        assert (
            len(needs) == {"mbeir-local": 5, "mbeir-global": 20, "mbeir-heldout": 9}[name.partition("/")[0]]
        )
        assert [need.path.name for need in needs if need.media] == ["mbeir_images"]
    paths = [need.path.name for need in TASKS["mbeir-local/mscoco_task0"].needs(Protocol(split="val"))]
    assert "mbeir_mscoco_task0_val_cand_pool.jsonl" in paths
    bare = TASKS["mbeir-local/mscoco_task0"].needs(Protocol(instructions="none"))
    assert "query_instructions.tsv" not in [need.path.name for need in bare]


# Bad input


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda lines: lines.__setitem__(2, lines[2][:40]),
            r"mbeir_cirr_task7_test\.jsonl, line 3: not JSON",
        ),
        (lambda lines: lines.__setitem__(2, lines[1]), r"line 3: query id '8:2' occurs twice"),
        (lambda lines: lines.__setitem__(0, '{"query_txt": "a"}'), "line 1: no field 'qid'"),
        (
            lambda lines: lines.__setitem__(0, '{"qid": "8:1"}'),
            "line 1: query '8:1' has neither a text nor a",
        ),
        (lambda lines: lines.__setitem__(0, '{"qid": 8}'), "line 1: qid must be a string or null, not 8"),
        (
            lambda lines: lines.__setitem__(0, '{"qid": "8:1", "query_img_path": "../../secret.jpg"}'),
            r"line 1: picture '\.\./\.\./secret\.jpg' lies outside the data root",
        ),
    ],
)
def test_a_faulty_query_file_is_told_with_its_line(own, spoil, message):
    edit(own / BY_NAME["cirr_task7"].query_file("test"), spoil)
    with pytest.raises(DataInvalid, match=message) as error:
        load("local/cirr_task7", own)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("8:1 0 8:2", r"task7_test_qrels\.txt, line 2: not `qid 0 did 1 task_id`: '8:1 0 8:2'"),
        ("8:1 0 8:2 yes 7", "line 2: not `qid"),
        ("8:77 0 8:2 1 7", r"line 2: query '8:77' is not in M-BEIR/query/test/mbeir_cirr_task7_test\.jsonl"),
    ],
)
def test_a_faulty_qrels_line_is_told_with_its_line(own, line, message):
    edit(own / BY_NAME["cirr_task7"].qrels_file("test"), lambda lines: lines.__setitem__(1, line))
    with pytest.raises(DataInvalid, match=message):
        load("local/cirr_task7", own)


def test_faults_of_pool_and_instructions_are_told(own):
    pool = own / BY_NAME["cirr_task7"].pool_file("test")
    rewrite(pool, 3, img_path="/etc/passwd")
    with pytest.raises(DataInvalid, match=r"cirr_task7_cand_pool\.jsonl, line 3: .*passwd"):
        load("global/nights_task4", own)
    table = own / "M-BEIR/instructions/query_instructions.tsv"
    edit(table, lambda lines: lines.pop(10))
    with pytest.raises(
        DataInvalid, match=r"no instruction for dataset_id 4 \(NIGHTS\), query_modality 'image'"
    ):
        load("local/nights_task4", own)
    assert load("local/nights_task4", own, instructions="none").queries
    edit(table, lambda lines: lines.__setitem__(3, "text\timage"))
    with pytest.raises(DataInvalid, match=r"query_instructions\.tsv, line 4: a row needs"):
        load("local/edis_task2", own)
    table.write_bytes(b"query_modality\xff")
    with pytest.raises(DataInvalid, match=r"query_instructions\.tsv is not UTF-8"):
        load("local/edis_task2", own)


def test_an_instruction_is_found_whatever_the_order_of_its_modalities(own):
    before = load("local/oven_task8", own).queries
    table = own / "M-BEIR/instructions/query_instructions.tsv"
    table.write_text(table.read_text().replace("image,text", "text,image"))
    assert load("local/oven_task8", own).queries == before


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"split": "dev"}, "has no split 'dev': use --split test or val or train"),
        ({"profile": "lamra"}, "has no profile 'lamra'"),
        ({"compat": ("umarvel",)}, "knows no compat 'umarvel': known: umarvel-image-prompt"),
        ({"instructions": "second"}, "knows no instruction policy 'second': use --instructions hash"),
    ],
)
def test_what_the_task_does_not_have_is_refused(data, choices, message):
    with pytest.raises(HarnessError, match=message):
        load("local/cirr_task7", data, **choices)


def test_missing_files_and_pictures_are_named(own, tmp_path):
    (own / BY_NAME["edis_task2"].query_file("test")).unlink()
    (own / BY_NAME["oven_task8"].pool_file("test")).unlink()
    shutil.rmtree(own / "M-BEIR/mbeir_images")
    with pytest.raises(DataMissing) as missing:
        require_data([TASKS["mbeir-global/edis_task2"]], own, Protocol())
    for name in (
        "mbeir_edis_task2_test.jsonl",
        "mbeir_oven_task8_cand_pool.jsonl",
        "mbeir_images",
        "hf download",
    ):
        assert name in str(missing.value)
    mini(tmp_path / "again")
    image = jsonl(tmp_path / "again" / BY_NAME["cirr_task7"].pool_file("test"))[4]["img_path"]
    (tmp_path / "again/M-BEIR" / image).unlink()
    task = TASKS["mbeir-local/cirr_task7"]
    options = dataclasses.replace(places(tmp_path), data=tmp_path / "again")
    (outcome,) = evaluate(catalog([spec(Toy())], [task]), spec(Toy()), {}, [task], options)
    assert outcome.error is not None
    assert image in outcome.error


def test_what_published_data_contains_is_kept_and_counted(own):
    rows = own / BY_NAME["webqa_task1"].qrels_file("test")
    gone = [a.qid for a in WORLD.queries["webqa_task1", "test"]][:2]

    def change(lines: list[str]) -> None:
        lines[:] = [line for line in lines if line.split(" ")[0] not in gone]
        lines.insert(0, f"{gone[1]} 0 2:999999 1 1")

    edit(rows, change)
    pool = own / BY_NAME["webqa_task1"].pool_file("test")
    edit(pool, lambda lines: lines.insert(3, lines[2]))
    _, counts = checked(load("local/webqa_task1", own))
    assert counts["queries_without_qrels"] == 1
    assert counts["positives_outside_pool"] == 1
    assert counts["repeats_dropped"] == 1
    rewrite(pool, 4, txt="something else")
    with pytest.raises(DataInvalid, match="has two contents in pool 'mbeir-local/webqa_task1'"):
        checked(load("local/webqa_task1", own))


# Verification


def test_nothing_is_wrong_with_the_miniature(data):
    for name in TASKS:
        for split in (None, "val", "train"):
            assert faults(name.removeprefix("mbeir-"), data, split=split) == []


def test_without_the_marker_the_published_counts_are_expected(own):
    (own / "M-BEIR/miniature.json").unlink()
    found = faults("local/oven_task6", own)
    root = own / "M-BEIR"
    qrels = root / "qrels/test/mbeir_oven_task6_test_qrels.txt"
    assert found == [
        f"{root}/query/test/mbeir_oven_task6_test.jsonl: 12 rows, 50,004 expected",
        f"{root}/cand_pool/local/mbeir_oven_task6_cand_pool.jsonl: 64 rows, 676,667 expected",
        f"{qrels}: 44 rows, 492,654 expected",
        f"{qrels}: 32 positives outside the own pool, 442,650 expected",
    ]
    assert faults("local/oven_task6", own, deep=False) == found[:3]
    totals = faults("global/cirr_task7", own, deep=False)
    assert totals == [
        "M-BEIR: 413 candidates in all, 5,609,079 expected",
        "M-BEIR: 149 queries in all, 190,573 expected",
        f"M-BEIR: {totals[2].split()[1]} qrels in all, 1,088,191 expected",
    ]
    assert faults("heldout/nights_task4", own, deep=False) == [
        "M-BEIR: 180 candidates in all, 2,145,273 expected"
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qid": "7:1"}, "qid '7:1' is not 8:n, n < 500,000"),
        ({"qid": "8:500000"}, "qid '8:500000' is not 8:n, n < 500,000"),
        ({"qid": "8:2"}, "qid '8:2' occurs twice"),
        ({"task_id": 4}, "task_id 4, not 7"),
        ({"pos_cand_list": [{"did": "8:1"}]}, "pos_cand_list is not a list of dids"),
        ({"neg_cand_list": ...}, "neg_cand_list is not a list of dids"),
        ({"query_modality": "image"}, "query_modality 'image', not 'image,text'"),
        ({"query_txt": None}, "query_modality 'image,text', but there is image"),
        ({"query_txt": 3}, "query_txt is neither a string nor null: 3"),
        ({"query_img_path": "mbeir_images/none.jpg"}, "picture mbeir_images/none.jpg is missing"),
        ({"query_img_path": "../none.jpg"}, "picture '../none.jpg' lies outside the data root"),
        (
            {"pos_cand_list": ["8:1", "8:2", "8:3"]},
            "pos_cand_list of '8:3' and mbeir_cirr_task7_test_qrels.txt differ",
        ),
    ],
)
def test_a_fault_in_a_query_row_is_shown_with_file_and_line(own, fields, message):
    path = own / BY_NAME["cirr_task7"].query_file("test")
    rewrite(path, 3, **fields)
    found = faults("local/cirr_task7", own)
    assert any(line.startswith(f"{path}, line 3: {message}") for line in found), found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"did": "8:10000000"}, "did '8:10000000' is not 8:n, n < 10,000,000"),
        ({"did": None}, "did None is not 8:n"),
        ({"modality": "text,image"}, "modality 'text,image', not 'image'"),
        ({"img_path": None}, "modality 'image', but there is nothing"),
        (
            {"img_path": "mbeir_images/cirr_images/none.jpg"},
            "picture mbeir_images/cirr_images/none.jpg is missing",
        ),
    ],
)
def test_a_fault_in_a_pool_row_is_shown_with_file_and_line(own, fields, message):
    path = own / BY_NAME["cirr_task7"].pool_file("test")
    rewrite(path, 3, **fields)
    found = faults("local/cirr_task7", own)
    assert any(line.startswith(f"{path}, line 3: {message}") for line in found), found


def test_faults_of_qrels_repeats_and_broken_lines_are_shown_and_many_are_counted(own):
    row = BY_NAME["cirr_task7"]
    queries, pool, qrels = (own / f("test") for f in (row.query_file, row.pool_file, row.qrels_file))
    edit(qrels, lambda lines: lines.__setitem__(slice(0, 2), ["8:9999 0 8:1 1 7", "8:2 0 8:999 1 6"]))
    found = faults("local/cirr_task7", own)
    for message in (
        f"{qrels}, line 1: query '8:9999' is not in {queries.name}",
        f"{qrels}, line 2: task_id '6', not 7",
        f"{qrels}, line 2: candidate '8:999' is not in {pool.name}",
        f"{queries}, line 1: query '8:1' has no line in {qrels.name}: it scores 0",
    ):
        assert message in found
    edit(pool, lambda lines: lines.insert(5, lines[4]))
    assert any(
        ", line 6: did " in line and "occurs twice" in line for line in faults("local/cirr_task7", own)
    )
    shutil.rmtree(own / "M-BEIR/mbeir_images/cirr_images")
    assert f"{pool}: 10 more: a missing picture" in faults("local/cirr_task7", own)
    edit(pool, lambda lines: lines.__setitem__(7, lines[7][:30]))
    assert any(
        line.startswith(f"{pool}, line 8: not JSON") and line.endswith("was not looked at")
        for line in faults("local/cirr_task7", own)
    )
    pool.unlink()
    assert faults("local/cirr_task7", own)[0].startswith(f"{pool} is missing: hf download")


def test_a_union_shows_ids_in_two_pools_and_positives_in_none(own):
    webqa = [own / BY_NAME[name].pool_file("test") for name in ("webqa_task1", "webqa_task2")]
    first = jsonl(webqa[0])[0]["did"]
    rewrite(webqa[1], 1, did=first)
    edit(
        own / BY_NAME["webqa_task1"].qrels_file("test"),
        lambda lines: lines.__setitem__(0, lines[0].rsplit(" ", 3)[0] + " 2:888 1 1"),
    )
    found = faults("global/webqa_task1", own)
    assert found == [
        f"1 dids are both in {webqa[0]} and {webqa[1].name}",
        f"{own}/M-BEIR/qrels/test/mbeir_webqa_task1_test_qrels.txt: 1 positives are in none of the 16 pools",
    ]


# Known scores


def concept_model(row: Row, alpha: float) -> ModelSpec:
    """The oracle of concepts: unit(concept) + alpha · modality, where a query takes the modality
    that its instruction asks for, or its own without one."""
    slots = {"text": 72, "image": 73, "image,text": 74}
    asked = {a.qid: a.concepts for a in WORLD.queries[row.name, "test"]}
    shown = {did: thing.concepts for did, thing in WORLD.candidates().items()}

    def vector(concepts: tuple[int, ...], modality: str) -> dict[int, float]:
        return {c: 1 / math.sqrt(len(concepts)) for c in concepts} | {slots[modality]: alpha}

    def build(collection: Collection) -> CheckFrontend:
        digests = Digests()
        weights = {key(item(c), digests): vector(shown[c.id], item(c).modality) for c in collection.pool}
        for q in collection.queries:
            modality = row.wanted if q.instruction else item(q).modality
            weights[key(item(q), digests)] = vector(asked[q.id], modality)
        return CheckFrontend(
            {"check": "concepts", "alpha": str(alpha), "pool": collection.pool.name}, 75, weights
        )

    return check("concepts", build)


ALPHA = 0.6
"""With 1 for the concept and alpha² = 0.36 for the modality: a caption of two pictures finds either
(0.71 + 0.36) before itself (1), and the right modality alone (0.36) never wins."""

KNOWN = {"visualnews_task0": (7, 8), "oven_task6": (11, 12), "infoseek_task6": (9, 10)}
"""Hits and queries in the own pool, where not all are hit: a tie of six; an own candidate that shows
something else; an answer that is in OVEN's pool only."""


@every_row
def test_a_model_that_knows_concepts_and_reads_instructions_scores_what_the_world_allows(row, data, tmp_path):
    names = (f"local/{row.name}", f"global/{row.name}")
    local, union = run(concept_model(row, ALPHA), names, data, tmp_path).values()
    hits, queries = KNOWN.get(row.name, (1, 1))
    assert local.metrics[local.headline].value == pytest.approx(hits / queries)
    # What lies in the partner's pool is reached globally; the tie of six stays.
    assert union.metrics[union.headline].value == (7 / 8 if row.name == "visualnews_task0" else 1.0)
    assert union.analysis["retrieved"]["at_1"][row.wanted]["share"] == 1.0
    assert union.analysis["wrong_first"]["modality"]["count"] == 0
    assert union.analysis["loss"]["recovered_by_pool"] == 0
    gained = {"oven_task6": 1, "infoseek_task6": 1}.get(row.name, 0)
    assert union.analysis["loss"]["gained_by_union"] == gained
    assert local.analysis == {}


@pytest.mark.parametrize("name", ["nights_task4", "edis_task2", "webqa_task2", "oven_task8"])
def test_without_the_modality_all_items_of_a_concept_tie_in_the_union(name, data, tmp_path):
    """Under the pessimistic rule the first positive stands behind the n others of its concept."""
    names = (f"local/{name}", f"global/{name}")
    local, union = run(concept_model(BY_NAME[name], 0.0), names, data, tmp_path).values()
    pool = [t for (_, split), things in WORLD.pools.items() if split == "test" for t in things]
    others = [
        sum(t.did not in asked.positives for t in pool if set(t.concepts) & set(asked.concepts))
        for asked in WORLD.queries[name, "test"]
    ]
    assert local.metrics["hit_at_5"].value == 1.0
    for k in (1, 5):
        assert union.metrics[f"hit_at_{k}"].value == sum(n < k for n in others) / len(others)
    assert union.metrics["hit_at_1"].value < 1.0


@pytest.mark.parametrize("name", ["visualnews_task3", "edis_task2", "cirr_task7", "webqa_task1"])
def test_without_instructions_the_errors_are_those_of_the_modality_and_global_only(name, data, tmp_path):
    row = BY_NAME[name]
    names = (f"local/{name}", f"global/{name}")
    protocol = Protocol(instructions="none")
    local, union = run(concept_model(row, ALPHA), names, data, tmp_path, protocol=protocol).values()
    assert local.metrics[local.headline].value == 1.0
    # Score 1.36 for the concept in the query's own modality, 1 in any other, at most 0.36 else; so the
    # first is of the own modality wherever one of the concept lies in any pool.
    kind = {True: {True: "image,text", False: "image"}, False: {True: "text"}}
    pool = [t for (_, split), things in WORLD.pools.items() if split == "test" for t in things]
    led_astray = 0
    for asked in WORLD.queries[name, "test"]:
        same = [t for t in pool if set(t.concepts) & set(asked.concepts)]
        own = [t for t in same if kind[t.image is not None][t.text is not None] == row.asked]
        led_astray += bool(own) and row.asked != row.wanted
    wrong = union.analysis["wrong_first"]
    assert wrong["modality"]["count"] == led_astray
    assert (led_astray > 0) == (name != "webqa_task1")
    assert wrong["queries"] >= led_astray


def analysed(
    row: Row, pool: Sequence[Candidate], rows: list[list[int]], qrels: Mapping[str, Mapping[str, int]]
) -> Any:
    queries = [Query(q, (Text("a"),)) for q in qrels]
    made = Run(
        list(qrels),
        [c.id for c in pool],
        "mbeir-global",
        np.array(rows, np.int32),
        np.zeros((1, 1), np.float32),
    )
    return mbeir.analyse(row, Collection(queries, Pool("mbeir-global", pool), qrels), made)


def test_the_analysis_of_a_hand_made_run():
    """VisualNews, text → image, headline hit@5, in a pool of
    0 0:1 picture of VisualNews; 1 0:2 text of VisualNews; 2 3:1 picture and text of EDIS (news too);
    3 9:1 picture of COCO (another domain); 4-9 texts of COCO; 10 0:3 picture of VisualNews."""
    image = Image(Path("x.jpg"))
    pool = [
        Candidate("0:1", (image,)), Candidate("0:2", (Text("a"),)), Candidate("3:1", (image, Text("a"))),
        Candidate("9:1", (image,)), *(Candidate(f"9:{n}", (Text(str(n)),)) for n in range(2, 8)),
        Candidate("0:3", (image,)),
    ]  # fmt: skip
    ranked = {
        "0:1": [0, 1, 2, 3, 4, 5, 6],  # right at once
        "0:2": [1, 4, 5, 6, 7, 0, 3],  # five texts first: without them, or without other pools, a hit
        "0:3": [3, 10, 1, 2, 4, 0, 5],  # the first of the right modality and another domain; 10 is right
        "0:4": [10, 0, 3, 1, 2, 4, 5],  # of its own pool and wrong; nothing right in the list
        "0:5": [2, 1, 4, 5, 6, 7, -1],  # padded; the first of another modality, though of its domain
    }
    qrels = {"0:1": {"0:1": 1}, "0:2": {"0:1": 1}, "0:3": {"0:3": 1}, "0:4": {"0:99": 1}, "0:5": {}}
    found = analysed(BY_NAME["visualnews_task0"], pool, list(ranked.values()), qrels)
    assert found["queries"] == 5
    assert found["wanted"] == "image"
    assert {m: v["count"] for m, v in found["retrieved"]["at_1"].items()} == {
        "text": 1, "image": 3, "image,text": 1,
    }  # fmt: skip
    # Of the first five: row 1 has I T IT I T, row 2 five texts, row 3 I I T IT T, row 4 I I I T IT,
    # row 5 IT and four texts.
    assert {m: v["count"] for m, v in found["retrieved"]["at_5"].items()} == {
        "text": 2 + 5 + 2 + 1 + 4, "image": 2 + 0 + 2 + 3 + 0, "image,text": 1 + 0 + 1 + 1 + 1,
    }  # fmt: skip
    assert found["retrieved"]["at_5"]["image"]["share"] == 7 / 25
    assert found["wrong_first"] == {
        "queries": 4,
        "modality": {"count": 2, "share": 0.5},
        "domain": {"count": 1, "share": 0.25},
        "other": {"count": 1, "share": 0.25},
    }
    assert found["loss"] == {
        "metric": "hit_at_5",
        "hits": 2,
        "hits_in_own_pool": 3,
        "recovered_by_pool": 1,
        "recovered_by_modality": 1,
        "recovered_by_both": 1,
        "share_by_modality": 1.0,
        "gained_by_union": 0,
        "undecided": 2,
    }
    json.dumps(found)


def test_a_padded_picture_is_a_picture_in_the_analysis(data, tmp_path):
    row = BY_NAME["nights_task4"]
    protocol = Protocol(compat=("umarvel-image-prompt",))
    toy = spec(Toy())
    plain = run(toy, ["global/nights_task4"], data, tmp_path)["global/nights_task4"]
    padded = run(toy, ["global/nights_task4"], data, tmp_path, protocol=protocol)["global/nights_task4"]
    collection = load("global/nights_task4", data)
    homes = Counter(mbeir._home(c).name for c in collection.pool)
    assert homes == {name: pool for name, (_, pool) in SIZES.items()}
    for result in (plain, padded):
        assert sum(v["count"] for v in result.analysis["retrieved"]["at_1"].values()) == 6
    made = run_of(padded, tmp_path)
    first = [WORLD.candidates()[made.ranking(q)[0][0]] for q in range(6)]
    images = sum(t.text is None for t in first)
    assert padded.analysis["retrieved"]["at_1"]["image"]["count"] == images
    assert row.wanted == "image"


def rank_oracle(row: Row, rank: int) -> ModelSpec:
    """Puts the first positive of every query at this rank (from 1) and all others right behind it.

    Each content is a coordinate; a query weighs them by their place: N for the first, then N - 1.
    """

    def build(collection: Collection) -> CheckFrontend:
        digests = Digests()
        contents = {c.id: key(item(c), digests) for c in collection.pool}
        at = {content: i for i, content in enumerate(dict.fromkeys(contents.values()))}
        assert len(at) == len(contents)
        weights: dict[bytes, dict[int, float]] = {content: {i: 1.0} for content, i in at.items()}
        for q in collection.queries:
            right = [c for c in collection.positives(q.id) if c in contents]
            wrong = [c for c in contents if c not in right]
            order = [*wrong[: rank - 1], *right, *wrong[rank - 1 :]]
            place = key(item(q), digests)
            assert place not in weights
            weights[place] = {at[contents[c]]: float(len(order) - n) for n, c in enumerate(order)}
        return CheckFrontend({"check": "rank", "rank": str(rank), "row": row.name}, len(at), weights)

    return check(f"rank-{rank}", build)


@pytest.mark.parametrize("rank", [1, 2, 5, 6, 10, 11])
@pytest.mark.parametrize("name", ["mscoco_task3", "fashion200k_task0"])
def test_hit_recall_and_mrr_have_their_closed_forms_at_every_rank(name, rank, data, tmp_path):
    """With the first of P positives at rank r: hit@k = [r <= k], MRR@10 = [r <= 10] / r, and
    recall@k = min(P, max(0, k - r + 1)) / P. The same run gives both, and they differ where P > 1."""
    (result,) = run(rank_oracle(BY_NAME[name], rank), [f"local/{name}"], data, tmp_path).values()
    sizes = [len(a.positives) for a in WORLD.queries[name, "test"]]
    for k in mbeir.CUTS:
        recall = sum(min(p, max(0, k - rank + 1)) / p for p in sizes) / len(sizes)
        assert result.metrics[f"hit_at_{k}"].value == float(rank <= k)
        assert result.metrics[f"recall_at_{k}"].value == pytest.approx(recall)
    assert result.metrics["mrr_at_10"].value == pytest.approx((rank <= 10) / rank)
    if rank == 1:
        assert result.metrics["recall_at_1"].value < result.metrics["hit_at_1"].value == 1.0


def test_a_query_without_positives_scores_zero_and_unreachable_ones_count_in_recall(own, tmp_path):
    """InfoSeek, positives within the pool ranked first: of ten queries one is left without qrels and
    one has its only positive outside."""
    edit(own / BY_NAME["infoseek_task6"].qrels_file("test"), lambda lines: lines.pop(-3))
    collection = load("local/infoseek_task6", own)
    (result,) = run(
        rank_oracle(BY_NAME["infoseek_task6"], 1), ["local/infoseek_task6"], own, tmp_path
    ).values()
    assert result.counts["queries_without_qrels"] == 1
    assert result.metrics["hit_at_5"].value == pytest.approx(8 / 10)
    inside = set(collection.pool.ids)
    shares = [len(inside & set(p)) / len(p) for q in collection.queries if (p := collection.positives(q.id))]
    assert result.metrics["recall_at_50"].value == pytest.approx(sum(shares) / 10)
    assert any(0 < share < 1 for share in shares)


# Through the engine


def test_the_local_ranking_is_the_global_one_cut_to_the_pool(data, tmp_path, monkeypatch):
    """At full depth, for every task; and every candidate is embedded once for all 32."""
    monkeypatch.setitem(globals(), "TASKS", {
        name: dataclasses.replace(task, metrics=(Hit(500),)) for name, task in TASKS.items()
    })  # fmt: skip
    log = tmp_path / "log"
    names = [f"{place}/{row.name}" for place in ("local", "global") for row in ROWS]
    results = run(spec(Toy(log=log)), names, data, tmp_path)
    contents = {key(item(c), Digests()) for c in load("global/cirr_task7", data).pool}
    queries = {key(item(q), Digests()) for row in ROWS for q in load(f"local/{row.name}", data).queries}
    assert len(log.read_text().splitlines()) == len(contents) + len(queries)
    for row in ROWS:
        local, union = (run_of(results[f"{place}/{row.name}"], tmp_path) for place in ("local", "global"))
        pool = set(load(f"local/{row.name}", data).pool.ids)
        for q in range(len(local.query_ids)):
            assert len(union.ranking(q)) == 413
            assert local.ranking(q) == [(c, s) for c, s in union.ranking(q) if c in pool]


def test_runs_do_not_depend_on_batches_workers_or_search_memory(data, tmp_path):
    """Ties included: VisualNews has six equal pictures, the pool two pairs of equal texts and more."""
    names = ["global/visualnews_task0", "global/webqa_task1"]
    made = []
    for number_, more in enumerate(({}, {"batch_tokens": 64}, {"workers": 2}, {"search_memory": 1 << 18})):
        folder = tmp_path / str(number_)
        results = run(spec(Toy()), names, data, folder, **more)
        made.append(
            [(folder / "runs" / r.path).with_suffix(".run.gz").read_bytes() for r in results.values()]
        )
    assert made[1:] == made[:1] * 3
    ranking = run_of(results["global/visualnews_task0"], folder)
    order = {did: n for n, did in enumerate(load("global/visualnews_task0", data).pool.ids)}
    scores = [ranking.ranking(q) for q in range(8)]
    tied = [(a, b) for listed in scores for a, b in pairwise(listed) if a[1] == b[1]]
    assert tied
    assert all(order[a[0]] < order[b[0]] for a, b in tied)


def test_a_cut_off_beyond_the_pool_is_legal(data, tmp_path):
    (result,) = run(spec(Toy()), ["local/mscoco_task0"], data, tmp_path).values()
    made = run_of(result, tmp_path)
    assert made.rows.shape == (29, 10)
    assert result.metrics["hit_at_10"].value == result.metrics["recall_at_50"].value == 1.0
    assert result.metrics["hit_at_5"].value < 1.0


KILLED = """
import os, sys
from pathlib import Path
import harness.encode, toys
harness.encode.WINDOW_ITEMS = 16
class Dies(toys.ToyEmbedder):
    def embed(self, batch):
        if sum(self.calls) >= 200:
            os._exit(9)
        return super().embed(batch)
toys.ToyEmbedder = Dies
import test_tasks_mbeir as t
t.run(toys.spec(toys.Toy()), ["global/oven_task6"], Path(sys.argv[1]), Path(sys.argv[2]))
"""


def outputs(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted((folder / "runs").rglob("*.*")):
        content: Any = path.read_bytes()
        if path.suffix == ".json":
            content = json.loads(content)
            del content["provenance"]
        found[path.relative_to(folder).as_posix()] = content
    return found


def test_a_killed_run_is_taken_up_and_ends_in_the_same_bytes(data, tmp_path):
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(here)}
    command = [sys.executable, "-c", KILLED, str(data), str(tmp_path / "killed")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    shards = list((tmp_path / "killed/cache").rglob("*.npy"))
    assert len(shards) >= 10
    assert not (tmp_path / "killed/runs").exists() or not outputs(tmp_path / "killed")
    log = tmp_path / "log"
    run(spec(Toy(log=log)), ["global/oven_task6"], data, tmp_path / "killed")
    whole = tmp_path / "whole.log"
    run(spec(Toy(log=whole)), ["global/oven_task6"], data, tmp_path / "whole")
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole") != {}
    embedded, all_of_it = (len(path.read_text().splitlines()) for path in (log, whole))
    assert 0 < embedded <= all_of_it - 160


def test_other_files_another_seed_and_another_model_are_other_results(own, tmp_path):
    def result(toy: Toy, **choices: Any) -> Result:
        protocol = Protocol(**choices)
        return run(spec(toy), ["local/edis_task2"], own, tmp_path, protocol=protocol)["local/edis_task2"]

    first = result(Toy())
    assert result(Toy()).provenance["started"] == first.provenance["started"]
    assert result(Toy(weights="w2")).identity_id != first.identity_id
    assert result(Toy(), seed=1).protocol_id != first.protocol_id
    assert result(Toy(), instructions="first").protocol_id != first.protocol_id
    rewrite(own / BY_NAME["edis_task2"].pool_file("test"), 1, txt="Nothing of the kind.")
    changed = result(Toy())
    assert changed.protocol_id != first.protocol_id
    assert changed.provenance["counts"]["embedded"] == 1


def test_queries_of_one_id_in_two_splits_are_kept_apart(data, tmp_path):
    name = "local/cirr_task7"
    test, val = (
        run(spec(Toy()), [name], data, tmp_path, protocol=Protocol(split=split))[name]
        for split in ("test", "val")
    )
    assert test.protocol_id != val.protocol_id
    runs = [run_of(r, tmp_path) for r in (test, val)]
    assert runs[0].query_ids[:4] == runs[1].query_ids
    assert [runs[0].ranking(q) for q in range(4)] != [runs[1].ranking(q) for q in range(4)]
    fresh = run(spec(Toy()), [name], data, tmp_path / "alone", protocol=Protocol(split="val"))[name]
    assert fresh.metrics == val.metrics


PUBLISHED = {
    # UniIR CLIP_SF (paper), LamRA-Ret, U-MARVEL-7B, U-MARVEL Qwen3-4B; the papers' printed averages.
    "local": {
        "uniir": ("42.6 81.1 18.0 84.7 59.4 78.7 43.1 92.3 18.3 32.0 45.5 27.9 24.4 44.6 67.6 48.9", 50.6),
        "lamra": ("41.6 81.5 28.7 86.0 62.6 81.2 39.6 90.6 30.4 32.1 54.1 52.1 33.2 53.1 76.2 63.3", 56.6),
        "umarvel": ("47.3 84.4 33.6 97.1 78.8 88.5 47.3 93.5 35.1 34.2 62.5 58.3 36.4 60.7 79.4 74.7", 63.2),
        "qwen3": ("36.2 82.6 27.9 96.8 66.2 86.7 35.7 93.9 26.5 33.3 57.9 56.8 36.0 60.5 73.3 70.1", 58.8),
    },
    "global": {
        "uniir": ("42.6 77.9 17.8 84.7 59.4 78.8 42.8 92.3 17.9 32.0 39.2 24.0 24.3 43.9 60.2 44.6", 48.9),
        "lamra": ("41.3 75.4 28.7 85.8 62.5 81.0 39.3 90.4 30.4 32.1 48.4 48.7 33.1 50.5 70.0 60.0", 54.9),
        "umarvel": ("47.2 72.8 33.3 96.7 78.7 87.7 47.2 93.5 34.9 34.0 58.3 52.2 36.0 56.0 73.1 69.2", 60.7),
        "qwen3": ("36.0 73.2 27.9 96.6 65.9 86.3 35.6 93.9 26.3 33.2 53.7 47.7 35.8 57.2 67.1 62.7", 56.2),
    },
}  # fmt: skip


@pytest.mark.parametrize("place", ["local", "global"])
def test_the_average_of_a_suite_is_the_mean_of_its_16_tasks_as_published(place):
    (suite,) = [s for s in mbeir.SUITES if s.name == f"mbeir-{place}"]

    def result(model: str, task: Task, percent: str) -> Result:
        value = float(percent) / 100
        score = Score(value, (value, value), 1)
        return Result(
            model, {}, "0" * 16, task.name, {"task": task.name}, "0" * 16, "complete",
            {task.headline.key: score}, task.headline.key,
        )  # fmt: skip

    results = [
        result(model, TASKS[name], percent)
        for model, (row, _) in PUBLISHED[place].items()
        for name, percent in zip(suite.tasks, row.split(), strict=True)
    ]
    table = leaderboard([suite], TASKS, results)
    for row in table.rows:
        assert row.average is not None
        values = [float(x) for x in PUBLISHED[place][row.model][0].split()]
        assert 100 * row.average == pytest.approx(sum(values) / 16)
        assert abs(100 * row.average - PUBLISHED[place][row.model][1]) <= 0.05 + 1e-9
