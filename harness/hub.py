"""Files of a data set repository on the Hugging Face hub: listed, downloaded and unpacked.

listed("TIGER-Lab/M-BEIR", "main")   # Listing(…, commit="2f1c…", files={"query/test/….jsonl": 1_943_012, …})
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from harness.errors import DataInvalid, HarnessError, StorageError
from harness.files import storage_error

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit: names and bytes."""

    repo: str
    commit: str
    files: Mapping[str, int]

    def matching(self, globs: Iterable[str]) -> dict[str, int]:
        """The files that match any of the globs, in which * also matches a slash."""
        return {name: size for name, size in self.files.items() if matches(name, globs)}


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What became of an archive's members."""

    written: int = 0
    there: int = 0
    """Members whose file was there already, of the same size."""
    unlike: tuple[Path, ...] = ()
    """Files that were there with another size: left as they are."""


def matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in globs)


def endpoint() -> str:
    """The hub's address: $HF_ENDPOINT (a mirror), else huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def listed(repo: str, revision: str) -> Listing:
    """The files that a branch, tag or commit of the repository holds now.

    Raises HarnessError where the hub or the repository cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=endpoint())
    try:
        commit = api.dataset_info(repo, revision=revision).sha
        assert commit is not None
        entries = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
        return Listing(repo, commit, {e.path: e.size for e in entries if isinstance(e, RepoFile)})
    except Exception as error:  # the library raises its own, httpx's and built-in errors
        raise _fault(repo, revision, Path(), error) from error


def download(listing: Listing, globs: Iterable[str], folder: Path) -> None:
    """Bring the matching files below `folder`, under the names that they have in the repository.

    What is there already is left; a connection that is cut goes on where it was, and after an
    interruption finished files are not asked for again. Raises HarnessError, StorageError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    globs = list(globs)
    files = listing.matching(globs)
    _require_space(listing.repo, files, folder)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        snapshot_download(
            listing.repo,
            repo_type="dataset",
            revision=listing.commit,
            local_dir=folder,
            allow_patterns=globs,
            endpoint=endpoint(),
        )
    except Exception as error:  # as above
        raise _fault(listing.repo, listing.commit, folder, error) from error
    for name, size in files.items():  # offline, the library takes whatever lies there
        if _size(folder / name) != size:
            raise HarnessError(
                f"{folder / name} was not downloaded whole from {listing.repo}: run the same command again"
            )


def is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)


def unpack(archive: Path) -> Unpacked:
    """Unpack a zip or tar archive beside itself; no file that is there is replaced.

    Raises DataInvalid for a member that leads out of the folder or is neither a file nor a
    folder, and for an archive that is broken; StorageError.
    """
    written, there, unlike = 0, 0, []
    try:
        for member in _members(archive):
            target = archive.parent / member.name
            size = _size(target)
            if size is None:
                _write(target, member)
                written += 1
            elif size == member.size:
                there += 1
            else:
                unlike.append(target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError) as error:
        raise _broken(archive, error) from error
    except OSError as error:
        if error.errno is None:  # gzip's
            raise _broken(archive, error) from error
        raise storage_error(archive.parent, error) from error
    return Unpacked(written, there, tuple(unlike))


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int
    open: Callable[[], IO[bytes]]


def _members(archive: Path) -> Iterator[_Member]:
    """The files in an archive; raises DataInvalid at the first member that may not be unpacked."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                _require_harmless(archive, info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
                if not info.is_dir():
                    yield _Member(info.filename, info.file_size, partial(file.open, info))
        return
    with tarfile.open(archive) as tar:
        for item in tar:
            _require_harmless(archive, item.name, item.isfile() or item.isdir())
            if item.isfile():
                yield _Member(item.name, item.size, partial(_content, tar, item))


def _content(tar: tarfile.TarFile, item: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(item)
    assert content is not None
    return content


def _require_harmless(archive: Path, name: str, plain: bool) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataInvalid(f"{archive} is not unpacked: its member {name!r} leads out of the folder")
    if not plain:
        raise DataInvalid(f"{archive} is not unpacked: its member {name!r} is a link or a device")


def _write(target: Path, member: _Member) -> None:
    """Write a member whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".unpacking.", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, closing(member.open()) as content:
            shutil.copyfileobj(content, file, 1 << 20)
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _size(path: Path) -> int | None:
    """The bytes of a file; None where there is none."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _require_space(repo: str, files: Mapping[str, int], folder: Path) -> None:
    """Raises StorageError where the files that are still to come do not fit."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise storage_error(folder, error) from error
    needed = sum(size for name, size in files.items() if _size(folder / name) != size)
    if needed > free:
        raise StorageError(
            f"{repo} needs {shown(needed)} in {folder}, {shown(free)} are free:"
            " free some space, or choose another folder with --data"
        )


def shown(size: int) -> str:
    """ "1.9 MB" """
    number = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.{0 if unit == 'bytes' or number >= 100 else 1}f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def _broken(archive: Path, error: Exception) -> DataInvalid:
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
    return DataInvalid(f"{archive} cannot be unpacked ({reason}): delete it and fetch it again")


def _fault(repo: str, revision: str, folder: Path, error: Exception) -> HarnessError:
    """The one line for a failed call of the hub's library, from the error or what caused it."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{endpoint()}/datasets/{repo}"
    causes = list(_causes(error))
    for cause in causes:
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if isinstance(cause, RevisionNotFoundError):
            return HarnessError(f"{repo} has no revision {revision!r}: see {page}/commits/main")
        if isinstance(cause, RepositoryNotFoundError) and not isinstance(cause, GatedRepoError):
            return HarnessError(
                f"there is no data set {repo} at {endpoint()}, or it is not public: if {page} shows it,"
                " accept its terms there and run 'hf auth login'"
            )
        if status in (401, 403):
            return HarnessError(
                f"{repo} may not be read ({status}): accept its terms at {page} and run 'hf auth login'"
            )
        if isinstance(cause, OfflineModeIsEnabled):
            return HarnessError(f"{repo} cannot be fetched offline: unset HF_HUB_OFFLINE")
    if isinstance(error, OSError) and error.errno is not None:  # the disk's: the network's are wrapped
        return storage_error(Path(error.filename or folder), error)
    reason = (str(causes[-1]).strip() or type(causes[-1]).__name__).splitlines()[0]
    return HarnessError(
        f"{repo} cannot be fetched from {endpoint()} ({reason}): run the same command again,"
        " what is finished is kept"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
