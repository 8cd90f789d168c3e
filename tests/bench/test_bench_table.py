"""A pool file made into a table, beside reading its lines with json.loads; then opening it again,
walking through it and picking rows.

Wall and CPU seconds of one run, best of three; BENCH_SIZE=50 is a million rows of about 240 bytes.
Ratios are theirs divided by ours: above 1 is faster.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.content import Candidate, Image, Text
from harness.files import cache_dir
from harness.table import Fields, Table, open_table

ROWS = round(20_000 * float(os.environ.get("BENCH_SIZE", "1")))
KINDS = [("image", 0.158), ("text", 0.438), ("image,text", 0.404)]
"""The shares of M-BEIR's global pool."""


def make(root: Path, name: str, text: str | None, image: str | None, modality: str | None) -> Candidate:
    picture = () if image is None else (Image(root / image),)
    return Candidate(name, (*picture, *(() if text is None else (Text(text),))))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    path = tmp_path_factory.mktemp("bench") / "pool.jsonl"
    with path.open("w") as file:
        for i in range(ROWS):
            (modality,) = rng.choices([k for k, _ in KINDS], [share for _, share in KINDS])
            text = " ".join(rng.choices(words, k=rng.randint(8, 36))) if "text" in modality else None
            image = f"mbeir_images/oven_images/{i % 100:02d}/{i:09d}.jpg" if "image" in modality else None
            row = {"did": f"{i % 10}:{i}", "txt": text, "img_path": image, "modality": modality}
            row["src_content"] = json.dumps({"id": i, "source": "oven"}) if i % 3 == 0 else None
            file.write(json.dumps(row) + "\n")
    return path


def opened(source: Path) -> Table:
    root = Path("/media")
    fields = Fields("did", "txt", "img_path", "modality")
    return open_table(source, fields, partial(make, root), variant="", media_root=root)


def built(source: Path) -> Table:
    shutil.rmtree(cache_dir() / "tables", ignore_errors=True)
    return opened(source)


def lines_of_text(source: Path) -> None:
    with source.open(encoding="utf-8") as file:
        for line in file:
            json.loads(line)


def lines_of_bytes(source: Path) -> None:
    with source.open("rb") as file:
        for line in file:
            json.loads(line)


def seconds(*calls: Callable[[], object]) -> list[tuple[float, float]]:
    """(wall, CPU) of each call, taking turns, the best of three."""
    times: list[list[tuple[float, float]]] = [[] for _ in calls]
    for _ in range(3):
        for call, measured in zip(calls, times, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            measured.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [(min(w for w, _ in measured), min(c for _, c in measured)) for measured in times]


def test_building_beside_json_line_by_line(benchmark: Any, source: Path) -> None:
    table = benchmark.pedantic(built, args=(source,), rounds=3, warmup_rounds=1)
    assert len(table) == ROWS
    ours, text, raw = seconds(
        lambda: built(source), lambda: lines_of_text(source), lambda: lines_of_bytes(source)
    )
    benchmark.extra_info |= {"rows": ROWS, "bytes": source.stat().st_size}
    for name, theirs in (("text_lines", text), ("byte_lines", raw)):
        benchmark.extra_info[f"ratio_to_json_of_{name}_wall"] = theirs[0] / ours[0]
        benchmark.extra_info[f"ratio_to_json_of_{name}_cpu"] = theirs[1] / ours[1]


def test_opening_again_beside_building(benchmark: Any, source: Path) -> None:
    built(source)
    assert len(benchmark(opened, source)) == ROWS
    again, anew = seconds(lambda: opened(source), lambda: built(source))
    benchmark.extra_info |= {"rows": ROWS, "open_s": again[0], "ratio_to_building_wall": anew[0] / again[0]}


def test_rows_at_random_and_in_order(benchmark: Any, source: Path) -> None:
    """Microseconds a row, of which `make` is a large part."""
    table = opened(source)
    rng = random.Random(0)
    rows = [rng.randrange(ROWS) for _ in range(20_000)]
    benchmark(lambda: [table[row] for row in rows])
    picked, walked, named = seconds(
        lambda: [table[row] for row in rows],
        lambda: sum(1 for _ in table),
        lambda: sum(1 for _ in table.ids),
    )
    assert [c.id for c in table] == list(table.ids)
    benchmark.extra_info |= {
        "rows": ROWS,
        "us_at_random": 1e6 * picked[1] / len(rows),
        "us_in_order": 1e6 * walked[1] / ROWS,
        "us_an_id": 1e6 * named[1] / ROWS,
    }
