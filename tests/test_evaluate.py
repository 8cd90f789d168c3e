import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from harness.collection import Collection, Pool
from harness.content import Candidate, Image, Query, Text, Video
from harness.errors import DataMissing, NoSuchInstruction, ResultConflict, StorageError
from harness.evaluate import evaluate
from harness.files import write_text
from harness.hookspecs import hookimpl
from harness.metrics import MAP, NDCG, Hit
from harness.result import Result, Stored, read_results
from harness.run import Run
from harness.task import Need
from toys import Toy, catalog, collection, places, spec, task, texts

HERE = Path(__file__).parent


def run(folder, tasks, toy=None, **options):
    toy = toy or Toy()
    said: list[str] = []
    models = [spec(toy)]
    outcomes = evaluate(
        catalog(models, tasks), models[0], {}, tasks, places(folder, **options), tell=said.append
    )
    return outcomes, said


def echo(n=6, **fields):
    """Queries that repeat their candidate's text under another role: a content hash that reads
    no role and no instruction ranks the right one first."""
    pool = texts(n)
    queries = [Query(f"q{i}", pool[i].parts) for i in range(n)]
    return dataclasses.replace(collection(n), queries=queries, **fields)


def test_a_result_holds_scores_ids_counts_and_provenance(tmp_path):
    (outcome,), _ = run(tmp_path, [task(echo)])
    result = outcome.result
    assert outcome.fresh
    assert result.metrics["hit_at_1"].value == 1.0
    assert result.headline == "hit_at_1"
    assert result.counts["queries"] == 6
    assert result.status == "complete"
    assert result.provenance["counts"] == {"items": 12, "embedded": 12, "batches": 4}
    for name in ("harness", "git", "libraries", "device", "dtype", "seed", "command", "started", "seconds"):
        assert name in result.provenance
    assert (tmp_path / "runs" / result.path).is_file()
    assert Result.read(tmp_path / "runs" / result.path).metrics == result.metrics


def test_run_and_per_query_outcomes_lie_beside_the_result(tmp_path):
    (outcome,), _ = run(tmp_path, [task(echo)])
    base = tmp_path / "runs" / outcome.result.path
    back = Run.read(base.with_suffix(".run.gz"))
    assert back.ranking(2)[0][0] == "c2"
    table = pq.read_table(base.with_suffix(".queries.parquet")).to_pydict()
    assert table["query"] == [f"q{i}" for i in range(6)]
    assert np.mean(table["hit_at_1"]) == outcome.result.metrics["hit_at_1"].value
    assert set(outcome.result.provenance["written"]) == {".run.gz", ".queries.parquet"}
    assert Stored.read(base).run().ranking(2) == back.ranking(2)


def test_a_budget_too_small_for_an_item_is_said_and_changes_no_score(tmp_path):
    (one,), said = run(tmp_path / "one", [task(echo)], batch_tokens=1)
    assert said == ["toys/a: 12 items cost more than --batch-tokens 1: each was a batch by itself"]
    assert one.result.provenance["counts"] == {"items": 12, "embedded": 12, "batches": 12, "over_budget": 12}
    (two,), said = run(tmp_path / "two", [task(echo)])
    assert (said, two.result.metrics) == ([], one.result.metrics)


def test_a_clock_that_jumps_changes_nothing(tmp_path, media, monkeypatch):
    """Durations are of a clock that cannot; times of files are compared with themselves alone."""
    pool = [*texts(3), Candidate("picture", (Image(tmp_path / "p.png"),))]
    shutil.copy(media / "p0.png", tmp_path / "p.png")
    made = [task(lambda: collection(3, candidates=pool), metrics=(Hit(1),))]
    clock = iter(range(10**9, 0, -(10**7)))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    (first,), _ = run(tmp_path, made)
    for when in (1.0, 4e9):
        for path in tmp_path.rglob("*.*"):
            os.utime(path, (when, when))
        (kept,), _ = run(tmp_path, made)
        (again,), _ = run(tmp_path, made, overwrite="always")
        assert (kept.fresh, again.fresh) == (False, True)
        assert again.result.provenance["counts"]["embedded"] == 0
        assert again.result.metrics == first.result.metrics
        assert min(again.result.provenance["seconds"].values()) >= 0
    shutil.copy(media / "p1.png", tmp_path / "p.png")
    os.utime(tmp_path / "p.png", (2.0, 2.0))  # a new picture, older than all that was made of the old one
    (third,), _ = run(tmp_path, made, overwrite="always")
    assert third.result.provenance["counts"]["embedded"] == 1


