import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from harness.content import Image, Item, Text, Video
from harness.digest import Digests, digest, file_digest
from harness.errors import BadEmbedding, StorageError
from harness.store import Store, as_keys, key

IDENTITY = {"model": "m", "weights": "w1"}


def rows(n, dim=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float16)


def keys(*names):
    return as_keys(str(n).encode().ljust(16, b"\0") for n in names)


def item(*parts, role="query", instruction=None):
    return Item(role, parts, instruction)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_shard_comes_back_in_any_order_and_in_another_store(tmp_path, dtype):
    a, b = rows(5).astype(dtype), rows(3, seed=1).astype(dtype)
    store = Store(tmp_path, IDENTITY, dtype=dtype)
    store.add(keys(*"abcde"), a)
    store.add(keys(*"xyz"), b)
    for opened in (store, Store(tmp_path, IDENTITY, dtype=dtype)):
        got = opened.rows(keys("z", "a", "e", "x", "a"))
        np.testing.assert_array_equal(got.block(0, 5), np.stack([b[2], a[0], a[4], b[0], a[0]]), strict=True)
        np.testing.assert_array_equal(got.take(np.array([3, 0])), np.stack([b[0], b[2]]), strict=True)
        assert (len(got), got.dim) == (5, 8)
        assert opened.missing(keys("a", "q", "z")).tolist() == [False, True, False]


def test_a_second_process_reads_what_a_killed_one_wrote(tmp_path):
    """The third cache fault of the field: a cache that cannot be opened again."""
    script = f"""
import os, signal, numpy as np, sys
from pathlib import Path
from harness.store import Store, as_keys
store = Store(Path({str(tmp_path)!r}), {IDENTITY!r})
store.add(as_keys([b"k1".ljust(16, b"x"), b"k2".ljust(16, b"x")]), np.eye(2, 4, dtype=np.float16))
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    got = Store(tmp_path, IDENTITY).rows(as_keys([b"k2".ljust(16, b"x")]))
    np.testing.assert_array_equal(got.block(0, 1), np.eye(2, 4, dtype=np.float16)[1:])


def test_equal_keys_of_another_identity_are_not_found(tmp_path):
    """The fourth cache fault: one model's answers given for another."""
    Store(tmp_path, IDENTITY).add(keys("a"), rows(1))
    assert Store(tmp_path, IDENTITY | {"weights": "w2"}).missing(keys("a")).all()
    assert not Store(tmp_path, IDENTITY).missing(keys("a")).any()


def test_role_instruction_and_every_part_make_the_key(tmp_path):
    """The second cache fault: a candidate that gets the query's vector."""
    picture, other = tmp_path / "a.png", tmp_path / "b.png"
    picture.write_bytes(b"one")
    other.write_bytes(b"two")
    digests = Digests()
    different = [
        item(Text("cat")),
        item(Text("cat"), role="candidate"),
        item(Text("cat"), instruction="Find it."),
        item(Text("cat"), instruction=""),
        item(Text("cat "), instruction=None),
        item(Text("c"), Text("at")),
        item(Image(picture)),
        item(Image(other)),
        item(Image(picture, crop=(0, 0, 1, 1))),
        item(Image(picture, max_pixels=100)),
        item(Image(picture), Text("cat")),
        item(Text("cat"), Image(picture)),
        item(Video(picture)),
        item(Video(picture, frames=4)),
        item(Video(picture, fps=4)),
        item(Text('["image"]')),
        item(Text("\ud800")),
    ]
    made = [key(i, digests) for i in different]
    assert len(set(made)) == len(made)
    assert all(len(k) == 16 for k in made)


def test_a_key_follows_the_bytes_of_a_file_not_its_name(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"same")
    digests = Digests()
    assert key(item(Image(tmp_path / "a.png")), digests) == key(item(Image(tmp_path / "b.png")), digests)
    before = key(item(Image(tmp_path / "a.png")), digests)
    (tmp_path / "a.png").write_bytes(b"changed")
    assert key(item(Image(tmp_path / "a.png")), digests) != before


def test_keys_ending_in_zero_bytes_are_told_apart(tmp_path):
    store = Store(tmp_path, IDENTITY)
    a, b = b"k" + b"\0" * 15, b"k\1" + b"\0" * 14
    store.add(as_keys([a, b]), rows(2))
    again = Store(tmp_path, IDENTITY)
    np.testing.assert_array_equal(again.rows(as_keys([b])).block(0, 1), rows(2)[1:])


