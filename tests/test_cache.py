import dataclasses
import json
import os
import time

import numpy as np
import pytest

from harness.cache import Rule, cached, delete, export, garbage, stores, tables, verify
from harness.errors import HarnessError
from harness.evaluate import evaluate
from harness.store import Store, as_keys
from toys import Toy, catalog, collection, places, spec, task

DAY = 86_400


def fill(root, model="m", *, weights="1", unused=0.0, kind="embeddings", shards=1):
    store = Store(root, {"model": model, "weights": weights}, kind=kind)
    for i in range(shards):
        store.add(as_keys([f"{i:016d}".encode()]), np.eye(1, 4, dtype=np.float16))
    age(store.folder, unused)
    age(store.folder / "identity.json", unused)
    return store


def age(path, days):
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def test_stores_are_listed_by_model_and_last_use(tmp_path):
    fill(tmp_path, "b", unused=3, shards=2)
    fill(tmp_path, "a", weights="old", unused=9)
    fill(tmp_path, "a", weights="new")
    fill(tmp_path, "a", kind="pairs")
    found = stores(tmp_path)
    assert [(k.model, k.kind, k.shards, k.rows, k.dim) for k in found] == [
        ("a", "embeddings", 1, 1, 4),
        ("a", "embeddings", 1, 1, 4),
        ("a", "pairs", 1, 1, 4),
        ("b", "embeddings", 2, 2, 4),
    ]
    assert found[0].used > found[1].used
    assert found[3].bytes == sum(p.stat().st_size for p in found[3].place.iterdir())
    assert [k.model for k in stores(tmp_path, "b*")] == ["b"]


def test_use_is_noted_without_changing_a_byte(tmp_path):
    store = fill(tmp_path, unused=5)
    before = (store.folder / "identity.json").read_bytes()
    store.touch()
    (kept,) = stores(tmp_path)
    assert time.time() - kept.used < 60
    assert (store.folder / "identity.json").read_bytes() == before


def test_verify_names_damaged_shards_and_leaves_them(tmp_path):
    store = fill(tmp_path, shards=3)
    sound = fill(tmp_path, "other")
    shard = sorted(store.folder.glob("*.npy"))[1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    found = {kept.model: faults for kept, faults in verify(tmp_path)}
    assert found == {"m": {shard.with_suffix(".json"): "the checksum differs"}, "other": {}}
    assert shard.exists()
    assert next(verify(tmp_path, "o*"))[0].place == sound.folder


def test_what_killed_processes_left_goes_and_what_running_ones_write_stays(tmp_path):
    store = fill(tmp_path)
    old = [store.folder / ".a.npy.x.tmp", store.folder / "feed.npy", store.folder / ".b.json.y.tmp"]
    new = [store.folder / ".c.npy.x.tmp", store.folder / "beef.npy"]
    for path in (*old, *new):
        path.write_bytes(b"x")
    for path in old[:2]:
        age(path, 1)
    age(old[2], -400)  # the clock was set back since
    goes = garbage(tmp_path, Rule())
    assert sorted(g.place for g in goes) == sorted(old)
    for each in goes:
        delete(each)
    assert not any(p.exists() for p in old)
    assert all(p.exists() for p in new)
    assert len(Store(tmp_path, store.identity)) == 1


@pytest.mark.parametrize(
    ("rule", "gone"),
    [
        (Rule(), set()),
        (Rule(older=5 * DAY), {"a1", "a2", "b1"}),
        (Rule(latest=1), {"a1", "a2"}),
        (Rule(latest=2), {"a1"}),
        (Rule(model="b"), {"b1"}),
        (Rule(model="a", older=8 * DAY), {"a1"}),
        (Rule(older=5 * DAY, latest=1), {"a1", "a2"}),
    ],
)
def test_the_rule_says_which_stores_go(tmp_path, rule, gone):
    made = {
        name: fill(tmp_path, name[0], weights=name, unused=days)
        for name, days in {"a1": 9, "a2": 7, "a3": 1, "b1": 8}.items()
    }
    fill(tmp_path, "c", unused=-30)  # a clock that jumped: never old
    assert {g.place for g in garbage(tmp_path, rule)} == {made[name].folder for name in gone}


def test_a_store_that_goes_goes_wholly(tmp_path):
    store = fill(tmp_path, shards=2)
    (goes,) = garbage(tmp_path, Rule(model="m"))
    delete(goes)
    assert not store.folder.exists()
    assert list((tmp_path / "embeddings").iterdir()) == []


def test_tables_whose_source_is_gone_are_orphans(tmp_path, monkeypatch):
    from harness.table import remembered

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    for name in ("stays", "goes"):
        source = tmp_path / name
        source.write_text(name)
        remembered(source, "k", lambda: np.arange(3))
    (tmp_path / "goes").unlink()
    notes = {kept.note for kept in tables(tmp_path)}
    assert notes == {"", f"orphan: {tmp_path / 'goes'} is gone"}
    (orphan,) = garbage(tmp_path, Rule())
    delete(orphan)
    assert [kept.note for kept in tables(tmp_path)] == [""]
    assert len(list((tmp_path / "tables").iterdir())) == 2  # the table and the name of its source


def test_tables_of_a_shared_cache_are_used(tmp_path, monkeypatch):
    from harness.table import remembered

    source = tmp_path / "source"
    source.write_text("x")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "theirs"))
    remembered(source, "k", lambda: np.arange(3))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("HARNESS_SHARED_CACHE", str(tmp_path / "theirs"))
    assert remembered(source, "k", lambda: np.arange(9)).tolist() == [0, 1, 2]
    assert tables(tmp_path / "mine") == []