def test_a_second_evaluation_keeps_the_result_and_encodes_nothing(tmp_path):
    log = tmp_path / "log"
    toy = Toy(log=log)
    run(tmp_path, [task(echo)], toy)
    size = log.stat().st_size
    (outcome,), _ = run(tmp_path, [task(echo)], toy)
    assert not outcome.fresh
    assert log.stat().st_size == size


def test_local_and_union_pools_share_one_encoding(tmp_path):
    small = echo(6)

    def union():
        return dataclasses.replace(
            small, pool=Pool("u", (small.pool, Pool("more", texts(3, prefix="other"))))
        )

    more = [Candidate(f"m{i}", (Text(f"other {i}"),)) for i in range(3)]
    union_pool = dataclasses.replace(small, pool=Pool("u", (small.pool, Pool("more", more))))
    outcomes, _ = run(tmp_path, [task(lambda: small, "toys/local"), task(lambda: union_pool, "toys/union")])
    assert [o.result.provenance["counts"]["embedded"] for o in outcomes] == [12, 3]


def test_metrics_equal_an_outside_evaluation_of_the_run(tmp_path):
    import pytrec_eval

    rng = np.random.default_rng(0)
    pool = texts(40)
    qrels = {
        f"q{i}": {f"c{j}": int(rng.integers(1, 3)) for j in rng.choice(40, 4, replace=False)}
        for i in range(15)
    }
    made = Collection([Query(f"q{i}", (Text(f"ask {i}"),)) for i in range(15)], Pool("p", pool), qrels)
    (outcome,), _ = run(tmp_path, [task(lambda: made, metrics=(NDCG(10), Hit(5), MAP(5)))])
    back = Run.read((tmp_path / "runs" / outcome.result.path).with_suffix(".run.gz"))
    lists = {q: dict(back.ranking(i)) for i, q in enumerate(back.query_ids)}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10", "success_5"}).evaluate(
        {q: {c: float(s) for c, s in ranked.items()} for q, ranked in lists.items()}
    )
    for ours, name in (("ndcg_at_10", "ndcg_cut_10"), ("hit_at_5", "success_5")):
        assert outcome.result.metrics[ours].value == pytest.approx(
            np.mean([t[name] for t in theirs.values()])
        )


def test_ties_are_counted_and_both_ends_kept(tmp_path):
    twins = [
        Candidate("a", (Text("same"),)),
        Candidate("b", (Text("same"),)),
        Candidate("c", (Text("other"),)),
    ]
    made = Collection([Query("q", (Text("same"),))], Pool("p", twins), {"q": {"a": 1}})
    values = {}
    for rule in ("pessimistic", "pool-order"):
        (outcome,), _ = run(tmp_path, [task(lambda: made, f"toys/{rule}", ties=rule)])
        values[rule] = outcome.result.metrics["hit_at_1"].value
        ties = outcome.result.ties
        assert (ties["queries_straddling"], ties["pessimistic"], ties["optimistic"]) == (1, 0.0, 1.0)
    assert values == {"pessimistic": 0.0, "pool-order": 1.0}


def test_groups_scope_and_exclusions_reach_the_scores(tmp_path):
    made = echo(
        4,
        groups={"first": ["q0", "q1"], "rest": ["q2", "q3"]},
        scope={"q0": ["c1", "c2"]},  # its positive is out of scope
        exclude={"q1": ["c1"]},  # its positive is excluded
    )
    (outcome,), _ = run(tmp_path, [task(lambda: made)])
    assert outcome.result.metrics["hit_at_1"].value == 0.5
    assert outcome.result.groups["first"]["hit_at_1"].value == 0.0
    assert outcome.result.groups["rest"]["hit_at_1"].value == 1.0
    assert outcome.result.groups["rest"]["hit_at_1"].n == 2
    back = Run.read((tmp_path / "runs" / outcome.result.path).with_suffix(".run.gz"))
    assert {c for c, _ in back.ranking(0)} == {"c1", "c2"}
    assert "c1" not in {c for c, _ in back.ranking(1)}


def test_hidden_truth_gives_a_run_and_no_score(tmp_path):
    (outcome,), _ = run(tmp_path, [task(lambda: echo(4, qrels=None))])
    assert (outcome.result.status, outcome.result.metrics, outcome.result.headline) == ("unscored", {}, None)
    assert (tmp_path / "runs" / outcome.result.path).with_suffix(".run.gz").is_file()


