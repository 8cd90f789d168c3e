import stat

import pytest

from harness.errors import DataInvalid, StorageError
from harness.files import read_jsonl, require_writable, write_text


def test_jsonl_rows_come_in_order_and_blank_lines_are_left_out(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n  \n{"a": "\u00e9", "b": null}', encoding="utf-8")
    assert list(read_jsonl(path, ["a"])) == [{"a": 1}, {"a": "\u00e9", "b": None}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": 1', r"not JSON"),
        ("[1, 2]", r"a JSON object is wanted, not b'\[1, 2\]"),
        ('{"b": 1}', r"no field 'a', 'c'"),
        ('{"a": "\xff"}', r"not JSON"),
    ],
)
def test_a_bad_jsonl_line_is_named_by_file_and_number(tmp_path, line, reason):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 0, "c": 0}\n\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(DataInvalid, match=rf"x\.jsonl, line 3: {reason}") as error:
        list(read_jsonl(path, ["a", "c"]))
    assert "\n" not in str(error.value)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    from harness.files import write_atomic

    write_text(tmp_path / "x", "old")

    def fail(file):
        file.write(b"half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"cannot write .*x \(no space left on device\)"):
        write_atomic(tmp_path / "x", fail)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_files_are_readable_by_others(tmp_path):
    write_text(tmp_path / "deep" / "x", "text")
    assert stat.S_IMODE((tmp_path / "deep" / "x").stat().st_mode) == 0o644


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    require_writable(tmp_path / "new" / "folder", "the folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"the folder .*file/x cannot be written \(not a directory\)"):
        require_writable(tmp_path / "file" / "x", "the folder")
