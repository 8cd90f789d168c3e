"""The store's and the pictures' comparisons at tiny sizes: answers are right, and wrong ones are seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.bench import Timing, pictures
from harness.bench.pictures import ImageSizes, bench_images
from harness.bench.storing import StoreSizes, bench_store
from harness.errors import HarnessError
from harness.registry import load_catalog
from harness.store import StoredRows

ONCE = Timing(rounds=1)
SMALL = StoreSizes(rows=50, dim=8, shard=20)
PICTURES = ImageSizes(pictures=((60, 40), (500, 460)), count=2)


def test_the_store_gives_back_its_rows_and_leaves_nothing(tmp_path):
    rows = bench_store(SMALL, ONCE, folder=tmp_path)
    assert [row.case for row in rows] == [
        f"store {done}, 50 × 8 in shards of 20" for done in ("written", "read")
    ]
    assert [row.identical for row in rows] == [True, True]
    assert all(row.ratio > 0 and math.isfinite(row.floor_s) for row in rows)
    assert not list(tmp_path.iterdir())


def test_rows_that_do_not_come_back_are_seen(monkeypatch):
    block = StoredRows.block
    monkeypatch.setattr(StoredRows, "block", lambda self, start, stop: block(self, start, stop) + 1)
    assert [row.identical for row in bench_store(SMALL, ONCE)] == [False, False]


def test_pictures_are_those_of_pillow_and_of_transformers():
    rows = bench_images(load_catalog().models["umarvel"], PICTURES, ONCE)
    assert [row.peer for row in rows] == ["Pillow and Qwen2VLImageProcessor", "Pillow alone"] * 2 + ["exact"]
    assert [row.identical for row in rows] == [True] * 5


def test_without_photographs_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HarnessError, match=r"from scikit-image: pip install 'umr-harness\[demo\]'"):
        pictures._photographs()


@pytest.mark.parametrize("off", [1, 200])
def test_other_grey_levels_are_seen(monkeypatch, off, tmp_path):
    path = pictures._collage(tmp_path / "p.jpg", (500, 460), 0)
    exact = pictures._exact
    monkeypatch.setattr(pictures, "_exact", lambda paths: [seen ^ np.uint8(off) for seen in exact(paths)])
    assert not pictures._alike(pictures._exact, pictures._by_pillow, [path], 0.0)
    assert pictures._alike(pictures._exact, pictures._by_pillow, [path], 1.5) == (off == 1)
