"""A pickle is read by a process that can make plain containers only, and every fault is one line."""

from __future__ import annotations

import datetime
import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import unpickle
from harness.errors import DataInvalid
from harness.unpickle import read_pickle


def read(content: bytes, folder: Path) -> list[tuple[str, int | None, Any]]:
    path = folder / "x.pkl"
    path.write_bytes(content)
    return list(read_pickle(path))


def fault(content: bytes, folder: Path) -> str:
    """What is said of the file behind its name."""
    with pytest.raises(DataInvalid) as error:
        read(content, folder)
    said = str(error.value)
    assert "\n" not in said
    assert said.startswith(f"{folder / 'x.pkl'} ")
    return said.removeprefix(f"{folder / 'x.pkl'} ")


def joined(elements: list[tuple[str, int | None, Any]]) -> dict[str, Any]:
    """The content of one dict, from its elements."""
    content: dict[str, Any] = {}
    for key, at, value in elements:
        if at is None:
            content[key] = value
        else:
            assert len(content.setdefault(key, [])) == at
            content[key].append(value)
    return content


def torch_zip(content: bytes, *, name: str = "archive/data.pkl") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


def test_a_dict_comes_by_key_and_its_lists_by_element(tmp_path):
    content = {
        "paths": ["a", "b"],
        "pair": (1, [2, {"x": None}]),
        "none": [],
        "sizes": {"a": (1, 2)},
        "n": 1.5,
    }
    assert read(pickle.dumps(content), tmp_path) == [
        ("paths", 0, "a"),
        ("paths", 1, "b"),
        ("pair", 0, 1),
        ("pair", 1, [2, {"x": None}]),
        ("none", None, []),
        ("sizes", None, {"a": [1, 2]}),
        ("n", None, 1.5),
    ]


def test_what_is_no_dict_has_an_empty_key_and_pickles_in_a_row_follow_each_other(tmp_path):
    row = pickle.dumps(["a"]) + pickle.dumps("b", 0) + pickle.dumps({"c": 1}, 2)
    assert read(row, tmp_path) == [("", 0, "a"), ("", None, "b"), ("c", None, 1)]


TEXTS = st.text(max_size=8) | st.sampled_from(["the", "\ud800", "é", "\n"])
KEYS = TEXTS | st.integers(0, 99).map(lambda i: f"k{i}")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(KEYS, PLAIN, max_size=5), protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_honest_data_come_out_as_pickle_loads_gives_them(tmp_path, content, protocol):
    dumped = pickle.dumps(content, protocol)
    assert joined(read(dumped, tmp_path)) == content == pickle.loads(dumped)


def test_containers_that_json_lacks_have_a_form_there(tmp_path):
    content = {
        "set": {3, 1, 2},
        "frozen": frozenset({"b", "a"}),
        "ordered": OrderedDict(b=1, a=2),
        7: b"x",
        "e": (),
    }
    for protocol in (3, 4, 5):
        found = joined(read(pickle.dumps(content, protocol), tmp_path))
        assert found == {
            "set": [1, 2, 3],
            "frozen": ["a", "b"],
            "ordered": {"b": 1, "a": 2},
            "7": "x",
            "e": [],
        }
        assert list(found["ordered"]) == ["b", "a"]


@pytest.mark.parametrize(
    "written",
    [
        # what Python 2.7 writes for {"caf\xc3\xa9": ["a", u"\xe9", "\xe9"]}
        b"(dp0\nS'caf\\xc3\\xa9'\np1\n(lp2\nS'a'\np3\naV\\u00e9\np4\naS'\\xe9'\np5\nas.",
        b"\x80\x02}q\x00U\x05caf\xc3\xa9q\x01]q\x02(U\x01aq\x03X\x02\x00\x00\x00\xc3\xa9q\x04U\x01\xe9q\x05es.",
    ],
    ids=["protocol 0", "protocol 2"],
)
def test_python_2_byte_strings_are_utf_8_or_else_latin_1(tmp_path, written):
    assert read(written, tmp_path) == [("café", 0, "a"), ("café", 1, "é"), ("café", 2, "é")]


def test_python_2_sets_and_ordered_dicts_are_read(tmp_path):
    written = b"\x80\x02}(U\x01sc__builtin__\nset\n](K\x02K\x01e\x85RU\x01occollections\nOrderedDict\n)Ru."
    assert joined(read(written, tmp_path)) == {"s": [1, 2], "o": {}}


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_files_of_torch_save_are_read(tmp_path, as_zip):
    content = {"image_paths": ["a.jpg"], "annotations": [{"json": {"caption": "é"}}], "num_ops": {1: [0]}}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=as_zip)
    assert joined(list(read_pickle(tmp_path / "x.pt"))) == {**content, "num_ops": {"1": [0]}}


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


ATTACKS = {
    "system": ("posix.system", lambda file: Call(os.system, f"touch {file}")),
    "eval": ("builtins.eval", lambda file: Call(eval, f"open({str(file)!r}, 'w')")),
    "exec": ("builtins.exec", lambda file: Call(exec, f"open({str(file)!r}, 'w')")),
    "popen": ("subprocess.Popen", lambda file: Call(subprocess.Popen, ["touch", str(file)])),
    "getattr": ("builtins.getattr", lambda file: Call(getattr, [], "append")),
    "import": ("builtins.__import__", lambda file: Call(__import__, "os")),
    "nested": ("posix.system", lambda file: {"a": [1, {"b": (Call(os.system, f"touch {file}"),)}]}),
    "date": ("datetime.date", lambda file: {"when": datetime.date(2024, 1, 1)}),
}