@pytest.mark.parametrize(
    ("dtype", "rounding"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float32", 2**-22)]
)
def test_exported_rows_are_those_of_the_ids(tmp_path, dtype, rounding):
    toy, tasks = spec(Toy()), [task(collection)]
    options = places(tmp_path)
    options = dataclasses.replace(options, engine=dataclasses.replace(options.engine, store_dtype=dtype))
    with pytest.raises(
        HarnessError, match=r"toys/a: 12 of 12 queries, 12 of 12 candidates are not in the cache"
    ):
        export(cached(toy, {}, tasks[0], options), tmp_path / "out")
    evaluate(catalog([toy], tasks), toy, {}, tasks, options)
    about = export(cached(toy, {}, tasks[0], options), tmp_path / "out")
    assert (about["queries"], about["candidates"], about["dim"], about["dtype"]) == (12, 12, 32, dtype)
    assert about == json.loads((tmp_path / "out" / "about.json").read_text())
    loaded = collection()
    frontend = Toy()
    for name, things in (("queries", loaded.queries), ("candidates", list(loaded.pool))):
        rows = np.load(tmp_path / "out" / f"{name}.npy").view(dtype)
        assert json.loads((tmp_path / "out" / f"{name}.ids.json").read_text()) == [t.id for t in things]
        plain = frontend.load("cpu").embed(frontend.prepare(things)).numpy()
        assert rows.dtype == dtype
        unit = plain / np.linalg.norm(plain, axis=1, keepdims=True)
        np.testing.assert_allclose(rows.astype("float64"), unit, rtol=0, atol=rounding)


def test_a_damaged_shard_is_named_and_made_again_in_the_same_evaluation(tmp_path):
    toy, tasks = spec(Toy(log=tmp_path / "log")), [task(collection)]
    options = dataclasses.replace(places(tmp_path, batch_tokens=60), overwrite="always")
    known = catalog([toy], tasks)
    (before,) = evaluate(known, toy, {}, tasks, options)
    shard = max((tmp_path / "cache").rglob("*.npy"), key=lambda p: p.stat().st_mtime_ns)
    whole, size = shard.read_bytes(), (tmp_path / "log").stat().st_size
    shard.write_bytes(whole[:-1])
    said = []
    (after,) = evaluate(known, toy, {}, tasks, options, tell=said.append)
    assert f"cache shard {shard} is damaged (the rows are not whole)" in "\n".join(said)
    assert after.result.metrics == before.result.metrics
    assert after.result.provenance["counts"]["embedded"] == 12  # the candidates' only shard
    assert (tmp_path / "log").stat().st_size > size
    assert shard.read_bytes() == whole


def test_what_others_have_encoded_is_not_encoded_again(tmp_path):
    toy, tasks = spec(Toy(log=tmp_path / "log")), [task(collection)]
    known = catalog([toy], tasks)
    evaluate(known, toy, {}, tasks, places(tmp_path / "theirs"))
    size = (tmp_path / "log").stat().st_size
    mine = dataclasses.replace(places(tmp_path / "mine"), shared_caches=(tmp_path / "theirs" / "cache",))
    (outcome,) = evaluate(known, toy, {}, tasks, mine)
    assert outcome.result.provenance["counts"]["embedded"] == 0
    assert (tmp_path / "log").stat().st_size == size
    assert stores(tmp_path / "mine" / "cache") == []


def eval_random(cli, *more):
    return cli("eval", "-m", "random", "-t", "demo/text-to-image", "--workers", 0, "-q", *more)


def test_the_commands_list_verify_collect_and_export(cli, tmp_path):
    eval_random(cli, "--cache-dir", "c")
    code, out, _ = cli("cache", "ls", "--cache-dir", "c")
    assert (code, "random" in out, "1 entries" in out) == (0, True, True)
    (row,) = json.loads(cli("cache", "ls", "--cache-dir", "c", "--json")[1])
    assert (row["model"], row["kind"], row["dim"]) == ("random", "embeddings", 64)
    assert cli("cache", "verify", "--cache-dir", "c")[0] == 0
    shard = next((tmp_path / "c").rglob("*.npy"))
    shard.write_bytes(shard.read_bytes()[:-1])
    code, out, _ = cli("cache", "verify", "--cache-dir", "c")
    assert (code, f"{shard.name}: the rows are not whole" in out) == (1, True)
    (found,) = json.loads(cli("cache", "verify", "--cache-dir", "c", "--json")[1])
    assert list(found["damaged"].values()) == ["the rows are not whole"]
    code, out, _ = cli("cache", "verify", "--cache-dir", "c", "--repair")
    assert (code, "removed" in out, shard.exists()) == (0, True, False)
    assert cli("cache", "verify", "--cache-dir", "c")[0] == 0
    code, _, err = cli(
        "cache", "export", "-m", "random", "-t", "demo/text-to-image", "--out", "o", "--cache-dir", "c"
    )
    assert (code, "are not in the cache: run 'harness eval'" in err) == (2, True)
    eval_random(cli, "--cache-dir", "c", "--overwrite-strategy", "always")
    code, out, _ = cli(
        "cache", "export", "-m", "random", "-t", "demo/text-to-image", "--out", "o", "--cache-dir", "c"
    )
    assert (code, "queries, 21 candidates, 64 float16" in out) == (0, True)
    _, out, _ = cli("cache", "gc", "-m", "random", "--cache-dir", "c")
    assert "would go: add --yes" in out
    assert list((tmp_path / "c").rglob("*.npy"))
    _, out, _ = cli("cache", "gc", "-m", "random", "--yes", "--cache-dir", "c")
    assert "1 entries removed" in out
    assert "nothing to remove" in cli("cache", "gc", "--keep-latest", 0, "--cache-dir", "c")[1]


def test_a_shared_cache_is_an_option(cli, tmp_path):
    eval_random(cli, "--cache-dir", "theirs")
    code, _, _ = eval_random(cli, "--cache-dir", "mine", "--shared-cache", "theirs", "-o", "again")
    assert code == 0
    (result,) = (tmp_path / "again").rglob("*.json")
    assert json.loads(result.read_text())["provenance"]["counts"]["embedded"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "--cache-dir", "none"], "there is no cache none"),
        (["gc", "--older-than", "month"], "--older-than 'month' is not an age"),
        (["export", "-m", "random", "--out", "o"], "nothing to export"),
    ],
)
def test_bad_input_is_one_line(cli, arguments, message):
    code, out, err = cli("cache", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"harness: {message}")
    assert err.count("\n") == 1


