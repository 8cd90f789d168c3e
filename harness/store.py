"""The store: embeddings on disk, found by content, written whole or not at all."""

from __future__ import annotations

import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.content import Image, Item, Part, Text
from harness.digest import Digests
from harness.dtypes import DTYPE
from harness.errors import BadEmbedding, StorageError
from harness.files import storage_error, touch, write_atomic, write_text
from harness.media import decoder
from harness.model import identity_id
from harness.remote import Remote

FORMAT = 1
IDENTITY = "identity.json"
_HEADERS = range(64, 1024, 64)
"""Bytes that the header of an `.npy` file of rows may have."""
_MAPPED = 256
"""Shards mapped at a time: each holds a file descriptor, of which a process has about a thousand."""

Keys = npt.NDArray[np.bytes_]
"""[N] of 16-byte strings."""
Embeddings = npt.NDArray[np.floating[Any]]


def key(item: Item, digests: Digests) -> bytes:
    """16 bytes that name the item's content: role, instruction and parts, media by their bytes.

    Together with the model's identity they name a vector. Raises OSError for unreadable media.
    """
    content = [item.role, item.instruction, [_content(part, digests) for part in item.parts]]
    if item.separator != " ":
        content.append(item.separator)
    return blake2b(json.dumps(content, ensure_ascii=True).encode(), digest_size=16).digest()


def _content(part: Part, digests: Digests) -> list[Any]:
    if isinstance(part, Text):
        return ["text", part.text]
    if isinstance(part, Image):
        return ["image", digests(part.path), part.crop, part.max_pixels]
    return ["video", digests(part.path), part.frames, part.fps, decoder()]


def as_keys(keys: Iterable[bytes]) -> Keys:
    """An array that sorts and compares bytewise."""
    return np.array(list(keys), dtype="S16")


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen of rows when they were made, and their unit vectors no longer tell, [N] each.

    norms: lengths before they were brought to one, NaN where not recorded. cut: how many texts the
    model's limit shortened, -1 where it does not say.
    """

    norms: npt.NDArray[np.float32]
    cut: npt.NDArray[np.int16]

    def __getitem__(self, rows: npt.NDArray[Any]) -> Facts:
        return Facts(self.norms[rows], self.cut[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """A file of rows and the manifest that lists their keys."""

    manifest: Path
    keys: Keys
    dim: int
    dtype: np.dtype[Any]
    crc32: int

    @property
    def rows(self) -> Path:
        return self.manifest.with_suffix(".npy")

    @property
    def size(self) -> int:
        """Bytes of the rows, without the header."""
        return len(self.keys) * self.dim * self.dtype.itemsize

    def fault(self) -> str | None:
        """What is wrong with the rows, which are read from end to end; None where nothing is."""
        try:
            return None if _crc32(self.rows) == self.crc32 else "the checksum differs"
        except OSError as error:
            return _unreadable(error)

    def read(self, start: int, stop: int) -> Embeddings:
        """[stop - start, D]: read, not mapped, so that a pool larger than memory passes through.

        Raises StorageError where the rows have gone.
        """
        count = (stop - start) * self.dim
        try:
            offset = self.rows.stat().st_size - self.size + start * self.dim * self.dtype.itemsize
            return np.fromfile(self.rows, self.dtype, count, offset=offset).reshape(-1, self.dim)
        except (OSError, ValueError) as error:
            raise self._gone(error) from error

    def map(self) -> Embeddings:
        """[N, D], mapped. Raises StorageError where the rows have gone."""
        try:  # `.npy` files say of bfloat16 that it has two bytes, and no more
            return np.asarray(np.load(self.rows, mmap_mode="r")).view(self.dtype)
        except (OSError, ValueError) as error:
            raise self._gone(error) from error

    def _gone(self, error: Exception) -> StorageError:
        return StorageError(
            f"cache shard {self.rows} was removed or cut while it was in use ({error}):"
            " run the same command again, what is missing is made again"
        )


def read_shard(manifest: Path) -> Shard:
    """A shard by its manifest; the rows are measured and not read.

    Raises ValueError saying what is damaged, FileNotFoundError where the manifest is gone, and
    StorageError where a newer harness wrote it.
    """
    try:
        data = manifest.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(_unreadable(error)) from error
    shard = _listed(data, manifest, str(manifest))
    try:
        size = shard.rows.stat().st_size
    except OSError:
        raise ValueError("the rows are not there") from None
    if size - shard.size not in _HEADERS:
        raise ValueError("the rows are not whole")
    return shard


def _listed(data: bytes, manifest: Path, place: str) -> Shard:
    """The shard that a manifest's bytes tell of; they come from `place`."""
    try:
        about = json.loads(data)
        if about["format"] > FORMAT:
            raise StorageError(
                f"{place} was written by a newer harness: upgrade, or choose another --cache-dir"
            )
        if "check" in about and about["check"] != _check(about):
            raise ValueError("the manifest's checksum differs")
        keys = np.frombuffer(bytes.fromhex(about["keys"]), dtype="S16")
        shard = Shard(manifest, keys, about["dim"], np.dtype(about["dtype"]), about["crc32"])
        whole = len(keys) == about["count"]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError("the manifest is not whole") from error
    if not whole:
        raise ValueError("the manifest is not whole")
    return shard


