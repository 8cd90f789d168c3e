"""Digests: short names for values, and the digests of files, remembered between runs."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

DATABASE = "digests.sqlite"
"""Their file in a cache folder."""
_CHUNK = 1 << 20


def digest(value: Any, *, length: int = 16) -> str:
    """The first `length` hex digits of BLAKE2b over the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()[:length]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"cannot digest a {type(value).__name__}: {value!r}")


def file_digest(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes, as 32 hex digits."""
    h = hashlib.blake2b(digest_size=16)
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            h.update(chunk)
    return h.hexdigest()


class Digests:
    """File digests remembered by path, size and mtime_ns, so that a warm run reads no media.

    `database` None remembers for this process only. A database that cannot be written (a
    read-only cache, a full disk) is read and otherwise ignored: it only saves time. Those in
    `shared` are asked next and never written.
    """

    def __init__(self, database: Path | None = None, shared: Sequence[Path] = ()) -> None:
        self._known: dict[str, tuple[int, int, str]] = {}
        self._new: dict[str, tuple[int, int, str]] = {}
        self._database = database
        self._read = _reader(database)
        self._shared = [reader for each in shared if (reader := _reader(each, write=False)) is not None]

    @classmethod
    def of(cls, cache: Path, shared: Sequence[Path] = ()) -> Digests:
        """Those that a cache folder and shared ones remember."""
        return cls(cache / DATABASE, [each / DATABASE for each in shared])

    def __call__(self, path: Path) -> str:
        """The digest of the file at `path`; raises OSError where it cannot be read."""
        stat = path.stat()
        key = str(path.absolute())
        known = self._known.get(key) or self._stored(key)
        if known is not None and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return known[2]
        entry = (stat.st_size, stat.st_mtime_ns, file_digest(path))
        self._known[key] = self._new[key] = entry
        return entry[2]

    def _stored(self, key: str) -> tuple[int, int, str] | None:
        # Looked up one by one: millions of entries would cost seconds and a gigabyte to hold.
        for reader in (self._read, *self._shared):
            row = _row(reader, key) if reader is not None else None
            if row is not None:
                return row
        return None

    def tree(self, paths: Iterable[tuple[str, Path]]) -> dict[str, str]:
        """Digest of each named path; a folder's is that of its files' names and digests."""
        return {name: self._folder(path) if path.is_dir() else self(path) for name, path in paths}

    def _folder(self, folder: Path) -> str:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return digest([(p.relative_to(folder).as_posix(), self(p)) for p in files], length=32)

    def save(self) -> None:
        """Write what was learned; silent where the database cannot be written."""
        if self._database is None or not self._new:
            return
        rows = [(path, *entry) for path, entry in self._new.items()]
        try:
            self._database.parent.mkdir(parents=True, exist_ok=True)
            with closing(_connect(self._database)) as connection, connection as db:
                db.execute(
                    "create table if not exists digests"
                    " (path text primary key, size integer, mtime_ns integer, digest text)"
                )
                db.executemany("insert or replace into digests values (?, ?, ?, ?)", rows)
        except (sqlite3.Error, OSError):
            return
        self._new.clear()
        self._read = self._read or _reader(self._database)


def _row(reader: sqlite3.Connection, key: str) -> tuple[int, int, str] | None:
    try:
        row: tuple[int, int, str] | None = reader.execute(
            "select size, mtime_ns, digest from digests where path = ?", (key,)
        ).fetchone()
    except sqlite3.Error:
        return None
    return row


def _reader(database: Path | None, *, write: bool = True) -> sqlite3.Connection | None:
    """A connection to look things up with, where there is a database to read."""
    if database is None or not database.exists():
        return None
    try:
        return _connect(database, write=write)
    except sqlite3.Error:
        return None


def _connect(database: Path, *, write: bool = True) -> sqlite3.Connection:
    mode = "rwc" if write else "ro"
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode={mode}", uri=True, timeout=30)
