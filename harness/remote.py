"""A cache behind a URL: s3://bucket/prefix, or anything else that fsspec or a driver for it opens."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, StorageError
from harness.files import write_atomic


@dataclass(frozen=True, slots=True)
class Remote:
    """The files below a URL, or below a local folder; names are relative to it."""

    url: str

    def place(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}"

    def sizes(self, folder: str) -> dict[str, int | None]:
        """The files of a folder and their bytes where the server tells; none where there is no folder.

        Raises StorageError where the URL cannot be reached.
        """
        with self._reaching("read") as (files, root):
            files.invalidate_cache()
            try:
                found = files.ls(f"{root}/{folder}", detail=True)
            except FileNotFoundError:
                return {}
        return {posixpath.basename(each["name"].rstrip("/")): each.get("size") for each in found}

    def require(self) -> None:
        """Raise StorageError where there is nothing at the URL."""
        with self._reaching("read") as (files, root):
            try:
                files.info(root)
            except FileNotFoundError:
                there = False
            else:
                there = True
        if not there:
            raise StorageError(f"there is no shared cache {self.url}: 'harness cache push' makes one")

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError, StorageError."""
        with self._reaching("read") as (files, root):
            try:
                data: bytes | None = files.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                data = None
        if data is None:
            raise FileNotFoundError(self.place(name))
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file, on local folders and in object stores whole or not at all. Raises StorageError."""
        from fsspec.implementations.local import LocalFileSystem

        with self._reaching("written") as (files, root):
            path = f"{root}/{name}"
            if isinstance(files, LocalFileSystem):
                write_atomic(Path(path), lambda file: file.write(data))
                return
            try:
                files.pipe_file(path, data)
            except FileNotFoundError:  # no object store, but a server with folders
                files.makedirs(posixpath.dirname(path), exist_ok=True)
                files.pipe_file(path, data)

    @contextmanager
    def _reaching(self, doing: str) -> Iterator[tuple[Any, str]]:
        """The file system and the URL's path in it; whatever it raises inside becomes one line."""
        from fsspec.core import url_to_fs

        try:
            files, root = url_to_fs(self.url)
            yield files, root.rstrip("/")
        except HarnessError:
            raise
        except ImportError as error:
            raise StorageError(f"{self.url} needs another package: {error}") from error
        except Exception as error:  # drivers have trees of their own: botocore, aiohttp, gcsfs, …
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise StorageError(
                f"{self.url} cannot be {doing} ({reason}): run the same command again,"
                " what was finished is kept, or leave that cache out"
            ) from error
