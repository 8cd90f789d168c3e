"""A pool file as a table on disk: JSON lines parsed once, then any candidate by its row.

One row, with the keys of M-BEIR:

    {"did": "9:24", "txt": "A red bus.", "img_path": "mbeir_images/24.jpg", "modality": "image,text"}
"""

from __future__ import annotations

import codecs
import json
import mmap
import os
import posixpath
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, overload

import numpy as np
import numpy.typing as npt

from harness.content import Candidate, modality
from harness.digest import Digests, digest
from harness.errors import DataInvalid, DataMissing, StorageError
from harness.files import cache_dir, shared_caches, touch, write_atomic, write_text

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
BLOCK = 1 << 22
"""Bytes of the source parsed at once; also what a record batch holds."""

TABLES = "tables"
"""Their folder in a cache."""
SOURCE = ".source"
"""The suffix of the file beside a table that says what it was made of."""

Kept = TypeVar("Kept")
_Kind = tuple[bool, bool, str | None]
"""Whether a row has text, whether it has a picture, and its modality."""
Make = Callable[[str, str | None, str | None, str | None], Candidate]
"""id, text, image path and modality of a row → its candidate."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The JSON keys of the four columns; all others are ignored."""

    id: str
    text: str
    image: str
    modality: str


def open_table(source: Path, fields: Fields, make: Make, *, variant: str, media_root: Path) -> Table:
    """The candidates of a JSON-lines file, parsed at the first call and memory-mapped ever after.

    The table is kept in the cache folder under the digest of the file's bytes. `make` turns a row
    into a candidate and must pickle; it gets a picture's path as it stands in the file, relative
    to `media_root`. `variant` names whatever in `make` changes a candidate. A key that is missing
    is null, and so is an empty picture path, as in UniIR's reader; an empty text is a text.

    Raises DataInvalid naming file and line for a row that is no JSON object or has no id, no part,
    a value that is neither string nor null, or a path outside `media_root`; DataMissing for a
    file that cannot be read; StorageError.
    """
    content = _content(source)
    keys = astuple(fields)
    fingerprint = digest([content, keys, variant, str(media_root)], length=32)
    return _kept(
        f"{digest([FORMAT, content, keys], length=32)}.arrow",
        source,
        lambda path: Table(path, make, fingerprint),
        lambda file: _build(source, fields, file),
    )


def remembered(source: Path, kind: str, scan: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """What `scan` finds in the file `source`, one number or row of numbers each, memory-mapped.

    It is kept in the cache folder under the digest of the file's bytes and `kind`, which names
    all else that decides the numbers. Raises DataMissing for a file that cannot be read; StorageError.
    """
    return _kept(
        f"{digest([kind, _content(source)], length=32)}.npy",
        source,
        _numbers,
        lambda file: np.save(file, scan(), allow_pickle=False),
    )


def _kept(name: str, source: Path, read: Callable[[Path], Kept], write: Callable[[BinaryIO], object]) -> Kept:
    """What is kept under a name in one's own cache or a shared one, else made in one's own."""
    own, *others = (root.absolute() / TABLES / name for root in (cache_dir(), *shared_caches()))
    for path in (own, *others):
        try:
            found = read(path)
        except (StorageError, OSError, ValueError):
            continue
        if path == own:
            touch(own)
        return found
    write_atomic(own, write)
    write_text(own.with_suffix(SOURCE), str(source.absolute()))
    return read(own)


def _numbers(path: Path) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _content(source: Path) -> str:
    """The digest of a file's bytes."""
    digests = Digests.of(cache_dir(), shared_caches())
    try:
        content = digests(source)
    except OSError as error:
        raise DataMissing(f"{source} cannot be read ({(error.strerror or str(error)).lower()})") from error
    digests.save()
    return content


class Table(Sequence[Candidate]):
    """The rows of a table file as candidates; pickles as the file's name, never as its data.

    `fingerprint` changes with whatever changes a candidate; `modalities` are those that occur.
    """

    __slots__ = ("_columns", "_make", "_map", "_path", "_starts", "fingerprint", "modalities")

    def __init__(self, path: Path, make: Make, fingerprint: str) -> None:
        """Raises StorageError where the file is not a whole table of this format."""
        self._path, self._make, self.fingerprint = path, make, fingerprint
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            batches, examples = _read(self._map)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path} is gone or damaged: open its source again to rebuild it") from error
        self._columns = [batch.columns for batch in batches]
        self._starts = list(accumulate((batch.num_rows for batch in batches), initial=0))
        self.modalities = frozenset(modality(self[row].parts) for row in examples)
        self._forget()

    def __reduce__(self) -> tuple[type[Table], tuple[Path, Make, str]]:
        return Table, (self._path, self._make, self.fingerprint)

    def __len__(self) -> int:
        rows: int = self._starts[-1]
        return rows

    @overload
    def __getitem__(self, at: int) -> Candidate: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, at: int | slice) -> Candidate | Sequence[Candidate]:
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        columns, row = self._place(at)
        return self._make(*(column[row].as_py() for column in columns))

    def __iter__(self) -> Iterator[Candidate]:
        for columns in self._columns:
            yield from map(self._make, *(column.to_pylist() for column in columns))
            self._forget()

    @property
    def ids(self) -> Sequence[str]:
        """The ids of all rows in order, decoded when asked for."""
        return _Ids(self)

    def _place(self, at: int) -> tuple[list[pa.StringArray], int]:
        """The columns of the batch that holds a row, and where in it."""
        row: int = range(self._starts[-1])[at]
        batch = bisect_right(self._starts, row) - 1
        return self._columns[batch], row - self._starts[batch]

    def _forget(self) -> None:
        # The kernel may drop these pages anyway, but until it does they count as our memory.
        self._map.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True, eq=False)