@pytest.mark.parametrize("form", ["pickle", "torch zip", "second in a row"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_that_calls_something_executes_nothing(tmp_path, attack, form):
    name, made = ATTACKS[attack]
    marker = tmp_path / "executed"
    written = pickle.dumps(made(marker), protocol=4)
    if form == "torch zip":
        written = torch_zip(written)
    if form == "second in a row":
        written = pickle.dumps({}) + written
    assert (
        fault(written, tmp_path) == f"refers to {name}: only plain containers are read; nothing was executed"
    )
    assert not marker.exists()


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (b"cposix\nsystem\n(S'touch executed'\ntR.", "posix.system"),
        (b"(S'touch executed'\niposix\nsystem\n.", "posix.system"),
        (b"(cposix\nsystem\nS'touch executed'\no.", "posix.system"),
        (b"\x80\x02c__builtin__\neval\n(U\x01at\x81.", "__builtin__.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x0adict.clear\x93.", "builtins.dict.clear"),
        (b"\x80\x04\x8c\x03a\nb\x8c\x02\xc3\xa9\x93.", "a\\nb.\\xe9"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.", "numpy.core.multiarray._reconstruct"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.", "torch._utils._rebuild_tensor_v2"),
        (b"\x80\x04\x8c" + b"\xff" + b"m" * 255 + b"\x8c\x01n\x93.", "m" * 77 + "..."),
    ],
)
def test_every_way_to_name_something_is_refused_and_shown_on_one_line(tmp_path, monkeypatch, written, name):
    monkeypatch.chdir(tmp_path)
    assert (
        fault(written, tmp_path) == f"refers to {name}: only plain containers are read; nothing was executed"
    )
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_tensors_are_refused(tmp_path, as_zip):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(
        DataInvalid, match=r"refers to torch\._utils\._rebuild_tensor_v2: only plain containers"
    ):
        list(read_pickle(tmp_path / "x.pt"))


@pytest.mark.parametrize("written", [b"Pstorage\n.", b"\x80\x02U\x07storageQ."])
def test_persistent_ids_are_refused(tmp_path, written):
    assert fault(written, tmp_path).startswith("refers to what lies outside of it, as tensors do: only plain")


def doubled(times: int, made: Any = list) -> Any:
    value: Any = ["lol"]
    for _ in range(times):
        value = made([value, value])
    return value


def nested(depth: int) -> bytes:
    """A list in a list, `depth` times."""
    return b"\x80\x02}X\x01\x00\x00\x00k" + b"]" * depth + b"a" * (depth - 1) + b"s."


def bytes_of(size: int) -> bytes:
    """A call of bytes(size)."""
    return b"\x80\x02c__builtin__\nbytes\n\x8a\x08" + size.to_bytes(8, "little") + b"\x85R."


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (pickle.dumps({"a": doubled(60)}), r"is too large: it grows to more than 64 times its size"),
        (pickle.dumps([["x" * 1000] * 100_000]), r"is too large: it grows to more than 64 times its size"),
        (bytes_of(20 << 30), r"is too large: reading it takes more than 16 GiB of memory"),
        (pickle.dumps(10**5000), r"holds too large a number \(16,610 bits\)"),
        (nested(103), r"is nested too deep: more than 100 levels"),
        (nested(1_000_000), r"is nested too deep: more than 100 levels"),
        (b"\x80\x02]q\0h\0a.", r"is nested too deep: .*or a list that holds itself"),
        (b"", r"is truncated: get it again"),
        (b"<!DOCTYPE html>", r"is not a pickle \(invalid load key, '<'\.\)"),
        (b"hello", r"is not a pickle \(Memo value not found at index 101\)"),
        (b"\x80\x02\x82\x01.", r"is not a pickle \(unregistered extension code 1\)"),
        (b"PK\3\4 and no more", r"is truncated or no zip archive: get it again"),
        (torch_zip(b"", name="readme.txt"), r"is a zip archive with 0 \*/data\.pkl: torch\.save writes one"),
        (pickle.dumps({1: 0, "1": 0}), r"has two keys 1$"),
        (pickle.dumps({None: 0}), r"has a NoneType as a key: only texts and whole numbers are read"),
        (pickle.dumps([bytearray(b"x")], 5), r"holds a bytearray: only plain containers are read"),
        (b"\x80\x02c__builtin__\nlist\n.", r"holds a type: only plain containers are read"),
        # to hash a tuple so deep breaks the stack of Python itself, where that has a bound
        (b"\x80\x02})" + b"\x85" * 3_000_000 + b"K\1s.", r"cannot be read: its reader was stopped|has a tup"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(tmp_path, written, said):
    assert re.match(said, fault(written, tmp_path))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_is_cut_short_anywhere_is_said_to_be(tmp_path, protocol):
    written = pickle.dumps({"a": ["some words", 1, 2.5, None, True], "b": {"c": (1, 2, 3)}}, protocol)
    for end in range(0, len(written), 17):
        assert fault(written[:end], tmp_path) == "is truncated: get it again"


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataInvalid, match=r"gone\.pkl cannot be read \(no such file or directory\)"):
        list(read_pickle(tmp_path / "gone.pkl"))


def test_elements_come_while_the_rest_waits_and_a_reader_that_is_left_ends(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": ["x" * 1000] * 5000 + [None]}))
    elements = read_pickle(tmp_path / "x.pkl")
    assert next(elements) == ("a", 0, "x" * 1000)
    elements.close()


def test_the_program_of_the_reader_runs_alone_and_prints_json_lines(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": ["é", "\n"]}))
    command = [sys.executable, "-I", "-S", unpickle.__file__, str(tmp_path / "x.pkl")]
    printed = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path).stdout
    assert [json.loads(line) for line in printed.splitlines()] == [["a", 0, "é"], ["a", 1, "\n"]]
