"""Encoding on Ray: two workers on this machine, and (slow) two nodes of which one is killed."""

import contextlib
import dataclasses
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from harness.cluster import Cluster, Worker, join
from harness.content import Image, Item, Text
from harness.digest import Digests
from harness.encode import EngineOptions, Local, encode, key_items
from harness.errors import BadEmbedding, DataMissing, HarnessError
from harness.model import full_identity
from harness.store import Store
from toys import Toy, ToyEmbedder

ray = pytest.importorskip("ray")
HERE = str(Path(__file__).parent)
"""Where workers find the toys."""


def texts(n):
    return [Item("candidate", (Text(f"item {i} " + "x" * (i * 37 % 101)),)) for i in range(n)]


@pytest.fixture(scope="module")
def two_cpus():
    """Ray on this machine, with room for two workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", HERE)
        ray.shutdown()  # what another test may have started
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr("harness.encode.WINDOW_ITEMS", 16)


@pytest.fixture(scope="module")
def cluster(two_cpus):
    return join("cpu", None, print)


def run(folder, items, engine, toy=None):
    toy = toy or Toy()
    store = Store(folder, full_identity(toy.name, Toy(), {}))
    options = EngineOptions(batch_tokens=400, workers=0, quiet=True)
    encoded, stats = encode(items, key_items(items, Digests()), toy, engine, store, options, title="t")
    return encoded, stats, store


def local(toy=None):
    return Local(lambda: (toy or Toy()).load("cpu"))


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*") if p.is_file()}


@dataclass(frozen=True, slots=True)
class Mortal(Toy):
    """Ends its worker at the item that holds `deadly`, as often as `marks` has no file for it."""

    deadly: str = ""
    lives: int = 1
    marks: Path | None = None

    def load(self, device):
        return MortalEmbedder(self)


class MortalEmbedder(ToyEmbedder):
    def embed(self, batch):
        toy = self.toy
        deaths = len(list(toy.marks.iterdir()))
        if deaths < toy.lives and any(toy.deadly in text for text in batch):
            (toy.marks / str(deaths)).touch()
            os._exit(1)
        return super().embed(batch)


@dataclass(frozen=True, slots=True)
class Homesick(Toy):
    """Needs a package that its worker does not have."""

    def load(self, device):
        import no_such_package  # noqa: F401


def test_two_workers_one_of_which_dies_write_the_bytes_that_this_process_writes(
    tmp_path, media, cluster, small_windows
):
    items = [*texts(100), *(Item("query", (Image(media / f"p{i}.png"), Text(f"n {i}"))) for i in range(6))]
    run(tmp_path / "here", items, local())
    (tmp_path / "marks").mkdir()
    toy = Mortal(deadly="item 70 ", marks=tmp_path / "marks")
    _, stats, _ = run(tmp_path / "ray", items, cluster, toy)
    assert (tmp_path / "marks" / "0").exists()
    assert (stats.items, stats.embedded) == (106, 106)
    assert files(tmp_path / "ray") == files(tmp_path / "here")
    _, again, _ = run(tmp_path / "ray", items, cluster, toy)
    assert again.embedded == 0


def test_a_worker_compiles_what_it_loads_where_that_is_asked_for():
    with pytest.raises(HarnessError, match="ToyEmbedder has no torch module to compile"):
        Worker().load(Toy(), "cpu", 1, 0, compiles=True)


@dataclass(frozen=True, slots=True)
class Failing(Mortal):
    """Its device fails where Mortal dies."""

    def load(self, device):
        return FailingEmbedder(self)


class FailingEmbedder(ToyEmbedder):
    def embed(self, batch):
        toy = self.toy
        if not list(toy.marks.iterdir()) and any(toy.deadly in text for text in batch):
            (toy.marks / "0").touch()
            raise RuntimeError("CUDA error: unspecified launch failure")
        return super().embed(batch)


@pytest.mark.slow
def test_a_worker_whose_device_fails_makes_room_for_another(tmp_path, cluster, small_windows):
    run(tmp_path / "here", texts(100), local())
    (tmp_path / "marks").mkdir()
    toy = Failing(deadly="item 70 ", marks=tmp_path / "marks")
    _, stats, _ = run(tmp_path / "ray", texts(100), cluster, toy)
    assert (tmp_path / "marks" / "0").exists()
    assert stats.embedded == 100
    assert files(tmp_path / "ray") == files(tmp_path / "here")


@pytest.mark.slow
def test_items_that_kill_every_worker_are_named_and_finished_shards_are_kept(
    tmp_path, cluster, small_windows
):
    (tmp_path / "marks").mkdir()
    toy = Mortal(deadly="item 70 ", lives=99, marks=tmp_path / "marks")
    with pytest.raises(HarnessError, match=r"3 Ray workers died .* begin with candidate 'item") as error:
        run(tmp_path / "ray", texts(100), cluster, toy)
    assert "\n" not in str(error.value)
    assert len(Store(tmp_path / "ray", full_identity("toy", Toy(), {}))) >= 16


@pytest.mark.slow
def test_what_a_worker_raises_is_raised_here(tmp_path, cluster):
    with pytest.raises(BadEmbedding, match="a row that is not finite for candidate 'item"):
        run(tmp_path, texts(20), cluster, Toy(fault="nan"))
    with pytest.raises(HarnessError, match="no module 'no_such_package': install") as error:
        run(tmp_path, texts(20), cluster, Homesick())
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved_on_the_worker(tmp_path, cluster):
    _, _, here = run(tmp_path / "here", texts(100), local())
    encoded, _, there = run(tmp_path / "ray", texts(100), cluster, Toy(fits=3))
    assert there.rows(encoded.keys).block(0, 100).tobytes() == here.rows(encoded.keys).block(0, 100).tobytes()


@pytest.mark.slow
def test_a_broken_picture_is_named_and_one_that_only_a_worker_lacks_is_an_error(tmp_path, media, cluster):
    bad = tmp_path / "bad.png"
    bad.write_bytes((media / "p3.png").read_bytes()[:60])
    items = [Item("candidate", (Image(p),)) for p in (media / "p0.png", bad, media / "p1.png")]
    encoded, stats, _ = run(tmp_path / "ray", items, cluster)
    assert list(encoded.broken) == [1]
    assert stats.embedded == 2
    worker = Worker()
    worker.load(Toy(), "cpu", 1, 0)
    gone = [Item("candidate", (Image(tmp_path / "gone.png"),))]
    with pytest.raises(DataMissing, match=r"gone.png is not there on .*: mount the data at the same place"):
        worker.execute(gone, np.array([1]), 100, False, "float16")


@pytest.mark.slow
def test_batches_are_prepared_in_processes_beside_the_worker(tmp_path, media, cluster):
    cluster.close()
    items = [Item("query", (Image(media / f"p{i}.png"), Text(f"n {i}"))) for i in range(6)]
    run(tmp_path / "here", items, local())
    beside = Cluster("cpu", 1, tell=print)
    run(tmp_path / "ray", items, beside)
    beside.close()
    assert files(tmp_path / "ray") == files(tmp_path / "here")


@pytest.mark.slow
def test_another_version_on_a_worker_is_refused(tmp_path, cluster, monkeypatch):
    here = {**full_identity("", Toy(), {}), "dim": "16"}
    monkeypatch.setattr("harness.cluster.full_identity", lambda *a: here)
    with pytest.raises(HarnessError, match=r"has dim 32 \(here 16\): install the same versions"):
        run(tmp_path, texts(5), cluster, dataclasses.replace(Toy(), sleep=0.001))


def test_a_machine_that_has_no_room_for_a_worker_is_an_error(tmp_path, two_cpus):
    with pytest.raises(HarnessError, match="no machine of the Ray cluster has 4 CPU and 1 GPU for a worker"):
        run(tmp_path, texts(5), Cluster("cuda", 3, private=True, tell=print))


def test_a_cluster_that_does_not_answer_is_an_error(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(
        HarnessError, match=r"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9 .*unset"
    ) as error:
        join("auto", None, print)
    assert "\n" not in str(error.value)
    with pytest.raises(HarnessError, match="Ray hands out the devices: --device cuda:1 cannot be chosen"):
        join("cuda:1", None, print)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HarnessError, match=r"needs Ray: pip install 'umr-harness\[ray\]'"):
        join("cpu", None, print)


@pytest.mark.slow
def test_the_command_line_gives_the_same_scores_and_says_what_encoded(cli, tmp_path, cluster):
    cluster.close()  # its workers hold the two CPUs
    asked = ("eval", "-m", "random", "-t", "demo/text-to-image,demo/composed", "-q", "--workers", "0")
    asked += ("--store-dtype", "bfloat16")
    code, plain, err = cli(*asked, "-o", "here", "--cache-dir", "a")
    assert code == 0, err
    code, out, err = cli(*asked, "-o", "ray", "--cache-dir", "b", "--engine", "ray")
    assert code == 0, err
    assert out == plain
    assert files(tmp_path / "b" / "embeddings") == files(tmp_path / "a" / "embeddings")
    results = [json.loads(p.read_text()) for p in (tmp_path / "ray").rglob("*.json")]
    for about in (result["provenance"] for result in results):
        assert list(about["encoded_on"]) == [platform.machine()]
        assert about["plan"]["devices"] == sum(about["encoded_on"].values())


TASKS = """
import sys
from pathlib import Path