class _Ids(Sequence[str]):
    table: Table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        columns, row = self.table._place(at)
        value: str = columns[0][row].as_py()
        return value

    def __iter__(self) -> Iterator[str]:
        for columns in self.table._columns:
            yield from columns[0].to_pylist()
            self.table._forget()


def _read(data: mmap.mmap) -> tuple[list[pa.RecordBatch], list[int]]:
    """The batches of a table file, nothing copied, and the rows that show its modalities.

    An empty last batch carries the number of rows and so proves that the file is whole.
    """
    import pyarrow as pa

    reader = pa.ipc.open_file(pa.py_buffer(data))
    *batches, (end, about) = map(reader.get_batch_with_custom_metadata, range(reader.num_record_batches))
    known = json.loads(about["table"])
    for batch, _ in batches:
        batch.validate()
    if (known["format"], known["rows"]) != (FORMAT, sum(b.num_rows for b, _ in batches)) or end.num_rows:
        raise ValueError("incomplete")
    return [batch for batch, _ in batches], known["examples"]


def _build(source: Path, fields: Fields, file: BinaryIO) -> None:
    """Write the table of `source`, with one example row of each kind of row that occurs."""
    import pyarrow as pa

    schema = _schema(fields)
    rows = 0
    examples: dict[_Kind, int] = {}
    # By its descriptor: what Arrow writes to a Python file, it copies first.
    with pa.OSFile(f"/dev/fd/{file.fileno()}", "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        for batch, kinds in _batches(source, fields):
            for kind, row in kinds.items():
                examples.setdefault(kind, rows + row)
            out.write_batch(batch)
            rows += batch.num_rows
        about = {"format": FORMAT, "rows": rows, "examples": list(examples.values())}
        end = pa.RecordBatch.from_pylist([], schema)
        out.write_batch(end, custom_metadata={"table": json.dumps(about)})


def _schema(fields: Fields) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in astuple(fields)])


def _batches(source: Path, fields: Fields) -> Iterator[tuple[pa.RecordBatch, dict[_Kind, int]]]:
    """The rows of the file in order and the first of each kind, a block at a time.

    A few threads parse ahead. What is unusual in any way is parsed again line by line, which is
    slower and says what is wrong with which line.
    """
    workers = min(4, len(os.sched_getaffinity(0)))
    waiting: deque[tuple[int, int, Future[pa.RecordBatch | None]]] = deque()
    line = 1
    with source.open("rb") as file, ThreadPoolExecutor(workers) as pool:
        bounds = _bounds(file)
        while True:
            for start, stop in islice(bounds, workers + 1 - len(waiting)):
                waiting.append((start, stop, pool.submit(_parsed, file.fileno(), start, stop, fields)))
            if not waiting:
                return
            start, stop, parsed = waiting.popleft()
            batch = parsed.result()
            if batch is not None:
                line += batch.num_rows
            else:
                block = os.pread(file.fileno(), stop - start, start)
                batch = _careful(block, line, source, fields)
                line += block.count(b"\n")
            yield batch, _kinds(batch)


