"""A reranker is trained on what it is asked, by the loss that transformers computes, and reranks better."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_qwen_rerank import CHOOSE, IMAGE, JUDGE, SYSTEM, alike

import toys
from harness.collection import Collection, Pool
from harness.content import Ask, Candidate, Image, Item, Query, Text, item
from harness.encode import EngineOptions
from harness.errors import CheckpointMissing, DataInvalid, HarnessError, UnknownName
from harness.models.input_spec import FILE, InputSpec
from harness.models.qwen_rerank import open_reranker
from harness.models.qwen_tokens import Vocabulary
from harness.models.rerankers import LAMRA_RANK, UMARVEL_RERANK
from harness.models.training import answering
from harness.models.training.answering import Answered, Batches, answer, answered, drawn, prepared, step
from harness.models.training.corpus import Corpus, protocol_of
from harness.models.training.embedder import Trained, adapted
from harness.models.training.record import read
from harness.ranks import Ranks
from harness.recipe import StageRun
from qwen_plain import Plain
from qwen_tokenizer import reference, saved
from qwen_toys import ARCHITECTURES, ASK

COLOURS = ("red", "blue", "green", "white", "black", "pink")
SETTINGS = {
    **{"init": "base", "revision": None, "tasks": "toys/*", "split": "train", "seed": 5, "dtype": "float32"},
    **{"form": "pointwise", "labels": "turn", "text_tokens": 256, "max_pixels": 3136},
    **{"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0, "train_vision": False, "train_projector": False},
    **{"gradient_checkpointing": False, "batch": 6, "epochs": 10, "most_steps": 6, "learning_rate": 1e-2},
    **{"warmup": 0.0, "weight_decay": 0.0, "clip": 1.0, "save_every": 100},
}


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of the pool, as lists.Places."""

    query: np.ndarray

    def __getitem__(self, at):
        return Rows(self.query[at])


@dataclass(frozen=True, slots=True)
class Table:
    """The same rows of the pool mined for every query, as lists.Lists."""

    lesson: object
    rows: Sequence[int] = (0, 1, 2, 3, 4, 5)

    def of(self, task, row):
        return Rows(np.array(self.rows))

    def candidates(self, places):
        return [self.lesson.candidates[int(at)] for at in places.query]


def opened(folder, mode="pointwise", **more):
    given = {"path": str(folder), "dtype": "float32", "mode": mode}
    return open_reranker("trained", "", None, {**given, **more})


def task(media, positives=lambda i: {f"c{i}": 1}):
    """Query i is text or a picture with a text, candidate i what it is about."""
    parts = [(Text(f"{colour} square"),) if i % 2 else (Image(media / f"p{i}.png"),)
             for i, colour in enumerate(COLOURS)]  # fmt: skip
    asked = [(Text(f"a {colour} one"),) if i % 2 else (Image(media / f"p{5 - i}.png"), Text(colour))
             for i, colour in enumerate(COLOURS)]  # fmt: skip
    pool = Pool("toys", [Candidate(f"c{i}", each) for i, each in enumerate(parts)])
    queries = [Query(f"q{i}", each, ASK) for i, each in enumerate(asked)]
    return toys.task(lambda: Collection(queries, pool, {q.id: positives(i) for i, q in enumerate(queries)}))


def corpus(media, *positives):
    return Corpus.load([task(media, *positives)], media, protocol_of("train", 5))


def batches(folder, media, *, joint=False, chunk=100, labels="turn", mined=range(6)):
    modes = ("pointwise", "listwise")[: 1 + joint]
    frontends = tuple(opened(folder, mode) for mode in modes)
    known = corpus(media)
    return Batches(known, frontends, Table(known.lessons[0], mined), labels=labels, seed=5, chunk=chunk)


def module(frontend):
    """With adapters that do something already."""
    torch.manual_seed(3)
    whole = adapted(frontend.source.checkpoint.load("float32", spare=()), Trained(4, 8, 0.0, False, False, 3))
    for name, weight in whole.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return answering.answering(whole, frontend.source.vision)


