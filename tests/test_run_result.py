import dataclasses
import gzip
import json

import numpy as np
import pytest

from harness.errors import DataInvalid, ResultConflict
from harness.outcomes import Outcomes
from harness.result import SCHEMA, Result, Score, Stored, read_results, result_path
from harness.run import Ragged, Run


def a_run():
    rows = np.array([[2, 0, 1], [1, -1, -1]], np.int32)
    scores = np.array([[0.9, 0.1, -0.25], [1 / 3, -np.inf, -np.inf]], np.float32)
    return Run(["q 1", "q2%"], ["a", "b c", "d/é"], "pool", rows, scores)


def a_result(**fields):
    base = Result(
        model="org/model",
        identity={"weights": "w"},
        identity_id="abc",
        task="toys/a",
        protocol={"task": "toys/a", "limit": None},
        protocol_id="def",
        status="complete",
        metrics={"hit_at_1": Score(1 / 3, (0.1, 0.5), 3)},
        headline="hit_at_1",
        groups={"g": {"hit_at_1": Score(0.5, (0.25, 0.75), 2)}},
        notes=("one",),
    )
    return dataclasses.replace(base, **fields)


def test_a_run_reads_back_what_it_wrote(tmp_path):
    run = a_run()
    run.write(tmp_path / "x.run.gz", "tag with space")
    back = Run.read(tmp_path / "x.run.gz")
    assert list(back.query_ids) == ["q 1", "q2%"]
    for q in range(2):
        assert back.ranking(q) == run.ranking(q)


def test_a_run_is_six_trec_columns(tmp_path):
    a_run().write(tmp_path / "x.run.gz", "tag")
    lines = gzip.decompress((tmp_path / "x.run.gz").read_bytes()).decode().splitlines()
    assert lines[0] == "q%201 Q0 d/é 1 0.9 tag"
    assert lines[1] == "q%201 Q0 a 2 0.1 tag"
    assert lines[3] == "q2%25 Q0 b%20c 1 0.33333334 tag"
    assert len(lines) == 4


def test_equal_runs_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        a_run().write(tmp_path / f"{name}.run.gz", "tag")
    assert (tmp_path / "a.run.gz").read_bytes() == (tmp_path / "b.run.gz").read_bytes()


def test_an_outside_tool_scores_the_written_run_the_same(tmp_path):
    import pytrec_eval

    a_run().write(tmp_path / "x.run.gz", "tag")
    run: dict[str, dict[str, float]] = {}
    for line in gzip.decompress((tmp_path / "x.run.gz").read_bytes()).decode().splitlines():
        query, _, candidate, _, score, _ = line.split()
        run.setdefault(query, {})[candidate] = float(score)
    got = pytrec_eval.RelevanceEvaluator({"q%201": {"a": 1}}, {"recip_rank"}).evaluate(run)
    assert got["q%201"]["recip_rank"] == 0.5  # d first, then a


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("q Q0 a 1 0.5 t\nq Q0 b two 0.4 t\n", "line 2: not a TREC run line"),
        ("q Q0 a 1 0.5\n", "line 1: not a TREC run line"),
        ("q Q0 a 1 0.5 t\nq Q0 b 3 0.4 t\n", "line 2: rank 3 where 2 should follow"),
    ],
)
def test_a_bad_run_line_is_named(tmp_path, lines, message):
    path = tmp_path / "x.run.gz"
    path.write_bytes(gzip.compress(lines.encode()))
    with pytest.raises(DataInvalid, match=message):
        Run.read(path)


def test_ragged_lists():
    ragged = Ragged.of([[3, 1], [], [2]])
    assert ragged[0].tolist() == [3, 1]
    assert ragged[1].tolist() == []
    assert ragged.query.tolist() == [0, 0, 2]
    assert len(Ragged.of([])) == 0


def test_a_result_reads_back_equal_at_full_precision(tmp_path):
    result = a_result()
    path = result.write(tmp_path)
    assert path == tmp_path / "org__model" / "abc" / "toys__a" / "def.json"
    assert json.loads(json.dumps(dataclasses.asdict(Result.read(path)))) == json.loads(
        json.dumps(dataclasses.asdict(result))
    )
    assert Result.read(path).metrics["hit_at_1"].value == 1 / 3
    assert read_results(tmp_path) == [Result.read(path)]
    assert list(json.loads(path.read_text()))[:3] == ["model", "identity", "identity_id"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "not a readable result"),
        ('{"model": "m"}', "not a readable result"),
        ("[]", "not a readable result"),
    ],
)
def test_a_file_that_is_no_result_is_named_with_the_remedy(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ResultConflict, match=message) as error:
        Result.read(path)
    assert str(path) in str(error.value)
    assert "--overwrite-strategy always" in str(error.value)


def test_a_newer_schema_is_refused(tmp_path):
    path = a_result().write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": SCHEMA + 1}))
    with pytest.raises(ResultConflict, match="newer harness"):
        Result.read(path)


def changed(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_score_changed_by_hand_is_noticed_and_a_note_on_its_making_is_not(tmp_path):
    path = a_result().write(tmp_path)
    changed(path, provenance={"device": "another"})
    assert Result.read(path).provenance == {"device": "another"}
    changed(path, metrics={"hit_at_1": {"value": 0.9, "ci95": [0.8, 1], "n": 3}})
    with pytest.raises(ResultConflict, match="was changed after it was written"):
        Result.read(path)


def test_a_result_without_a_checksum_is_read(tmp_path):
    path = a_result().write(tmp_path)
    data = json.loads(path.read_text())
    del data["checksum"]
    path.write_text(json.dumps(data))
    assert Result.read(path).task == "toys/a"


def test_what_an_exporter_wrote_beside_a_result_is_no_result(tmp_path):
    path = a_result().write(tmp_path)
    path.with_suffix(".submission.json").write_text("{}")
    assert len(read_results(tmp_path)) == 1


def test_outcomes_read_back_and_sort_by_id(tmp_path):
    made = Outcomes(("q2", "q10", "q1"), {"hit_at_1": np.array([1.0, 0, 0.5])})
    made.write(tmp_path / "x.queries.parquet")
    back = Outcomes.read(tmp_path / "x.queries.parquet")
    assert back.queries == made.queries
    assert back.sorted().queries == ("q1", "q10", "q2")
    assert back.sorted().values["hit_at_1"].tolist() == [0.5, 0, 1]


def test_outcomes_that_cannot_be_used_are_named(tmp_path):
    path = tmp_path / "x.queries.parquet"
    Outcomes(("q", "q"), {"hit_at_1": np.zeros(2)}).write(path)
    with pytest.raises(ResultConflict, match="query 'q' is there twice"):
        Outcomes.read(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(ResultConflict, match=r"holds no per-query outcomes"):
        Outcomes.read(path)


def test_the_files_beside_a_result_must_be_there_and_be_its_own(tmp_path):
    result = a_result(provenance={"written": {".queries.parquet": "0" * 32}})
    stored = Stored.read(result.write(tmp_path))
    with pytest.raises(ResultConflict, match=r"def\.run\.gz is missing: copy it"):
        stored.run()
    Outcomes(("q",), {"hit_at_1": np.zeros(1)}).write(stored.path.with_suffix(".queries.parquet"))
    with pytest.raises(ResultConflict, match="not the file that was written with its result"):
        stored.outcomes()


def test_slashes_in_names_do_not_make_folders():
    assert str(result_path("a/b", "i", "c/d", "p")) == "a__b/i/c__d/p.json"
