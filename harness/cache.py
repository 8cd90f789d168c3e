"""The cache folder: what lies in it, whether it is sound, what can go, and vectors for other tools.

embeddings/IDENTITY/, pairs/IDENTITY/   stores: shards of rows, and identity.json
tables/                                 parsed pool files
digests.sqlite                          the digests of files, by path, size and time
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from harness.errors import HarnessError, StorageError
from harness.evaluate import (
    EvalOptions,
    Session,
    joined,
    load_collection,
    open_model,
    parts_of,
    require_data,
    require_readable,
    segments,
)
from harness.files import storage_error, write_atomic, write_text
from harness.model import ModelSpec
from harness.remote import Remote
from harness.store import (
    IDENTITY,
    Keys,
    Shard,
    Store,
    StoredRows,
    fault_of,
    manifests,
    npy_header,
    read_shard,
)
from harness.table import SOURCE, TABLES
from harness.task import Task

KINDS = ("embeddings", "pairs")
SETTLED = 3600.0
"""Seconds after which a temporary file belongs to no running process."""
BLOCK = 1 << 14
"""Rows exported at a time."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A store, or a table of candidates, of one cache folder.

    used: the last use in seconds since the epoch. unusable: shards that are damaged, or too new.
    note: what is to be known, or empty.
    """

    kind: str
    model: str
    identity_id: str
    shards: int
    rows: int
    dim: int | None
    bytes: int
    used: float
    place: Path
    unusable: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """Which stores and tables can go: all conditions that are given must hold, and one must be.

    older: seconds since the last use. latest: so many stores of each model and kind stay.
    """

    model: str | None = None
    older: float | None = None
    latest: int | None = None


@dataclass(frozen=True, slots=True)
class Goes:
    """Something that can be removed, and why."""

    place: Path
    bytes: int
    why: str


def stores(root: Path, model: str = "*") -> list[Kept]:
    """The stores of the models whose names match, by name, the one used last first."""
    found = [
        _store(kind, folder) for kind in KINDS for folder in root.glob(f"{kind}/[!.]*") if folder.is_dir()
    ]
    return sorted(
        (kept for kept in found if fnmatch.fnmatchcase(kept.model, model)),
        key=lambda kept: (kept.model, kept.kind, -kept.used, kept.identity_id),
    )


def _store(kind: str, folder: Path) -> Kept:
    shards, faults = _shards(folder)
    return Kept(
        kind=kind,
        model=_model(folder),
        identity_id=folder.name,
        shards=len(shards),
        rows=sum(len(shard.keys) for shard in shards),
        dim=shards[0].dim if shards else None,
        bytes=_bytes(folder),
        used=max((p.stat().st_mtime for p in (folder / IDENTITY, folder) if p.exists()), default=0.0),
        place=folder,
        unusable=len(faults),
        note=f"unusable shards: {len(faults)}, {min(faults.values())}" if faults else "",
    )


def _model(folder: Path) -> str:
    try:
        return str(json.loads((folder / IDENTITY).read_bytes())["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _shards(folder: Path) -> tuple[list[Shard], dict[Path, str]]:
    """The shards of a store by their manifests, and what is wrong with the others."""
    shards, faults = [], {}
    for manifest in manifests(folder):
        try:
            shards.append(read_shard(manifest))
        except FileNotFoundError:
            continue
        except (ValueError, StorageError) as error:
            faults[manifest] = str(error)
    return shards, faults


def tables(root: Path) -> list[Kept]:
    """The parsed pool files; the note says where the file that one was made of has gone."""
    return [_table(path) for path in sorted((root / TABLES).glob("[!.]*")) if path.suffix != SOURCE]


def _table(path: Path) -> Kept:
    try:
        source = path.with_suffix(SOURCE).read_text(encoding="utf-8")
        note = "" if Path(source).exists() else f"orphan: {source} is gone"
    except OSError:
        note = ""
    stat = path.stat()
    return Kept("table", "", path.stem, 0, 0, None, stat.st_size, stat.st_mtime, path, note=note)


def verify(root: Path, model: str = "*") -> Iterator[tuple[Kept, dict[Path, str]]]:
    """Each store with the manifests of its damaged shards and what is wrong with them.

    Every row is read. Raises StorageError for a store that a newer harness wrote.
    """
    for kept in stores(root, model):
        yield kept, {m: fault for m in manifests(kept.place) if (fault := fault_of(m)) is not None}


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of a store that was pushed: shards sent, shards that were there, bytes sent, and the
    damaged ones that stayed, with what is wrong with them."""

    sent: int
    there: int
    bytes: int
    damaged: Mapping[Path, str]


def push(kept: Kept, remote: Remote) -> Pushed:
    """Copy a store's shards to a cache behind a URL, or in another folder; what is there is not sent again.

    A shard's name is a digest of its keys and checksum, and its manifest goes last: several may push at
    once, and readers never see half a shard. Every row is read. Raises StorageError.
    """
    folder = f"{kept.place.parent.name}/{kept.place.name}"
    known = remote.sizes(folder)
    damaged: dict[Path, str] = {}
    sent = there = size = 0

    def send(path: Path) -> int:
        remote.write(f"{folder}/{path.name}", path.read_bytes())
        return path.stat().st_size

    if IDENTITY not in known and (kept.place / IDENTITY).exists():
        send(kept.place / IDENTITY)
    for manifest in manifests(kept.place):
        rows = manifest.with_suffix(".npy")
        if manifest.name in known and rows.name in known:
            there += 1
        elif (fault := fault_of(manifest)) is not None:
            damaged[manifest] = fault
        else:
            size += send(rows) + send(manifest)
            sent += 1
    return Pushed(sent, there, size, damaged)


