"""A whole evaluation beside MTEB and sentence-transformers, encoding beside fixed batches, and how cost
grows: what `harness bench eval`, `encode` and `growth` measure, by tiny random models.

The published figures are of the commands in results/bench/README.md.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import bench
from harness.bench import Timing
from harness.registry import load_catalog

CATALOG = load_catalog()


@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_an_evaluation(benchmark: Any, tmp_path: Path, kind: str) -> None:
    data, weights = tmp_path / "data", tmp_path / "weights"
    data.mkdir()
    if kind == "texts":
        bench.write_texts(data, 20, 60)
        path = Path(CATALOG.model("sentence-transformers").tiny(weights)["path"])
        model = bench.Model(CATALOG.model("minilm"), {"path": str(path)}, partial(bench.sentence_model, path))
    else:
        bench.write_drawn(data, 16, 16)
        given = CATALOG.model("clip").tiny(weights)
        model = bench.Model(CATALOG.model("clip"), given, partial(bench.OpenClip, Path(given["pretrained"])))
    rows = benchmark.pedantic(bench.bench_evaluation, (CATALOG, model, data, Timing(1)), rounds=1)
    assert all(row.identical for row in rows)
    benchmark.extra_info["rows"] = [asdict(row) for row in rows]


def test_encoding(benchmark: Any, tmp_path: Path) -> None:
    spec = CATALOG.model("minilm")
    arguments = (spec, spec.tiny(tmp_path), bench.EncodeSizes(60), Timing(1))
    rows = benchmark.pedantic(bench.bench_encode, arguments, rounds=1)
    assert all(row.identical for row in rows)
    benchmark.extra_info["rows"] = [asdict(row) for row in rows]


def test_growth(benchmark: Any, tmp_path: Path) -> None:
    spec = CATALOG.model("minilm")
    arguments = (spec, spec.tiny(tmp_path), bench.GrowthSizes(20, 500, 100, 100), Timing(1))
    grown = benchmark.pedantic(bench.bench_growth, arguments, rounds=1)
    benchmark.extra_info["growth"] = [asdict(each) for each in grown]