class Plainly:
    """An engine of one process; `synced`: whether ranks would be waited for at each backward pass."""

    def __init__(self):
        self.synced, self._sync = [], True

    def backward(self, scalar):
        self.synced.append(self._sync)
        scalar.backward()

    @contextmanager
    def no_sync(self):
        self._sync = False
        yield
        self._sync = True


# --- what is labelled -----------------------------------------------------------------------------------

TURNS = {
    "pointwise": ("No", "<|im_start|>assistant\nNo<|im_end|>\n", [2753]),
    "listwise": ("2", "<|im_start|>assistant\nAns: (2)<|im_end|>\n", [17]),
}


@pytest.mark.parametrize("mode", TURNS)
def test_the_turn_of_the_assistant_is_labelled_or_its_answer_alone_in_qwens_tokens(tiny_qwen, tmp_path, mode):
    said, written, token = TURNS[mode]
    frontend = opened(tiny_qwen["qwen2_vl"], mode)
    vocabulary = Vocabulary.at(saved(tmp_path), ())
    frontend = replace(frontend, source=replace(frontend.source, vocabulary=vocabulary))
    ask = Ask(Item("query", (Text("A red one."),), ASK), (Item("candidate", (Text("Red."),)),) * 2)
    short = replace(ask, candidates=ask.candidates[:1])
    asks = [ask, replace(ask, query=Item("query", (Text("x"),)))] if mode == "listwise" else [short, short]
    turn = reference().encode(written, allowed_special="all")
    assert len(turn) == (6 if mode == "pointwise" else 10)
    for labels, tokens in (("turn", turn), ("answer", token)):
        chunk = prepared(frontend, [Answered(mode, each, said) for each in asks], labels)
        rows, columns = chunk["at"]
        assert chunk["tokens"].tolist() == tokens * 2
        assert rows.tolist() == [0] * len(tokens) + [1] * len(tokens)
        for number, each in enumerate(asks):
            whole = chunk["rows"]["ids"][number][: chunk["rows"]["lengths"][number]].tolist()
            (row,) = frontend.prepare([each])["ids"].tolist()
            assert whole[: len(row)] == row, "the prompt is what is asked in evaluation"
            assert whole[-len(turn) :] == turn
            ahead = columns[rows == number]
            assert [whole[at + 1] for at in ahead] == tokens
            assert [*ahead] == ([*range(len(whole) - len(turn) - 1, len(whole) - 1)]
                                if labels == "turn" else [len(row) - 1])  # fmt: skip


# --- the loss -------------------------------------------------------------------------------------------


