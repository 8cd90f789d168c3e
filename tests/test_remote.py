"""Caches behind URLs: read when a key is there and not here, written whole, and every fault in one line."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from harness.cache import push, stores, verify
from harness.errors import StorageError
from harness.files import remote_caches, shared_caches
from harness.remote import Remote
from harness.store import Store, as_keys

IDENTITY = {"model": "m", "weights": "w1"}
URL = "memory://bucket/cache"


class Broken(MemoryFileSystem):
    """A server that answers nothing, in words of its own."""

    protocol = "broken"

    def _refuse(self, *args, **named):
        raise RuntimeError("Could not connect to the endpoint URL\nmore of it")

    ls = info = cat_file = pipe_file = _refuse


fsspec.register_implementation("broken", Broken)


@pytest.fixture(autouse=True)
def _empty_memory() -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def rows(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float16)


def keys(*names):
    return as_keys(str(n).encode().ljust(16, b"\0") for n in names)


def filled(root: Path) -> Store:
    """abc in one shard, xy in another."""
    store = Store(root, IDENTITY)
    store.add(keys(*"abc"), rows(3))
    store.add(keys(*"xy"), rows(2, seed=1))
    return store


def pushed(root: Path, url: str = URL):
    (kept,) = stores(root)
    return push(kept, Remote(url))


def files(url: str = URL) -> dict[str, bytes]:
    memory = fsspec.filesystem("memory")
    return {path: memory.cat_file(path) for path in memory.find("/bucket")}


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(params=["memory", "file", "folder", "http"])
def place(request, tmp_path) -> Iterator[str]:
    """Where `filled` was pushed, as its readers name it."""
    filled(tmp_path / "theirs")
    at = tmp_path / "pushed"
    if request.param == "memory":
        assert pushed(tmp_path / "theirs").sent == 2
        yield URL
    elif request.param == "http":
        pushed(tmp_path / "theirs", str(at))
        handler = functools.partial(_Quiet, directory=str(at))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
    else:
        prefix = "file://" if request.param == "file" else ""
        pushed(tmp_path / "theirs", f"{prefix}{at}")
        yield f"{prefix}{at}"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_what_was_pushed_is_read_by_others(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_SHARED_CACHE", place)
    said: list[str] = []
    places = {"shared": shared_caches(), "remotes": remote_caches()}
    store = Store(tmp_path / "mine", IDENTITY, tell=said.append, **places)
    assert store.missing(keys(*"ayq")).tolist() == [False, False, True]
    got = store.rows(keys("y", "c")).block(0, 2)
    np.testing.assert_array_equal(got, np.stack([rows(2, seed=1)[1], rows(3)[2]]))
    if "://" in place and not place.startswith("file"):
        assert said == [f"2 cache shards fetched from {place}"]
        assert contents(tmp_path / "mine") == contents(tmp_path / "theirs")
    else:  # a folder is read in its place
        assert not (tmp_path / "mine").exists()


def test_only_shards_that_are_wanted_are_fetched_and_only_once(tmp_path, monkeypatch):
    filled(tmp_path / "theirs")
    pushed(tmp_path / "theirs")
    asked = []
    read = Remote.read
    monkeypatch.setattr(Remote, "read", lambda self, name: asked.append(name) or read(self, name))
    for _ in range(2):
        store = Store(tmp_path / "mine", IDENTITY, remotes=[URL])
        assert not store.missing(keys("x")).any()
        assert not store.missing(keys("x", "y")).any()
    assert len([name for name in asked if name.endswith(".npy")]) == 1
    assert len(stores(tmp_path / "mine")) == 1
    assert stores(tmp_path / "mine")[0].shards == 1


def test_pushing_again_sends_what_is_new_and_two_pushers_agree(tmp_path):
    store = filled(tmp_path / "one")
    filled(tmp_path / "two")
    assert (pushed(tmp_path / "one").sent, pushed(tmp_path / "two").sent) == (2, 0)
    before = files()
    store.add(keys("z"), rows(1, seed=2))
    again = pushed(tmp_path / "one")
    assert (again.sent, again.there) == (1, 2)
    assert before.items() < files().items()
    assert {Path(p).name: data for p, data in files().items()} == {
        Path(p).name: data for p, data in contents(tmp_path / "one").items()
    }


def test_a_manifest_goes_last(tmp_path, monkeypatch):
    filled(tmp_path / "theirs")
    written = []
    monkeypatch.setattr(Remote, "write", lambda self, name, data: written.append(Path(name)))
    pushed(tmp_path / "theirs")
    assert written[0].name == "identity.json"
    for shard, manifest in zip(written[1::2], written[2::2], strict=True):
        assert (shard.suffix, manifest) == (".npy", shard.with_suffix(".json"))


@pytest.mark.parametrize("how", ["flip", "cut", "gone", "manifest", "manifest-flip"])
def test_a_damaged_shard_there_is_named_and_the_others_are_used(tmp_path, how):
    filled(tmp_path / "theirs")
    pushed(tmp_path / "theirs")
    memory = fsspec.filesystem("memory")
    (manifest,) = (p for p, data in files().items() if keys("a").tobytes().hex().encode() in data)
    shard = manifest.removesuffix("json") + "npy"
    if how == "flip":
        data = bytearray(memory.cat_file(shard))
        data[-3] ^= 16
        memory.pipe_file(shard, bytes(data))
    elif how == "cut":
        memory.pipe_file(shard, memory.cat_file(shard)[:-1])
    elif how == "gone":
        memory.rm(shard)
    elif how == "manifest-flip":
        memory.pipe_file(manifest, memory.cat_file(manifest).replace(b'"count": 3', b'"count": 2'))
    else:
        memory.pipe_file(manifest, memory.cat_file(manifest)[:40])
    said: list[str] = []
    store = Store(tmp_path / "mine", IDENTITY, remotes=[URL], tell=said.append)
    assert store.missing(keys(*"ax")).tolist() == [True, False]
    damaged, fetched = said
    named = manifest if how.startswith("manifest") else shard
    assert damaged.startswith(f"cache shard memory:/{named} is damaged (")
    assert damaged.endswith("): what is needed of it is made again")
    assert fetched == f"1 cache shard fetched from {URL}"
    store.add(keys(*"abc"), rows(3))
    assert [faults for _, faults in verify(tmp_path / "mine")] == [{}]


def test_a_shard_that_is_damaged_here_or_in_one_place_is_fetched_from_another(tmp_path):
    other = "memory://bucket/other"
    filled(tmp_path / "theirs")
    for url in (URL, other):
        pushed(tmp_path / "theirs", url)
    memory = fsspec.filesystem("memory")
    for path in memory.find("/bucket/cache"):
        if path.endswith(".npy"):
            memory.pipe_file(path, b"x" + memory.cat_file(path)[1:])
    mine = filled(tmp_path / "mine")
    shard = next(mine.folder.glob("*.npy"))
    shard.write_bytes(shard.read_bytes()[:-1])
    store = Store(tmp_path / "mine", IDENTITY, remotes=[URL, other])
    assert not store.missing(keys(*"abcxy")).any()
    assert [faults for _, faults in verify(tmp_path / "mine")] == [{}]


@pytest.mark.parametrize("end", [".npy", ".json"])
def test_what_is_garbled_on_its_way_is_not_kept(tmp_path, monkeypatch, end):
    filled(tmp_path / "theirs")
    pushed(tmp_path / "theirs")
    read, seen = Remote.read, set()

    def garbled(self, name):
        data = read(self, name)
        again = end == ".npy" or name in seen  # a manifest is read for its keys first
        seen.add(name)
        return data[:-3] + b"x" + data[-2:] if name.endswith(end) and again else data

    monkeypatch.setattr(Remote, "read", garbled)
    said: list[str] = []
    store = Store(tmp_path / "mine", IDENTITY, remotes=[URL], tell=said.append)
    assert store.missing(keys("a", "x")).all()
    assert len(said) == 2
    assert all("is damaged (" in line for line in said)
    assert not (tmp_path / "mine").exists()


def test_a_damaged_shard_is_not_pushed(tmp_path, cli):
    store = filled(tmp_path / "c")
    shard = sorted(store.folder.glob("*.npy"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    code, out, _ = cli("cache", "push", URL, "--cache-dir", "c")
    assert code == 1
    assert "1 shards sent" in out
    assert f"{shard.relative_to(tmp_path)}: the rows are not whole, not sent" in out
    assert not [path for path in files() if shard.stem in path]
    assert cli("cache", "push", URL, "--cache-dir", "c", "-m", "other")[2].startswith(
        "harness: nothing to push: c has no store of model other"
    )


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("memory://bucket/none", "there is no shared cache memory://bucket/none: 'harness cache push' makes"),
        ("broken://b/c", "broken://b/c cannot be read (Could not connect to the endpoint URL): run the same"),
        ("http://127.0.0.1:9/c", "http://127.0.0.1:9/c cannot be read (Cannot connect to host 127.0.0.1:9"),
        ("s3://bucket/c", "s3://bucket/c needs another package: Install s3fs to access S3"),
        ("nowhere://bucket/c", "nowhere://bucket/c cannot be read (Protocol not known: nowhere"),
    ],
)
def test_a_cache_that_cannot_be_reached_stops_the_run_before_anything_is_encoded(cli, url, line):
    if url.startswith("s3") and _installed("s3fs"):
        pytest.skip("s3fs is installed")
    arguments = ("eval", "-m", "random", "-t", "demo/text-to-image", "--workers", 0, "-q")
    code, _, err = cli(*arguments, "--shared-cache", url, "--cache-dir", "mine")
    assert code == 2
    assert err.startswith(f"harness: {line}")
    assert err.count("\n") == 1
    assert not list(Path("mine").rglob("*.npy"))


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    filled(tmp_path / "theirs")
    with pytest.raises(StorageError, match=r"^broken://b cannot be read \(Could not connect to the endp"):
        pushed(tmp_path / "theirs", "broken://b")
    with pytest.raises(StorageError, match="cannot be written"):
        Remote("broken://b").write("f", b"x")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot (be )?writ"):
        Remote(str(tmp_path / "file")).write("e/f", b"x")


def test_an_evaluation_takes_vectors_of_others_from_a_url(cli, tmp_path):
    arguments = ("eval", "-m", "random", "-t", "demo/text-to-image", "--workers", 0, "-q")
    assert cli(*arguments, "--cache-dir", "theirs")[0] == 0
    code, out, _ = cli("cache", "push", URL, "--cache-dir", "theirs")
    assert (code, "random" in out, "0 were there" in out) == (0, True, True)
    code, _, err = cli(*arguments, "--cache-dir", "mine", "--shared-cache", URL, "-o", "again")
    assert code == 0, err
    (result,) = (tmp_path / "again").rglob("*.json")
    assert json.loads(result.read_text())["provenance"]["counts"]["embedded"] == 0
    assert contents(tmp_path / "mine" / "embeddings") == contents(tmp_path / "theirs" / "embeddings")


def test_a_cache_without_this_model_is_no_fault(tmp_path):
    filled(tmp_path / "theirs")
    pushed(tmp_path / "theirs")
    said: list[str] = []
    other = Store(tmp_path / "mine", IDENTITY | {"weights": "w2"}, remotes=[URL], tell=said.append)
    assert other.missing(keys("a")).all()
    assert said == []


def test_a_remote_store_of_a_newer_format_is_refused(tmp_path):
    filled(tmp_path / "theirs")
    pushed(tmp_path / "theirs")
    memory = fsspec.filesystem("memory")
    for path, data in files().items():
        if path.endswith(".json") and "identity" not in path:
            memory.pipe_file(path, json.dumps(json.loads(data) | {"format": 99}).encode())
    with pytest.raises(StorageError, match=r"^memory://bucket/cache/.*was written by a newer harness"):
        Store(tmp_path / "mine", IDENTITY, remotes=[URL]).missing(keys("a"))


def test_urls_and_folders_stand_side_by_side(tmp_path, monkeypatch):
    folder = str(tmp_path)
    named = f"{folder}:s3://bucket/a:http://host:80/b:file://{folder}:gs://c"
    monkeypatch.setenv("HARNESS_SHARED_CACHE", named)
    assert shared_caches() == (tmp_path, tmp_path)
    assert remote_caches() == ("s3://bucket/a", "http://host:80/b", "gs://c")
