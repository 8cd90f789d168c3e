"""What the student is taught, from teacher scores by id to the loss: every number is worked out by hand."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
import training_toys as toys

from harness.content import item
from harness.errors import DataInvalid
from harness.models.training.distilling import Batches, chosen, loss
from harness.models.training.lists import SCORED, read
from harness.models.training.losses import learned_temperature
from qwen_toys import open_at

KL = {"divergence": "kl", "divide": 2.0, "ranking": 0.0, "infonce": 0.0}
A = {
    "q0": [("a3", 1.6), ("a0", 1.2), ("a5", 0.4), ("a7", 0.1)],
    "q1": [("a4", 1.1), ("a2", 0.8), ("a5", 0.7), ("a1", 1.9)],
    **{f"q{i}": [("a7", 1.0), ("a6", 0.9), (f"a{i}", 0.8)] for i in range(2, 5)},
}
"""The fourth of q1 is its positive, which was not among the three that were retrieved."""


def batch(teacher, positives=None, lengths=None):
    """A prepared batch of these scores [N, K], its rows in order."""
    teacher = np.array(teacher, np.float32)
    count, width = teacher.shape
    right = np.zeros(teacher.shape, bool) if positives is None else np.array(positives)
    return {
        "chunks": [],
        "order": np.arange(count * (1 + width)),
        "teacher": teacher,
        "positives": right,
        "lengths": np.full(count, width) if lengths is None else np.array(lengths),
        "visits": [],
    }


def rows(*cosines):
    """Queries along the first axis, their candidates at these cosines to it."""
    every = [[1.0, 0.0]] * len(cosines)
    every += [[c, math.sqrt(1 - c * c)] for listed in cosines for c in listed]
    return torch.tensor(every, dtype=torch.float64)


def softmax(*logits):
    powers = [math.exp(x) for x in logits]
    return [p / sum(powers) for p in powers]


def kl(teacher, student):
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))


def test_the_example_of_the_module_s_docstring():
    teacher, student = softmax(1.2, 1.6), softmax(1.8, 1.0)
    assert [round(x, 3) for x in (*student, *teacher)] == [0.69, 0.31, 0.401, 0.599]
    value = loss(rows([0.9, 0.5]), batch([[1.2, 1.6]]), 0.5, KL)
    assert float(value) == pytest.approx(kl(teacher, student), abs=1e-6)
    assert float(value) == pytest.approx(0.177, abs=5e-4)


def test_the_mean_is_over_queries_whose_lists_may_differ_in_length():
    """What follows a list's own candidates (here a third one) counts for nothing."""
    one = kl(softmax(1.2, 1.6), softmax(1.8, 1.0))
    other = kl(softmax(0.4, 0.2, 0.0), softmax(0.2, 0.4, 0.6))
    prepared = batch([[1.2, 1.6, 1.6], [0.4, 0.2, 0.0]], lengths=[2, 3])
    value = loss(rows([0.9, 0.5, 0.5], [0.1, 0.2, 0.3]), prepared, 0.5, KL)
    assert float(value) == pytest.approx((one + other) / 2, abs=1e-6)


def test_js_and_tv_take_the_place_of_kl():
    t, s = softmax(1.2, 1.6), softmax(1.8, 1.0)
    m = [(a + b) / 2 for a, b in zip(t, s, strict=True)]
    for name, expected in (("js", (kl(t, m) + kl(s, m)) / 2), ("tv", abs(t[0] - s[0]))):
        value = loss(rows([0.9, 0.5]), batch([[1.2, 1.6]]), 0.5, {**KL, "divergence": name})
        assert float(value) == pytest.approx(expected, abs=1e-6)


def test_ranking_and_infonce_are_added_with_their_weights():
    """Both ordered pairs want candidate 2 above 1 and find it 0.8 below: max(0, 0.1 + 0.8) each."""
    plain = loss(rows([0.9, 0.5]), batch([[1.2, 1.6]], [[True, False]]), 0.5, KL)
    more = loss(
        rows([0.9, 0.5]), batch([[1.2, 1.6]], [[True, False]]), 0.5, {**KL, "ranking": 2.0, "infonce": 0.2}
    )
    assert float(more - plain) == pytest.approx(2 * 0.9 + 0.2 * -math.log(softmax(1.8, 1.0)[0]), abs=1e-6)