def plain_loss(plain, text, turn, pictures):
    """transformers' own loss of the last turn, summed over its tokens."""
    inputs = plain.inputs(text + turn, pictures, [])
    count = len(plain.processor.tokenizer.encode(turn))
    labels = inputs["input_ids"].clone()
    labels[:, :-count] = -100
    with torch.inference_mode():
        return count * plain.model(**inputs, labels=labels).loss


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_that_of_a_plain_forward_with_labels(tiny_qwen, qwen_media, architecture):
    p, q = Image(qwen_media / "p.png"), Image(qwen_media / "q.png")
    query, long = Item("query", (q, Text("the same")), ASK), Text("a much longer one about two circles")
    candidates = tuple(Item("candidate", parts) for parts in ((p, Text("red")), (long,)))
    plain = Plain(tiny_qwen[architecture], architecture)
    head = ("" if architecture == "qwen3_vl" else SYSTEM) + "<|im_start|>user\n"
    asked = f"Query:{IMAGE}{ASK} the same"
    shown = (f"{IMAGE}red", long.text)
    for mode in ("pointwise", "listwise"):
        if mode == "pointwise":
            sequences = [
                Answered(mode, Ask(query, (candidate,)), said)
                for candidate, said in zip(candidates, ("Yes", "No"), strict=True)
            ]
            texts = [f"{head}{JUDGE}{asked}Candidate:{each}<|im_end|>\n" for each in shown]
            turns = [f"<|im_start|>assistant\n{said}<|im_end|>\n" for said in ("Yes", "No")]
            pictures = [[q.path, p.path], [q.path]]
        else:
            sequences = [Answered(mode, Ask(query, candidates[::-1]), "2")]
            texts = [f"{head}{CHOOSE}{asked}Candidates:(1) {shown[1]}(2) {shown[0]}<|im_end|>\n"]
            turns = ["<|im_start|>assistant\nAns: (2)<|im_end|>\n"]
            pictures = [[q.path, p.path]]
        frontend = opened(tiny_qwen[architecture], mode)
        whole = frontend.source.checkpoint.load("float32", spare=())
        chunk = prepared(frontend, sequences, "turn")
        got = answering.answering(whole, frontend.source.vision)(chunk)
        expected = sum(plain_loss(plain, *each) for each in zip(texts, turns, pictures, strict=True))
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen3_vl"])
def test_a_step_in_chunks_is_the_step_in_one(tiny_qwen, media, architecture, checkpointing):
    def stepped(chunk, checkpointing=False):
        source = batches(tiny_qwen[architecture], media, joint=True, chunk=chunk)
        model, engine = module(source.frontends[0]).train(), Plainly()
        if checkpointing:
            model.whole.activation_checkpointing_enable()
        said = step(model, source[[0, 1, 2, 3]], engine)
        named = model.named_parameters()
        return said["loss"], {n: p.grad for n, p in named if p.grad is not None}, engine.synced

    loss, gradients, synced = stepped(100)
    assert synced == [False, True]  # eight pairs, four lists
    assert max(float(each.abs().max()) for each in gradients.values()) > 0
    for chunk, passes in ((3, 5), (1, 12)):
        value, found, synced = stepped(chunk, checkpointing)
        assert value == pytest.approx(loss, rel=1e-5)
        assert synced == [False] * (passes - 1) + [True]
        assert found.keys() == gradients.keys()
        for name, each in gradients.items():
            assert torch.allclose(found[name], each, atol=1e-5), name


def test_the_loss_is_the_mean_over_labelled_tokens_of_the_batch(tiny_qwen, media):
    source = batches(tiny_qwen["qwen2_vl"], media, joint=True, labels="answer")
    batch, model = source[[0, 1, 2]], module(source.frontends[0])
    assert batch["labelled"] == 9  # Yes, No and a number each
    with torch.inference_mode():
        expected = sum(float(model(chunk)) for chunk in batch["chunks"]) / 9
    assert step(model, batch, Plainly())["loss"] == pytest.approx(expected)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        n for n, _ in model.named_parameters() if ".lora_" in n
    }


# --- what is asked --------------------------------------------------------------------------------------


def test_the_positive_is_yes_a_mined_one_no_and_lists_have_it_at_any_place(tiny_qwen, media):
    source = batches(tiny_qwen["qwen2_vl"], media, joint=True, mined=range(5))
    places, refused = set(), set()
    lesson = source.corpus.lessons[0]
    pool = [item(each) for each in lesson.candidates]
    for number in range(150):
        random = np.random.default_rng(number)
        visit = source._visit(lesson, number % 6, random)
        positive = pool[number % 6]
        yes, no, listed = answered(visit, random)
        assert (yes.answer, yes.ask) == ("Yes", Ask(visit.query, (positive,)))
        assert no.answer == "No"
        refused.add((number % 6, pool.index(no.ask.candidates[0])))
        candidates = listed.ask.candidates
        assert [at for at, each in enumerate(candidates, 1) if each == positive] == [int(listed.answer)]
        assert len(set(candidates)) == len(candidates)
        places.add((len(candidates), int(listed.answer)))
    assert refused == {(i, j) for i in range(6) for j in range(5) if i != j}
    assert places == {(n, at) for n in range(2, 6) for at in range(1, n + 1)}


def test_batches_are_the_same_each_time_and_in_a_worker(tiny_qwen, media):
    source = batches(tiny_qwen["qwen2_vl"], media, joint=True, chunk=4)
    one, other = source[[3, 1, 2]], pickle.loads(pickle.dumps(source))[[3, 1, 2]]
    assert one["visits"] == other["visits"]
    assert len(one["chunks"]) == 3
    for ours, theirs in zip(one["chunks"], other["chunks"], strict=True):
        assert (ours["rows"]["ids"] == theirs["rows"]["ids"]).all()
        assert (ours["tokens"] == theirs["tokens"]).all()
    lengths = [int(chunk["rows"]["lengths"].max()) for chunk in one["chunks"][:2]]
    assert all(a >= b for a, b in pairwise(lengths))


