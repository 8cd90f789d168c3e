"""What a stored run gets wrong, why, and the page that shows it."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_boards import HOSTILE, Page
from test_leaderboard import SETTINGS

from harness.collection import Collection, Pool
from harness.content import Candidate, Image, Query, Text, Video
from harness.errors import DataInvalid, HarnessError
from harness.failures import inspect
from harness.gallery import gallery
from harness.likeness import near_duplicates
from harness.metrics import MAP, Hit
from harness.result import Result, Score, read_stored
from harness.run import Run
from harness.testing import write_clip, write_picture
from toys import task as make_task


def candidate(name, *parts):
    return Candidate(name, tuple(Text(p) if isinstance(p, str) else p for p in parts or (name,)))


def problem(pool, qrels, **more):
    queries = [Query(q, (Text(f"question {q}"),), "Find it.") for q in qrels]
    whole = Pool("all", pool)
    collection = Collection(queries, whole, {q: dict.fromkeys(c, 1) for q, c in qrels.items()})
    return make_task(lambda: collection, "toys/t", **{"metrics": (Hit(1),), **more})


def store(folder, task, lists, outcomes, model="m", started="2026-01-01", **more):
    """A result as `harness eval` leaves it: `lists` are the (id, score) of each query."""
    key = task.headline.key
    result = Result(
        model=model,
        identity={"weights": "w"},
        identity_id="i",
        task=task.name,
        protocol={**SETTINGS, "task": task.name, "version": 1},
        protocol_id="p",
        status="complete",
        metrics={key: Score(float(np.mean(list(outcomes.values()))), (0.0, 1.0), len(outcomes))},
        headline=key,
        provenance={"started": started},
    )
    path = dataclasses.replace(result, **more).write(folder)
    ids = list(dict.fromkeys(name for listed in lists.values() for name, _ in listed))
    k = max(map(len, lists.values()))
    rows, scores = np.full((len(lists), k), -1, np.int32), np.full((len(lists), k), -np.inf, np.float32)
    for q, listed in enumerate(lists.values()):
        for i, (name, score) in enumerate(listed):
            rows[q, i], scores[q, i] = ids.index(name), score
    Run(list(lists), ids, "all", rows, scores).write(path.with_suffix(".run.gz"), "m")
    table = pa.table({"query": list(outcomes), key: list(outcomes.values())})
    pq.write_table(table, path.with_suffix(".queries.parquet"))
    return path


def look(task, folder, *models, **more):
    return inspect(task, models or ["m"], read_stored(folder), data=folder, **more)


def descending(*names):
    return [(name, 1 - i / 10) for i, name in enumerate(names)]


ABC = [candidate(n) for n in "abcdefg"]


def test_the_worst_come_first_by_headline_then_by_how_deep_the_relevant_one_stands(tmp_path):
    task = problem(ABC, {"near": ["a"], "right": ["b"], "gone": ["c"], "far": ["d"]})
    lists = {
        "near": descending("b", "a"),
        "right": descending("b"),
        "gone": descending("a", "b", "d"),
        "far": descending("a", "b", "d"),
    }
    store(tmp_path, task, lists, {"near": 0.0, "right": 1.0, "gone": 0.0, "far": 0.0})
    report = look(task, tmp_path)
    assert [f.query.id for f in report.failures] == ["gone", "far", "near"]
    assert (report.queries, report.wrong) == (4, 3)
    assert [f.query.id for f in look(task, tmp_path, worst=1).failures] == ["gone"]
    far = report.failures[1].ranking
    assert [(a.candidate.id, a.rank, a.relevant) for a in far.answers] == [
        ("a", 1, False), ("b", 2, False), ("d", 3, True)
    ]  # fmt: skip
    assert far.relevant[0].score == pytest.approx(0.8)
    assert report.failures[0].ranking.relevant[0].rank is None


def reason(folder, pool, lists, relevant, **more):
    task = problem(pool, {"q": relevant}, **more)
    store(folder, task, {"q": lists}, {"q": 0.0})
    return look(task, folder).failures[0].ranking.reason


def test_a_tie_is_named_where_the_rule_decides_and_only_there(tmp_path):
    tied = [("a", 0.9), ("b", 0.9), ("c", 0.5)]
    assert reason(tmp_path, ABC, tied, ["b"]) == "tie"
    assert reason(tmp_path, ABC, [("a", 0.9), ("b", 0.8), ("c", 0.8)], ["c"]) == "other"  # lost to a anyway
    deeper = [("a", 0.9), ("b", 0.8), ("c", 0.8)]
    assert reason(tmp_path, ABC, deeper, ["c"], metrics=(Hit(2),)) == "tie"


def test_a_wrong_modality_and_a_wrong_part_of_a_union_are_told_apart(tmp_path, media):
    texts = Pool("texts", [candidate("t"), candidate("u")])
    pictures = Pool("pictures", [candidate("p", Image(media / "p0.png"))])
    more = Pool("more texts", [candidate("v")])
    union = (texts, pictures, more)
    assert reason(tmp_path, union, descending("p", "t"), ["t"]) == "wrong modality"
    assert reason(tmp_path, union, descending("v", "t"), ["t"]) == "wrong data set"
    assert reason(tmp_path, union, descending("u", "t"), ["t"]) == "other"
    assert reason(tmp_path, union, descending("u"), ["outside", "v"]) == "wrong data set"
    many = [candidate(f"p{i}", Image(media / f"p{i}.png")) for i in range(6)]
    mixed = [*many, candidate("t"), candidate("u")]
    found = descending(*(c.id for c in many), "u", "t")
    assert reason(tmp_path, mixed, [("u", 2.0), *found], [*(c.id for c in many), "t"]) == "other"


def test_near_duplicates_are_named(tmp_path):
    pool = [candidate("a", "A cat, asleep."), candidate("b", "a CAT asleep"), candidate("c", "a dog")]
    assert reason(tmp_path, pool, descending("a", "b"), ["b"]) == "near-duplicate"
    assert reason(tmp_path, pool, descending("c", "b"), ["b"]) == "other"


def test_pictures_and_clips_are_near_duplicates_by_what_they_show(tmp_path):
    from PIL import Image as Pil

    write_picture(tmp_path / "a.png", seed=1, size=(64, 48))
    write_picture(tmp_path / "b.png", seed=2, size=(64, 48))
    with Pil.open(tmp_path / "a.png") as picture:
        picture.convert("RGB").resize((128, 96)).save(tmp_path / "again.jpg", quality=80)
    write_clip(tmp_path / "a.mp4", seed=1, frames=4)
    write_clip(tmp_path / "b.mp4", seed=9, frames=4)
    a, again, b = (Image(tmp_path / name) for name in ("a.png", "again.jpg", "b.png"))
    assert near_duplicates([a], [again])
    assert not near_duplicates([a], [b])
    assert not near_duplicates([a], [a, Text("and more")])
    assert not near_duplicates([a], [Text("a")])
    assert near_duplicates([Video(tmp_path / "a.mp4")], [Video(tmp_path / "a.mp4", frames=2)])
    assert not near_duplicates([Video(tmp_path / "a.mp4")], [Video(tmp_path / "b.mp4")])
    assert not near_duplicates([a], [Image(tmp_path / "gone.png")])


def test_from_one_model_to_another_queries_are_fixed_broken_or_wrong_in_both(tmp_path):
    task = problem(ABC, {q: [q] for q in "abcd"})
    lists = {q: descending("g", q) for q in "abcd"}
    store(tmp_path, task, lists, {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0})
    store(tmp_path, task, lists, {"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0}, model="n")
    report = look(task, tmp_path, "m", "n")
    assert {f.query.id: f.change for f in report.failures} == {"b": "broken", "a": "fixed", "c": "both wrong"}
    assert report.changes == {"broken": 1, "fixed": 1, "both wrong": 1}
    broken = report.failures[0]
    assert (broken.ranking.reason, broken.other.reason) == (None, "other")


def test_graded_headlines_change_by_less_than_all(tmp_path):
    task = problem(ABC, {"a": ["a", "b"]}, metrics=(MAP(5),))
    store(tmp_path, task, {"a": descending("a", "g", "b")}, {"a": 5 / 6})
    store(tmp_path, task, {"a": descending("g", "a", "b")}, {"a": 7 / 12}, model="n")
    assert look(task, tmp_path, "m", "n").failures[0].change == "broken"


def test_the_newest_result_with_a_run_is_taken(tmp_path):
    task = problem(ABC, {"a": ["a"]})
    for identity, day, value in (("old", "2026-01-01", 0.0), ("new", "2026-02-01", 1.0)):
        store(tmp_path, task, {"a": descending("a")}, {"a": value}, started=day, identity_id=identity)
    assert look(task, tmp_path).wrong == 0
    assert look(task, tmp_path, "m@old").wrong == 1
    store(
        tmp_path,
        task,
        {"a": descending("a")},
        {"a": 0.0},
        started="2026-03-01",
        identity_id="smoke",
        status="partial",
    )
    mean = store(tmp_path, task, {"a": descending("a")}, {"a": 0.0}, started="2026-03-01", identity_id="mean")
    mean.with_suffix(".queries.parquet").unlink()
    assert look(task, tmp_path).results[0].identity_id == "new"


def test_what_cannot_be_inspected_is_one_clear_line(tmp_path):
    task = problem(ABC, {"a": ["a"]})
    with pytest.raises(
        HarnessError, match=r"no result of model 'm' on toys/t: run 'harness eval -m m -t toys/t'"
    ):
        look(task, tmp_path)
    path = store(tmp_path, task, {"a": descending("a")}, {"a": 0.0})
    store(tmp_path, task, {"a": descending("a")}, {"a": 0.0}, model="n", files={"x": "other"})
    with pytest.raises(HarnessError, match="was made on the data of the first model's"):
        look(task, tmp_path, "m", "n")
    with pytest.raises(DataInvalid, match="toys/t: x is not what the result was made of"):
        look(task, tmp_path, "n")
    path.with_suffix(".run.gz").unlink()
    with pytest.raises(HarnessError, match=r"run\.gz is missing: copy it"):
        look(task, tmp_path)
    path.with_suffix(".queries.parquet").unlink()
    with pytest.raises(HarnessError, match="no result of model 'm' on toys/t has per-query outcomes"):
        look(task, tmp_path)


@pytest.fixture
def shown(tmp_path, media):
    """A gallery over a hostile caption, a picture, a clip and a file that is gone."""
    write_clip(tmp_path / "clip.mp4", seed=1, frames=4)
    pool = [
        candidate("evil", HOSTILE),
        candidate("<i>p</i>", Image(media / "p0.png"), "with a caption"),
        candidate("clip", Video(tmp_path / "clip.mp4")),
        candidate("gone", Image(tmp_path / "gone.png")),
        candidate("long", "word " * 400),
        *ABC,
    ]
    task = problem(pool, {HOSTILE: ["g"]})
    store(
        tmp_path,
        task,
        {HOSTILE: descending("evil", "<i>p</i>", "clip", "gone", "long", "b", "g")},
        {HOSTILE: 0.0},
    )
    return look(task, tmp_path)


def test_the_page_shows_parts_scores_and_the_relevant_one_below(shown):
    text = gallery(shown)
    page = Page(text)
    pictures = [i["src"] for i in page.of("img")]
    assert len(pictures) == 1 + 3  # a picture and three frames
    assert all(uri.startswith("data:image/webp;base64,") for uri in pictures)
    cards = [c["class"] for c in page.of("li") if c["class"].startswith("card")]
    assert cards == ["card"] * 5 + ["card relevant"]
    said = " ".join(data.strip() for _, data in page.texts)
    assert "first relevant at rank 7" in said
    assert "0.4000" in said
    assert "gone.png cannot be read" in said
    assert "Find it." in said
    assert "question" in said
    assert page.of("article")[0]["data-kinds"] == "other"


def test_hostile_text_stays_text_and_the_page_stands_alone(shown):
    text = gallery(shown)
    page = Page(text)
    assert len(page.of("script")) == 1
    assert HOSTILE in [data for tag, data in page.texts if tag == "div"]
    assert "<i>p</i>" in [data for tag, data in page.texts if tag == "div"]
    assert not re.search(r"""(?:src|href)=["'](?!#|data:image/webp)|url\(|@import|https?://""", text)