def fault_of(manifest: Path) -> str | None:
    """What is wrong with a shard, all of which is read; None where nothing is."""
    try:
        return read_shard(manifest).fault()
    except FileNotFoundError:
        return None
    except ValueError as error:
        return str(error)


def remove(manifest: Path) -> None:
    """Remove a shard, the manifest first. Raises StorageError."""
    try:
        manifest.unlink(missing_ok=True)
        manifest.with_suffix(".npy").unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(manifest, error) from error


def manifests(folder: Path) -> list[Path]:
    """The manifests of all shards in a store's folder, in the order of their names."""
    return sorted(path for path in folder.glob("[!.]*.json") if path.name != IDENTITY)


def _unreadable(error: OSError) -> str:
    return f"it cannot be read ({(error.strerror or str(error)).lower()})"


def row_bytes(dim: int, dtype: str) -> int:
    """Bytes of a stored embedding: the row, and its key, norm and count in the manifest."""
    return dim * np.dtype(dtype).itemsize + 44


def _check(about: Mapping[str, Any]) -> int:
    """A checksum of a manifest's other entries."""
    return zlib.crc32(json.dumps({k: about[k] for k in sorted(about) if k != "check"}).encode())


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of the store in any wanted order, read when asked for: [N, D]."""

    shards: Sequence[Shard]
    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    dim: int
    _maps: dict[int, Embeddings] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.shard)

    def block(self, start: int, stop: int) -> Embeddings:
        return self._gather(self.shard[start:stop], self.row[start:stop], self._span)

    def take(self, rows: npt.NDArray[np.int64]) -> Embeddings:
        return self._gather(self.shard[rows], self.row[rows], self._few)

    def _gather(
        self,
        shard: npt.NDArray[np.int32],
        row: npt.NDArray[np.int32],
        read: Callable[[int, npt.NDArray[np.int32]], Embeddings],
    ) -> Embeddings:
        if len(shard) and (shard == shard[0]).all():
            return read(int(shard[0]), row)
        out = np.empty((len(shard), self.dim), self.shards[0].dtype if self.shards else np.float16)
        for s in np.unique(shard).tolist():
            here = np.flatnonzero(shard == s)
            out[here] = read(s, row[here])
        return out

    def _span(self, s: int, row: npt.NDArray[np.int32]) -> Embeddings:
        """Rows that lie close to one another: what is between them is read too."""
        first, last = int(row.min()), int(row.max())
        if last - first > 4 * len(row):
            return self._few(s, row)
        found = self.shards[s].read(first, last + 1)
        return found if len(found) == len(row) and (np.diff(row) == 1).all() else found[row - first]

    def _few(self, s: int, row: npt.NDArray[np.int32]) -> Embeddings:
        mapped = self._maps.get(s)
        if mapped is None:
            if len(self._maps) >= _MAPPED:
                self._maps.clear()
            mapped = self._maps[s] = self.shards[s].map()
        return mapped[row]


@dataclass(frozen=True, slots=True)
class _Index:
    """Where the rows of some shards are, by their keys."""

    keys: Keys
    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> _Index:
        every = np.concatenate([shard.keys for shard in shards] or [np.zeros(0, "S16")])
        order = np.argsort(every, kind="stable")
        starts = np.cumsum([0, *(len(shard.keys) for shard in shards)], dtype=np.int64)
        return cls(every[order], order, starts)

    def find(self, keys: Keys) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The shard of each key, -1 where there is none, and the row in it."""
        if not len(self.keys):
            return np.full(len(keys), -1, np.int32), np.zeros(len(keys), np.int32)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        place = self.order[at]
        shard = np.searchsorted(self.starts, place, side="right") - 1
        row = (place - self.starts[shard]).astype(np.int32)
        return np.where(self.keys[at] == keys, shard, -1).astype(np.int32), row


@dataclass(frozen=True, slots=True, eq=False)
class _Away:
    """A shard behind a URL, with the place that it would have here."""

    remote: Remote
    shard: Shard