def test_a_pair_alone_has_one_negative_and_no_list(tiny_qwen, media):
    (chunk,) = batches(tiny_qwen["qwen2_vl"], media)[[0, 1]]["chunks"]
    assert len(chunk["rows"]["ids"]) == 4


def negatives(lesson, row, mined, count=1, seed=0):
    random = np.random.default_rng(seed)
    visit = lesson.visit(row, random)
    return drawn(visit, lesson, row, (lesson.candidates[at] for at in mined), count, random)


def test_where_all_mined_are_positives_any_other_of_the_pool_is_drawn(media):
    (lesson,) = corpus(media, lambda i: {"c0": 1, "c3": 1}).lessons
    pool = [item(c) for c in lesson.candidates]
    counts = np.zeros(6)
    for seed in range(400):
        (found,) = negatives(lesson, 1, (3, 0), seed=seed)
        counts[pool.index(found)] += 1
    assert counts[[0, 3]].tolist() == [0, 0]
    assert (counts[[1, 2, 4, 5]] > 60).all()  # 100 each


def test_mined_ones_come_first_and_the_pool_fills_up(media):
    (lesson,) = corpus(media).lessons
    pool = [item(c) for c in lesson.candidates]
    found = [pool.index(each) for each in negatives(lesson, 1, (4, 1, 2), 4)]
    assert found[:2] == [4, 2]
    assert set(found[2:]) < {0, 3, 5}
    assert sorted(pool.index(each) for each in negatives(lesson, 1, (4,), 9)) == [0, 2, 3, 4, 5]


def test_what_looks_like_the_positive_is_no_negative(media):
    same = task(media).load(media, protocol_of("train", 5))
    pool = [*same.pool.candidates[:3], Candidate("twin", same.pool.candidates[1].parts)]
    twins = Collection([same.queries[1]], Pool("twins", pool), {"q1": {"c1": 1}})
    (lesson,) = Corpus.load([toys.task(lambda: twins)], media, protocol_of("train", 5)).lessons
    for seed in range(20):
        assert negatives(lesson, 0, (3, 1), seed=seed)[0] in [item(pool[0]), item(pool[2])]


def test_nothing_but_positives_is_one_line(media):
    (lesson,) = corpus(media, lambda i: {f"c{j}": 1 for j in range(6)}).lessons
    with pytest.raises(DataInvalid, match=r"every candidate of toys/a is a positive of query q2: there is"):
        negatives(lesson, 2, (0,))


# --- the stage ------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_qwen, tmp_path, media, monkeypatch):
    """Runs the stage in a folder of its own; gives the folder."""
    monkeypatch.setattr(answering, "read", lambda folder, corpus, run, kept: Table(corpus.lessons[0]))
    stages = iter(range(9))

    def ran(*, inputs=None, positives=None, **settings):
        folder = tmp_path / f"reranker-{next(stages)}"
        folder.mkdir()
        given = [task(media)] if positives is None else [task(media, positives)]
        answer(
            StageRun(
                settings={**SETTINGS, "base": str(tiny_qwen["qwen2_vl"]), **settings},
                folder=folder,
                inputs={"negatives": tmp_path} if inputs is None else inputs,
                data=tmp_path,
                output_dir=tmp_path,
                cache_dir=tmp_path,
                tasks=lambda globs: given,
                engine=EngineOptions(workers=0, quiet=True),
                chunk=8,
                ranks=Ranks(),
                tell=print,
            )
        )
        return folder

    return ran


def preferred(path, media):
    """By how much P(Yes) of a query's positive is above that of the next candidate, on the average."""
    frontend = UMARVEL_RERANK.open({"path": str(path), "dtype": "float32"})
    lesson = corpus(media).lessons[0]
    asks = [
        Ask(item(query), (item(lesson.candidates[at]), item(lesson.candidates[(at + 1) % 6])))
        for at, query in enumerate(lesson.queries)
    ]
    return -frontend.load("cpu").score(frontend.prepare(asks)).view(-1, 2).diff().mean()


