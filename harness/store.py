"""The store: embeddings on disk, found by content, written whole or not at all."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.content import Image, Item, Part, Text
from harness.digest import Digests
from harness.errors import BadEmbedding, StorageError
from harness.files import storage_error, touch, write_atomic, write_text
from harness.media import decoder
from harness.model import identity_id

FORMAT = 1
DTYPE = "float16"
IDENTITY = "identity.json"
_HEADERS = range(64, 1024, 64)
"""Bytes that the header of an `.npy` file of rows may have."""
_MAPPED = 256
"""Shards mapped at a time: each holds a file descriptor, of which a process has about a thousand."""

Keys = npt.NDArray[np.bytes_]
"""[N] of 16-byte strings."""
Half = npt.NDArray[np.float16]


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

    def read(self, start: int, stop: int) -> Half:
        """[stop - start, D]: read, not mapped, so that a pool larger than memory passes through.

        Raises StorageError where the rows have gone.
        """
        count = (stop - start) * self.dim
        try:
            offset = self.rows.stat().st_size - self.size + start * self.dim * self.dtype.itemsize
            return np.fromfile(self.rows, self.dtype, count, offset=offset).reshape(-1, self.dim)
        except (OSError, ValueError) as error:
            raise self._gone(error) from error

    def map(self) -> Half:
        """[N, D], mapped. Raises StorageError where the rows have gone."""
        try:
            return np.asarray(np.load(self.rows, mmap_mode="r"))
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
        about = json.loads(manifest.read_bytes())
        if about["format"] > FORMAT:
            raise StorageError(
                f"{manifest} was written by a newer harness: upgrade, or choose another --cache-dir"
            )
        if "check" in about and about["check"] != _check(about):
            raise ValueError("the manifest's checksum differs")
        keys = np.frombuffer(bytes.fromhex(about["keys"]), dtype="S16")
        shard = Shard(manifest, keys, about["dim"], np.dtype(about["dtype"]), about["crc32"])
        whole = len(keys) == about["count"]
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(_unreadable(error)) from error
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError("the manifest is not whole") from error
    try:
        size = shard.rows.stat().st_size
    except OSError:
        raise ValueError("the rows are not there") from None
    if not whole or size - shard.size not in _HEADERS:
        raise ValueError("the rows are not whole")
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


def row_bytes(dim: int) -> int:
    """Bytes of a stored embedding: the row, and its key, norm and count in the manifest."""
    return dim * np.dtype(DTYPE).itemsize + 44


def _check(about: Mapping[str, Any]) -> int:
    """A checksum of a manifest's other entries."""
    return zlib.crc32(json.dumps({k: about[k] for k in sorted(about) if k != "check"}).encode())


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of the store in any wanted order, read when asked for: [N, D] float16."""

    shards: Sequence[Shard]
    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    dim: int
    _maps: dict[int, Half] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.shard)

    def block(self, start: int, stop: int) -> Half:
        return self._gather(self.shard[start:stop], self.row[start:stop], self._span)

    def take(self, rows: npt.NDArray[np.int64]) -> Half:
        return self._gather(self.shard[rows], self.row[rows], self._few)

    def _gather(
        self,
        shard: npt.NDArray[np.int32],
        row: npt.NDArray[np.int32],
        read: Callable[[int, npt.NDArray[np.int32]], Half],
    ) -> Half:
        present = np.unique(shard)
        if len(present) == 1:
            return read(int(present[0]), row)
        out = np.empty((len(shard), self.dim), self.shards[0].dtype if self.shards else np.float16)
        for s in present.tolist():
            here = np.flatnonzero(shard == s)
            out[here] = read(s, row[here])
        return out

    def _span(self, s: int, row: npt.NDArray[np.int32]) -> Half:
        """Rows that lie close to one another: what is between them is read too."""
        first, last = int(row.min()), int(row.max())
        if last - first > 4 * len(row):
            return self._few(s, row)
        found = self.shards[s].read(first, last + 1)
        return found if len(found) == len(row) and (np.diff(row) == 1).all() else found[row - first]

    def _few(self, s: int, row: npt.NDArray[np.int32]) -> Half:
        mapped = self._maps.get(s)
        if mapped is None:
            if len(self._maps) >= _MAPPED:
                self._maps.clear()
            mapped = self._maps[s] = self.shards[s].map()
        return mapped[row]


class Store:
    """Rows of one identity below `root`: embeddings in float16, or a reranker's scores in float32.

    A shard is one `.npy` file of rows plus a `.json` manifest with the keys and checksums. The
    manifest is renamed into place last, so that a shard exists wholly or not at all, under kill -9
    too; names are digests of the content, so that writers cannot collide. What lies below `shared`
    is read as well, after `root`, and never written to. A damaged shard is not used; `tell` hears of it.
    """

    def __init__(
        self,
        root: Path,
        identity: Mapping[str, str],
        *,
        kind: str = "embeddings",
        dtype: str = DTYPE,
        shared: Sequence[Path] = (),
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.identity = dict(identity)
        self.folder = root / kind / identity_id(identity)
        self.dtype = dtype
        self.damaged: list[Path] = []
        self._tell = tell
        self._to_remove: list[Path] = []
        self._shards: list[Shard] = []
        self._sound: set[Path] = set()
        self._index: tuple[Keys, npt.NDArray[np.int64]] | None = None
        for folder in (self.folder, *(layer / kind / self.folder.name for layer in shared)):
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
        shard = manifest.with_suffix(".npy")
        self._tell(f"cache shard {shard} is damaged ({fault}): what is needed of it is made again")
        self.damaged.append(manifest)
        self._to_remove.append(manifest)

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
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(rows, dtype=self.dtype))
        data = buffer.getvalue()
        raw = keys.tobytes()
        name = blake2b(raw + data, digest_size=12).hexdigest()
        about: dict[str, Any] = {
            "format": FORMAT,
            "count": len(keys),
            "dim": int(rows.shape[1]),
            "dtype": self.dtype,
            "crc32": zlib.crc32(data),
            "keys": raw.hex(),
        }
        if facts is not None:
            about["norms"] = facts.norms.astype("<f4").tobytes().hex()
            about["cut"] = facts.cut.astype("<i2").tobytes().hex()
        about["check"] = _check(about)
        self._remove_damaged()
        if not (self.folder / IDENTITY).exists():
            write_text(self.folder / IDENTITY, json.dumps(self.identity, indent=2) + "\n")
        write_atomic(self.folder / f"{name}.npy", lambda file: file.write(data))
        write_text(self.folder / f"{name}.json", json.dumps(about))
        self._admit(self.folder / f"{name}.json")

    def _remove_damaged(self) -> None:
        """Remove those of our own that are still damaged: another process may have made one again."""
        for manifest in self._to_remove:
            if manifest.parent == self.folder and fault_of(manifest) is not None:
                remove(manifest)
        self._to_remove.clear()

    def missing(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which keys have no sound row. Shards that hold wanted keys are verified once."""
        while True:
            place = self._find(keys)
            wanted = np.unique(self._place_of(place[place >= 0])[0])
            faults = {s: fault for s in wanted.tolist() if (fault := self._fault(self._shards[s]))}
            if not faults:
                return place < 0
            for s in sorted(faults, reverse=True):
                self._reject(self._shards.pop(s).manifest, faults[s])
            self._index = None

    def _fault(self, shard: Shard) -> str | None:
        if shard.manifest in self._sound:
            return None
        fault = shard.fault()
        if fault is None:
            self._sound.add(shard.manifest)
        return fault

    def rows(self, keys: Keys) -> StoredRows:
        """The rows under these keys, in this order; all must be present."""
        place = self._find(keys)
        assert (place >= 0).all(), "rows() wants keys that missing() has cleared"
        shard, row = self._place_of(place)
        return StoredRows(tuple(self._shards), shard, row, self.dim or 0)

    def facts(self, keys: Keys) -> Facts:
        """What the manifests say of the rows under these keys, all of which must be present."""
        shard, row = self._place_of(self._find(keys))
        facts = Facts(np.full(len(keys), np.nan, np.float32), np.full(len(keys), -1, np.int16))
        for s in np.unique(shard):
            here = np.flatnonzero(shard == s)
            about = json.loads(self._shards[s].manifest.read_bytes())
            for name, kept, dtype in (("norms", facts.norms, "<f4"), ("cut", facts.cut, "<i2")):
                if name in about:
                    kept[here] = np.frombuffer(bytes.fromhex(about[name]), dtype)[row[here]]
        return facts

    def _find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Global row number of each key, -1 where absent."""
        if self._index is None:
            every = np.concatenate([shard.keys for shard in self._shards] or [np.zeros(0, "S16")])
            order = np.argsort(every, kind="stable")
            self._index = (every[order], order)
        known, order = self._index
        if not len(known):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[at] == keys, order[at], -1)

    def _place_of(self, place: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        ends = np.cumsum([len(shard.keys) for shard in self._shards], dtype=np.int64)
        shard = np.searchsorted(ends, place, side="right")
        starts = np.concatenate([np.zeros(1, np.int64), ends])
        return shard.astype(np.int32), (place - starts[shard]).astype(np.int32)


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value
