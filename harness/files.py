"""Files written whole or not at all, and JSON lines read with the place of every fault."""

from __future__ import annotations

import errno
import json
import os
import posixpath
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import DataInvalid, HarnessError, StorageError

_PLACE = re.compile(r"[a-z][a-z0-9+.-]*://[^:]*(?::\d[^:]*)?|[^:]+")


def cache_dir() -> Path:
    """Where what can be made again is kept: $HARNESS_CACHE, else umr-harness in the user's cache."""
    chosen = os.environ.get("HARNESS_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(chosen) if chosen else base / "umr-harness").expanduser()


def shared_caches() -> tuple[Path, ...]:
    """Folders with caches of others, read after one's own and never written: $HARNESS_SHARED_CACHE,
    separated as in $PATH. Raises StorageError where one is not there."""
    places = (each.removeprefix("file://") for each in _shared() if not _is_remote(each))
    found = tuple(Path(each).expanduser() for each in places)
    for folder in found:
        if not folder.is_dir():
            raise StorageError(f"there is no shared cache {folder}: name a folder with --shared-cache")
    return found


def remote_caches() -> tuple[str, ...]:
    """The URLs that stand among them."""
    return tuple(each for each in _shared() if _is_remote(each))


def _shared() -> list[str]:
    """What $HARNESS_SHARED_CACHE names; a URL's own colons do not separate."""
    return _PLACE.findall(os.environ.get("HARNESS_SHARED_CACHE", ""))


def _is_remote(place: str) -> bool:
    return "://" in place and not place.startswith("file://")


def read_jsonl(path: Path, fields: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, blank lines left out; each must have all `fields`.

    Raises DataInvalid naming file and line.
    """
    return (row for _, row in numbered_jsonl(path, fields))


def numbered_jsonl(path: Path, fields: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_jsonl`, each object with the number of its line, from 1."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataInvalid(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataInvalid(f"{path}, line {number}: a JSON object is wanted, not {line[:40]!r}")
            lacking = [name for name in fields if name not in row]
            if lacking:
                raise DataInvalid(f"{path}, line {number}: no field {', '.join(map(repr, lacking))}")
            yield number, row


def escapes(name: str) -> bool:
    """Whether a relative path that stands in a data file leads out of its folder."""
    return name.startswith("/") or posixpath.normpath(name).split("/")[0] == ".."


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary neighbour of `path`, fsync it, and rename it into place.

    Readers see the old file or the new one, also after kill -9. Raises StorageError.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """As `write_text`, line by line: the text need not fit in memory."""
    write_atomic(path, lambda file: file.writelines(line.encode("utf-8") for line in lines))


def touch(path: Path) -> None:
    """Note that a file of the cache is in use now; a read-only cache forgets it."""
    with suppress(OSError):
        os.utime(path)


def require_writable(folder: Path, what: str) -> None:
    """Make `folder` and prove that a file can be written there, before hours are spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise StorageError(
            f"{what} {folder} cannot be written ({_reason(error)}): choose another folder"
        ) from error


def storage_error(path: Path, error: OSError) -> HarnessError:
    """The one line for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space and run the same command again: what is finished is kept"
    else:
        remedy = "make it writable or choose another folder"
    return StorageError(f"cannot write {path} ({_reason(error)}): {remedy}")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