def test_a_shared_cache_that_is_not_there_is_one_line(cli):
    code, _, err = eval_random(cli, "--shared-cache", "none")
    assert (code, err) == (2, "harness: there is no shared cache none: name a folder with --shared-cache\n")


def test_a_cache_that_cannot_be_written_is_one_line_before_anything_is_encoded(cli, tmp_path):
    (tmp_path / "c").write_text("")
    code, out, err = eval_random(cli, "--cache-dir", "c")
    assert (code, out) == (2, "")
    assert err.startswith("harness: the cache folder c cannot be written (file exists): choose another")
    assert err.count("\n") == 1


def test_a_damaged_shard_is_named_and_made_again_by_the_same_command(cli, tmp_path):
    eval_random(cli, "--cache-dir", "c")
    shard = next((tmp_path / "c").rglob("*.npy"))
    whole = shard.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        shard.write_bytes(damaged)
        code, _, err = eval_random(cli, "--cache-dir", "c", "--overwrite-strategy", "always")
        assert code == 0
        (line,) = (line for line in err.splitlines() if "damaged" in line)
        assert f"cache shard {shard.relative_to(tmp_path)} is damaged (the " in line
        assert line.endswith("): what is needed of it is made again")
        assert shard.read_bytes() == whole


def test_a_cache_of_a_newer_harness_is_one_line(cli, tmp_path):
    eval_random(cli, "--cache-dir", "c")
    manifest = next(p for p in (tmp_path / "c").rglob("*.json") if p.name != "identity.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    for command in (["cache", "verify"], ["eval", "-m", "random", "-t", "demo/composed", "-q"]):
        code, _, err = cli(*command, "--cache-dir", "c")
        assert code == 2
        assert "was written by a newer harness: upgrade, or choose another --cache-dir" in err
    assert manifest.exists()
    assert "newer harness" in cli("cache", "ls", "--cache-dir", "c")[1]