@pytest.mark.parametrize("how", ["flip", "truncate", "remove", "manifest", "manifest-flip"])
def test_a_damaged_shard_is_found_and_only_its_rows_are_missing(tmp_path, how):
    store = Store(tmp_path, IDENTITY)
    store.add(keys(*"abc"), rows(3))
    store.add(keys(*"xy"), rows(2, seed=1))
    manifest = next(p for p in store.folder.glob("*.json") if keys("a").tobytes().hex() in p.read_text())
    shard = manifest.with_suffix(".npy")
    data = bytearray(shard.read_bytes())
    if how == "flip":
        data[-3] ^= 16
        shard.write_bytes(data)
    elif how == "truncate":
        shard.write_bytes(data[:-1])
    elif how == "remove":
        shard.unlink()
    elif how == "manifest-flip":
        manifest.write_text(
            manifest.read_text().replace(keys("a").tobytes().hex(), keys("q").tobytes().hex())
        )
    else:
        manifest.write_text(manifest.read_text()[:40])
    said = []
    again = Store(tmp_path, IDENTITY, tell=said.append)
    assert again.missing(keys(*"abxy")).tolist() == [True, True, False, False]
    (line,) = said
    assert line.startswith(f"cache shard {shard} is damaged (")
    assert again.damaged == [manifest]
    again.add(keys(*"abc"), rows(3))
    assert not Store(tmp_path, IDENTITY).missing(keys(*"abcxy")).any()
    np.testing.assert_array_equal(
        again.rows(keys("c", "y")).block(0, 2), np.stack([rows(3)[2], rows(2, seed=1)[1]])
    )


def test_a_damaged_shard_whose_rows_come_back_in_other_shards_is_removed(tmp_path):
    store = Store(tmp_path, IDENTITY)
    store.add(keys(*"abc"), rows(3))
    shard = next(store.folder.glob("*.npy"))
    shard.write_bytes(shard.read_bytes()[:-1])
    again = Store(tmp_path, IDENTITY)
    assert again.missing(keys(*"abc")).all()
    again.add(keys(*"ab"), rows(2))
    assert not shard.exists()
    assert Store(tmp_path, IDENTITY).damaged == []


def test_a_shard_that_another_process_made_again_is_not_removed(tmp_path):
    Store(tmp_path, IDENTITY).add(keys(*"abc"), rows(3))
    shard = next((tmp_path / "embeddings").rglob("*.npy"))
    shard.write_bytes(shard.read_bytes()[:-1])
    one, other = Store(tmp_path, IDENTITY), Store(tmp_path, IDENTITY)
    other.add(keys(*"abc"), rows(3))
    one.add(keys("q"), rows(1))
    assert not Store(tmp_path, IDENTITY).missing(keys(*"abcq")).any()


def test_shared_caches_are_read_after_ones_own_and_never_written(tmp_path):
    mine, theirs = rows(1), rows(3, seed=1)
    Store(tmp_path / "shared", IDENTITY).add(keys(*"abc"), theirs)
    Store(tmp_path / "shared", IDENTITY).add(keys("d"), rows(1, seed=2))
    damaged = next(p for p in (tmp_path / "shared").rglob("*.npy") if np.load(p).shape[0] == 1)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = {p: p.read_bytes() for p in (tmp_path / "shared").rglob("*") if p.is_file()}
    Store(tmp_path / "own", IDENTITY).add(keys("a"), mine)
    store = Store(tmp_path / "own", IDENTITY, shared=[tmp_path / "none", tmp_path / "shared"])
    assert store.missing(keys(*"abcd")).tolist() == [False, False, False, True]
    np.testing.assert_array_equal(store.rows(keys("a", "c")).block(0, 2), np.stack([mine[0], theirs[2]]))
    store.touch()
    store.add(keys("d"), rows(1, seed=2))
    assert not store.missing(keys(*"abcd")).any()
    assert {p: p.read_bytes() for p in (tmp_path / "shared").rglob("*") if p.is_file()} == before


def test_more_shards_than_a_process_may_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.store._MAPPED", 2)
    store = Store(tmp_path, IDENTITY)
    every = rows(6)
    for i in range(6):
        store.add(keys(i), every[i : i + 1])
    got = store.rows(keys(*range(6)))
    for take in ([5, 0, 3], [1, 2, 4], [0, 5, 0]):
        np.testing.assert_array_equal(got.take(np.array(take)), every[take])
    assert len(got._maps) <= 2


@pytest.mark.parametrize(
    "span", [slice(0, 40), slice(3, 9), slice(9, 2, -1), slice(0, 40, 3), slice(0, 40, 13)]
)
def test_any_part_of_shards_comes_back(tmp_path, span):
    store = Store(tmp_path, IDENTITY)
    every = rows(40)
    store.add(keys(*range(25)), every[:25])
    store.add(keys(*range(25, 40)), every[25:])
    wanted = list(range(40))[span]
    got = store.rows(keys(*wanted))
    np.testing.assert_array_equal(got.block(0, len(wanted)), every[wanted])
    np.testing.assert_array_equal(got.take(np.arange(len(wanted))[::-1]), every[wanted[::-1]])


