"""A hub on the loopback: repositories from a dictionary, served as the Hugging Face hub serves them.

with Hub() as hub:
    hub.commit("datasets/team/birds", {"birds/a.json": b"[]"})      # a model: "models/team/birds"
    os.environ["HF_ENDPOINT"] = hub.url
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

NO_REPOSITORY, NO_REVISION, NO_FILE = (404, "RepoNotFound"), (404, "RevisionNotFound"), (404, "EntryNotFound")
GATED = (403, "GatedRepo")


@dataclass(frozen=True)
class Asked:
    """A request: `start` is where its range begins."""

    method: str
    path: str
    start: int


@dataclass
class Repository:
    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Branches and tags → commits."""


class Hub:
    """`refused`: path prefix → (status, error code) answered there. `cut`: end of a path → after how
    many bytes its next download breaks off."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[Asked] = []
        self.refused: dict[str, tuple[int, str]] = {}
        self.cut: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def commit(self, name: str, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """The next commit of "datasets/team/name" or "models/team/name", with exactly these files."""
        repository = self.repositories.setdefault(name, Repository())
        commit = hashlib.sha1(f"{name} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.names[branch] = commit
        return commit

    def downloads(self) -> list[str]:
        """The names of the files whose content was asked for, in order."""
        paths = [asked.path for asked in self.asked if asked.method == "GET" and "/resolve/" in asked.path]
        return [path.partition("/resolve/")[2].partition("/")[2] for path in paths]

    def __enter__(self) -> Hub:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(
        self, path: str
    ) -> tuple[int, str] | tuple[str, bytes | list[dict[str, Any]] | dict[str, Any]]:
        """(status, error code), or (commit, content) where there is one."""
        for prefix, refusal in self.refused.items():
            if path.startswith(prefix):
                return refusal
        if api := re.fullmatch(r"/api/((?:datasets|models)/.+?)/(revision|tree)/([^/]+)", path):
            name, what, revision = api.groups()
        elif file := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, what, revision = (file[1] or "models/") + file[2], file[4], file[3]
        else:
            return 404, ""
        if name not in self.repositories:
            return NO_REPOSITORY
        repository = self.repositories[name]
        commit = repository.names.get(unquote(revision), revision)
        if commit not in repository.commits:
            return NO_REVISION
        files = repository.commits[commit]
        if what == "revision" and api:
            return commit, {"id": name.partition("/")[2], "sha": commit, "siblings": []}
        if what == "tree" and api:
            return commit, [
                {"type": "file", "path": each, "size": len(content), "oid": _oid(content)}
                for each, content in files.items()
            ]
        return (commit, files[unquote(what)]) if unquote(what) in files else NO_FILE


def _oid(content: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._serve(body=False)

        def do_GET(self) -> None:
            self._serve(body=True)

        def _serve(self, *, body: bool) -> None:
            path = urlsplit(self.path).path
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            hub.asked.append(Asked(self.command, unquote(path), start))
            found, what = hub.answer(path)
            if isinstance(found, int):
                self._head(found, {"X-Error-Code": str(what), "Content-Length": "0"})
                return
            content = what if isinstance(what, bytes) else json.dumps(what).encode()
            headers = {"X-Repo-Commit": found, "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._head(206 if start else 200, {**headers, "Content-Length": str(len(content) - start)})
            if body:
                ends = next((end for end in hub.cut if unquote(path).endswith(end)), None)
                stop = len(content) if ends is None else hub.cut.pop(ends)
                self.wfile.write(content[start:stop])
                self.close_connection = self.close_connection or stop < len(content)

        def _head(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler
