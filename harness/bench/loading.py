"""Making a table of a pool file beside json.loads."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from harness.content import Candidate, Image, Text
from harness.table import Fields, Table, open_table

from .timing import Peer, Row, Timing

_KINDS = (("image", 0.158), ("text", 0.438), ("image,text", 0.404))
"""The shares of M-BEIR's global pool."""


def bench_load(lines: int, timing: Timing) -> list[Row]:
    """A pool file made into a table, and opened again, beside json.loads line by line. `identical`: the
    ids and texts of all rows."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pool.jsonl"
        write_pool(source, lines)
        with cache_in(Path(folder) / "cache") as cache:

            def floor() -> tuple[float, str]:
                read = min(timing.seconds(source.read_bytes) for _ in range(3))
                return read, f"{source.stat().st_size / 1e6:.0f} MB read once"

            peers = [Peer("json.loads line by line", partial(_json_lines, source))]
            same = partial(_same_rows, source)
            first = timing.rows(
                f"table of {lines:,} lines",
                partial(made_anew, source, cache),
                peers,
                identical=same,
                floor=floor,
            )
            again = timing.rows(
                f"table of {lines:,} lines, opened again",
                partial(opened, source),
                peers,
                identical=same,
                floor=lambda: (0.0, "nothing has to be read"),
            )
            return [*first, *again]


def made_anew(source: Path, cache: Path) -> Table:
    shutil.rmtree(cache, ignore_errors=True)
    return opened(source)


@contextmanager
def cache_in(folder: Path) -> Iterator[Path]:
    """The cache in `folder`, and nowhere else."""
    was = os.environ.get("HARNESS_CACHE")
    os.environ["HARNESS_CACHE"] = str(folder)
    try:
        yield folder
    finally:
        if was is None:
            del os.environ["HARNESS_CACHE"]
        else:
            os.environ["HARNESS_CACHE"] = was


def opened(source: Path) -> Table:
    fields = Fields("did", "txt", "img_path", "modality")
    return open_table(source, fields, _candidate, variant="", media_root=Path("/"))


def _candidate(name: str, text: str | None, image: str | None, modality: str | None) -> Candidate:
    picture = () if image is None else (Image(Path(image)),)
    return Candidate(name, (*picture, *(() if text is None else (Text(text),))))


def _same_rows(source: Path) -> bool:
    rows = map(json.loads, source.read_text().splitlines())
    made = [_candidate(row["did"], row["txt"], row["img_path"], row["modality"]) for row in rows]
    return list(opened(source)) == made


def write_pool(path: Path, lines: int) -> None:
    """Candidates in M-BEIR's form, about 240 bytes each."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    with path.open("w") as file:
        for i in range(lines):
            (modality,) = rng.choices([k for k, _ in _KINDS], [share for _, share in _KINDS])
            text = " ".join(rng.choices(words, k=rng.randint(8, 36))) if "text" in modality else None
            image = f"mbeir_images/oven_images/{i % 100:02d}/{i:09d}.jpg" if "image" in modality else None
            row = {"did": f"{i % 10}:{i}", "txt": text, "img_path": image, "modality": modality}
            row["src_content"] = json.dumps({"id": i, "source": "oven"}) if i % 3 == 0 else None
            file.write(json.dumps(row) + "\n")


def _json_lines(source: Path) -> None:
    with source.open("rb") as file:
        for line in file:
            json.loads(line)
