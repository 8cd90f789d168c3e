"""The contrastive loss of a prepared batch: which rows are whose, and what the switches leave out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.collection import Collection, Pool
from harness.content import Candidate, Image, Item, Query, Text
from harness.errors import HarnessError
from harness.models.input_spec import InputSpec
from harness.models.qwen_vl import open_qwen
from harness.models.training.contrastive import Batches, loss
from harness.models.training.corpus import Corpus, Lesson, cropped
from harness.models.training.settings import CONTRASTIVE
from harness.task import Protocol
from harness.testing import write_picture
from toys import task
from train_toys import trained

EQUAL = [[1.0, 0.0], [0.0, 1.0]]


def batch(positives, *, order, negatives=()):
    count = len(positives)
    return {
        "chunks": [],
        "order": np.array(order),
        "visits": [],
        "count": count,
        "hard": len(negatives) // count,
        "positives": np.array(positives, np.int64),
        "negatives": np.array(negatives, np.int64).reshape(count, -1),
    }


def value(rows, prepared, temperature=0.5, **settings):
    return float(loss(torch.tensor(rows), prepared, temperature, {**CONTRASTIVE, **settings}))


def test_rows_are_put_back_from_the_order_of_their_chunks():
    """Queries e1, e2 and their positives e1, e2: −log(e^2 / (e^2 + 1)) each at temperature 0.5."""
    expected = math.log(1 + math.exp(-2))
    assert value([*EQUAL, *EQUAL], batch([1, 2], order=[0, 1, 2, 3])) == pytest.approx(expected)
    # longest first: positive 2, query 1, query 2, positive 1
    mixed = [EQUAL[1], EQUAL[0], EQUAL[1], EQUAL[0]]
    assert value(mixed, batch([1, 2], order=[3, 0, 1, 2])) == pytest.approx(expected)


def test_a_query_s_positive_is_never_its_negative_unless_as_released():
    """Both queries have the one positive e1: nothing is left to tell it from, so the loss is 0; left in, it
    is its own negative, ln 2."""
    rows = [EQUAL[0], EQUAL[1], EQUAL[0], EQUAL[0]]
    same = batch([7, 7], order=range(4))
    assert value(rows, same) == pytest.approx(0)
    assert value(rows, same, mask_duplicates=False) == pytest.approx(math.log(2))


def test_mined_negatives_count_for_all_queries_or_alone():
    """One negative each, orthogonal to its query: all of the batch ln(1 + 2e^-2 + …), or its own alone."""
    rows = [*EQUAL, *EQUAL, EQUAL[1], EQUAL[0]]
    prepared = batch([1, 2], order=range(6), negatives=[3, 4])
    # query 1: positive 1, the other positive 0, negatives 0 (its own) and 1 (the other query's)
    everything = math.log((2 * math.exp(2) + 2) / math.exp(2))
    assert value(rows, prepared) == pytest.approx(everything)
    assert value(rows, prepared, in_batch=False) == pytest.approx(math.log(1 + math.exp(-2)))


def test_both_directions_are_weighed():
    rows = [*EQUAL, *EQUAL]
    one = value(rows, batch([1, 2], order=range(4)))
    both = value(rows, batch([1, 2], order=range(4)), two_way=True)
    halves = value(rows, batch([1, 2], order=range(4)), two_way=True, two_way_weight=0.5)
    assert (both, halves) == (pytest.approx(2 * one), pytest.approx(one))


def test_a_random_part_of_every_picture_is_shown(tmp_path):
    write_picture(tmp_path / "p.png", seed=1, size=(100, 60))
    whole = Image(tmp_path / "p.png", max_pixels=400)
    corner = Image(tmp_path / "p.png", crop=(10, 20, 60, 50))
    given = Item("query", (Text("a boat"), whole, corner), "Find it.")
    boxes = []
    for seed in range(50):
        shown = cropped(given, 0.5, np.random.default_rng(seed))
        assert shown == cropped(given, 0.5, np.random.default_rng(seed))
        assert (shown.parts[0], shown.instruction) == (given.parts[0], given.instruction)
        assert shown.parts[1] == replace(whole, crop=shown.parts[1].crop)
        boxes.append([part.crop for part in shown.parts[1:]])
    left, upper, right, lower = np.array(boxes).transpose(2, 1, 0)
    assert (left.min(1), upper.min(1)) == (pytest.approx([0, 10], abs=2), pytest.approx([0, 20], abs=2))
    assert (left >= [[0], [10]]).all()
    assert (upper >= [[0], [20]]).all()
    assert (right <= [[100], [60]]).all()
    assert (lower <= [[60], [50]]).all()
    assert ((right - left).min(1) >= [50, 25]).all()
    assert ((right - left).max(1) > [90, 45]).all()
    assert ((lower - upper).min(1) >= [30, 15]).all()
    assert cropped(given, 1.0, np.random.default_rng(0)) is given


def test_what_is_shown_in_part_is_still_the_same_positive(tmp_path, tiny_qwen):
    """Two captions of one picture: neither's is the other's negative, whichever parts are seen."""
    write_picture(tmp_path / "p.png", seed=1, size=(90, 60))
    pool = Pool("p", [Candidate("c", (Image(tmp_path / "p.png"),))])
    queries = [Query(name, (Text(name),)) for name in ("a boat", "a ship")]
    lesson = Lesson.of(
        task(lambda: None, "toys/p"),
        Collection(queries, pool, {q.id: {"c": 1} for q in queries}),
        tmp_path,
        Protocol(),
    )
    corpus = Corpus((lesson,), (np.arange(2),))
    frontend = open_qwen("tested", "", "qwen2_vl", InputSpec(), {"path": str(tiny_qwen["qwen2_vl"])})
    parts, alike = (Batches(corpus, frontend, None, 3, 8, crop)[[0, 1]] for crop in (0.5, 1.0))
    for prepared in (parts, alike):
        assert prepared["positives"][0] == prepared["positives"][1]
    assert np.array_equal(parts["positives"], alike["positives"])
    seen = [np.concatenate([c["pictures"] for c in prepared["chunks"]]) for prepared in (parts, alike)]
    assert seen[0].size < seen[1].size


@pytest.mark.parametrize("crop", [0.0, 1.5, -1.0, float("nan")])
def test_no_picture_has_such_a_part(tmp_path, crop):
    with pytest.raises(HarnessError, match=r"^crop is the least share of a picture's sides, above 0"):
        trained(tmp_path, crop=crop)
