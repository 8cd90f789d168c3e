import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from harness.content import Candidate, Image, Text
from harness.errors import DataInvalid, DataMissing, StorageError
from harness.files import cache_dir
from harness.table import BLOCK, Fields, open_table, remembered

FIELDS = Fields("did", "txt", "img_path", "modality")
ROWS = [
    {"did": "1:1", "txt": "A red bus.", "img_path": None, "modality": "text", "src_content": None},
    {"did": "1:2", "txt": None, "img_path": "a/b.jpg", "modality": "image"},
    {"did": "1:3", "txt": "A blue bus.", "img_path": "a/c.jpg", "modality": "image,text"},
]


def make(root, name, text, image, modality):
    picture = () if image is None else (Image(root / image),)
    words = () if text is None else (Text(text),)
    return Candidate(name, (*picture, *words), modality)


def opened(source, root=Path("/media"), variant=""):
    return open_table(source, FIELDS, partial(make, root), variant=variant, media_root=root)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plainly(source):
    """The candidates by json.loads, line by line."""
    rows = [json.loads(line) for line in source.read_bytes().split(b"\n") if line.strip()]
    keys = ("did", "txt", "img_path", "modality")
    return [make(Path("/media"), *(row.get(key) for key in keys)) for row in rows]


def random_rows(count, seed=0):
    rng = random.Random(seed)
    letters = 'abc äß語😀"\\/\r\n\t\0\u2028{}[]:,'
    for i in range(count):
        row = {"did": f"{rng.randrange(10)}:{i}"}
        if rng.random() < 0.7:
            row["txt"] = "".join(rng.choices(letters, k=rng.randrange(200)))
        if "txt" not in row or rng.random() < 0.5:
            row["img_path"] = f"pictures/{i % 100:02d}/{i}.jpg"
        for key in ("txt", "img_path", "modality"):
            if rng.random() < 0.5:
                row.setdefault(key, None)
        if rng.random() < 0.3:
            row |= {"modality": rng.choice(["text", "image"]), "src_content": json.dumps(row), "n": [1, {}]}
        yield row


def table_files():
    return sorted((cache_dir() / "tables").glob("*.arrow"))


@pytest.fixture
def source(tmp_path):
    return written(tmp_path / "pool.jsonl", ROWS)


def test_a_row_is_what_make_makes_of_it(source):
    table = opened(source)
    assert list(table) == [
        Candidate("1:1", (Text("A red bus."),), "text"),
        Candidate("1:2", (Image(Path("/media/a/b.jpg")),), "image"),
        Candidate("1:3", (Image(Path("/media/a/c.jpg")), Text("A blue bus.")), "image,text"),
    ]
    assert table.modalities == {"text", "image", "image,text"}


@pytest.mark.parametrize("ascii_only", [True, False])
def test_every_row_equals_what_json_makes_of_it(tmp_path, ascii_only):
    source = tmp_path / "pool.jsonl"
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in random_rows(5000)]
    source.write_bytes("\n".join(lines).encode())
    wanted, table = plainly(source), opened(source)
    assert len(table) == 5000
    assert [table[i] for i in range(5000)] == wanted
    assert list(table) == wanted
    assert list(table.ids) == [c.id for c in wanted]


def test_rows_keep_their_places_over_many_blocks(tmp_path):
    source = tmp_path / "pool.jsonl"
    with source.open("w") as file:
        for i in range(40_000):
            text = "x" * (BLOCK + 17 if i == 20_000 else 300 + i % 7)
            file.write(json.dumps({"did": str(i), "txt": f"{i} {text}"}) + "\n")
    assert source.stat().st_size > 3 * BLOCK
    table = opened(source)
    assert list(table.ids) == [str(i) for i in range(40_000)]
    for i in random.Random(0).sample(range(40_000), 2000):
        assert table[i].parts[0].text.startswith(f"{i} x")
        assert table.ids[i] == str(i)
    assert len(table[20_000].parts[0].text) == BLOCK + 17 + len("20000 ")


def test_it_indexes_as_a_list_does(source):
    table = opened(source)
    rows = list(table)
    for sequence, wanted in ((table, rows), (table.ids, ["1:1", "1:2", "1:3"])):
        assert len(sequence) == 3
        assert (sequence[-1], sequence[-3], sequence[0]) == (wanted[2], wanted[0], wanted[0])
        assert (sequence[1:], sequence[::-1], sequence[5:]) == (wanted[1:], wanted[::-1], [])
        for outside in (3, -4):
            with pytest.raises(IndexError):
                sequence[outside]
    assert rows[1] in table
    assert table.ids.index("1:3") == 2