import harness.encode
import toys
from harness.cluster import join
from harness.evaluate import evaluate

harness.encode.WINDOW_ITEMS = 16
folder, where = Path(sys.argv[1]), sys.argv[2]
toy = toys.Toy(sleep=0.05, log=folder / "embedded")
tasks = [toys.task(lambda: toys.collection(200), "toys/a"), toys.task(lambda: toys.collection(300), "toys/b")]
remote = join("cpu", None, print) if where == "ray" else None
places = toys.places(folder, batch_tokens=120)
outcomes = evaluate(toys.catalog([toys.spec(toy)], tasks), toys.spec(toy), {}, tasks, places, remote=remote)
sys.exit(any(o.error for o in outcomes))
"""


def start_node(*flags):
    """A Ray node of one CPU in processes of its own."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *flags]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet)


def end(process, sign):
    """Signal a process and all that it started."""
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(sign)
    process.wait(timeout=60)


@pytest.fixture
def short_folder():
    """For sockets, whose paths may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield folder


def embedded(folder):
    """Worker process → how many items it has embedded."""
    log = folder / "embedded"
    return Counter(line.split()[0] for line in log.read_text().splitlines()) if log.exists() else Counter()


def well_under_way(folder):
    return len(embedded(folder)) == 2 and embedded(folder).total() > 100


def until(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_node_of_a_cluster_is_killed_half_way_and_results_and_shards_are_those_of_one_process(
    tmp_path, monkeypatch, short_folder
):
    monkeypatch.setenv("PYTHONPATH", HERE)
    monkeypatch.setenv("RAY_TMPDIR", short_folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = tmp_path / "tasks.py"
    script.write_text(TASKS)
    environment = {**os.environ, "RAY_ADDRESS": address}
    for name in ("here", "ray"):
        (tmp_path / name).mkdir()
    subprocess.run([sys.executable, script, tmp_path / "here", "local"], env=environment, check=True)
    head = start_node("--head", "--include-dashboard=false", f"--port={address.split(':')[1]}", LOOPBACK)
    until(lambda: reachable(address))
    other = start_node(f"--address={address}", LOOPBACK)
    driver = subprocess.Popen([sys.executable, script, tmp_path / "ray", "ray"], env=environment)
    try:
        until(lambda: driver.poll() is not None or well_under_way(tmp_path / "ray"))
        end(other, signal.SIGKILL)
        assert driver.wait(timeout=300) == 0
    finally:
        driver.kill()
        end(head, signal.SIGTERM)
    assert len(embedded(tmp_path / "ray")) == 2
    repeated = embedded(tmp_path / "ray").total() - embedded(tmp_path / "here").total()
    assert 0 <= repeated < 64
    shards, alone = (files(tmp_path / name / "cache" / "embeddings") for name in ("ray", "here"))
    assert shards == alone
    runs, plain = (files(tmp_path / name / "runs") for name in ("ray", "here"))
    compared = [path for path in runs if path.suffix != ".json"]
    assert {p: runs[p] for p in compared} == {p: plain[p] for p in compared}
    assert len(compared) == 4


LOOPBACK = "--node-ip-address=127.0.0.1"


def reachable(address):
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
