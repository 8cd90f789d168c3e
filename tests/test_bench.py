"""`harness bench` at tiny sizes: every comparison runs, its answers are right, its rows are complete."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from harness.bench import Peer, Row, SearchSizes, Timing, full_shape, start, timing
from harness.bench import search as bench_search
from harness.bench.candidates import POOLS, candidates
from harness.bench.full_shape import CANDIDATES
from harness.bench.growth import exponent
from harness.bench.plots import goal
from harness.bench.pools import pool_and_queries, unit
from harness.cli import app
from harness.content import Image, Text
from harness.registry import load_catalog
from harness.run import Ragged, SearchRequest
from harness.search import ArrayRows, search

KEYS = {"case", "ours_s", "peer", "peer_s", "ratio", "identical", "peak_gib", "floor_s", "floor"}
SMALL = ("--n", "700", "--dim", "16", "--queries", "9", "--rounds", "1")


def rows(*arguments: str) -> list[dict]:  # type: ignore[type-arg]
    done = CliRunner().invoke(app, ["bench", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    for row in found:
        assert set(row) == KEYS
        assert row["ratio"] > 0
    return found


@pytest.mark.parametrize("order", ["random", "ascending"])
def test_search(order):
    found = rows("search", *SMALL, "--k", "5", "--k", "900", "--order", order)
    peers = [row["peer"].split()[0] for row in found if not row["peer"].startswith("sentence")]
    assert peers == ["faiss", "torch", "numpy", "one", "ours,"] * 2
    assert {row["identical"] for row in found} == {True}


def test_search_in_float32_says_so():
    assert all(" float32, " in row["case"] for row in rows("search", *SMALL, "--k", "5", "--float32"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_search_of_rows_in_another_type(dtype, tmp_path):
    asked = ("search", *SMALL, "--k", "5", "--store-dtype", dtype)
    found = [*rows(*asked), *rows(*asked, "--on-disk", str(tmp_path)), *rows(*asked, "--gallery", "20")]
    assert all(f"× 16 {dtype}" in row["case"] for row in found)
    assert {row["identical"] for row in found} == {True}
    assert any(row["peer"].startswith("ours") for row in found) == (dtype != "float32")


def test_a_search_scaled_to_the_full_shape():
    found = rows("search", *SMALL, "--k", "5", "--full-shape")
    assert all(row["case"].startswith("M-BEIR global from a slice: ") for row in found)


def test_search_on_disk_leaves_no_file(tmp_path):
    (row,) = rows("search", *SMALL, "--k", "5", "--on-disk", str(tmp_path))
    assert row["identical"]
    assert not list(tmp_path.iterdir())


def test_galleries():
    (row,) = rows("search", *SMALL, "--gallery", "20")
    assert row["identical"] is True


def test_without_faiss_one_line_says_so_and_the_others_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["bench", "search", *SMALL])
    assert "note: faiss is not installed" in done.stderr
    assert "torch matmul" in done.stdout
    assert "faiss IndexFlatIP" not in done.stdout


def test_candidates_are_mixed_as_in_mbeir(tmp_path):
    """Its global pool: 885,040 pictures, 2,456,859 texts and 2,267,180 of both."""
    assert sum(pool[0] for pool in POOLS) == CANDIDATES
    made = candidates(200, tmp_path)
    kinds = [tuple(type(part) for part in item.parts) for item in made]
    assert [kinds.count(kind) for kind in ((Image,), (Text,), (Image, Text))] == pytest.approx(
        [200 * n / CANDIDATES for n in (885_040, 2_456_859, 2_267_180)], abs=6
    )


def test_encode_pictures(tmp_path):
    spec = load_catalog().model("qwen2-vl-random")
    given = [f"--model-arg={key}={value}" for key, value in spec.tiny(tmp_path).items()]
    found = rows("encode", "-m", spec.name, *given, "--pictures", "--items", "20", "--rounds", "1")
    assert [row["peer"] for row in found] == [
        f"batches of 16 in {name} order" for name in ("the pool's", "a shuffled")
    ]
    assert all(row["identical"] for row in found)


def test_encode(tmp_path):
    spec = load_catalog().model("minilm")
    given = [f"--model-arg={key}={value}" for key, value in spec.tiny(tmp_path).items()]
    found = rows("encode", "-m", "minilm", *given, "--items", "40", "--rounds", "1")
    assert [row["identical"] for row in found] == [True] * 4


def test_evaluations_of_texts_agree(tmp_path):
    path = load_catalog().model("sentence-transformers").tiny(tmp_path)["path"]
    found = rows("eval", "texts", "--path", path, "--queries", "20", "--pool", "60", "--threads", "1")
    assert {row["case"].rpartition(", ")[2] for row in found} == {"cold", "warm"}
    assert any("sentence-transformers" in row["peer"] for row in found)
    assert all(row["identical"] for row in found)


@pytest.mark.parametrize("source", ["drawn", "stamps"])
def test_evaluations_of_pictures_agree(tmp_path, source):
    path = load_catalog().model("clip").tiny(tmp_path / "weights")["pretrained"]
    sizes = ("--queries", "9", "--pool", "16")
    if source == "stamps":
        load_catalog().tasks["stamps/text-to-image-en"].mini(tmp_path / "data")
        sizes = ("--tasks", "stamps/text-to-image-en", "--data", str(tmp_path / "data"))
    found = rows("eval", "pictures", "--path", path, *sizes, "--threads", "1")
    assert all(row["identical"] for row in found)


def test_a_task_without_pictures_is_one_line(tmp_path):
    path = load_catalog().model("clip").tiny(tmp_path / "weights")["pretrained"]
    load_catalog().tasks["stamps/image-to-text-en"].mini(tmp_path / "data")
    given = ("--tasks", "stamps/image-to-text-en", "--data", str(tmp_path / "data"))
    done = CliRunner().invoke(app, ["bench", "eval", "pictures", "--path", path, *given])
    assert "is no picture: name another task" in str(done.exception)
    done = CliRunner().invoke(app, ["bench", "eval", "pictures", "--path", path, "--tasks", "stamps/*"])
    assert "tasks: name one" in str(done.exception)


def test_metrics():
    found = rows("metrics", "--queries", "50", "--rounds", "1")
    assert all(row["identical"] for row in found)
    peers = [row["peer"] for row in found]
    assert {"pytrec_eval evaluate", "ir-measures evaluate"} < set(peers)
    assert sum("numpy loop" in peer for peer in peers) == 3


def test_start(monkeypatch):
    ran = []
    monkeypatch.setattr(start, "run_python", ran.append)
    monkeypatch.setattr(timing, "peak_gib", lambda call: call() or math.nan)
    found = start.bench_start(Timing(1, threads=2))
    assert {row.case for row in found} == {"harness --help", "harness list models"}
    assert {"import torch", start.LIBRARIES} < set(ran)
    monkeypatch.undo()
    start.run_python(next(code for code in ran if "--help" in code))


def test_the_exponent_is_the_slope_of_the_logarithms():
    """3 n^1.5 at 1, 4 and 16 is 3, 24 and 192."""
    assert exponent([1, 4, 16], [3, 24, 192]) == pytest.approx(1.5)


def test_growth_and_its_plot(tmp_path):
    spec = load_catalog().model("minilm")
    given = [f"--model-arg={key}={value}" for key, value in spec.tiny(tmp_path / "tiny").items()]
    sizes = [part for name in ("items", "pool", "rankings", "lines") for part in (f"--{name}", "20")]
    done = CliRunner().invoke(
        app, ["bench", "growth", "-m", "minilm", *given, *sizes, "--rounds", "1", "--json"]
    )
    assert done.exit_code == 0, done.output
    grown = json.loads(done.stdout)["growth"]
    assert [each["sizes"] for each in grown] == [[20, 80, 320]] * 4
    file = tmp_path / "growth.json"
    file.write_text(done.stdout)
    assert CliRunner().invoke(app, ["bench", "plot", str(file)]).exit_code == 0
    assert grown[0]["case"] in file.with_suffix(".svg").read_text()


def test_rows_are_drawn_with_their_goals(tmp_path):
    row = Row("evaluate 2 queries × 3, m, 1 thread, cold", 1.0, "mteb.evaluate", 2.0, 0.5, True, 0.1, 0.2, "")
    assert goal(row) == 0.6
    assert goal(replace(row, case=row.case.replace("cold", "warm"))) == 0.05
    assert goal(replace(row, case="something else")) is None
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([asdict(row)]))
    assert CliRunner().invoke(app, ["bench", "plot", str(file)]).exit_code == 0
    assert "mteb.evaluate" in file.with_suffix(".svg").read_text()
    file.write_text("[1]")
    assert "rows.json is not what" in str(CliRunner().invoke(app, ["bench", "plot", str(file)]).exception)


def test_a_slice_is_scaled_to_the_full_shape():
    """Half of all queries and a third of all candidates: six times the slice."""
    row = Row("search", 2.0, "faiss", 3.0, 2 / 3, True, 0.1, 1.0, "a product")
    (whole,) = full_shape([row], SearchSizes(5_609_079 // 3, queries=190_573 // 2))
    assert (whole.ours_s, whole.peer_s, whole.floor_s) == pytest.approx((12.0, 18.0, 6.0), rel=1e-4)
    assert whole.ratio == row.ratio
    assert "2 s × (190,573 / 95,286) × (5,609,079 / 1,869,693) = 0.00333 h" in whole.case


def test_load(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    small = ("--lines", "60", "--stored", "50", "--pictures", "1", "--rounds", "1")
    found = rows("load", *small)
    assert {row["case"].partition(" ")[0] for row in found} == {"table", "store", "prepared", "decoded"}
    assert all(row["identical"] for row in found)
    assert not (tmp_path / "tables").exists()  # the measured cache is another


def test_a_wrong_answer_is_seen(monkeypatch):
    rng = np.random.default_rng(0)
    pool, queries = (unit(rng.standard_normal((n, 8))).astype(np.float16) for n in (90, 4))
    request = SearchRequest(ArrayRows(queries), ArrayRows(pool), 6, Ragged.of([()] * 4))
    assert bench_search._as_brute_force(request)
    found = search(request)
    monkeypatch.setattr(bench_search, "search", lambda _: replace(found, rows=found.rows[:, ::-1]))
    assert not bench_search._as_brute_force(request)


def test_each_takes_its_turn_and_the_median_of_the_ratios_counts(monkeypatch):
    """Ours takes 1, 2 and 9 s, the peer 2 s each and three times that: ratios 1/6, 1/3 and 3/2."""
    clock, turns, lengths = [0.0], [], iter([1.0, 2.0, 9.0])
    monkeypatch.setattr(timing, "_cpu", lambda: clock[0])
    monkeypatch.setattr(timing, "peak_gib", lambda call: math.nan)

    def spend(name, seconds):
        turns.append(name)
        clock[0] += next(seconds) if name == "ours" else seconds

    peer = Peer("peer", partial(spend, "peer", 2.0), 3.0)
    (row,) = Timing(rounds=3).rows(
        "case", partial(spend, "ours", lengths), [peer], identical=lambda: None, floor=lambda: (0.5, "")
    )
    assert turns == ["ours", "peer"] * 3
    assert (row.ours_s, row.peer_s, row.ratio) == (2.0, 6.0, 1 / 3)


def test_the_ascending_pool_ascends():
    with pool_and_queries(SearchSizes(500, 32, 3, order="ascending"), None) as (pool, queries):
        scores = pool.block(0, 500).astype(float) @ queries.astype(float).T
    first, last = scores[:250].mean(0), scores[250:].mean(0)
    assert (last > first + 0.1).all()


def test_a_folder_that_is_none_is_one_line(tmp_path):
    done = CliRunner().invoke(app, ["bench", "search", *SMALL, "--on-disk", str(Path(tmp_path, "none"))])
    assert "is no folder" in str(done.exception)
