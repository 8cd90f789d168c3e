"""Reading records of JSON files, every fault with the file and the record that has it.

for record in read_records(path):          # [{"image_name": "a.jpg", "caption": "…"}, …]
    record.text("caption")                 # or DataInvalid: …/datas.json, entry 3: no field 'caption'
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import DataInvalid
from harness.files import escapes


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

    An entry's place is its index from 0, or its key.
    """
    content = read_json(path)
    if isinstance(content, dict):
        entries: Any = content.items()
    elif isinstance(content, list):
        entries = enumerate(content)
    else:
        raise DataInvalid(f"{path}: a list or an object of records is wanted, not {brief(content)}")
    for key, value in entries:
        yield as_record(value, f"{path}, entry {key}")


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