def test_it_learns_and_the_plugin_opens_what_it_saves(run, tiny_qwen, media):
    folder = run(labels="answer", most_steps=16)
    losses = [row["loss"] for row in read(folder / "log.csv")]
    assert losses[2] < losses[0]
    assert max(losses[-2:]) < 0.8 * losses[0]
    assert preferred(folder / "model", media) > preferred(tiny_qwen["qwen2_vl"], media) + 0.02
    spec = UMARVEL_RERANK.open({"path": str(folder / "model")}).source.spec
    assert (spec.text_tokens, spec.max_pixels, spec.dtype) == (256, 3136, "float32")
    assert (spec.pool, spec.attention, spec.rope, spec.padding) == ("last_token", "causal", "mrope", "right")


def test_lists_are_learned_jointly(run, tiny_qwen, media):
    def of_lists(path):
        source = batches(path, media, joint=True)
        *_, chunk = source[list(range(6))]["chunks"]
        whole = LAMRA_RANK.open({"path": str(path)}).source.checkpoint.load("float32", spare=())
        with torch.inference_mode():
            return answering.answering(whole, source.frontends[0].source.vision)(chunk)

    folder = run(form="pointwise+listwise", most_steps=6)
    losses = [row["loss"] for row in read(folder / "log.csv")]
    assert max(losses[-2:]) < 0.8 * losses[0]
    assert of_lists(folder / "model") < 0.8 * of_lists(tiny_qwen["qwen2_vl"])


def test_it_starts_from_the_base_or_from_the_retriever_and_not_as_that_was_shown(run, tiny_qwen, tmp_path):
    retriever = tmp_path / "mbeir-0"
    made = shutil.copytree(tiny_qwen["qwen2_vl"], retriever / "model")
    (made / FILE).write_text(InputSpec(max_pixels=999_999, dtype="float32").to_json())
    from safetensors.torch import load_file, save_file

    weights = load_file(made / "model.safetensors")
    name = next(name for name in weights if "layers.0.mlp.up_proj" in name)
    save_file({**weights, name: 2 * weights[name]}, made / "model.safetensors", metadata={"format": "pt"})
    losses = {}
    for init in ("base", "retriever"):
        folder = run(
            init=init,
            inputs={"negatives": tmp_path, "retriever": retriever},
            most_steps=1,
            learning_rate=1e-9,
        )
        losses[init] = read(folder / "log.csv")[0]["loss"]
        kept = load_file(folder / "model" / "model.safetensors")
        expected = weights[name] * (2 if init == "retriever" else 1)
        assert torch.allclose(kept[name], expected, atol=1e-5)
        assert torch.equal(kept["lm_head.weight"], weights["lm_head.weight"])
        assert json.loads((folder / "model" / FILE).read_text())["max_pixels"] == 3136
    assert not math.isclose(*losses.values(), rel_tol=1e-4)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"init": "retriever"}, HarnessError, "init=retriever: no stage plays the role 'retriever'"),
        ({"init": "bass"}, UnknownName, "unknown setting init 'bass': did you mean base"),
        ({"form": "listwise"}, UnknownName, "unknown setting form 'listwise'"),
        ({"labels": "all"}, UnknownName, "unknown setting labels 'all'"),
        ({"base": "/nowhere"}, CheckpointMissing, "there is no checkpoint at /nowhere"),
        ({"batch": 100}, HarnessError, "a batch of 100 is more than the 6 examples of 10 epochs"),
    ],
)
def test_settings_that_cannot_be_are_one_line(run, settings, error, message):
    with pytest.raises(error, match=message) as caught:
        run(**settings)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_answer_of_its_own_is_one_line(run, tiny_qwen, tmp_path):
    harmed = shutil.copytree(tiny_qwen["qwen2_vl"], tmp_path / "harmed")
    alike(harmed)
    with pytest.raises(CheckpointMissing, match="no first token of its own for each of Yes, No"):
        run(base=str(harmed))


def test_without_a_mining_stage_is_one_line(run):
    with pytest.raises(HarnessError, match="trained on mined negatives: no stage plays the role 'negatives'"):
        run(inputs={})
