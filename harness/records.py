"""Reading records of JSON files, every fault with the file and the record that has it.

for record in read_records(path):          # [{"image_name": "a.jpg", "caption": "…"}, …]
    record.text("caption")                 # or DataInvalid: …/datas.json, entry 3: no field 'caption'
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from harness.errors import DataInvalid
from harness.files import escapes

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_PIECE = 1 << 20
"""Characters of a file read at once."""


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object and the place where it stands; every getter raises DataInvalid."""

    place: str
    fields: Mapping[str, Any]

    def fault(self, problem: str) -> DataInvalid:
        """The error that says what is wrong with this record."""
        return DataInvalid(f"{self.place}: {problem}")

    def get(self, name: str) -> Any:
        """The field as it is."""
        if name not in self.fields:
            raise self.fault(f"no field {name!r}")
        return self.fields[name]

    def text(self, name: str) -> str:
        """A string that is not blank, as it is."""
        return checked_text(self.get(name), f"{self.place}: {name}")

    def integer(self, name: str) -> int:
        return checked_integer(self.get(name), f"{self.place}: {name}")

    def values(self, name: str) -> list[Any]:
        value = self.get(name)
        if not isinstance(value, list):
            raise self.fault(f"{name} must be a list, not {brief(value)}")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings that are not blank."""
        return [checked_text(v, f"{self.place}: {name}[{i}]") for i, v in enumerate(self.values(name))]

    def integers(self, name: str) -> list[int]:
        return [checked_integer(v, f"{self.place}: {name}[{i}]") for i, v in enumerate(self.values(name))]

    def record(self, name: str) -> Record:
        """A nested object."""
        return as_record(self.get(name), f"{self.place}: {name}")

    def records(self, name: str) -> list[Record]:
        """A list of nested objects."""
        return [as_record(v, f"{self.place}: {name}[{i}]") for i, v in enumerate(self.values(name))]

    def file(self, name: str, folder: Path) -> Path:
        """The file below `folder` that the field names; it may not lead out of the folder."""
        return inside(folder, self.text(name), f"{self.place}: {name}")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises DataInvalid."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataInvalid(f"{path} cannot be read ({(error.strerror or str(error)).lower()})") from error
    except ValueError as error:
        raise DataInvalid(f"{path} is not JSON ({error})") from error


def read_records(path: Path) -> Iterator[Record]:
    """The objects of a file that is a list of objects, or an object of objects.

    An entry's place is its index from 0, or its key. The file is read in pieces, an entry at a time.
    Raises DataInvalid.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for key, value in _entries(path, _Scanner(file)):
                yield as_record(value, f"{path}, entry {key}")
    except OSError as error:
        raise DataInvalid(f"{path} cannot be read ({(error.strerror or str(error)).lower()})") from error
    except UnicodeDecodeError as error:
        raise DataInvalid(f"{path} is not JSON ({error})") from error


class _Scanner:
    """The JSON values of a text file, which is read as far as they need."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text, self._at = "", 0

    def next(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            rest = _SPACE.match(self._text, self._at)
            self._at = rest.end() if rest else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def skip(self, wanted: str) -> str:
        """Go past the next character, one of `wanted`; raises JSONDecodeError."""
        found = self.next()
        if not found or found not in wanted:
            raise json.JSONDecodeError(f"Expecting {' or '.join(map(repr, wanted))}", self._text, self._at)
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value, a text, object or list; raises JSONDecodeError."""
        self.next()
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
            else:
                return value

    def key(self) -> str:
        """The next name of an object, with its colon; raises JSONDecodeError."""
        if self.next() != '"':
            raise json.JSONDecodeError("Expecting a name", self._text, self._at)
        name: str = self.value()
        self.skip(":")
        return name

    def _more(self) -> bool:
        # Ever larger pieces: a broken file is scanned again with each of them.
        piece = self._file.read(max(_PIECE, len(self._text)))
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)


def _entries(path: Path, scan: _Scanner) -> Iterator[tuple[str | int, Any]]:
    """Index or key, and value, of each entry of a list or an object."""
    opening = scan.next()
    if not opening or opening not in "[{":
        raise DataInvalid(f"{path}: a list or an object of records is wanted, not {brief(read_json(path))}")
    closing = "]" if opening == "[" else "}"
    at = 0
    try:
        scan.skip(opening)
        ended = scan.next() == closing and bool(scan.skip(closing))
        while not ended:
            yield scan.key() if opening == "{" else at, scan.value()
            at += 1
            ended = scan.skip("," + closing) == closing
        if scan.next():
            raise json.JSONDecodeError("Extra data", "", 0)
    except json.JSONDecodeError as error:
        raise DataInvalid(f"{path} is not JSON, after {at:,} entries ({error.msg})") from error


def as_record(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise DataInvalid(f"{place}: an object is wanted, not {brief(value)}")
    return Record(place, value)


def checked_text(value: Any, place: str) -> str:
    """`value` where it is a string that is not blank; raises DataInvalid."""
    if not isinstance(value, str):
        raise DataInvalid(f"{place} must be a text, not {brief(value)}")
    if not value.strip():
        raise DataInvalid(f"{place} is an empty text")
    return value


def checked_integer(value: Any, place: str) -> int:
    """`value` where it is a whole number; raises DataInvalid."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataInvalid(f"{place} must be a whole number, not {brief(value)}")
    return value


def inside(folder: Path, name: str, place: str) -> Path:
    """`folder / name` where that does not lead out of the folder; raises DataInvalid."""
    if escapes(name):
        raise DataInvalid(f"{place} {name!r} leads out of {folder}")
    return folder / name


def brief(value: Any) -> str:
    """A value on one short line, for an error."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
