"""The budget of a batch is found by trying: on a device whose speed is known by heart."""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pytest
from test_encode import matrix, texts
from test_plan import Clock, long_texts

from harness.content import item
from harness.device import Budget, Runner
from harness.digest import Digests
from harness.encode import EngineOptions, Local, encode, key_items
from harness.evaluate import evaluate
from harness.model import full_identity
from harness.probe import best_budget
from harness.registry import load_catalog
from harness.store import Store
from harness.workers import ItemSource
from toys import Toy, ToyEmbedder, catalog, places, spec, task


@dataclass(frozen=True)
class Device(Toy):
    """50 ms a batch and 0.1 ms a token; above `cache` tokens twice that."""

    clock: Clock = field(default_factory=Clock)
    cache: int = 10**9

    def load(self, device):
        return DeviceEmbedder(self)


class DeviceEmbedder(ToyEmbedder):
    def embed(self, batch):
        tokens = len(batch) * max(map(len, batch))
        self.toy.clock.now += 0.05 + tokens * (1e-4 if tokens <= self.toy.cache else 2e-4)
        return super().embed(batch)


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    for module in ("device", "encode", "probe"):
        monkeypatch.setattr(f"harness.{module}.time", found)
    return found


def items_of(count):
    return [item(each) for each in long_texts(count, 0).pool]


def best(toy, items, start=500):
    costs = np.array([toy.cost(each) for each in items])
    return best_budget(Runner(toy.load("cpu"), ItemSource(items, toy), Budget(1), costs, False), start)


def test_it_doubles_for_as_long_as_that_pays(clock):
    """At 0.1 ms a token and 50 ms a call 5,000 tokens take 0.55 s, 10,000 1.05 s: 5 % more a second."""
    found = best(Device(clock=clock), items_of(3000))
    assert 7_000 <= found <= 14_000


def test_it_stays_in_the_cache_of_a_cpu(clock):
    found = best(Device(clock=clock, cache=3000), items_of(3000))
    assert 1500 <= found <= 3000


def test_what_does_not_fit_ends_it(clock):
    items = items_of(3000)
    found = best(Device(clock=clock, fits=12), items)
    typical = sorted(map(Toy().cost, items))[1500]
    assert typical * 6 <= found <= typical * 12.5


def test_one_item_above_the_start_is_where_it_begins(clock):
    items = items_of(64)
    assert best(Device(clock=clock, cache=1), items, start=1) >= max(map(Toy().cost, items)) / 2


def engine(**more):
    return EngineOptions(batch_tokens=400, workers=0, quiet=True, **more)


def test_few_items_are_not_worth_a_probe_and_many_are(tmp_path, clock):
    toy = Device(clock=clock)
    embedder = toy.load("cpu")
    budget = Budget(400, probe=True)
    items = texts(600)
    for part, found in ((items[:40], False), (items[40:], True)):
        store = Store(tmp_path, full_identity("toy", toy, {}))
        keyed = key_items(part, Digests())
        local = Local(lambda: embedder)
        _, stats = encode(part, keyed, toy, local, store, engine(probe=True), title="t", budget=budget)
        assert budget.probe is not found
        assert ("probe" in stats.seconds) is found
    assert budget.tokens > 800


def result(tmp_path, toy, tasks, **options):
    model = spec(toy)
    places_ = places(tmp_path)
    places_ = dataclasses.replace(places_, engine=engine(**options))
    (outcome,) = evaluate(catalog([model], tasks), model, {}, tasks, places_)
    return outcome.result


def test_the_budget_that_was_found_is_recorded_and_used_again(tmp_path, clock, monkeypatch):
    toy = Device(clock=clock)
    one, two = (task(lambda at=at: long_texts(600, at), f"toys/{at}") for at in (0, 1000))
    first = result(tmp_path, toy, [one], probe=True).provenance
    assert first["batch_tokens"] > 800
    assert "probe" in first["seconds"]
    monkeypatch.setattr("harness.encode.best_budget", lambda runner, start: pytest.fail("it is known"))
    second = result(tmp_path, toy, [two], probe=True).provenance
    assert second["batch_tokens"] == first["batch_tokens"]
    given = result(tmp_path / "other", toy, [two]).provenance
    assert (given["batch_tokens"], "batch_tokens_found" in given) == (400, False)


def test_a_real_model_gives_the_same_rows_at_any_budget(tmp_path):
    """Within the rounding of float16: 2^-11 of coordinates up to 1."""
    model = load_catalog().model("minilm")
    frontend = model.open(model.tiny(tmp_path / "tiny"))
    embedder = frontend.load("cpu")
    items = texts(60)
    rows = []
    for tokens in (1, 64, 1024, 100_000):
        store = Store(tmp_path / str(tokens), full_identity("minilm", frontend, {}))
        keyed = key_items(items, Digests())
        options = EngineOptions(batch_tokens=tokens, workers=0, quiet=True)
        encoded, _ = encode(items, keyed, frontend, Local(lambda: embedder), store, options, title="t")
        rows.append(matrix(encoded, store, items).astype(np.float32))
    for other in rows[1:]:
        np.testing.assert_allclose(other, rows[0], atol=2.0**-11)