class Store:
    """Rows of one identity below `root`: embeddings, or a reranker's scores in float32.

    A shard is one `.npy` file of rows plus a `.json` manifest with the keys and checksums. The
    manifest is renamed into place last, so that a shard exists wholly or not at all, under kill -9
    too; names are digests of keys and checksum, so that writers cannot collide. What lies below `shared`
    is read as well, after `root`, and never written to; what only a remote cache has is first brought
    to `root`. A damaged shard is not used; `tell` hears of it.
    """

    def __init__(
        self,
        root: Path,
        identity: Mapping[str, str],
        *,
        kind: str = "embeddings",
        dtype: str = DTYPE,
        shared: Sequence[Path] = (),
        remotes: Sequence[str] = (),
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.identity = dict(identity)
        self._path = f"{kind}/{identity_id(identity)}"
        self.folder = root / self._path
        self.dtype = dtype
        self.damaged: list[Path] = []
        self._tell = tell
        self._to_remove: list[Path] = []
        self._shards: list[Shard] = []
        self._sound: set[Path] = set()
        self._index: _Index | None = None
        self._remotes = [Remote(url) for url in remotes]
        self._away: list[_Away] | None = None
        for folder in (self.folder, *(layer / self._path for layer in shared)):
            for manifest in manifests(folder):
                self._admit(manifest)

    def _admit(self, manifest: Path) -> None:
        try:
            self._shards.append(read_shard(manifest))
        except FileNotFoundError:
            return  # another process has just removed it
        except ValueError as error:
            self._reject(manifest, str(error))
        self._index = None

    def _reject(self, manifest: Path, fault: str) -> None:
        self._tell_damaged(manifest.with_suffix(".npy"), fault)
        self.damaged.append(manifest)
        self._to_remove.append(manifest)

    def _tell_damaged(self, place: Path | str, fault: str) -> None:
        self._tell(f"cache shard {place} is damaged ({fault}): what is needed of it is made again")

    def __len__(self) -> int:
        return sum(len(shard.keys) for shard in self._shards)

    @property
    def dim(self) -> int | None:
        """Columns of every row; None while the store is empty."""
        return self._shards[0].dim if self._shards else None

    def touch(self) -> None:
        """Note that the store is in use now: `harness cache` tells, and goes by it."""
        touch(self.folder / IDENTITY)

    def add(self, keys: Keys, rows: npt.NDArray[Any], facts: Facts | None = None) -> None:
        """Store one shard: rows [N, D] under N keys. Raises StorageError, BadEmbedding."""
        if self.dim is not None and rows.shape[1] != self.dim:
            raise BadEmbedding(
                f"{self.identity.get('model')} returned {rows.shape[1]} columns, {self.dim} before:"
                " one identity must give one dimension"
            )
        matrix = np.ascontiguousarray(rows, dtype=self.dtype)
        data = (npy_header(matrix.shape, matrix.dtype), matrix.reshape(-1).view(np.uint8).data)
        raw, crc32 = keys.tobytes(), zlib.crc32(data[1], zlib.crc32(data[0]))
        # Not of the rows: that took longer than writing them, and two shards of equal keys and
        # checksums are as good as one another.
        name = blake2b(raw + crc32.to_bytes(4), digest_size=12).hexdigest()
        about: dict[str, Any] = {
            "format": FORMAT,
            "count": len(keys),
            "dim": int(rows.shape[1]),
            "dtype": self.dtype,
            "crc32": crc32,
            "keys": raw.hex(),
        }
        if facts is not None:
            about["norms"] = facts.norms.astype("<f4").tobytes().hex()
            about["cut"] = facts.cut.astype("<i2").tobytes().hex()
        about["check"] = _check(about)
        manifest = self.folder / f"{name}.json"
        shard = Shard(manifest, np.frombuffer(raw, "S16"), matrix.shape[1], matrix.dtype, crc32)
        self._remove_damaged()
        self._write(shard, json.dumps(about).encode(), *data)

    def _write(self, shard: Shard, about: bytes, *data: bytes | memoryview) -> None:
        """Write a shard's rows and then its manifest, and use it."""
        if not (self.folder / IDENTITY).exists():
            write_text(self.folder / IDENTITY, json.dumps(self.identity, indent=2) + "\n")
        write_atomic(shard.rows, lambda file: file.writelines(data))
        write_atomic(shard.manifest, lambda file: file.write(about))
        known = [each for each in self._shards if each.manifest != shard.manifest]
        self._shards = [*known, shard]
        self._index = None

    def _remove_damaged(self) -> None:
        """Remove those of our own that are still damaged: another process may have made one again."""
        for manifest in self._to_remove:
            if manifest.parent == self.folder and fault_of(manifest) is not None:
                remove(manifest)
        self._to_remove.clear()

    def missing(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which keys have no sound row. Shards that hold wanted keys are verified once; those that lie
        behind a URL are fetched. Raises StorageError where one cannot be reached or written."""
        absent = self._missing_here(keys)
        if self._remotes and absent.any():
            self._fetch(keys[absent])
            absent = self._missing_here(keys)
        return absent

    def _missing_here(self, keys: Keys) -> npt.NDArray[np.bool_]:
        while True:
            shard, _ = self._find(keys)
            wanted = np.unique(shard[shard >= 0]).tolist()
            faults = {s: fault for s in wanted if (fault := self._fault(self._shards[s]))}
            if not faults:
                return shard < 0
            for s in sorted(faults, reverse=True):
                self._reject(self._shards.pop(s).manifest, faults[s])
            self._index = None

    def _fetch(self, wanted: Keys) -> None:
        """Bring the shards that hold wanted keys here."""
        away = self._away = self._look_away() if self._away is None else self._away
        count = Counter[str]()
        while len(wanted) and away:
            shard, _ = _Index.of([each.shard for each in away]).find(wanted)
            for s in reversed(np.unique(shard[shard >= 0]).tolist()):
                each = away.pop(s)
                count[each.remote.url] += self._bring(each)
            wanted = wanted[(shard >= 0) & (self._find(wanted)[0] < 0)]  # what was damaged: perhaps elsewhere
        for url, fetched in (+count).items():
            self._tell(f"{fetched:,} cache shard{'s' * (fetched != 1)} fetched from {url}")

    def _look_away(self) -> list[_Away]:
        """The shards behind URLs that are not here."""
        here = {shard.manifest.name for shard in self._shards}
        found: list[_Away] = []
        for remote in self._remotes:
            names = remote.sizes(self._path)
            if not names:
                remote.require()
            for name in sorted(n for n in names if n.endswith(".json") and n not in (*here, IDENTITY)):
                path = f"{self._path}/{name}"
                try:
                    shard = _listed(remote.read(path), self.folder / name, remote.place(path))
                except FileNotFoundError:
                    continue  # somebody has just removed it
                except ValueError as error:
                    self._tell_damaged(remote.place(path), str(error))
                else:
                    found.append(_Away(remote, shard))
        return found

    def _bring(self, each: _Away) -> bool:
        """Fetch a shard, which is checked before it is kept; whether it is here now."""
        rows, manifest = (f"{self._path}/{path.name}" for path in (each.shard.rows, each.shard.manifest))
        try:
            data, about = each.remote.read(rows), each.remote.read(manifest)
            shard = _listed(about, each.shard.manifest, each.remote.place(manifest))
            if zlib.crc32(data) != shard.crc32:
                raise ValueError("the checksum differs")
        except FileNotFoundError:
            self._tell_damaged(each.remote.place(rows), "the rows are not there")
        except ValueError as error:
            self._tell_damaged(each.remote.place(rows), str(error))
        else:
            self._write(shard, about, data)
            return True
        return False

    def _fault(self, shard: Shard) -> str | None:
        if shard.manifest in self._sound:
            return None
        fault = shard.fault()
        if fault is None:
            self._sound.add(shard.manifest)
        return fault

    def rows(self, keys: Keys) -> StoredRows:
        """The rows under these keys, in this order; all must be present."""
        shard, row = self._find(keys)
        assert (shard >= 0).all(), "rows() wants keys that missing() has cleared"
        return StoredRows(tuple(self._shards), shard, row, self.dim or 0)

    def facts(self, keys: Keys) -> Facts:
        """What the manifests say of the rows under these keys, all of which must be present."""
        shard, row = self._find(keys)
        facts = Facts(np.full(len(keys), np.nan, np.float32), np.full(len(keys), -1, np.int16))
        for s in np.unique(shard):
            here = np.flatnonzero(shard == s)
            about = json.loads(self._shards[s].manifest.read_bytes())
            for name, kept, dtype in (("norms", facts.norms, "<f4"), ("cut", facts.cut, "<i2")):
                if name in about:
                    kept[here] = np.frombuffer(bytes.fromhex(about[name]), dtype)[row[here]]
        return facts

    def _find(self, keys: Keys) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The shard of each key, -1 where absent, and the row in it."""
        if self._index is None:
            self._index = _Index.of(self._shards)
        return self._index.find(keys)


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What stands before the rows in an `.npy` file."""
    file = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value