def test_two_walks_and_single_rows_may_be_interleaved(tmp_path):
    source = written(tmp_path / "pool.jsonl", ({"did": str(i), "txt": "x" * 400} for i in range(30_000)))
    table = opened(source)
    for i, (candidate, name) in enumerate(zip(table, table.ids, strict=True)):
        assert candidate.id == name == str(i)
        assert i % 1000 or table[-i - 1].id == str(29_999 - i)


def test_a_missing_key_is_null(tmp_path):
    with_nulls = {"did": "1", "txt": "x", "img_path": None, "modality": None}
    (null,) = opened(written(tmp_path / "null.jsonl", [with_nulls]))
    (missing,) = opened(written(tmp_path / "missing.jsonl", [{"txt": "x", "did": "1"}]))
    assert null == missing == Candidate("1", (Text("x"),), None)


def test_an_empty_text_is_a_text_and_an_empty_path_is_no_picture(tmp_path):
    rows = [{"did": "1", "txt": "", "img_path": None}, {"did": "2", "txt": "x", "img_path": ""}]
    table = opened(written(tmp_path / "pool.jsonl", rows))
    assert [c.parts for c in table] == [(Text(""),), (Text("x"),)]
    assert table.modalities == {"text"}


def test_columns_that_are_null_throughout_stay_so(tmp_path):
    rows = [{"did": str(i), "txt": None, "img_path": "a.jpg", "modality": None} for i in range(3)]
    table = opened(written(tmp_path / "pool.jsonl", rows))
    assert [c.parts for c in table] == [(Image(Path("/media/a.jpg")),)] * 3
    assert table.modalities == {"image"}


def test_modalities_are_those_of_made_candidates(tmp_path):
    rows = [
        *({"did": str(i), "txt": "x"} for i in range(40_000)),
        {"did": "last", "txt": "y", "modality": "two"},
    ]
    source = written(tmp_path / "pool.jsonl", rows)
    table = open_table(source, FIELDS, pictures_where_it_says_two, variant="", media_root=Path("/media"))
    assert table.modalities == {"text", "interleaved"}


def pictures_where_it_says_two(name, text, image, modality):
    pictures = (Image(Path("a")), Image(Path("b"))) if modality == "two" else ()
    return Candidate(name, (Text(text), *pictures))


@pytest.mark.parametrize(
    "unusual",
    [
        b"\n",
        b" \t \r\n",
        b'  {"did": "new", "txt": "x"}\n',
        b'{"did": "new", "txt": "x"} \r\n',
        b'{"did": "old", "txt": "old", "did": "new", "txt": "x"}\n',
        b'{"did": "new", "txt": "x", "weight": NaN, "other": 1e999, "one": 1, "one": 2}\n',
        b'{"did": "new", "txt": "x", "img_path": "a..b/./c...jpg"}\n',
        b'{"did": "new", "txt": "x", "img_path": "a/../b.jpg"}\n',
        b'{"did": "new", "txt": "x", "other": "\\ud800"}\n',
    ],
)
def test_an_unusual_line_is_read_as_json_and_its_neighbours_stay(tmp_path, unusual):
    lines = [json.dumps(row).encode() + b"\n" for row in ROWS]
    source = tmp_path / "pool.jsonl"
    source.write_bytes(b"".join([lines[0], unusual, *lines[1:]]))
    wanted = plainly(source)
    assert list(opened(source)) == wanted
    assert [c.id for c in wanted if c.id != "new"] == ["1:1", "1:2", "1:3"]


def test_bytes_that_are_not_utf8_do_not_matter_in_other_fields(tmp_path):
    line = b'{"did": "1", "txt": "x", "other": "\xff"}\n'
    for name, content in (("one", line), ("two", b"\n" + line)):
        (tmp_path / name).write_bytes(content)
        assert [c.id for c in opened(tmp_path / name)] == ["1"]