def test_rows_that_go_while_they_are_in_use_are_one_clear_line(tmp_path):
    store = Store(tmp_path, IDENTITY)
    store.add(keys(*"abc"), rows(3))
    got = store.rows(keys(*"abc"))
    next(store.folder.glob("*.npy")).unlink()
    for read in (lambda: got.block(0, 3), lambda: got.take(np.array([1]))):
        with pytest.raises(
            StorageError, match=r"\.npy was removed or cut while it was in use .*: run the same"
        ):
            read()


WRITER = """
import sys
from pathlib import Path
import numpy as np
from harness.store import Store, as_keys
for start in range(0, 60, int(sys.argv[2])):
    here = range(start, min(60, start + int(sys.argv[2])))
    keys = as_keys(f"{i:016d}".encode() for i in here)
    store = Store(Path(sys.argv[1]), {"model": "m"})
    store.missing(keys)
    store.add(keys, np.array([[i, i + 1] for i in here], np.float16))
"""


def test_processes_that_write_the_same_keys_at_once_do_each_other_no_harm(tmp_path):
    sizes = ("3", "3", "4")  # two write equal shards, one the same keys in others
    running = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), size]) for size in sizes]
    assert [process.wait() for process in running] == [0, 0, 0]
    store = Store(tmp_path, {"model": "m"})
    wanted = as_keys(f"{i:016d}".encode() for i in range(60))
    assert not store.missing(wanted).any()
    assert store.damaged == []
    np.testing.assert_array_equal(store.rows(wanted).block(0, 60)[:, 0], np.arange(60))
    assert len(store) == 2 * 60  # equal shards fell into one
    assert not list(store.folder.glob(".*.tmp"))


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from harness.store import Store, as_keys

def write(root, die):
    count = 0
    def dying(call):
        def counted(*arguments):
            nonlocal count
            count += 1
            if count == die:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)
        return counted
    os.fsync, os.replace = dying(os.fsync), dying(os.replace)
    for start in range(0, 12, 4):
        keys = as_keys(f"{i:016d}".encode() for i in range(start, start + 4))
        store = Store(root, {"model": "m"})
        if store.missing(keys).any():
            store.add(keys, np.arange(start, start + 16, dtype=np.float16).reshape(4, 4))
        with (root / "stored").open("a") as log:
            log.write("x")

def lived(root, die=0):
    child = os.fork()
    if not child:
        write(root, die)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

def contents(root):
    return {p.name: p.read_bytes() for p in root.glob("embeddings/*/[!.]*")}

top = Path(sys.argv[1])
assert lived(top / "whole")
for die in range(1, 100):
    root = top / str(die)
    if lived(root, die):
        break
    log = root / "stored"
    finished = len(log.read_bytes()) if log.exists() else 0
    assert len(Store(root, {"model": "m"})) in (4 * finished, 4 * finished + 4), die
    assert lived(root)
    assert contents(root) == contents(top / "whole"), die
print(die - 1)
"""


def test_whenever_a_writer_is_killed_no_finished_shard_is_lost_and_the_next_one_ends_in_the_same_bytes(
    tmp_path,
):
    """At 21 places: before the fsync, the rename and the folder's fsync of two files for each of three shards
    and one for the identity."""
    command = [sys.executable, "-c", KILLED, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 3 * (2 * 3 + 1)


SMALL_DISK = """
import subprocess, sys
from pathlib import Path
import numpy as np
from harness.errors import StorageError
from harness.store import Store, as_keys, manifests, remove
root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", root], check=True)
shards = [as_keys(f"{s}-{i:014d}".encode() for i in range(1000)) for s in range(9)]
rows = np.ones((1000, 128), np.float16)
store, stored = Store(root, {"model": "m"}), []
try:
    for keys in shards:
        store.add(keys, rows)
        stored.append(keys)
except StorageError as error:
    print(error)
again = Store(root, {"model": "m"})
assert 0 < len(stored) < 9 and len(again) == 1000 * len(stored)
assert not again.missing(np.concatenate(stored)).any() and not again.damaged
assert not list(store.folder.glob(".*"))
subprocess.run(["mount", "-o", "remount,ro", root], check=True)
for change in (lambda: again.add(shards[8][:1], rows[:1]), lambda: remove(manifests(store.folder)[0])):
    try:
        change()
    except StorageError as error:
        print(error)
