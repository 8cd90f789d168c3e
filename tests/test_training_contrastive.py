"""The contrastive loss of a prepared batch: which rows are whose, and what the switches leave out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from harness.models.training.contrastive import loss
from harness.models.training.settings import CONTRASTIVE

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
