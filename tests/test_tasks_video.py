"""MSVD and MSR-VTT: loaders, prompts, sampling and conversion, on miniatures of the original folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.collection import Collection
from harness.content import Text, Video, item
from harness.errors import DataInvalid, DataMissing
from harness.evaluate import evaluate
from harness.media import clip_info, frame_count
from harness.registry import load_catalog
from harness.task import Protocol, Task
from harness.tasks import miniature, msrvtt, msvd
from harness.testing import check_task
from toys import places

(MSVD,) = msvd.TASKS
(MSRVTT,) = msrvtt.TASKS
INSTRUCTION = "Find an everyday video match with caption."

both = pytest.mark.parametrize("task", [MSVD, MSRVTT], ids=["msvd", "msrvtt"])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    MSVD.mini(folder)
    MSRVTT.mini(folder)
    return folder


def load(task: Task, data: Path, **protocol: Any) -> Collection:
    return task.load(data, Protocol(**protocol))


def captions(collection: Collection) -> dict[str, str]:
    found = {}
    for query in collection.queries:
        (part,) = query.parts
        assert isinstance(part, Text)
        found[query.id] = part.text
    return found


def clips(collection: Collection) -> dict[str, Video]:
    found = {}
    for candidate in collection.pool:
        (part,) = candidate.parts
        assert isinstance(part, Video)
        found[candidate.id] = part
    return found


@both
def test_tasks_keep_the_contract(task: Task, tmp_path: Path) -> None:
    check_task(task, tmp_path)


@both
def test_the_scores_are_those_of_the_ranks_in_a_similarity_matrix(
    task: Task, data: Path, tmp_path: Path
) -> None:
    catalog = load_catalog()
    model = catalog.models["random"]
    (outcome,) = evaluate(catalog, model, {}, [task], places(tmp_path))
    collection = load(task, data)
    frontend = model.open({})
    similarity = frontend.prepare([item(q) for q in collection.queries]).astype(np.float64) @ (
        frontend.prepare([item(c) for c in collection.pool]).T
    )
    ids = list(clips(collection))
    right = np.array([ids.index(next(iter(collection.qrels[q.id]))) for q in collection.queries])
    place = (similarity > similarity[np.arange(len(right)), right][:, None]).sum(1)
    wanted = {f"hit_at_{k}": (place < k).mean() for k in (1, 5, 10)}
    wanted["mrr_at_10"] = np.where(place < 10, 1 / (place + 1), 0).mean()
    assert outcome.result is not None
    assert {name: score.value for name, score in outcome.result.metrics.items()} == pytest.approx(wanted)


@both
@pytest.mark.parametrize(("profile", "separator"), [("default", " "), ("umarvel", ""), ("lamra", " ")])
def test_prompts(data: Path, task: Task, profile: str, separator: str) -> None:
    collection = load(task, data, profile=profile)
    assert {(q.instruction, q.separator) for q in collection.queries} == {(INSTRUCTION, separator)}
    assert {c.instruction for c in collection.pool} == {None}
    assert captions(collection) == captions(load(task, data))
    bare = load(task, data, profile=profile, instructions="none")
    assert {(q.instruction, q.separator) for q in bare.queries} == {(None, " ")}


@pytest.mark.parametrize("profile", ["umarvel", "lamra"])
def test_frames_are_the_model_s_own_unless_a_code_base_pins_them(data: Path, profile: str) -> None:
    for task in (MSVD, MSRVTT):
        assert all((v.frames, v.fps) == (None, None) for v in clips(load(task, data)).values())
    twelve, two_a_second = (clips(load(task, data, profile=profile)).values() for task in (MSVD, MSRVTT))
    assert {(v.frames, v.fps) for v in twelve} == {(12, None)}
    assert {(v.frames, v.fps) for v in two_a_second} == {(None, 2.0)}
    # 30 frames at 10 a second: 12 of them, and 3 seconds times two
    assert {frame_count(v) for v in twelve} == {12}
    assert {frame_count(v) for v in two_a_second} == {6}


def test_the_miniatures_hold_real_clips_that_all_differ(data: Path) -> None:
    found = [v.path for task in (MSVD, MSRVTT) for v in clips(load(task, data)).values()]
    assert [p.suffix for p in found] == [".avi"] * 3 + [".mp4"] * 6
    assert {clip_info(p).frames for p in found} == {30}
    assert len({p.read_bytes() for p in found}) == 9


@both
def test_a_missing_clip_is_named(data: Path, tmp_path: Path, task: Task) -> None:
    broken = list(clips(load(task, data)).values())[1].path
    broken.unlink()
    catalog = load_catalog()
    (outcome,) = evaluate(catalog, catalog.models["random"], {}, [task], places(tmp_path))
    assert broken.name in (outcome.error or "")


@both
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_is_missing_is_named_with_where_to_get_it(data: Path, task: Task, at: int) -> None:
    needs = task.needs(Protocol())
    need = needs[at % len(needs)]
    (data / need.path).rename(data / "away")
    with pytest.raises(DataMissing) as error:
        load(task, data)
    assert str(error.value) == f"{data / need.path} is missing: {need.remedy}"


# MSVD


def test_msvd_s_queries_are_all_captions_of_the_listed_clips_in_the_order_of_the_list(data: Path) -> None:
    collection = load(MSVD, data)
    listed = ["zulPFoY64wE_26_33", "00jrXRMlZOY_0_10", "-4wsuPCjDBc_5_15"]
    assert list(clips(collection)) == listed
    assert clips(collection)["-4wsuPCjDBc_5_15"] == Video(data / "MSVD/YouTubeClips/-4wsuPCjDBc_5_15.avi")
    assert list(captions(collection)) == [f"{id}:{n}" for id in listed for n in range(3)]
    assert captions(collection)["zulPFoY64wE_26_33:0"] == "three yellow circles move to the right"
    assert collection.qrels["zulPFoY64wE_26_33:2"] == {"zulPFoY64wE_26_33": 1}


def test_msvd_keeps_captions_that_a_clip_has_twice_or_shares(data: Path) -> None:
    found = captions(load(MSVD, data))
    assert found["00jrXRMlZOY_0_10:1"] == found["00jrXRMlZOY_0_10:2"]
    assert found["zulPFoY64wE_26_33:2"] == found["-4wsuPCjDBc_5_15:2"] == "something moves"


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("a\n\nb\na\n", r"test_list\.txt, line 4: clip 'a' stands there twice"),
        ("a\nc\n", r"test_list\.txt, line 2: clip 'c' has no captions in .*raw-captions\.jsonl"),
        ("e\n", r"test_list\.txt, line 1: clip 'e' has no captions in .*raw-captions\.jsonl"),
        ("../a\n", r"test_list\.txt, line 1: '\.\./a' is no name of a clip"),
        ("a\\b\n", r"test_list\.txt, line 1: 'a\\\\b' is no name of a clip"),
        ("a\0b\n", r"test_list\.txt, line 1: 'a\\x00b' is no name of a clip"),
        ("\n", r"test_list\.txt lists no clip"),
        ("caf\udce9\n", r"test_list\.txt cannot be read \(it is not utf-8\)"),
    ],
)
def test_a_bad_list_of_msvd_is_named(data: Path, listed: str, said: str) -> None:
    (data / "MSVD/test_list.txt").write_bytes(listed.encode(errors="surrogateescape"))
    rows = [{"id": "a", "captions": ["x"]}, {"id": "b", "captions": ["y"]}, {"id": "e", "captions": []}]
    (data / "MSVD/raw-captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataInvalid, match=said):
        load(MSVD, data)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "00jrXRMlZOY_0_10", "captions": ["x"]}, "clip '00jrXRMlZOY_0_10' stands there twice"),
        ({"id": "zulPFoY64wE_26_33"}, "no field 'captions'"),
        ({"id": "zulPFoY64wE_26_33", "captions": "x"}, "captions must be a list, not 'x'"),
        ({"id": "zulPFoY64wE_26_33", "captions": ["x", " "]}, r"captions\[1\] is an empty text"),
        ({"id": "zulPFoY64wE_26_33", "captions": [["x"]]}, r"captions\[0\] must be a text, not \['x'\]"),
        ({"captions": ["x"]}, "no field 'id'"),
    ],
)
def test_a_bad_row_of_msvd_is_named(data: Path, row: dict[str, Any], said: str) -> None:
    file = data / "MSVD/raw-captions.jsonl"
    lines = file.read_text().splitlines()
    assert json.loads(lines[2])["id"] == "zulPFoY64wE_26_33"
    lines[2] = json.dumps(row)
    file.write_text("\n".join(lines))
    with pytest.raises(DataInvalid, match=rf"raw-captions\.jsonl, line 3: {said}"):
        load(MSVD, data)


def convert(data: Path) -> list[str]:
    assert MSVD.convert is not None
    return list(MSVD.convert(data))


def test_msvd_converts_to_what_the_miniature_has(data: Path) -> None:
    file = data / "MSVD/raw-captions.jsonl"
    wanted = file.read_text()
    file.unlink()
    (data / "MSVD").rename(data / "msvd")  # the names may be in another case
    file = data / "msvd/raw-captions.jsonl"
    assert convert(data) == [f"wrote {file}: 4 clips, 12 captions"]
    assert file.read_text() == wanted
    assert len(load(MSVD, data).queries) == 9
    (data / "msvd/raw-captions.pkl").unlink()
    with pytest.raises(DataMissing, match=r"raw-captions\.pkl is missing: .*CLIP4Clip/releases/tag/v0\.0"):
        convert(data)


def test_words_of_python_2_are_joined_with_blanks_and_a_clip_without_captions_stays(data: Path) -> None:
    content = {"a": [["a", "café"], ["x"]], "b": []}
    (data / "MSVD/raw-captions.pkl").write_bytes(miniature.pickled(content, python2=True))
    assert convert(data)[0].endswith("2 clips, 2 captions")
    rows = [json.loads(line) for line in (data / "MSVD/raw-captions.jsonl").read_text().splitlines()]
    assert rows == [{"id": "a", "captions": ["a café", "x"]}, {"id": "b", "captions": []}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": [["x"], "y z"]}, "entry 'a': caption 1 must be a list of words, not 'y z'"),
        ({"a": [["x", 5]]}, r"entry 'a': caption 0 must be a list of words, not \['x', 5\]"),
        ({"a": "x"}, "entry 'a': a list of captions is wanted, not 'x'"),
        ({"a": None}, "entry 'a': a list of captions is wanted, not None"),
        ([["x"]], "a dict of clips is wanted"),
        (b"<html>", "is not a pickle"),
        (b"cos\nsystem\n(S'touch executed'\ntR.", r"refers to os\.system: .* nothing was executed"),
    ],
)
def test_a_fault_in_the_original_of_msvd_is_named_and_writes_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch, content: Any, said: str
) -> None:
    monkeypatch.chdir(data)
    before = (data / "MSVD/raw-captions.jsonl").read_text()
    written = content if isinstance(content, bytes) else miniature.pickled(content)
    (data / "MSVD/raw-captions.pkl").write_bytes(written)
    with pytest.raises(DataInvalid, match=rf"raw-captions\.pkl[,:]? {said}"):
        convert(data)
    assert (data / "MSVD/raw-captions.jsonl").read_text() == before
    assert not (data / "executed").exists()


# MSR-VTT


def test_msrvtt_s_rows_are_queries_and_clips_in_order(data: Path) -> None:
    collection = load(MSRVTT, data)
    assert list(captions(collection)) == [f"ret{i}" for i in range(6)]
    assert list(clips(collection))[:2] == ["video9770", "video9771"]
    assert clips(collection)["video9771"] == Video(data / "msrvtt/videos/video9771.mp4")
    assert collection.qrels["ret1"] == {"video9771": 1}
    assert captions(collection)["ret1"] == captions(collection)["ret4"] == "something is moving"


Change = Callable[[str], str]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda text: text.replace("sentence", "sentences", 1),
            ": the header has 'sentences' where 'sentence' is wanted: rename the column.*CLIP4Clip",
        ),
        (
            lambda text: text.partition("\n")[2],
            ": the header is key,vid_key,video_id,sentence, not 'ret0,msr",
        ),
        (lambda text: "", ": the header is key,vid_key,video_id,sentence, not ''"),
        (lambda text: text.replace("ret3", "ret1"), ", line 5: key 'ret1' stands there twice"),
        (
            lambda text: text.replace("video9773", "video9770"),
            ", line 5: video_id 'video9770' stands there twice",
        ),
        (
            lambda text: text.replace("video9773", "../x"),
            r", line 5: video_id: '\.\./x' is no name of a clip",
        ),
        (lambda text: text.replace("video9773", "a/x"), ", line 5: video_id: 'a/x' is no name of a clip"),
        (lambda text: text.replace("video9773", " "), ", line 5: video_id is an empty text"),
        (lambda text: text.replace("something is moving", "", 1), ", line 3: sentence is an empty text"),
        (lambda text: text.replace(",something is moving", "", 1), ", line 3: 4 fields are wanted"),
        (
            lambda text: text.replace("g is moving", "g, x", 1),
            ", line 3: 4 fields are wanted; one that has a comma",
        ),
        (
            lambda text: text.replace("something", '"something', 1),
            r", line 3: not CSV \(unexpected end of data\)",
        ),
        (lambda text: text.replace("something", "\udce9", 1), r" cannot be read \(it is not utf-8\)"),
    ],
)
def test_a_bad_file_of_msrvtt_is_named(data: Path, change: Change, said: str) -> None:
    file = data / "msrvtt/annotations/MSRVTT_JSFUSION_test.csv"
    file.write_bytes(change(file.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(DataInvalid, match=rf"MSRVTT_JSFUSION_test\.csv{said}"):
        load(MSRVTT, data)


def test_a_caption_in_quotes_may_have_commas_and_a_mark_of_utf_8_is_no_part_of_the_header(data: Path) -> None:
    file = data / "msrvtt/annotations/MSRVTT_JSFUSION_test.csv"
    text = file.read_text().replace("something is moving", '"it moves, ""fast"""', 1)
    file.write_text(text, encoding="utf-8-sig")
    assert captions(load(MSRVTT, data))["ret1"] == 'it moves, "fast"'