again.touch()
assert (Store(root, {"model": "m"}).rows(shards[0]).block(0, 1000) == 1).all()
"""


def test_full_and_read_only_disks_are_one_line_and_what_is_stored_is_kept(tmp_path):
    """On a disk of 1 MB that only the child sees."""
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", tmp_path]
    if shutil.which("unshare") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    command = ["unshare", "-rm", sys.executable, "-c", SMALL_DISK, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    full, added, removed = done.stdout.splitlines()
    assert full.startswith(f"cannot write {tmp_path}/embeddings/")
    assert full.endswith(" (no space left on device): free some space and run the same command again:"
                         " what is finished is kept")  # fmt: skip
    for line in (added, removed):
        assert line.startswith(f"cannot write {tmp_path}/embeddings/")
        assert line.endswith(" (read-only file system): make it writable or choose another folder")


def test_half_written_shards_are_not_seen(tmp_path):
    store = Store(tmp_path, IDENTITY)
    store.add(keys("a"), rows(1))
    (store.folder / "0123.npy").write_bytes(b"rows whose manifest never came")
    (store.folder / ".0456.json.x.tmp").write_text("{")
    again = Store(tmp_path, IDENTITY)
    assert (len(again), again.damaged) == (1, [])


def test_a_store_of_a_newer_format_is_refused(tmp_path):
    store = Store(tmp_path, IDENTITY)
    store.add(keys("a"), rows(1))
    manifest = next(p for p in store.folder.glob("*.json") if p.name != "identity.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(StorageError, match="newer harness"):
        Store(tmp_path, IDENTITY)


def test_one_identity_has_one_dimension(tmp_path):
    store = Store(tmp_path, IDENTITY)
    store.add(keys("a"), rows(1))
    with pytest.raises(BadEmbedding, match="9 columns, 8 before"):
        store.add(keys("b"), rows(1, dim=9))


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("one", "two"):
        Store(tmp_path / name, IDENTITY).add(keys(*"ab"), rows(2))
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("one", "two")
    )
    assert one == two


def test_a_shard_is_what_numpy_saves_and_other_rows_of_its_keys_are_another(tmp_path):
    store = Store(tmp_path / "s", IDENTITY)
    every = np.arange(24, dtype=np.float16).reshape(3, 8)
    store.add(keys(*"abc"), every[:, ::-1])
    (shard,) = store.folder.glob("*.npy")
    np.save(tmp_path / "plain.npy", np.ascontiguousarray(every[:, ::-1]))
    assert shard.read_bytes() == (tmp_path / "plain.npy").read_bytes()
    store.add(keys(*"abc"), every)
    store.add(keys(*"abd"), every)
    assert len(list(store.folder.glob("*.npy"))) == 3


def test_digests_are_remembered_until_the_file_changes(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    memory = tmp_path / "digests.sqlite"
    first = Digests(memory)
    assert first(file) == file_digest(file)
    first.save()
    stamp = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert Digests(memory)(file) == first(file)  # same size and time: the file was not read again
    file.write_bytes(b"three")
    assert Digests(memory)(file) == file_digest(file)


def test_digests_of_a_shared_cache_are_used_and_never_written(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    theirs = Digests.of(tmp_path / "theirs")
    theirs(file)
    theirs.save()
    stamp, before = file.stat(), (tmp_path / "theirs" / "digests.sqlite").read_bytes()
    file.write_bytes(b"two")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    mine = Digests.of(tmp_path / "mine", [tmp_path / "none", tmp_path / "theirs"])
    assert mine(file) == theirs(file)  # same size and time: the file was not read
    file.write_bytes(b"three")
    assert mine(file) == file_digest(file)
    mine.save()
    assert (tmp_path / "theirs" / "digests.sqlite").read_bytes() == before


def test_a_database_that_cannot_be_used_costs_only_time(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    bad = tmp_path / "digests.sqlite"
    bad.write_bytes(b"this is not a database" * 100)
    digests = Digests(bad)
    assert digests(file) == file_digest(file)
    digests.save()


def test_a_folder_digest_follows_names_and_contents(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").write_text("1")
    first = Digests().tree([("d", tmp_path / "d")])
    (tmp_path / "d" / "x").rename(tmp_path / "d" / "y")
    assert Digests().tree([("d", tmp_path / "d")]) != first


def test_digest_is_canonical():
    assert digest({"b": 1, "a": [2, frozenset({"y", "x"})]}) == digest({"a": [2, ["x", "y"]], "b": 1})
    assert len(digest("x", length=12)) == 12
    with pytest.raises(TypeError, match="cannot digest"):
        digest(object())
