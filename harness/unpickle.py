"""The content of a pickle, read in a process of its own that can make nothing but plain containers.

    {"image_paths": ["a.jpg", "b.jpg"], "size": 2}  ->  ("image_paths", 0, "a.jpg")
                                                        ("image_paths", 1, "b.jpg")
                                                        ("size", None, 2)

A file is one pickle or several in a row, or what `torch.save` writes (a zip with one `*/data.pkl`,
formerly a row of pickles). It is given element by element: of a dict each list and tuple that is not
empty by its elements with their places, any other value whole with the place None; content that is no
dict has the key "". Values are those of JSON: tuples and sets (sorted) are lists, whole numbers as keys
are texts, and byte strings, which Python 2 calls str, are texts in UTF-8, or Latin-1 where they are not.

This file is also the program of that process, run without the rest of the harness: at its top it
imports the standard library alone.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import pickle
import signal
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_NAMES = ("list", "dict", "tuple", "set", "frozenset", "str", "bytes", "int", "float", "bool")
_PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    **{(module, name): vars(builtins)[name] for module in ("builtins", "__builtin__") for name in _NAMES},
}
"""All that a pickle may call by name; lists, dicts, texts and numbers need no name."""

_MEMORY = 16 << 30
_CPU_SECONDS = 1800
"""A file of CC-Neg's size, 228,246 entries, takes eleven."""
_GROWTH = 64
_ALLOWANCE = 1 << 20
"""What comes out may have 64 times the size of the file and a MiB: a pickle can name one list many times,
and name such lists many times in turn, without end."""
_DEPTH = 100
_BITS = 4096

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""The first of the pickles that torch wrote before its files were zips."""
_ONLY_PLAIN = "only plain containers are read; nothing was executed"


class _Refused(Exception):
    """What is wrong with the file, to be read behind its name."""


def read_pickle(path: Path) -> Iterator[tuple[str, int | None, Any]]:
    """The elements of the pickle's content: key, place in its list (or None), value.

    Nothing that the file names is called but the types of plain containers. Raises DataInvalid.
    """
    from harness.errors import DataInvalid

    command = [sys.executable, "-I", "-S", __file__, str(path)]  # no module from elsewhere, no .pth file
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null) as reader:
        assert reader.stdout is not None
        try:
            for line in reader.stdout:
                if not line.endswith(b"\n"):
                    break  # the reader died in the middle of it
                row = json.loads(line)
                if isinstance(row, str):
                    raise DataInvalid(f"{path} {row}")
                yield row[0], row[1], row[2]
            if status := reader.wait():
                raise DataInvalid(f"{path} cannot be read: its reader was stopped ({_ended(status)})")
        finally:
            reader.kill()


def _ended(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"exit status {status}"


def _main(path: str) -> None:
    """Print the elements as JSON lines, and a line with a text where something is wrong."""
    _limit()
    try:
        plain = _Plain(_GROWTH * Path(path).stat().st_size + _ALLOWANCE)
        for content in _contents(path):
            for element in _elements(content, plain):
                print(json.dumps(element))
    except Exception as error:  # a bad pickle raises anything: KeyError, AttributeError, struct.error, …
        print(json.dumps(_fault(error)))


def _fault(error: Exception) -> str:
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, MemoryError):
        return f"is too large: reading it takes more than {_MEMORY >> 30} GiB of memory"
    if isinstance(error, EOFError) or "truncated" in str(error):
        return "is truncated: get it again"
    if isinstance(error, zipfile.BadZipFile):
        return f"is truncated or no zip archive: get it again ({_shown(error)})"
    if isinstance(error, OSError):
        return f"cannot be read ({(error.strerror or str(error)).lower()})"
    return f"is not a pickle ({_shown(error)})"


def _limit() -> None:
    """Bounds on what reading takes, where the platform has them."""
    try:
        import resource
    except ImportError:
        return
    for name, most in (("RLIMIT_AS", _MEMORY), ("RLIMIT_CPU", _CPU_SECONDS), ("RLIMIT_CORE", 0)):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _contents(path: str) -> Iterator[Any]:
    with Path(path).open("rb") as file:
        if file.peek(4).startswith(b"PK\3\4"):
            yield _from_zip(file)
            return
        first = _load(file)
        if first == _TORCH_MAGIC:
            _load(file)  # the version of the form
            _load(file)  # the machine that wrote it
            yield _load(file)
            return
        yield first
        while file.peek(1):
            yield _load(file)


def _from_zip(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(members) != 1:
            raise _Refused(f"is a zip archive with {len(members)} */data.pkl: torch.save writes one")
        with archive.open(members[0]) as member:
            return _load(member)


def _load(file: IO[bytes]) -> Any:
    return _Unpickler(file, encoding="bytes").load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise _Refused(f"refers to {_shown(f'{module}.{name}')}: {_ONLY_PLAIN}")
        return _PLAIN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"refers to what lies outside of it, as tensors do: {_ONLY_PLAIN}")


def _elements(content: Any, plain: _Plain) -> Iterator[tuple[str, int | None, Any]]:
    for key, value in plain.items(content if isinstance(content, dict) else {"": content}):
        if isinstance(value, (list, tuple)) and value:
            for at, element in enumerate(value):
                yield key, at, plain(element)
        else:
            yield key, None, plain(value)


@dataclass(slots=True)
class _Plain:
    """Makes a value one of JSON, and counts what comes out: `left` characters more are allowed."""

    left: int

    def __call__(self, value: Any, depth: int = 0) -> Any:
        if depth > _DEPTH:
            raise _Refused(f"is nested too deep: more than {_DEPTH} levels, or a list that holds itself")
        kind = type(value)
        self._count(len(value) if kind in (str, bytes) else 1)
        if value is None or kind in (bool, float, str):
            return value
        if kind is int:
            if value.bit_length() > _BITS:
                raise _Refused(f"holds too large a number ({value.bit_length():,} bits)")
            return value
        if kind is bytes:
            return _text(value)
        if kind in (list, tuple):
            return [self(element, depth + 1) for element in value]
        if kind in (set, frozenset):
            return sorted((self(element, depth + 1) for element in value), key=json.dumps)
        if kind in (dict, OrderedDict):
            return {key: self(element, depth + 1) for key, element in self.items(value)}
        raise _Refused(f"holds a {kind.__name__}: {_ONLY_PLAIN}")

    def items(self, value: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
        """The items with texts as keys."""
        seen = set()
        for key, element in value.items():
            if type(key) not in (str, bytes, int):
                raise _Refused(f"has a {type(key).__name__} as a key: only texts and whole numbers are read")
            name = str(self(key))
            if name in seen:
                raise _Refused(f"has two keys {_shown(name)}")
            seen.add(name)
            yield name, element

    def _count(self, characters: int) -> None:
        self.left -= characters
        if self.left < 0:
            raise _Refused(f"is too large: it grows to more than {_GROWTH} times its size, as a bomb does")


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _shown(value: object) -> str:
    """On one short line, whatever a file may have put there."""
    text = ascii(str(value))[1:-1]
    return text if len(text) <= 80 else text[:77] + "..."


if __name__ == "__main__":
    _main(sys.argv[1])