def _bounds(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Where the blocks of whole lines begin and end, in bytes."""
    size = os.fstat(file.fileno()).st_size
    start = 0
    while start < size:
        file.seek(start + BLOCK)
        file.readline()
        stop = min(file.tell(), size)
        yield start, stop
        start = stop


def _parsed(descriptor: int, start: int, stop: int, fields: Fields) -> pa.RecordBatch | None:
    """The rows of a block, one of each line; None where any of them needs a second look."""
    import pyarrow as pa
    import pyarrow.json

    block = pa.allocate_buffer(stop - start)
    os.preadv(descriptor, [block], start)
    raw = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(raw == ord("\n"))
    starts = np.concatenate([[0], ends + 1])
    # Arrow takes several objects on a line or one on several, and dies of a line that is `null`.
    if starts[-1] != len(raw) or (raw[starts[:-1]] != ord("{")).any() or (raw[ends - 1] != ord("}")).any():
        return None
    reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    parsing = pyarrow.json.ParseOptions(explicit_schema=_schema(fields), unexpected_field_behavior="ignore")
    try:
        table = pyarrow.json.read_json(pa.BufferReader(block), reading, parsing)
        table.validate(full=True)
    except (pa.ArrowException, OverflowError):
        return None
    (batch,) = table.combine_chunks().to_batches()
    return batch if batch.num_rows == len(ends) and _usual(batch) else None


def _usual(batch: pa.RecordBatch) -> bool:
    """Whether no row needs a second look."""
    import pyarrow.compute as pc

    name, text, image, _ = batch.columns
    paths = image.buffers()[2]
    # All paths as one string: twice as fast as Arrow's look at each, and as good where nothing is found.
    if name.null_count or (paths is not None and b".." in paths.to_pybytes()):
        return False
    doubtful = (
        pc.equal(pc.binary_length(name), 0),
        pc.and_(pc.is_null(text), pc.is_null(image)),
        pc.equal(pc.binary_length(image), 0),
        pc.starts_with(image, "/"),
    )
    return not any(pc.any(rows).as_py() for rows in doubtful)


def _kinds(batch: pa.RecordBatch) -> dict[_Kind, int]:
    """The first row of each kind."""
    import pyarrow as pa
    import pyarrow.compute as pc

    _, text, image, named = batch.columns
    table = pa.table([pc.is_valid(text), pc.is_valid(image), named, np.arange(len(text))], list("tima"))
    found = table.group_by(["t", "i", "m"], use_threads=False).aggregate([("a", "min")])
    return {(row["t"], row["i"], row["m"]): row["a_min"] for row in found.to_pylist()}


def _careful(block: bytes, first: int, source: Path, fields: Fields) -> pa.RecordBatch:
    """The rows of a block whose first line has this number; raises DataInvalid."""
    import pyarrow as pa

    if first == 1:
        block = block.removeprefix(codecs.BOM_UTF8)
    rows = [
        _row(line, fields, f"{source}, line {number}")
        for number, line in enumerate(block.split(b"\n"), first)
        if line.strip()
    ]
    columns = zip(*rows, strict=True) if rows else [()] * 4
    return pa.record_batch([pa.array(column, pa.string()) for column in columns], _schema(fields))


def _row(line: bytes, fields: Fields, place: str) -> tuple[str, str | None, str | None, str | None]:
    """One line, looked at in every respect; raises DataInvalid, starting with `place`."""
    try:
        # Bytes that are not UTF-8 matter only where they are kept: below.
        row = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise DataInvalid(f"{place}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataInvalid(f"{place}: a JSON object is wanted, not {line[:40]!r}")
    for key in astuple(fields):
        value = row.setdefault(key, None)
        if not isinstance(value, str | None):
            raise DataInvalid(f"{place}: {key!r} must be a string or null, not {value!r:.40}")
        if value is not None and not _is_unicode(value):
            raise DataInvalid(f"{place}: {key!r} is not valid Unicode: {value!r:.40}")
    name, text, image, named = (
        row[fields.id],
        row[fields.text],
        row[fields.image] or None,
        row[fields.modality],
    )
    if not name:
        raise DataInvalid(f"{place}: no {fields.id!r}: every candidate needs an id")
    if image is not None and (image[0] == "/" or posixpath.normpath(image).split("/")[0] == ".."):
        raise DataInvalid(f"{place}: {fields.image!r} leaves the data folder: {image!r}")
    if text is None and image is None:
        raise DataInvalid(f"{place}: {name!r} has no part: neither {fields.text!r} nor {fields.image!r}")
    return name, text, image, named


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