def test_an_unsupported_modality_is_a_gap_never_a_score(tmp_path):
    made = echo(4, pool=Pool("p", [*texts(4), Candidate("v", (Video(Path("x.mp4")),))]))
    (outcome,), _ = run(tmp_path, [task(lambda: made)])
    assert outcome.result.status == "unsupported"
    assert outcome.result.metrics == {}
    assert "toy does not take video" in outcome.result.notes[0]


def test_a_limit_makes_a_partial_result_of_another_protocol(tmp_path):
    (whole,), _ = run(tmp_path, [task(echo)])
    (part,), _ = run(tmp_path, [task(echo)], limit=2)
    assert (part.result.status, part.result.metrics["hit_at_1"].n) == ("partial", 2)
    assert part.result.protocol_id != whole.result.protocol_id


def test_instructions_are_not_shown_to_models_that_do_not_read_them(tmp_path):
    pool = texts(3)
    made = Collection(
        [Query(f"q{i}{j}", (Text("same text"),), f"instruction {j}") for i in range(1) for j in range(3)],
        Pool("p", pool),
        {"q00": {"c0": 1}},
    )
    for reads, embedded in ((True, 6), (False, 4)):
        (outcome,), _ = run(tmp_path / str(reads), [task(lambda: made)], Toy(reads_instructions=reads))
        assert outcome.result.provenance["counts"]["embedded"] == embedded


def test_one_failing_task_does_not_stop_the_others(tmp_path):
    bad = task(lambda: echo(4, qrels={"nobody": {"c0": 1}}), "toys/bad")
    outcomes, said = run(tmp_path, [bad, task(echo, "toys/good")])
    assert outcomes[0].error == "qrels names query 'nobody', which is not in the collection"
    assert outcomes[1].result.status == "complete"
    assert said == ["toys/bad: qrels names query 'nobody', which is not in the collection"]


def test_all_missing_files_are_listed_at_once_before_anything_is_opened(tmp_path):
    class Unopenable(Toy):
        def open(self, options):
            raise AssertionError("opened although data are missing")

    needs = [Need(Path("set/a.json"), "get it at A"), Need(Path("set/b.json"), "get it at A")]
    tasks = [
        task(echo, "toys/a", needs=needs),
        task(echo, "toys/b", needs=[Need(Path("c"), "pip install c")]),
    ]
    with pytest.raises(DataMissing) as error:
        run(tmp_path, tasks, Unopenable())
    text = str(error.value)
    assert text.startswith("3 files or folders are missing: ")
    for part in ("set/a.json", "set/b.json (get it at A)", "c (pip install c)"):
        assert part in text
    assert "\n" not in text


def test_a_changed_data_file_makes_another_protocol(tmp_path):
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "x.json"
    ids = []
    for text in ("one", "two!"):
        file.write_text(text)
        (outcome,), _ = run(tmp_path, [task(echo, needs=[Need(Path("x.json"), "-")])])
        ids.append(outcome.result.protocol_id)
        assert outcome.fresh
    assert ids[0] != ids[1]


def test_a_need_is_found_whatever_the_case_and_in_other_places(tmp_path):
    (tmp_path / "Urban1K").mkdir()
    (tmp_path / "Urban1K" / "x").write_text("")
    assert Need(Path("Urban1k/X"), "-").find(tmp_path).name == "x"
    assert Need(Path("gone"), "-", otherwise=(tmp_path / "Urban1K",)).find(tmp_path) == tmp_path / "Urban1K"
    assert Need(Path("gone"), "-").find(tmp_path) is None
    with pytest.raises(DataMissing, match="get it there"):
        Need(Path("gone"), "get it there").require(tmp_path)


def broken(tmp_path, media):
    bad = tmp_path / "bad.png"
    bad.write_bytes((media / "p3.png").read_bytes()[:60])
    pool = [Candidate(f"c{i}", (Image(media / f"p{i}.png"),)) for i in range(3)]
    pool.append(Candidate("bad", (Image(bad),)))
    queries = [Query(f"q{i}", pool[i].parts) for i in range(3)]
    queries += [Query("of-bad", (Text("x"),)), Query("is-bad", (Image(bad),))]
    qrels = {q.id: {c.id: 1} for q, c in zip(queries, [*pool, pool[0]], strict=True)}
    return Collection(queries, Pool("p", pool), qrels)