def test_without_images_their_names_stand_there(shown):
    text = gallery(shown, pictures=False)
    assert "data:image" not in text
    assert "<img" not in text
    assert "picture p0.png" in text
    assert "clip clip.mp4" in text


def test_the_command_writes_a_page_from_stored_runs(cli):
    for model, seed in (("random", 0), ("random", 1)):
        cli(
            "eval",
            "-q",
            "-m",
            model,
            "-t",
            "demo/composed",
            "--model-arg",
            f"seed={seed}",
            "-o",
            f"runs{seed}",
        )
    code, _, err = cli("inspect", "-m", "random", "-t", "demo/composed", "--runs", "runs0", "--worst", 3)
    assert code == 0
    (page,) = Path().glob("gallery-random-demo-composed.html")
    assert "3 of 44 queries shown" in err
    assert Page(page.read_text()).of("article")
    code, _, err = cli(
        "inspect", "-m", "random", "--vs", "random", "-t", "demo/composed", "--runs", "runs0", "--no-images",
        "--out", "x.html",
    )  # fmt: skip
    assert code == 0
    assert "<img" not in Path("x.html").read_text()
    code, _, err = cli("inspect", "-m", "random", "-t", "demo/*", "--runs", "runs0")
    assert (code, "choose one" in err) == (2, True)
