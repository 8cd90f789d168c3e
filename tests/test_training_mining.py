"""Mining retrieves exactly what a search by hand of the stored vectors does, and says what is a positive."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import training_toys as toys

from harness.collection import Pool, union
from harness.content import Candidate, Text
from harness.errors import DataInvalid, UnknownName
from harness.evaluate import Session, embed, joined
from harness.models.training.lists import MINED
from harness.models.training.mining import Retriever, collections, mine
from harness.models.umarvel import SPEC
from harness.ranks import Ranks


@pytest.fixture
def stage(tmp_path, tiny_qwen):
    return toys.stage(tmp_path, base=str(tiny_qwen["qwen2_vl"]), pools="global", depth=6)


def mined(stage) -> list[dict]:
    mine(stage, SPEC)
    return pq.read_table(stage.folder / MINED).to_pylist()


def by_hand(stage) -> list[tuple]:
    """(task, query, rank, home, candidate, score): every product in float64, pool order among equals."""
    retriever = Retriever.open(stage, SPEC)
    session = Session.start(retriever.options)
    found = []
    for task, collection in collections(stage):
        homes = [part.name for part in collection.pool.candidates for _ in range(len(part))]
        parts = [collection.queries, *collection.pool.leaves()]
        keys, _ = embed(session, retriever.opened, parts, title="by hand")
        store = session.store(retriever.opened)
        queries, pool = (
            store.rows(each.keys).block(0, len(each.keys)).astype(np.float64)
            for each in (keys[0], joined(keys[1:]))
        )
        scores = (queries @ pool.T).astype(np.float32)
        for query, row in sorted(
            zip((q.id for q in collection.queries), scores, strict=True), key=lambda x: x[0]
        ):
            best = np.argsort(-row, kind="stable")[: int(stage.settings["depth"])]
            found += [
                (task.name, query, rank, homes[at], collection.pool.ids[at], float(row[at]))
                for rank, at in enumerate(best.tolist(), 1)
            ]
    return found


@pytest.mark.parametrize("pools", ["local", "global"])
def test_mining_is_exact_in_either_pool(stage, pools):
    stage = replace(stage, settings={**stage.settings, "pools": pools})
    rows = mined(stage)
    assert [
        tuple(row[n] for n in ("task", "query_id", "rank", "home", "candidate_id", "score")) for row in rows
    ] == (by_hand(stage))
    assert len(rows) == 9 * 6
    assert {row["home"] == row["task"] for row in rows} == ({True} if pools == "local" else {True, False})
    for row in rows:
        letter = row["task"].removeprefix("toys/")
        assert row["positive"] == (row["candidate_id"] == row["query_id"].replace("q", letter))
    assert sum(row["positive"] for row in rows)


def test_a_candidate_that_two_pools_hold_is_retrieved_once(stage):
    stage = replace(stage, settings={**stage.settings, "depth": 100})
    of_query = [row for row in mined(stage) if row["query_id"] == "q0" and row["task"] == "toys/b"]
    assert len(of_query) == 8 + 6 + 1
    assert [row["home"] for row in of_query if row["candidate_id"] == "both"] == ["toys/a"]


def test_one_id_with_two_contents_is_an_error_in_a_union_of_pools():
    one, other = (Pool(name, [Candidate("c", (Text(name),))]) for name in "ab")
    with pytest.raises(DataInvalid, match="candidate id 'c' has two contents in pool 'global'"):
        union("global", (one, other))


def test_the_table_says_what_it_was_made_of(stage):
    mined(stage)
    about = json.loads(pq.ParquetFile(stage.folder / MINED).schema_arrow.metadata[b"harness"])
    assert (about["model"], about["pool"], about["depth"]) == (stage.settings["base"], "global", 6)
    assert set(about["tasks"]) == {"toys/a", "toys/b"}
    assert about["identity"]["pool"] == "mean"
    assert about["identity"]["dtype"] == "float32"


def test_mining_twice_gives_equal_bytes(stage):
    mined(stage)
    first = (stage.folder / MINED).read_bytes()
    mined(stage)
    assert (stage.folder / MINED).read_bytes() == first


def test_an_unknown_pool_is_an_error(stage):
    with pytest.raises(UnknownName, match="unknown pools 'everywhere': known: global, local"):
        mine(replace(stage, settings={**stage.settings, "pools": "everywhere"}), SPEC)


@dataclass(frozen=True, slots=True)
class Alone(Ranks):
    """A rank whose others have come and gone."""

    def wait(self, device: str) -> None:
        return


def test_ranks_encode_a_share_each_and_the_first_one_searches(stage, tmp_path):
    expected = mined(stage)
    elsewhere = replace(stage, folder=tmp_path / "two", cache_dir=tmp_path / "two-cache")
    first, second = (replace(elsewhere, ranks=Alone(rank, 2)) for rank in range(2))
    mine(second, SPEC)
    assert not (second.folder / MINED).exists()
    retriever = Retriever.open(second, SPEC)
    store = Session.start(retriever.options).store(retriever.opened)
    assert len(store) == 2 + 2 + 4 + 3  # of 5 and 4 queries, 9 and 6 candidates
    shared = mined(first)
    assert [row["score"] for row in shared] == pytest.approx([row["score"] for row in expected], abs=2e-3)
    assert len(shared) == len(expected)
