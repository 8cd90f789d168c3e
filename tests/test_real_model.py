"""The product on real weights and real pictures: figures, bytes and budgets (slow)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from harness.evaluate import evaluate
from harness.registry import load_catalog
from harness.run import Run
from toys import places

pytestmark = pytest.mark.slow
CATALOG = load_catalog()
CONSE = CATALOG.models["conse"]


def outcomes(folder, names, **options):
    return evaluate(CATALOG, CONSE, {}, CATALOG.select(names, []), places(folder, **options))


def test_conse_reaches_its_known_figures_on_the_stamps(tmp_path, real_stamps):
    tasks = CATALOG.select(["stamps/text-to-image-en"], [])
    (outcome,) = evaluate(
        CATALOG, CONSE, {}, tasks, dataclasses.replace(places(tmp_path, workers=1), data=real_stamps)
    )
    result = outcome.result
    assert (result.counts["queries"], result.counts["candidates"]) == (498, 538)
    got = [round(100 * result.metrics[f"hit_at_{k}"].value, 1) for k in (1, 5, 10)]
    assert got == pytest.approx([19.1, 32.3, 38.2], abs=0.3)


def test_the_demo_is_well_above_chance(tmp_path):
    chance = {"text-to-image": 1 / 21, "image-to-text": 3 / 60, "image-to-image": 1 / 20, "composed": 1 / 49}
    for outcome in outcomes(tmp_path, ["demo/*"]):
        name = outcome.task.removeprefix("demo/")
        if name in chance:
            assert outcome.result.metrics["hit_at_1"].value > 4 * chance[name], name


def scores(folder):
    return {p.parent.name: Run.read(p) for p in folder.glob("runs/*/*/*/*.run.gz")}


def files(folder):
    kept = [p for p in folder.rglob("*") if p.suffix in (".npy", ".gz", ".parquet")]
    return {p.relative_to(folder): p.read_bytes() for p in kept}


def test_workers_change_no_byte(tmp_path):
    for workers in (0, 1, 2):
        outcomes(tmp_path / str(workers), ["demo*"], workers=workers)
    assert files(tmp_path / "0") == files(tmp_path / "1") == files(tmp_path / "2")


def test_a_budget_eight_times_as_large_moves_scores_by_less_than_1e_5(tmp_path):
    for budget in (1024, 8192):
        outcomes(tmp_path / str(budget), ["demo*"], batch_tokens=budget)
    small, large = scores(tmp_path / "1024"), scores(tmp_path / "8192")
    assert set(small) == set(large)
    assert len(small) == 12
    for task, one in small.items():
        for q in range(len(one.query_ids)):
            a, b = dict(one.ranking(q)), dict(large[task].ranking(q))
            shared = sorted(set(a) & set(b))
            assert max(abs(a[c] - b[c]) for c in shared) <= 1e-5
            first, second = ([c for c, _ in run.ranking(q)] for run in (one, large[task]))
            for x, y in zip(first, second, strict=True):
                assert x == y or abs(a.get(x, np.inf) - a.get(y, np.inf)) <= 2e-5 or x not in b or y not in a