@pytest.mark.parametrize("end", ["\n", "", "\r\n", "\n\n\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_byte_order_mark_and_line_ends_do_not_matter(tmp_path, mark, end):
    lines = (end if end.strip("\n") else "\n").join(json.dumps(row) for row in ROWS)
    source = tmp_path / "pool.jsonl"
    source.write_bytes((mark + lines + end).encode())
    assert [c.id for c in opened(source)] == ["1:1", "1:2", "1:3"]


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_an_empty_table(tmp_path, content):
    (tmp_path / "pool.jsonl").write_bytes(content)
    table = opened(tmp_path / "pool.jsonl")
    assert (len(table), list(table), list(table.ids), table.modalities) == (0, [], [], frozenset())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"did": "1", "txt": "cut of', r"not JSON \("),
        ('{"did": "1", "txt": "x"', r"not JSON \("),
        ('{"did": "1", "txt": "x"} {"did": "2", "txt": "x"}', r"not JSON \(Extra data"),
        ('{"did": "1", "txt": "x"} null {"did": "2", "txt": "x"}', r"not JSON \(Extra data"),
        ('{"did": "1", "txt": "raw\ttab"}', r"not JSON \(Invalid control character"),
        ("null", r"a JSON object is wanted, not b'null'"),
        ('["did"]', r"a JSON object is wanted, not b'\[\"did\"\]'"),
        ("[" * 100_000, r"not JSON \("),
        ('{"did": 1, "txt": "x"}', r"'did' must be a string or null, not 1"),
        ('{"did": "1", "txt": ["x"]}', r"'txt' must be a string or null, not \['x'\]"),
        ('{"did": "1", "txt": true}', r"'txt' must be a string or null, not True"),
        ('{"did": "1", "txt": "x", "img_path": {}}', r"'img_path' must be a string or null, not {}"),
        ('{"did": "1", "txt": "x", "modality": 1.5}', r"'modality' must be a string or null, not 1.5"),
        ('{"did": "1", "txt": "\\ud800"}', r"'txt' is not valid Unicode: '\\ud800'"),
        ('{"did": "1", "txt": "\udcff"}', r"'txt' is not valid Unicode: '\\udcff'"),
        ('{"txt": "x"}', r"no 'did': every candidate needs an id"),
        ('{"did": null, "txt": "x"}', r"no 'did': "),
        ('{"did": "", "txt": "x"}', r"no 'did': "),
        ('{"did": "1"}', r"'1' has no part: neither 'txt' nor 'img_path'"),
        ('{"did": "1", "txt": null, "img_path": ""}', r"'1' has no part: "),
        ('{"did": "1", "img_path": "/etc/a.jpg"}', r"'img_path' leaves the data folder: '/etc/a.jpg'"),
        ('{"did": "1", "img_path": "../a.jpg"}', r"'img_path' leaves the data folder: '../a.jpg'"),
        ('{"did": "1", "img_path": "a/../../b.jpg"}', r"'img_path' leaves the data folder: 'a/../../b.jpg'"),
        ('{"did": "1", "img_path": ".."}', r"'img_path' leaves the data folder: '..'"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, reason):
    source = written(tmp_path / "pool.jsonl", ROWS)
    with source.open("ab") as file:
        file.write(b"\n" + line.encode("utf-8", "surrogateescape") + b"\n" + b'{"did": "9", "txt": "x"}\n')
    with pytest.raises(DataInvalid, match=rf"pool\.jsonl, line 5: {reason}") as error:
        opened(source)
    assert "\n" not in str(error.value)
    assert list((cache_dir() / "tables").glob("*arrow*")) == []


def test_a_bad_line_in_a_late_block_is_named_and_the_first_of_several(tmp_path):
    good = json.dumps({"did": "1", "txt": "x" * 400}) + "\n"
    source = tmp_path / "pool.jsonl"
    blanks, before, between = 7, 30_000, 20_000
    source.write_text("\n" * blanks + good * before + '{"did": 5}\n' + good * between + '{"did": ')
    assert before * len(good) > 2 * BLOCK
    with pytest.raises(
        DataInvalid, match=rf"line {blanks + before + 1}: 'did' must be a string or null, not 5"
    ):
        opened(source)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataMissing, match=r"none\.jsonl cannot be read \(no such file or directory\)"):
        opened(tmp_path / "none.jsonl")


def test_an_unchanged_file_is_not_read_again(source):
    first = list(opened(source))
    (path,) = table_files()
    before, stat = path.stat(), source.stat()
    source.write_bytes(b"?" * stat.st_size)
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert list(opened(source)) == first
    assert table_files() == [path]
    assert path.stat().st_ino == before.st_ino


def test_one_content_in_two_places_is_one_table_file(source, tmp_path):
    other = written(tmp_path / "copy.jsonl", ROWS)
    assert opened(source).fingerprint == opened(other).fingerprint
    opened(source, root=Path("/elsewhere"), variant="two")
    assert len(table_files()) == 1


def test_a_changed_file_is_read_anew(source):
    before = opened(source)
    written(source, [*ROWS, {"did": "new", "txt": "x"}])
    after = opened(source)
    assert [c.id for c in after] == ["1:1", "1:2", "1:3", "new"]
    assert len(before) == 3
    assert before.fingerprint != after.fingerprint


def test_the_fingerprint_holds_all_that_changes_a_candidate(source, tmp_path):
    def fingerprint(keys, variant, root):
        root = Path(root)
        table = open_table(source, Fields(*keys), partial(make, root), variant=variant, media_root=root)
        return table.fingerprint

    keys = ("did", "txt", "img_path", "modality")
    same = fingerprint(keys, "a", "/media")
    others = [
        fingerprint(("did", "modality", "img_path", "txt"), "a", "/media"),
        fingerprint(keys, "b", "/media"),
        fingerprint(keys, "a", "/other"),
        opened(written(tmp_path / "b.jsonl", ROWS[:2]), variant="a").fingerprint,
    ]
    assert fingerprint(keys, "a", "/media") == same
    assert len({same, *others}) == 5


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _without_rows(path):
    import pyarrow as pa

    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        end, about = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, end.schema) as out:
        out.write_batch(end, custom_metadata=about)


def _foreign(path):
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pa.schema([("x", pa.string())])) as out:
        out.write_batch(pa.record_batch({"x": ["y"]}))


