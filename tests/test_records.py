"""Records of JSON files, read in pieces: the same values as `json`, and the place of every fault."""

from __future__ import annotations

import json

import pytest

from harness import records
from harness.errors import DataInvalid
from harness.records import read_records

ROWS = [{"a": i, "text": 'é" ]},{[' * (i % 7), "deep": [{"b": None}, 1.5]} for i in range(40)]
LISTED = json.dumps(ROWS)
NAMED = json.dumps({f"row {i}": row for i, row in enumerate(ROWS)}, indent=2, ensure_ascii=False)


@pytest.mark.parametrize("piece", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize(("text", "last"), [(LISTED, "entry 39"), (NAMED, "entry row 39")])
def test_pieces_of_any_size_give_the_same_records(text, last, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_PIECE", piece)
    path = tmp_path / "rows.json"
    path.write_text(f" \n{text}\n", encoding="utf-8")
    found = list(read_records(path))
    assert [record.fields for record in found] == ROWS
    assert found[-1].place == f"{path}, {last}"


def test_a_file_is_read_no_further_than_its_records_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_PIECE", 64)
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, {"a": 2}, ' + "x" * 10_000, encoding="utf-8")
    found = read_records(path)
    assert [next(found).fields, next(found).fields] == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataInvalid, match=r"rows\.json is not JSON, after 2 entries \(Expecting value\)"):
        next(found)


@pytest.mark.parametrize("text", ["[]", " { } "])
def test_an_empty_file_of_records_has_none(text, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert list(read_records(path)) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ("3", "a list or an object of records is wanted, not 3"),
        ("[3]", "entry 0: an object is wanted, not 3"),
        ('[{"a": 1}', r"not JSON, after 1 entries \(Expecting ',' or ']'\)"),
        ('[{"a": 1} {"a": 2}]', r"after 1 entries \(Expecting ',' or ']'\)"),
        ('[{"a": 1},]', r"after 1 entries \(Expecting value\)"),
        ('{1: {"a": 1}}', r"after 0 entries \(Expecting a name\)"),
        ('{"x" {"a": 1}}', r"after 0 entries \(Expecting ':'\)"),
        ('[{"a": 1}] []', r"after 1 entries \(Extra data\)"),
        ('[{"a": "cut', r"after 0 entries \(Unterminated string"),
    ],
)
def test_what_is_no_file_of_records_is_told_with_the_entry(text, says, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataInvalid, match=says):
        list(read_records(path))


def test_a_file_that_is_not_utf_8_or_not_there_is_told(tmp_path):
    path = tmp_path / "rows.json"
    with pytest.raises(DataInvalid, match=r"rows\.json cannot be read \(no such file"):
        list(read_records(path))
    path.write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(DataInvalid, match=r"rows\.json is not JSON \('utf-8' codec"):
        list(read_records(path))