def leftovers(root: Path) -> list[Path]:
    """What killed processes left: temporary files, and rows without a manifest.

    Those of the last hour may belong to a running process; a time to come is a clock that jumped.
    """
    now = time.time()
    torn = [*root.glob(".*.tmp"), *root.glob("*/.*.tmp"), *root.glob("*/*/.*.tmp")]
    torn += [
        rows
        for kind in KINDS
        for rows in root.glob(f"{kind}/[!.]*/*.npy")
        if not rows.with_suffix(".json").exists()
    ]
    return sorted(path for path in torn if abs(now - path.stat().st_mtime) > SETTLED)


def garbage(root: Path, rule: Rule) -> list[Goes]:
    """What can go: leftovers, tables whose source is gone, and what the rule says; removes nothing."""
    now = time.time()
    found = [Goes(path, _bytes(path), "left by a killed process") for path in leftovers(root)]
    for kept in tables(root):
        if kept.note:
            found.append(Goes(kept.place, kept.bytes, kept.note))
        elif rule.model is None and rule.latest is None and _old(kept, rule, now):
            found.append(Goes(kept.place, kept.bytes, _unused(kept, now)))
    if rule == Rule():
        return found
    place: dict[tuple[str, str], int] = {}
    for kept in stores(root, rule.model or "*"):
        newer = place[kept.model, kept.kind] = place.get((kept.model, kept.kind), -1) + 1
        if (rule.older is None or _old(kept, rule, now)) and (rule.latest is None or newer >= rule.latest):
            found.append(Goes(kept.place, kept.bytes, f"{kept.kind} of {kept.model}, {_unused(kept, now)}"))
    return found


def _old(kept: Kept, rule: Rule, now: float) -> bool:
    return rule.older is not None and now - kept.used > rule.older


def _unused(kept: Kept, now: float) -> str:
    return f"unused for {max(0.0, now - kept.used) / 86_400:.1f} days"


def delete(goes: Goes) -> None:
    """Remove a file or a store; a store goes at once, whatever happens meanwhile. Raises StorageError."""
    place = goes.place
    try:
        if place.is_dir():
            if not place.name.startswith("."):
                place = place.rename(place.with_name(f".{place.name}.tmp"))
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
            if place.parent.name == TABLES:
                place.with_suffix(SOURCE).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(place, error) from error


def _bytes(path: Path) -> int:
    if path.is_dir():
        return sum(each.stat().st_size for each in path.iterdir() if each.is_file())
    return path.stat().st_size


@dataclass(frozen=True, slots=True)
class Cached:
    """Where the vectors of a task lie: ids and keys of its queries and its pool, and the store."""

    task: str
    store: Store
    queries: tuple[Sequence[str], Keys]
    pool: tuple[Sequence[str], Keys]


def cached(spec: ModelSpec, model_options: Mapping[str, str], task: Task, options: EvalOptions) -> Cached:
    """Look up a task's vectors, whether they are there or not; loads no weights."""
    require_data([task], options.data, options.protocol)
    session = Session.start(options)
    collection, _ = load_collection(task, options)
    opened = open_model(spec, model_options, collection, dtype=options.engine.store_dtype)
    keyed = [session.keyed(items) for items in segments(parts_of(collection), opened.frontend)]
    require_readable(keyed, skip_broken=False)
    ids = [query.id for query in collection.queries]
    pool = (collection.pool.ids, joined(keyed[1:]).keys)
    return Cached(task.name, session.store(opened), (ids, keyed[0].keys), pool)


def export(cached: Cached, folder: Path) -> dict[str, Any]:
    """Write queries.npy and candidates.npy, [N, D] unit rows, the ids of their rows as JSON
    arrays beside them, and about.json, which is returned.

    Raises HarnessError where the cache lacks rows.
    """
    parts = {"queries": cached.queries, "candidates": cached.pool}
    lacking = {name: int(cached.store.missing(keys).sum()) for name, (_, keys) in parts.items()}
    if any(lacking.values()):
        counts = ", ".join(f"{n:,} of {len(parts[name][0]):,} {name}" for name, n in lacking.items() if n)
        raise HarnessError(
            f"{cached.task}: {counts} are not in the cache: run 'harness eval' with the same options first"
        )
    for name, (ids, keys) in parts.items():
        rows = cached.store.rows(keys)
        write_atomic(folder / f"{name}.npy", partial(_write_rows, rows, np.dtype(cached.store.dtype)))
        write_text(folder / f"{name}.ids.json", json.dumps(list(ids), ensure_ascii=False) + "\n")
    about = {
        "task": cached.task,
        "model": cached.store.identity["model"],
        "identity": cached.store.identity,
        "identity_id": cached.store.folder.name,
        "dim": cached.store.dim,
        "dtype": cached.store.dtype,
        **{name: len(ids) for name, (ids, _) in parts.items()},
    }
    write_text(folder / "about.json", json.dumps(about, indent=2) + "\n")
    return about


def _write_rows(rows: StoredRows, dtype: np.dtype[Any], file: BinaryIO) -> None:
    file.write(npy_header((len(rows), rows.dim), dtype))
    for start in range(0, len(rows), BLOCK):
        file.write(rows.block(start, min(len(rows), start + BLOCK)).tobytes())