@pytest.mark.parametrize(
    "damage",
    [_cut, _without_rows, _foreign, lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"x" * 999)],
)
def test_a_damaged_table_is_made_again(source, damage):
    wanted = list(opened(source))
    (path,) = table_files()
    whole = path.read_bytes()
    damage(path)
    assert path.read_bytes() != whole
    assert list(opened(source)) == wanted
    assert path.read_bytes() == whole


def test_the_cache_may_be_deleted_under_an_open_table(source):
    table = opened(source)
    wanted = list(table)
    table_files()[0].unlink()
    assert list(table) == wanted
    with pytest.raises(StorageError, match=r"\.arrow is gone or damaged: open its source again"):
        pickle.loads(pickle.dumps(table))


def test_a_cache_that_cannot_be_written_is_named(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        StorageError, match=r"cannot write .*file/cache/tables/\w+\.arrow \(not a directory\)"
    ):
        opened(source)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    source = written(tmp_path / "pool.jsonl", ({"did": str(i), "txt": "x" * 400} for i in range(30_000)))
    done = in_new_process(
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\nopened(source)", source, check=False
    )
    assert "StorageError: cannot write" in done.stderr
    assert "file too large" in done.stderr
    assert list((cache_dir() / "tables").glob("*arrow*")) == []


def in_new_process(code, source, *, check=True):
    here = str(Path(__file__).parent)
    start = f"import resource, sys\nsys.path.insert(0, {here!r})\nfrom pathlib import Path\n"
    start += f"from test_table import *\nsource = Path({str(source)!r})\n"
    command = [sys.executable, "-c", start + code]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def look(table, row):
    return os.getpid(), len(table), table[row], list(table.ids[:2]), table.fingerprint, table.modalities


def test_it_pickles_as_a_name_and_opens_elsewhere(tmp_path):
    table = opened(written(tmp_path / "pool.jsonl", random_rows(5000)))
    assert len(pickle.dumps(table)) < 1000
    assert list(pickle.loads(pickle.dumps(table.ids))) == list(table.ids)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pid, *seen = pool.submit(look, table, 4321).result()
    assert pid != os.getpid()
    assert tuple(seen) == look(table, 4321)[1:]


def test_two_processes_may_make_one_table_at_once(tmp_path):
    source = written(tmp_path / "pool.jsonl", random_rows(20_000))
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        seen = [f.result() for f in [pool.submit(make_and_look, source) for _ in range(2)]]
    assert seen[0] == seen[1] == make_and_look(source)
    assert [p.suffix for p in (cache_dir() / "tables").glob("*arrow*")] == [".arrow"]


def make_and_look(source):
    return look(opened(source), 12_345)[1:]


@pytest.mark.slow
def test_a_million_rows_need_less_memory_than_their_file(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in random_rows(10_000))
    source = tmp_path / "pool.jsonl"
    with source.open("w") as file:
        for _ in range(100):
            file.write(lines)
    code = (
        "import pyarrow.json, pyarrow.acero\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak()\n"
        "for _ in range(2):\n"
        "    table = opened(source)\n"
        "    assert sum(1 for _ in table) == sum(1 for _ in table.ids) == 1_000_000\n"
        "print(peak() - before)"
    )
    grown = float(in_new_process(code, source).stdout)
    assert source.stat().st_size > 200 << 20
    assert grown < 200


def test_what_was_found_in_a_file_is_remembered_until_the_file_or_the_question_changes(tmp_path):
    source = tmp_path / "rows.txt"
    source.write_text("a b")
    asked = []

    def scan():
        asked.append(source.read_text())
        return np.arange(len(asked[-1]))

    for _ in range(2):
        assert remembered(source, "length-1", scan).tolist() == [0, 1, 2]
    assert asked == ["a b"]
    remembered(source, "length-2", scan)
    source.write_text("a b c")
    assert len(remembered(source, "length-1", scan)) == 5
    (damaged,) = (p for p in (cache_dir() / "tables").glob("*.npy") if len(np.load(p)) == 5)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert len(remembered(source, "length-1", scan)) == 5
    assert asked == ["a b", "a b", "a b c", "a b c"]
    with pytest.raises(DataMissing, match=r"gone\.txt cannot be read"):
        remembered(tmp_path / "gone.txt", "length-1", scan)