def test_the_teacher_does_not_pull_at_the_temperature():
    """The gradient of τ by differences, the teacher's τ held: only the student's logits move."""
    tau = learned_temperature(0.5)
    loss(rows([0.9, 0.5]), batch([[1.2, 1.6]]), tau(), KL).backward()
    teacher = softmax(1.2, 1.6)
    above, below = (kl(teacher, softmax(0.9 / t, 0.5 / t)) for t in (0.5001, 0.4999))
    assert float(tau.raw.grad) == pytest.approx((above - below) / 0.0002, rel=1e-3)


def test_an_order_of_chunks_changes_nothing():
    prepared = batch([[1.2, 1.6], [0.5, 0.1]])
    expected = loss(rows([0.9, 0.5], [0.3, 0.2]), prepared, 0.5, KL)
    prepared["order"] = np.array([4, 0, 3, 1, 5, 2])
    value = loss(rows([0.9, 0.5], [0.3, 0.2])[prepared["order"]], prepared, 0.5, KL)
    assert float(value) == pytest.approx(float(expected), abs=1e-7)


def lists_of(folder):
    tasks = toys.TASKS[:1]
    corpus = toys.corpus(tasks)
    return corpus, read(folder, corpus, toys.stage(folder.parent, tasks))


def named(lists, places):
    return [candidate.id for candidate in lists.candidates(places)]


def test_positives_are_forced_in_only_where_that_is_asked_for(tmp_path):
    _, lists = lists_of(toys.scored(tmp_path / "scored", {"toys/a": A}, depth=3))
    of_q0, of_q1 = (lists.of("toys/a", row) for row in range(2))
    assert named(lists, chosen(of_q0, 3, 3, False)) == ["a3", "a0", "a5"]
    assert named(lists, chosen(of_q1, 3, 3, False)) == ["a4", "a2", "a5"]
    assert named(lists, chosen(of_q0, 3, 3, True)) == ["a0", "a3", "a5"]
    forced = chosen(of_q1, 3, 3, True)
    assert named(lists, forced) == ["a1", "a4", "a2"]
    assert forced.value.tolist() == pytest.approx([1.9, 1.1, 0.8])
    assert forced.positive.tolist() == [True, False, False]


def test_teacher_scores_join_by_id_whatever_the_order_of_the_file(tmp_path):
    folder = toys.scored(tmp_path / "scored", {"toys/a": A}, depth=3)
    before = lists_of(folder)[1].places
    toys.shuffled(folder / SCORED)
    after = lists_of(folder)[1].places
    for field in fields(before):
        assert getattr(before, field.name).tolist() == getattr(after, field.name).tolist()


def test_a_batch_holds_each_query_and_its_candidates_with_their_scores(tmp_path, tiny_qwen):
    corpus, lists = lists_of(toys.scored(tmp_path / "scored", {"toys/a": A}, depth=3))
    frontend = open_at(tiny_qwen["qwen2_vl"])
    prepared = Batches(corpus, frontend, lists, 4, False, 0, 5)[list(range(5))]
    assert prepared["teacher"].shape == (5, 4)
    assert prepared["lengths"].tolist() == [3] * 5
    assert sorted(prepared["order"].tolist()) == list(range(5 * (1 + 4)))
    seen = np.concatenate([each["real"].sum(1) for each in prepared["chunks"]])
    lesson = corpus.lessons[0]
    of_id = dict(zip(lesson.candidate_ids, lesson.candidates, strict=True))
    queries = {query.id: query for query in lesson.queries}
    ahead = [frontend.cost(item(queries[name])) for _, name in prepared["visits"]]
    for at, (_, name) in enumerate(prepared["visits"]):
        ranked = [A[name][min(k, 2)] for k in range(4)]
        assert prepared["teacher"][at].tolist() == pytest.approx([score for _, score in ranked])
        ahead += [frontend.cost(item(of_id[candidate])) for candidate, _ in ranked]
    assert seen[np.argsort(prepared["order"])].tolist() == ahead


def test_scores_of_another_model_are_an_error(tmp_path):
    with pytest.raises(DataInvalid, match="is a mining table of another model: mbeir-1 retrieved it"):
        lists_of(toys.scored(tmp_path / "scored", {"toys/a": A}, depth=3, model="mbeir-1"))
