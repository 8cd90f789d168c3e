"""torch.compile as an option: rows within rounding of those without it, and one line where it cannot be."""

import dataclasses

import numpy as np
import pytest
import torch

from harness.compiled import compiled
from harness.content import Item, Text
from harness.errors import HarnessError
from harness.evaluate import evaluate
from harness.registry import load_catalog
from toys import Toy, catalog, collection, places, spec, task

ITEMS = [Item("candidate", (Text(f"a short text {i}" + " and more" * (i % 5)),)) for i in range(9)]


class Block(torch.nn.Module):
    def forward(self, x):
        return torch.tanh(x)


class Stack(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.ModuleList([Block(), Block()]), torch.nn.Linear(2, 2))


class Holder:
    __slots__ = ("model",)

    def __init__(self, model):
        self.model = model


class Embedder:
    """Keeps its module two attributes away, as `text.model` is."""

    def __init__(self, model):
        self.name, self.text = "toy", Holder(model)


@pytest.fixture
def calls(monkeypatch):
    """What is compiled, in place of compiling it."""
    found = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: found.append((self, options)))
    return found


def test_the_repeated_blocks_of_a_module_are_compiled_for_any_shape(calls):
    model = Stack()
    embedder = Embedder(model)
    assert compiled(embedder) is embedder
    assert [module for module, _ in calls] == list(model.inner[0])
    assert all(options["dynamic"] for _, options in calls)


def test_a_module_without_blocks_is_compiled_whole(calls):
    model = torch.nn.Linear(2, 2)
    compiled(Embedder(model))
    assert [module for module, _ in calls] == [model]


def test_a_model_without_modules_is_one_line(tmp_path):
    with pytest.raises(HarnessError, match="ToyEmbedder has no torch module to compile: leave --compile out"):
        compiled(Toy().load("cpu"))
    options = places(tmp_path)
    options = dataclasses.replace(options, engine=dataclasses.replace(options.engine, compile=True))
    made, toy = [task(collection)], spec(Toy())
    (outcome,) = evaluate(catalog([toy], made), toy, {}, made, options)
    assert outcome.error == "ToyEmbedder has no torch module to compile: leave --compile out"


def test_without_a_compiler_there_is_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        HarnessError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler: install"
    ):
        compiled(Embedder(torch.nn.Linear(2, 2)))


def rows(name, tmp_path, *, compiling):
    model = load_catalog().model(name)
    frontend = model.open(model.tiny(tmp_path))
    embedder = frontend.load("cpu")
    if compiling:
        compiled(embedder)
    return np.concatenate(
        [embedder.embed(frontend.prepare(part)).float().numpy() for part in (ITEMS[:2], ITEMS[2:], ITEMS)]
    )


@pytest.mark.parametrize("name", ["minilm", "clip"])
def test_rows_are_those_of_the_model_as_it_is(name, tmp_path, monkeypatch):
    """Traced for any shape, run by the same kernels: the same bytes."""
    torch.compiler.reset()
    monkeypatch.setattr("harness.compiled.BACKEND", "eager")
    plain = rows(name, tmp_path, compiling=False)
    traced = rows(name, tmp_path, compiling=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    np.testing.assert_allclose(traced, plain, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "clip", "umarvel"])
def test_compiled_rows_differ_by_rounding_alone(name, tmp_path):
    torch.compiler.reset()
    plain = rows(name, tmp_path, compiling=False)
    fast = rows(name, tmp_path, compiling=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    np.testing.assert_allclose(fast, plain, atol=1e-5)


def test_the_result_says_that_it_was_compiled_and_has_the_same_identity(tmp_path, calls):
    known = load_catalog()
    model = known.model("minilm")
    given = model.tiny(tmp_path / "tiny")
    made = [task(collection)]
    results = []
    for compiles in (False, True):
        options = places(tmp_path / str(compiles))
        engine = dataclasses.replace(options.engine, compile=compiles)
        options = dataclasses.replace(options, engine=engine)
        (outcome,) = evaluate(known, model, given, made, options)
        results.append(outcome.result)
    assert calls
    assert [result.provenance["compiled"] for result in results] == [False, True]
    assert results[0].identity_id == results[1].identity_id
    assert results[0].metrics == results[1].metrics


def test_a_compiler_that_fails_is_one_line(tmp_path, monkeypatch):
    torch.compiler.reset()

    def broken(graph, inputs):
        raise ValueError("no code for this")

    monkeypatch.setattr("harness.compiled.BACKEND", broken)
    known = load_catalog()
    model = known.model("minilm")
    options = places(tmp_path)
    options = dataclasses.replace(options, engine=dataclasses.replace(options.engine, compile=True))
    made = [task(collection)]
    (outcome,) = evaluate(known, model, model.tiny(tmp_path / "tiny"), made, options)
    assert "the model cannot be compiled (" in outcome.error
    assert outcome.error.endswith("leave --compile out")
    assert "\n" not in outcome.error
