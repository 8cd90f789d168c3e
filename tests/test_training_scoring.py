"""Teacher scores: what is listed, what it is scored, and how both scores are fused."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import training_toys as toys

from harness.content import Ask, item
from harness.errors import CheckpointMissing, HarnessError, UnknownName
from harness.evaluate import Retrieved
from harness.models.qwen_rerank import open_reranker
from harness.models.training.lists import SCORED
from harness.models.training.scoring import Teacher, fused, listed, score
from harness.models.umarvel import SPEC
from harness.ranks import Ranks
from harness.run import BEYOND, Found, Ragged, Run, SearchRequest
from harness.search import ArrayRows

NAMES = ("rank", "candidate_id", "cosine", "p_yes", "fused", "positive")


@pytest.fixture
def stage(tmp_path, tiny_qwen):
    (tmp_path / "reranker").mkdir()
    (tmp_path / "reranker" / "model").symlink_to(tiny_qwen["qwen2_5_vl"])
    return toys.stage(
        tmp_path,
        inputs={"reranker": tmp_path / "reranker"},
        base=str(tiny_qwen["qwen2_vl"]),
        pools="local",
        depth=3,
        share=0.5,
        lists="top",
        weights="*=1.0,*/b=0.5",
    )


def scored(stage, **settings) -> dict[tuple[str, str], list[dict]]:
    stage = replace(stage, settings={**stage.settings, **settings})
    score(stage, SPEC)
    found = defaultdict(list)
    for row in pq.read_table(stage.folder / SCORED).to_pylist():
        found[row["task"], row["query_id"]].append(row)
    return found


def retrieved(rows, scores, positives, positive_scores) -> Retrieved:
    """Of a pool c0 … c9."""
    rows, scores = np.array(rows, np.int32), np.array(scores, np.float32)
    right, none = Ragged.of(positives), np.zeros(len(positive_scores), np.int32)
    found = Found(rows, scores, np.array(positive_scores, np.float32), none + BEYOND, none, none)
    ids = [f"c{i}" for i in range(10)]
    run = Run([f"q{i}" for i in range(len(rows))], ids, "pool", rows, scores)
    request = SearchRequest(ArrayRows(scores), ArrayRows(scores), 2, right)
    return Retrieved(run, found, request, np.ones(len(right.values), np.int64))


def test_positives_that_were_not_retrieved_stand_behind_what_was():
    """Query 0 has retrieved its 4, not its 7; query 1 can never retrieve its 5."""
    found = retrieved([[4, 2], [1, 0]], [[0.9, 0.8], [0.7, 0.6]], [[4, 7], [5]], [0.9, 0.1, -np.inf])
    lists = listed(found, 2, "top")
    assert lists.run.rows.tolist() == [[4, 2, 7], [1, 0, -1]]
    assert lists.run.scores[0].tolist() == pytest.approx([0.9, 0.8, 0.1])
    assert lists.retrieved == 2


def test_the_last_of_a_deeper_list_are_its_end():
    found = retrieved(
        [[4, 2, 0, 3], [1, 0, 9, -1]], [[0.9, 0.8, 0.7, 0.6], [0.7, 0.6, 0.5, -np.inf]], [[], []], []
    )
    assert listed(found, 2, "last").run.rows.tolist() == [[0, 3], [0, 9]]
    assert listed(found, 9, "last").run.rows.tolist() == [[4, 2, 0, 3], [1, 0, 9, -1]]


def test_fused_is_the_cosine_and_a_part_of_the_reranker_s_score():
    """0.9 + 0.5 · 0.2 = 1.0 and 0.8 + 0.5 · 0.8 = 1.2: the second goes first. What was not retrieved
    comes behind, though it is 0.5 + 0.5 · 1.0 = 1.0 too."""
    found = retrieved([[4, 2]], [[0.9, 0.8]], [[7]], [0.5])
    p_yes = np.array([[0.2, 0.8, 1.0]], np.float32)
    out = fused(listed(found, 5, "top"), "toys/a", toys.TASKS[0], 5, p_yes, 0.5)
    assert out.values["fused"][0].tolist() == pytest.approx([1.0, 1.2, 1.0])
    assert out.ranks.tolist() == [[2, 1, 6]]


def test_a_table_of_scores_is_what_retriever_and_reranker_say(stage):
    found = scored(stage)
    frontend = open_reranker("t", "", None, {"path": str(stage.inputs["reranker"] / "model")})
    reranker = frontend.load("cpu")
    corpus = toys.corpus(share=0.5)
    visited = {
        (lesson.task, lesson.queries[lesson.visits[at]].id)
        for lesson, rows in zip(corpus.lessons, corpus.rows, strict=True)
        for at in rows
    }
    assert set(found) == visited
    assert len(visited) == 5 // 2 + 4 // 2
    for (task, name), rows in found.items():
        lesson = next(each for each in corpus.lessons if each.task == task)
        query = next(each for each in lesson.queries if each.id == name)
        candidates = {c.id: item(c) for c in lesson.candidates}
        ask = Ask(item(query), tuple(candidates[row["candidate_id"]] for row in rows))
        p_yes = reranker.score(frontend.prepare([ask])).tolist()
        weight = 0.5 if task == "toys/b" else 1.0
        assert [row["p_yes"] for row in rows] == pytest.approx(p_yes, abs=1e-2)
        for row in rows:
            assert row["fused"] == pytest.approx(row["cosine"] + weight * row["p_yes"], abs=1e-6)
        within = [row["fused"] for row in rows if row["rank"] <= 3]
        assert within == sorted(within, reverse=True)
        assert [row["rank"] for row in rows] in ([1, 2, 3], [1, 2, 3, 4])
        letter = task.removeprefix("toys/")
        assert [row["candidate_id"] for row in rows if row["positive"]] == [name.replace("q", letter)]


def test_lists_may_be_drawn_or_the_last_ones(stage):
    top, drawn, last = (scored(stage, lists=name) for name in ("top", "random", "last"))
    listed = [
        {key: {row["candidate_id"] for row in rows if row["rank"] <= 3} for key, rows in each.items()}
        for each in (top, drawn, last)
    ]
    assert [{len(ids) for ids in each.values()} for each in listed] == [{3}] * 3
    assert listed[0] != listed[1]
    assert all(
        not top_ids & last_ids
        for top_ids, last_ids in zip(listed[0].values(), listed[2].values(), strict=True)
    )
    assert all(sum(row["positive"] for row in rows) == 1 for rows in drawn.values())
    assert scored(stage, lists="random") == drawn


@dataclass(frozen=True, slots=True)
class Alone(Ranks):
    """A rank whose others have come and gone."""

    def wait(self, device: str) -> None:
        return


def test_ranks_score_a_share_each_and_the_first_one_writes(stage, tmp_path):
    expected = scored(stage)
    elsewhere = replace(stage, folder=tmp_path / "two", cache_dir=tmp_path / "two-cache")
    first, second = (replace(elsewhere, ranks=Alone(rank, 2)) for rank in range(2))
    score(second, SPEC)
    assert not (second.folder / SCORED).exists()
    assert 0 < len(Teacher.open(second).store) < sum(map(len, expected.values()))
    found = scored(first)
    assert found.keys() == expected.keys()
    for key, rows in expected.items():
        assert sorted(row["p_yes"] for row in found[key]) == pytest.approx(
            sorted(row["p_yes"] for row in rows), abs=1e-4
        )


@pytest.mark.parametrize(
    ("settings", "error", "line"),
    [
        ({"lists": "best"}, UnknownName, "unknown lists 'best'"),
        ({"weights": "*=much"}, HarnessError, r"setting weights '\*=much' is not a number"),
    ],
)
def test_a_setting_that_means_nothing_is_an_error(stage, settings, error, line):
    with pytest.raises(error, match=line):
        scored(stage, **settings)


def test_a_reranker_that_is_not_there_is_an_error_before_anything_is_encoded(stage, tmp_path):
    with pytest.raises(CheckpointMissing, match=r"there is no checkpoint at .*gone/model"):
        scored(replace(stage, inputs={"reranker": tmp_path / "gone"}))
    assert not (tmp_path / "cache" / "embeddings").exists()