def test_broken_media_fail_the_task_unless_left_out_and_counted(tmp_path, media):
    made = broken(tmp_path, media)
    (outcome,), _ = run(tmp_path, [task(lambda: made)])
    assert "bad.png" in outcome.error
    assert "--skip-broken" in outcome.error
    (outcome,), _ = run(tmp_path, [task(lambda: made)], skip_broken=True)
    result = outcome.result
    assert result.metrics["hit_at_1"].n == 3  # the broken query and the one whose answer is broken are out
    assert result.metrics["hit_at_1"].value == 1.0
    assert (result.counts["left_out_queries"], result.counts["left_out_candidates"]) == (2, 1)
    assert "bad.png" in result.notes[0]
    assert result.protocol["skip_broken"] is True


@pytest.mark.parametrize("strategy", ["never", "only-missing", "only-cache"])
def test_stored_results_stand(tmp_path, strategy):
    (first,), _ = run(tmp_path, [task(echo)])
    path = tmp_path / "runs" / first.result.path
    before = path.read_bytes()
    (again,), said = run(tmp_path, [task(echo)], overwrite=strategy)
    assert (again.fresh, again.result.metrics, said) == (False, first.result.metrics, [])
    assert path.read_bytes() == before


def test_always_replaces_and_says_so(tmp_path):
    (first,), _ = run(tmp_path, [task(echo)])
    (again,), said = run(tmp_path, [task(echo)], overwrite="always")
    assert again.fresh
    assert said == [f"toys/a: replacing {tmp_path / 'runs' / first.result.path}"]
    assert again.result.provenance["counts"]["embedded"] == 0


def test_only_cache_makes_nothing(tmp_path):
    (outcome,), _ = run(tmp_path, [task(echo)], overwrite="only-cache")
    assert outcome.result is None
    assert not (tmp_path / "runs").exists()


def test_a_metric_that_a_stored_result_lacks_is_made_by_only_missing_and_left_by_never(tmp_path):
    run(tmp_path, [task(echo, metrics=(Hit(1),))])
    more = task(echo, metrics=(Hit(1), Hit(5)))
    (kept,), _ = run(tmp_path, [more], overwrite="never")
    assert "hit_at_5" not in kept.result.metrics
    (made,), said = run(tmp_path, [more])
    assert "hit_at_5" in made.result.metrics
    assert "replacing" in said[0]


def test_an_unreadable_stored_result_is_in_the_way(tmp_path):
    (first,), _ = run(tmp_path, [task(echo)])
    path = tmp_path / "runs" / first.result.path
    path.write_text("{")
    (outcome,), _ = run(tmp_path, [task(echo)])
    assert "--overwrite-strategy always" in outcome.error
    assert path.read_text() == "{"
    with pytest.raises(ResultConflict):
        read_results(tmp_path / "runs")
    (outcome,), _ = run(tmp_path, [task(echo)], overwrite="always")
    assert outcome.fresh


def test_two_models_of_one_name_do_not_share_results_or_rows(tmp_path):
    (one,), _ = run(tmp_path, [task(collection)], Toy(weights="w1"))
    (two,), _ = run(tmp_path, [task(collection)], Toy(weights="w2"))
    assert two.fresh
    assert two.result.provenance["counts"]["embedded"] == 24
    assert two.result.identity_id != one.result.identity_id


