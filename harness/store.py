"""The store: embeddings on disk, found by content, written whole or not at all."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.content import Image, Item, Part, Text
from harness.digest import Digests
from harness.errors import BadEmbedding, StorageError
from harness.files import write_atomic, write_text
from harness.media import decoder
from harness.model import identity_id

FORMAT = 1
DTYPE = "float16"

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


@dataclass(frozen=True, slots=True)
class _Shard:
    rows: Path
    count: int
    dim: int
    crc32: int


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of the store in any wanted order, memory-mapped: [N, D] float16."""

    files: Sequence[Half]
    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    dim: int

    def __len__(self) -> int:
        return len(self.shard)

    def block(self, start: int, stop: int) -> Half:
        return self._gather(self.shard[start:stop], self.row[start:stop])

    def take(self, rows: npt.NDArray[np.int64]) -> Half:
        return self._gather(self.shard[rows], self.row[rows])

    def _gather(self, shard: npt.NDArray[np.int32], row: npt.NDArray[np.int32]) -> Half:
        out = np.empty((len(shard), self.dim), self.files[0].dtype if self.files else np.float16)
        for s in np.unique(shard):
            here = np.flatnonzero(shard == s)
            out[here] = self.files[s][row[here]]
        return out


class Store:
    """Rows of one identity below `root`: embeddings in float16, or a reranker's scores in float32.

    A shard is one `.npy` file of rows plus a `.json` manifest with the keys and a checksum. The
    manifest is renamed into place last, so that a shard exists wholly or not at all, under kill -9
    too; names are digests of the content, so that writers cannot collide.
    """

    def __init__(
        self, root: Path, identity: Mapping[str, str], *, kind: str = "embeddings", dtype: str = DTYPE
    ) -> None:
        self.identity = dict(identity)
        self.folder = root / kind / identity_id(identity)
        self.dtype = dtype
        self.damaged: list[str] = []
        self._shards: list[_Shard] = []
        self._keys: list[Keys] = []
        self._sound: set[int] = set()
        self._open: dict[int, Half] = {}
        self._index: tuple[Keys, npt.NDArray[np.int64]] | None = None
        for manifest in sorted(self.folder.glob("*.json")):
            if manifest.name != "identity.json":
                self._admit(manifest)

    def _admit(self, manifest: Path) -> None:
        try:
            about = json.loads(manifest.read_text())
            if about["format"] > FORMAT:
                raise StorageError(
                    f"{manifest} was written by a newer harness: upgrade, or choose another --cache-dir"
                )
            keys = np.frombuffer(bytes.fromhex(about["keys"]), dtype="S16")
            shard = _Shard(manifest.with_suffix(".npy"), about["count"], about["dim"], about["crc32"])
            if len(keys) != shard.count or not shard.rows.is_file():
                raise ValueError("incomplete")
        except (OSError, ValueError, KeyError, TypeError):
            self._discard(manifest)
            return
        self._shards.append(shard)
        self._keys.append(keys)
        self._index = None

    def _discard(self, manifest: Path) -> None:
        self.damaged.append(manifest.stem)
        try:
            manifest.unlink(missing_ok=True)
            manifest.with_suffix(".npy").unlink(missing_ok=True)
        except OSError:
            pass  # a read-only cache keeps its damaged shard; it is not used

    def __len__(self) -> int:
        return sum(shard.count for shard in self._shards)

    @property
    def dim(self) -> int | None:
        """Columns of every row; None while the store is empty."""
        return self._shards[0].dim if self._shards else None

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
        about = {
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
        if not (self.folder / "identity.json").exists():
            write_text(self.folder / "identity.json", json.dumps(self.identity, indent=2) + "\n")
        write_atomic(self.folder / f"{name}.npy", lambda file: file.write(data))
        write_text(self.folder / f"{name}.json", json.dumps(about))
        self._admit(self.folder / f"{name}.json")

    def missing(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which keys have no sound row. Shards that hold wanted keys are verified once."""
        while True:
            place = self._find(keys)
            wanted = np.unique(self._place_of(place[place >= 0])[0])
            broken = [s for s in wanted.tolist() if not self._verify(s)]
            if not broken:
                return place < 0
            for s in sorted(broken, reverse=True):
                self._discard(self._shards[s].rows.with_suffix(".json"))
                del self._shards[s], self._keys[s]
            self._sound.clear()
            self._open.clear()
            self._index = None

    def rows(self, keys: Keys) -> StoredRows:
        """The rows under these keys, in this order; all must be present."""
        place = self._find(keys)
        assert (place >= 0).all(), "rows() wants keys that missing() has cleared"
        shard, row = self._place_of(place)
        files = [self._map(s) for s in range(len(self._shards))]
        return StoredRows(files, shard, row, self.dim or 0)

    def facts(self, keys: Keys) -> Facts:
        """What the manifests say of the rows under these keys, all of which must be present."""
        shard, row = self._place_of(self._find(keys))
        facts = Facts(np.full(len(keys), np.nan, np.float32), np.full(len(keys), -1, np.int16))
        for s in np.unique(shard):
            here = np.flatnonzero(shard == s)
            about = json.loads(self._shards[s].rows.with_suffix(".json").read_text())
            for name, kept, dtype in (("norms", facts.norms, "<f4"), ("cut", facts.cut, "<i2")):
                if name in about:
                    kept[here] = np.frombuffer(bytes.fromhex(about[name]), dtype)[row[here]]
        return facts

    def _find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Global row number of each key, -1 where absent."""
        if self._index is None:
            every = np.concatenate(self._keys) if self._keys else np.zeros(0, "S16")
            order = np.argsort(every, kind="stable")
            self._index = (every[order], order)
        known, order = self._index
        if not len(known):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[at] == keys, order[at], -1)

    def _place_of(self, place: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        ends = np.cumsum([s.count for s in self._shards], dtype=np.int64)
        shard = np.searchsorted(ends, place, side="right")
        starts = np.concatenate([np.zeros(1, np.int64), ends])
        return shard.astype(np.int32), (place - starts[shard]).astype(np.int32)

    def _map(self, s: int) -> Half:
        if s not in self._open:
            self._open[s] = np.load(self._shards[s].rows, mmap_mode="r")
        return self._open[s]

    def _verify(self, s: int) -> bool:
        if s not in self._sound:
            shard = self._shards[s]
            try:
                if _crc32(shard.rows) != shard.crc32:
                    return False
            except OSError:
                return False
            self._sound.add(s)
        return True


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value
