"""What the `data` commands do: fetch from a hub, convert, and say what is there and right."""

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from harness import data as data_sets
from harness.collection import Collection, Pool
from harness.content import Candidate, Image, Query, Text, Video
from harness.errors import DataInvalid, HarnessError, StorageError
from harness.hub import shown, unpack
from harness.task import MINIATURE, Fact, Need, Protocol
from harness.task import Hub as Place
from harness.testing import write_clip, write_picture
from hub import GATED, Hub
from toys import catalog, collection, task

BIRDS = "team/birds"
LIST = Need(Path("birds/list.json"), "see birds.org", hub=Place(BIRDS, ("birds/*",)))
PICTURES = Need(Path("birds/images"), "see birds.org", media=True, hub=Place(BIRDS, ("birds/*",)))
HANDMADE = Need(Path("fish/list.json"), "ask at fish.org")
FILES = {"birds/list.json": b"[1, 2]", "birds/images/a.png": b"a" * 5000, "README.md": b"Birds."}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that stands for huggingface.co, whose library is online and finds no token."""
    from huggingface_hub import constants

    agents = tmp_path / "hf/agents.json"  # else the library asks huggingface.co for this list
    agents.parent.mkdir()
    agents.write_text('{"harnesses": {}}')
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf/token"))
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(agents), raising=False)
        yield hub


@pytest.fixture
def offer(monkeypatch):
    """Let these tasks be all that is installed."""

    def offer(*tasks):
        monkeypatch.setattr("harness.registry.load_catalog", lambda: catalog([], tasks))

    return offer


def toy(name, *needs, load=collection, **more):
    return task(load, name, needs=needs, **more)


def fetched(data, *needs, **options):
    return list(data_sets.fetch(data, [toy("birds/a", *needs)], Protocol(), **options))


def record(data):
    return json.loads((data / ".fetched.json").read_text())[BIRDS]


# fetch


def test_fetch_brings_the_matching_files_and_records_the_commit(hub, offer, cli, tmp_path):
    commit = hub.commit(f"datasets/{BIRDS}", FILES)
    offer(toy("birds/a", LIST, PICTURES), toy("birds/b", LIST))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/README.md").write_text("mine")
    code, out, err = cli("data", "fetch", "birds")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{BIRDS} at commit {commit}, which is main now; later fetches stay with it (data/.fetched.json)",
        "2 files, 5.0 kB, to data",
        "everything that birds reads is there",
    ]
    assert (tmp_path / "data/birds/list.json").read_bytes() == b"[1, 2]"
    assert (tmp_path / "data/birds/images/a.png").read_bytes() == b"a" * 5000
    assert (tmp_path / "data/README.md").read_text() == "mine"
    assert record(tmp_path / "data") == {
        "revision": commit,
        "files": ["birds/images/a.png", "birds/list.json"],
        "unfinished": [],
    }
    hub.asked.clear()
    assert cli("data", "fetch", "birds")[:2] == (0, "everything that birds reads is there\n")
    assert hub.asked == []


def test_fetch_puts_the_files_into_the_folder_of_the_need(hub, tmp_path):
    hub.commit("datasets/team/fish", {"query/a.json": b"{}"})
    need = Need(Path("Fish/query/a.json"), "", hub=Place("team/fish", ("query/a.json",), into=Path("Fish")))
    fetched(tmp_path, need)
    assert need.require(tmp_path).read_bytes() == b"{}"


def test_a_connection_that_is_cut_goes_on_where_it_was(hub, tmp_path, monkeypatch):
    content = bytes(range(256)) * 1000
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.commit(f"datasets/{BIRDS}", {**FILES, "birds/big": content})
    hub.cut["birds/big"] = 100_500
    fetched(tmp_path, LIST)
    assert (tmp_path / "birds/big").read_bytes() == content
    starts = [a.start for a in hub.asked if a.method == "GET" and a.path.endswith("birds/big")]
    assert starts == [0, 100_000]


def test_an_interrupted_fetch_goes_on_without_what_is_finished(hub, offer, cli, tmp_path):
    commit = hub.commit(f"datasets/{BIRDS}", {f"birds/images/{i}.png": b"%d" % i for i in range(6)})
    hub.refused[f"/datasets/{BIRDS}/resolve/{commit}/birds/images/5"] = (403, "")
    offer(toy("birds/a", PICTURES))
    code, _, err = cli("data", "fetch", "birds")
    assert (code, len(err.splitlines())) == (2, 1)
    assert PICTURES.find(tmp_path / "data") is not None
    assert cli("data", "status")[1] == (
        "birds/a: 1 problem\n"
        "    data/birds/images is not fetched to the end: run 'harness data fetch birds/a' again\n"
    )
    finished = {f"birds/images/{p.name}" for p in (tmp_path / "data/birds/images").iterdir()}
    hub.refused.clear()
    hub.asked.clear()
    assert cli("data", "fetch", "birds")[0] == 0
    assert set(hub.downloads()) == {f"birds/images/{i}.png" for i in range(6)} - finished
    assert cli("data", "status")[0] == 0


def test_a_repository_stays_at_its_commit_until_told_otherwise(hub, tmp_path):
    old = hub.commit(f"datasets/{BIRDS}", {"birds/list.json": b"old"})
    fetched(tmp_path, LIST)
    new = hub.commit(f"datasets/{BIRDS}", {"birds/list.json": b"new", "birds/more.json": b"more"})
    (tmp_path / "birds/list.json").unlink()
    (line, _) = fetched(tmp_path, LIST)
    assert (
        line
        == f"{BIRDS} at commit {old}, as recorded in {tmp_path / '.fetched.json'}; --revision takes another"
    )
    assert (tmp_path / "birds/list.json").read_bytes() == b"old"
    assert not (tmp_path / "birds/more.json").exists()
    (line, _) = fetched(tmp_path, LIST, revision="main")
    assert line.startswith(f"{BIRDS} at commit {new}, which is main now; later fetches stay with it")
    assert line.endswith(f"what else was fetched of {old} stays as it is")
    assert (tmp_path / "birds/list.json").read_bytes() == b"new"
    assert record(tmp_path)["revision"] == new
    assert fetched(tmp_path, LIST, revision=new) == []
    fetched(tmp_path, LIST, revision=old)
    assert (tmp_path / "birds/list.json").read_bytes() == b"old"
    assert record(tmp_path)["files"] == ["birds/list.json"]


def test_another_revision_leaves_what_was_put_there_by_hand(hub, tmp_path):
    hub.commit(f"datasets/{BIRDS}", FILES)
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds/list.json").write_text("mine")
    assert fetched(tmp_path, LIST, revision="main") == []
    assert (tmp_path / "birds/list.json").read_text() == "mine"


def test_two_data_sets_of_one_repository_are_recorded_together(hub, tmp_path):
    commit = hub.commit(f"datasets/{BIRDS}", {**FILES, "eggs/list.json": b"{}"})
    fetched(tmp_path, LIST)
    hub.commit(f"datasets/{BIRDS}", {"eggs/list.json": b"newer"})
    fetched(tmp_path, Need(Path("eggs"), "", hub=Place(BIRDS, ("eggs/*",))))
    assert (tmp_path / "eggs/list.json").read_bytes() == b"{}"
    assert record(tmp_path)["revision"] == commit
    assert len(record(tmp_path)["files"]) == 3


def test_a_dry_run_downloads_and_records_nothing(hub, offer, cli, tmp_path):
    hub.commit(f"datasets/{BIRDS}", FILES)
    offer(toy("birds/a", LIST))
    code, out, _ = cli("data", "fetch", "birds", "--dry-run")
    assert code == 1
    assert "2 files, 5.0 kB, to data" in out
    assert hub.downloads() == []
    assert not (tmp_path / "data").exists()


def test_what_is_not_on_the_hub_is_told_with_its_place(hub, offer, cli, tmp_path):
    hub.commit(f"datasets/{BIRDS}", {"README.md": b""})
    offer(toy("birds/a", LIST), toy("fish/a", HANDMADE))
    code, out, _ = cli("data", "fetch", "fish")
    assert code == 1
    assert out == f"{tmp_path}/data/fish/list.json has to be put there by hand: ask at fish.org\n"
    assert hub.asked == []
    code, out, _ = cli("data", "fetch", "birds,fish")
    assert code == 1
    assert f"{BIRDS} has no file that matches birds/*" in out
    assert out.splitlines()[-1] == f"{tmp_path}/data/birds/list.json is still missing: see birds.org"
    (tmp_path / "data/fish").mkdir(parents=True)
    (tmp_path / "data/fish/list.json").touch()
    assert cli("data", "fetch", "fish")[0] == 0


def test_the_parts_of_m_beirs_pictures_come_with_the_command_that_joins_them(hub, cli, tmp_path):
    hub.commit("datasets/TIGER-Lab/M-BEIR", {"mbeir_images.tar.gz.part-00": b"0", "README.md": b""})
    code, out, _ = cli("data", "fetch", "mbeir-local/cirr_task7")
    assert code == 1
    assert (tmp_path / "data/M-BEIR/mbeir_images.tar.gz.part-00").exists()
    assert f"{tmp_path}/data/M-BEIR/mbeir_images is still missing: " in out
    assert "cat mbeir_images.tar.gz.part-* | tar -xzf -" in out
    assert "has no file that matches query/test/mbeir_cirr_task7_test.jsonl" in out


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ({"/api": GATED}, "team/birds may not be read (403): accept its terms at {url} and run 'hf auth"),
        ({"/datasets": GATED}, "team/birds may not be read (403): accept its terms at {url}"),
        ({"/datasets": (403, "")}, "team/birds may not be read (403)"),
        ({"/api": (401, "")}, "team/birds may not be read (401)"),
        ({"/api": (401, "RepoNotFound")}, "there is no data set team/birds at {hub}, or it is not public"),
        ({"/api": (503, "")}, "team/birds cannot be fetched from {hub} (Server error '503 Service"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_one_line(hub, offer, cli, refused, message):
    hub.commit(f"datasets/{BIRDS}", FILES)
    hub.refused = refused
    offer(toy("birds/a", LIST))
    code, _, err = cli("data", "fetch", "birds")
    assert code == 2
    assert err.startswith("harness: " + message.format(url=f"{hub.url}/datasets/{BIRDS}", hub=hub.url))
    assert len(err.splitlines()) == 1


def test_an_unknown_repository_or_revision_is_named(hub, tmp_path):
    with pytest.raises(HarnessError, match="there is no data set team/birds at"):
        fetched(tmp_path, LIST)
    hub.commit(f"datasets/{BIRDS}", FILES)
    with pytest.raises(
        HarnessError, match=r"team/birds has no revision 'v9': see .*/team/birds/commits/main"
    ):
        fetched(tmp_path, LIST, revision="v9")
    assert not (tmp_path / ".fetched.json").exists()
    eggs = Need(Path("eggs"), "", hub=Place("team/eggs", ("*",)))
    with pytest.raises(HarnessError, match=r"--revision is one repository's: .* in team/birds and team/eggs"):
        fetched(tmp_path, LIST, eggs, revision="v9")
    with pytest.raises(HarnessError, match=r"--revision is one repository's: .* in none"):
        fetched(tmp_path, HANDMADE, revision="v9")


def test_no_network_is_one_line(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        HarnessError, match=r"cannot be fetched from http://127.0.0.1:9 \(.*refused\): run the"
    ):
        fetched(tmp_path, LIST)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HarnessError, match="team/birds cannot be fetched offline: unset HF_HUB_OFFLINE"):
        fetched(tmp_path, LIST)


def test_what_lies_there_of_another_size_is_not_taken_for_a_download(hub, tmp_path, monkeypatch):
    hub.commit(f"datasets/{BIRDS}", FILES)
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds/list.json").write_text("half")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: None)  # as it does offline
    with pytest.raises(HarnessError, match=r"birds/\S+ was not downloaded whole from team/birds"):
        fetched(tmp_path, PICTURES)


def test_a_full_disk_is_told_before_and_during_the_download(hub, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    hub.commit(f"datasets/{BIRDS}", FILES)
    with monkeypatch.context() as small:
        usage = shutil.disk_usage(tmp_path)
        small.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5005))
        with pytest.raises(
            StorageError, match=r"team/birds needs 5\.0 kB in .*, 5\.0 kB are free: free some"
        ):
            fetched(tmp_path, LIST)
    assert hub.downloads() == []
    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(StorageError, match=r"cannot write .* \(no space left on device\): free some space"):
        fetched(tmp_path, LIST)


def test_a_data_root_that_cannot_be_written_is_one_line(hub, tmp_path):
    hub.commit(f"datasets/{BIRDS}", FILES)
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StorageError, match="cannot write"):
        fetched(tmp_path / "data", LIST)


def test_a_broken_record_is_named(tmp_path):
    for content in ("{", "[]", '{"team/birds": {"revision": 1}}'):
        (tmp_path / ".fetched.json").write_text(content)
        with pytest.raises(DataInvalid, match=r"\.fetched\.json.*: delete the file to fetch anew"):
            data_sets.lacking(tmp_path, [], Protocol())


def test_the_installed_command_fetches_where_hf_endpoint_says(tmp_path):
    with Hub() as hub:
        hub.commit("datasets/TIGER-Lab/M-BEIR", {"mbeir_images.tar.gz.part-00": b"0"})
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [Path(sys.executable).parent / "harness", "data", "fetch", "mbeir-local/cirr_task7"],
            env=os.environ | settings, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (1, "")
        assert hub.downloads() == ["mbeir_images.tar.gz.part-00"]
    assert (tmp_path / "data/M-BEIR/mbeir_images.tar.gz.part-00").read_bytes() == b"0"


# archives


def zipped(files, *, mode=0o644, kind=stat.S_IFREG):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | mode) << 16
            archive.writestr(info, content)
    return out.getvalue()


def tarred(files, *, mode="w:gz", kind=tarfile.REGTYPE):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = (
                kind,
                len(content) if kind == tarfile.REGTYPE else 0,
                "/etc/passwd",
            )
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


INSIDE = {"images/a.png": b"a", "images/deep/b.png": b"bb"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("birds.zip", zipped(INSIDE)),
        ("birds.tar", tarred(INSIDE, mode="w")),
        ("birds.tar.gz", tarred(INSIDE)),
        ("birds.tgz", tarred(INSIDE)),
    ],
)
def test_archives_are_unpacked_beside_themselves_and_kept(hub, tmp_path, name, content):
    hub.commit(f"datasets/{BIRDS}", {f"birds/{name}": content})
    lines = fetched(tmp_path, PICTURES)
    assert lines[-1] == f"unpacked {tmp_path / 'birds' / name}: 2 files written; the archive is kept"
    assert (tmp_path / "birds/images/deep/b.png").read_bytes() == b"bb"
    assert (tmp_path / "birds" / name).exists()
    assert not list(tmp_path.rglob(".unpacking*"))


def test_unpacking_leaves_what_is_there_and_says_so(hub, tmp_path):
    archive = tmp_path / "birds.zip"
    archive.write_bytes(zipped(INSIDE))
    unpack(archive)
    (tmp_path / "images/a.png").write_bytes(b"another")
    (tmp_path / "images/deep/b.png").write_bytes(b"BB")
    done = unpack(archive)
    assert (done.written, done.there, done.unlike) == (0, 1, (tmp_path / "images/a.png",))
    assert (tmp_path / "images/a.png").read_bytes() == b"another"
    hub.commit(f"datasets/{BIRDS}", {"birds.zip": archive.read_bytes()})
    lines = fetched(tmp_path, Need(Path("nests"), "", hub=Place(BIRDS, ("*.zip",))))
    assert lines[-2:] == [
        f"unpacked {archive}: 0 files written, 1 file already there; the archive is kept",
        f"1 file left as found, though of another size in {archive}: unpack it by hand where its own"
        f" are wanted ({tmp_path / 'images/a.png'})",
    ]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.zip", zipped({"../evil": b""}), r"member '\.\./evil' leads out of the folder"),
        ("x.zip", zipped({"a/../../evil": b""}), "leads out of the folder"),
        ("x.zip", zipped({"/evil": b""}), "member '/evil' leads out of the folder"),
        ("x.zip", zipped({"link": b"/etc"}, kind=stat.S_IFLNK), "member 'link' is a link or a device"),
        ("x.tar", tarred({"../evil": b""}, mode="w"), "leads out of the folder"),
        ("x.tgz", tarred({"/evil": b""}), "leads out of the folder"),
        ("x.tar.gz", tarred({"link": b""}, kind=tarfile.SYMTYPE), "is a link or a device"),
        ("x.tar.gz", tarred({"link": b""}, kind=tarfile.LNKTYPE), "is a link or a device"),
        ("x.tar.gz", tarred({"null": b""}, kind=tarfile.CHRTYPE), "is a link or a device"),
        ("x.tar.gz", tarred({"pipe": b""}, kind=tarfile.FIFOTYPE), "is a link or a device"),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path, name, content, problem):
    folder = tmp_path / "in/here"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    with pytest.raises(DataInvalid, match=f"{name} is not unpacked: its .*{problem}"):
        unpack(folder / name)
    assert [p for p in tmp_path.rglob("*") if not p.is_dir()] == [folder / name]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.zip", b"not a zip"),
        ("x.zip", zipped({"a": b"content"}).replace(b"content", b"c0ntent")),
        ("x.tar", b"not a tar" * 100),
        ("x.tar.gz", b"not a tar"),
        ("x.tgz", tarred({"a": os.urandom(4000)})[:2000]),
    ],
)
def test_a_broken_archive_is_one_line_and_leaves_no_half_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataInvalid, match=rf"{name} cannot be unpacked \(.+\): delete it and fetch it again"):
        unpack(tmp_path / name)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_a_disk_that_fills_up_while_unpacking_is_one_line(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    (tmp_path / "x.zip").write_bytes(zipped(INSIDE))
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(StorageError, match="no space left on device"):
        unpack(tmp_path / "x.zip")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["x.zip"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (170_000_000_000, "170 GB"), (2.5e12, "2.5 TB")],
)
def test_sizes_are_short(size, text):
    assert shown(size) == text


# convert


def test_convert_runs_each_converter_once(offer, cli, tmp_path):
    def convert(data):
        yield f"wrote {data / 'x.jsonl'}"

    offer(toy("a/one", convert=convert), toy("a/two", convert=convert), toy("b/one"))
    assert cli("data", "convert", "a", "a/one", "--data", tmp_path)[:2] == (0, f"wrote {tmp_path}/x.jsonl\n")
    code, out, err = cli("data", "convert", "a,b")
    assert (code, out) == (2, "")
    assert err == "harness: there is nothing to convert for b, only for a/one, a/two\n"


# status


def status(data, one, *, split=None, deep=False):
    (state,) = data_sets.status(data, [one], Protocol(split=split), deep=deep)
    return state


def lines(state):
    return [(finding.level, finding.line) for finding in state.findings]


FACTS = (Fact("queries", 12, "V"), Fact("candidates", 12, "L"))


def test_counts_are_shown_and_compared_with_the_published_ones(offer, cli, tmp_path):
    facts = (Fact("queries", 12, "V"), Fact("candidates", 13, "L"))
    offer(toy("a/right", facts=FACTS), toy("a/warned", facts=facts))
    code, out, _ = cli("data", "status")
    assert code == 0
    assert out == (
        "a/right: ok: 12 queries, 12 candidates\n"
        "a/warned: ok: 12 queries, 12 candidates\n"
        "    warning: 12 candidates, 13 published\n"
    )
    offer(toy("a/wrong", facts=(Fact("queries", 1200, "V"), Fact("candidates", 13, "L"))))
    code, out, _ = cli("data", "status")
    assert code == 1
    assert out == (
        "a/wrong: 1 problem\n    12 queries, 1,200 published\n    warning: 12 candidates, 13 published\n"
    )
    code, out, _ = cli("data", "status", "--json")
    assert code == 1
    (row,) = json.loads(out)
    assert (row["name"], row["ok"], row["miniature"]) == ("a/wrong", False, False)
    assert row["counts"]["queries"] == 12
    assert row["findings"][0] == {"level": "error", "line": "12 queries, 1,200 published"}


def test_oddities_are_shown_where_there_are_some(offer, cli):
    same = [Candidate("c0", (Text("candidate 0"),)) for _ in range(2)]
    twice = Collection([Query("q", (Text("?"),))], Pool("p", same), {"q": {"c0": 1}})
    offer(toy("a", load=lambda: twice))
    assert cli("data", "status")[1] == "a: ok: 1 queries, 1 candidates, 1 repeats dropped\n"


def test_the_facts_are_those_of_the_published_split(tmp_path):
    assert lines(status(tmp_path, toy("a", facts=(Fact("queries", 5, "V"),)), split="val")) == []


def test_a_miniature_is_not_compared(offer, cli, tmp_path):
    need = Need(Path("Birds/list.json"), "")
    (tmp_path / "data/birds").mkdir(parents=True)
    (tmp_path / "data/birds/list.json").write_text("[]")
    (tmp_path / "data/birds" / MINIATURE).write_text("{}")
    wrong = (Fact("queries", 5, "V"),)
    offer(
        toy("birds/a", need, facts=wrong),
        toy("fish/a", Need(Path("/"), ""), facts=(Fact("queries", 12, "V"),)),
    )
    assert cli("data", "status")[:2] == (
        0,
        "birds/a: ok (miniature)\nfish/a: ok: 12 queries, 12 candidates\n",
    )


def test_missing_files_and_data_that_do_not_load_are_one_line_each(tmp_path):
    assert lines(status(tmp_path, toy("a", HANDMADE))) == [
        ("error", f"{tmp_path}/fish/list.json is missing: ask at fish.org")
    ]

    def broken():
        raise DataInvalid("list.json, entry 3: no field 'caption'")

    assert lines(status(tmp_path, toy("a", load=broken))) == [
        ("error", "list.json, entry 3: no field 'caption'")
    ]
    twice = Collection([Query("q", (Text("?"),))] * 2, Pool("p", [Candidate("c", (Text("!"),))]), {})
    ((_, line),) = lines(status(tmp_path, toy("a", load=lambda: twice)))
    assert line.startswith("query id 'q' occurs twice")


def test_a_task_that_verifies_itself_is_asked_instead(tmp_path):
    def verify(data, protocol, deep):
        yield f"{protocol.split} {deep}"

    def never():
        raise AssertionError

    assert lines(status(tmp_path, toy("a", load=never, verify=verify), deep=True)) == [("error", "None True")]


def pictured(folder, names, **crops):
    queries = [Query(f"q{n}", (Image(folder / n), Text("which?"))) for n in names]
    pool = [Candidate(n, (Image(folder / n, crop=crops.get(n.partition(".")[0])),)) for n in names]
    return Collection(queries, Pool("p", pool), {q.id: {c.id: 1} for q, c in zip(queries, pool, strict=True)})


def test_deep_reads_every_picture_and_clip_once(tmp_path, capsys):
    names = [f"p{i}.png" for i in range(9)]
    for i, name in enumerate(names):
        write_picture(tmp_path / name, seed=i)
    whole = pictured(tmp_path, names, p0=(0, 0, 48, 48))
    assert lines(status(tmp_path, toy("a", load=lambda: whole), deep=True)) == []
    for name in names[1:8]:
        (tmp_path / name).write_bytes(b"not a picture")
    found = lines(status(tmp_path, toy("a", load=lambda: whole), deep=True))
    assert [line for _, line in found] == [
        *(f"picture {tmp_path / n} cannot be read: it is not a picture" for n in names[1:6]),
        "2 more pictures or clips cannot be used",
    ]
    assert {level for level, _ in found} == {"error"}
    assert lines(status(tmp_path, toy("a", load=lambda: whole))) == []
    cut = pictured(tmp_path, ["p0.png"], p0=(0, 0, 49, 48))
    ((_, line),) = lines(status(tmp_path, toy("a", load=lambda: cut), deep=True))
    assert "cannot be cropped" in line
    capsys.readouterr()


def test_deep_reads_clips(tmp_path, capsys):
    write_clip(tmp_path / "good.mp4", seed=1)
    (tmp_path / "bad.mp4").write_bytes(b"not a clip")
    pool = [Candidate(n, (Video(tmp_path / f"{n}.mp4"),)) for n in ("good", "bad", "gone")]
    clips = Collection([Query("q", (Text("?"),))], Pool("p", pool), {"q": {"good": 1}})
    first, second = (line for _, line in lines(status(tmp_path, toy("a", load=lambda: clips), deep=True)))
    assert first.startswith(f"clip {tmp_path / 'bad.mp4'} cannot be read")
    assert second == f"clip {tmp_path / 'gone.mp4'} cannot be read: No such file"
    capsys.readouterr()