def test_an_unwritable_results_folder_is_found_before_work_starts(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    log = tmp_path / "log"
    with pytest.raises(StorageError, match=r"output folder .*runs cannot be written"):
        run(tmp_path, [task(echo)], Toy(log=log))
    assert not log.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_leaves_no_torn_file(tmp_path, monkeypatch):
    real = os.fsync

    def full(handle):
        real(handle)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_text(tmp_path / "x.json", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"x\.json \(no space left on device\): free some space"):
        write_text(tmp_path / "x.json", "new")
    monkeypatch.undo()
    assert (tmp_path / "x.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "x.json"]


def test_a_disk_that_fills_up_stops_the_run_and_the_next_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.encode.WINDOW_ITEMS", 8)
    real, calls = os.fsync, []

    def full_after_a_while(handle):
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full_after_a_while)
    with pytest.raises(StorageError, match="no space left on device"):
        run(tmp_path, [task(lambda: echo(40))])
    monkeypatch.setattr(os, "fsync", real)
    (outcome,), _ = run(tmp_path, [task(lambda: echo(40))])
    assert 0 < outcome.result.provenance["counts"]["embedded"] < 80


def test_an_empty_text_is_encoded_like_any_other(tmp_path):
    made = Collection(
        [Query("q", (Text(""),))],
        Pool("p", [Candidate("empty", (Text(""),)), Candidate("other", (Text("x"),))]),
        {"q": {"empty": 1}},
    )
    (outcome,), _ = run(tmp_path, [task(lambda: made)])
    assert outcome.result.metrics["hit_at_1"].value == 1.0


def by_instruction(data, protocol):
    """Prompts that a content hash tells apart: only under the second does query 0 match."""
    number = int(protocol.instructions)
    if number > 3:
        raise NoSuchInstruction(f"there is no instruction {number}")
    pool = texts(4)
    queries = [Query(f"q{i}", pool[i].parts, None if number == 2 or i else "other") for i in range(4)]
    return dataclasses.replace(collection(4), queries=queries)


def test_all_instructions_give_their_mean_spread_and_a_run_each(tmp_path):
    made = dataclasses.replace(task(echo, metrics=(Hit(1), Hit(5))), load=by_instruction)
    models = [spec(Toy())]
    options = places(tmp_path)
    options = dataclasses.replace(options, protocol=dataclasses.replace(options.protocol, instructions="all"))
    (outcome,) = evaluate(catalog(models, [made]), models[0], {}, [made], options)
    result = outcome.result
    each = [result.groups[f"instruction {n}"]["hit_at_1"].value for n in (1, 2, 3)]
    assert each[1] == 1.0
    assert each[0] == each[2] == 0.75
    assert result.metrics["hit_at_1"].value == pytest.approx(sum(each) / 3)
    assert result.analysis == {"instructions": 3, "spread": {"hit_at_1": 0.25, "hit_at_5": 0.0}}
    assert len(list(tmp_path.rglob("*.run.gz"))) == 3
    per_query = Stored(result, tmp_path / "runs" / result.path).outcomes().values["hit_at_1"]
    assert per_query.mean() == result.metrics["hit_at_1"].value
    assert set(per_query) == {1.0, 1 / 3}
    (again,) = evaluate(catalog(models, [made]), models[0], {}, [made], options)
    assert (again.fresh, again.result.metrics) == (False, result.metrics)


def test_exporters_see_result_run_and_folder(tmp_path):
    seen = []

    class Exporter:
        @hookimpl
        def harness_evaluated(self, result, folder):
            seen.append((result.task, folder.is_dir()))

    models, tasks = [spec(Toy())], [task(echo)]
    known = catalog(models, tasks)
    known.manager.register(Exporter())
    evaluate(known, models[0], {}, tasks, places(tmp_path))
    assert seen == [("toys/a", True)]
    evaluate(known, models[0], {}, tasks, places(tmp_path))
    assert len(seen) == 1  # nothing was evaluated the second time


def start(folder: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, str(HERE / "kill_target.py"), str(folder), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outputs(folder: Path) -> dict[str, bytes]:
    """Result files without provenance, runs, per-query outcomes and shards, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.suffix in (".sqlite", ".tmp"):
            continue
        if path.parent.parent.parent.parent == folder / "runs" and path.suffix == ".json":
            result = json.loads(path.read_text())
            del result["provenance"]
            found[name] = json.dumps(result).encode()
        elif path.suffix != ".npy" or path.with_suffix(".json").exists():
            found[name] = path.read_bytes()
    return found


def kill_and_finish(tmp_path: Path, kills: int, seed: int) -> None:
    whole = start(tmp_path / "whole", tmp_path / "whole.log")
    began = time.monotonic()
    _, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    took = time.monotonic() - began
    rng = np.random.default_rng(seed)
    for _ in range(kills):
        process = start(tmp_path / "killed", tmp_path / "killed.log")
        time.sleep(float(rng.uniform(0.3, 0.9)) * took)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    final = start(tmp_path / "killed", tmp_path / "killed.log")
    _, err = final.communicate(timeout=120)
    assert final.returncode == 0, err
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")
    stored = stored_by(tmp_path / "killed.log")
    assert len(stored) == len(set(stored)), "an item was embedded again after it was stored"


def stored_by(log: Path) -> list[str]:
    """Items in the shards that each process finished, in order: the log names them at storing."""
    return [line.split()[1] for line in log.read_text().splitlines() if line.startswith("stored ")]


def test_kill_minus_nine_during_encoding_then_a_finished_run_gives_equal_bytes(tmp_path):
    kill_and_finish(tmp_path, kills=2, seed=0)


@pytest.mark.slow
def test_ten_random_kills_then_a_finished_run_gives_equal_bytes(tmp_path):
    for seed in range(3):
        kill_and_finish(tmp_path / str(seed), kills=10, seed=seed + 1)
