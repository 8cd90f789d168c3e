import dataclasses
import shutil

import numpy as np
import pytest

from harness.bench.texts import LENGTHS
from harness.content import Image, Item, Text
from harness.device import Budget
from harness.digest import Digests
from harness.encode import EngineOptions, Local, batches, encode, key_items, missing_rows, windows
from harness.errors import BadEmbedding, HarnessError
from harness.model import full_identity
from harness.store import Store
from toys import Toy, spec


def texts(n, *, start=0):
    return [Item("candidate", (Text(f"item {i} " + "x" * (i * 37 % 101)),)) for i in range(start, start + n)]


def run(tmp_path, items, toy=None, *, budget=400, workers=0, name="cache", shared=None, **options):
    toy = toy or Toy()
    store = Store(tmp_path / name, full_identity(toy.name, toy, {}))
    embedders = []

    def load():
        embedders.append(toy.load("cpu"))
        return embedders[-1]

    engine = EngineOptions(batch_tokens=budget, workers=workers, quiet=True)
    keyed = key_items(items, Digests())
    encoded, stats = encode(
        items, keyed, toy, Local(load), store, engine, title="t", budget=shared, **options
    )
    return encoded, stats, store, embedders


def matrix(encoded, store, items):
    return store.rows(encoded.keys).block(0, len(items))


def test_rows_come_back_in_the_order_of_the_items_and_at_unit_length(tmp_path):
    items = texts(50)
    encoded, _, store, _ = run(tmp_path, items)
    got = matrix(encoded, store, items).astype(np.float64)
    toy = Toy()
    plain = toy.load("cpu").embed(toy.prepare(items)).numpy().astype(np.float64)
    np.testing.assert_allclose(
        got, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=2.0**-12
    )  # half an ulp of float16 below 1


def test_equal_content_is_embedded_once_and_a_second_run_embeds_nothing(tmp_path):
    items = [*texts(20), *texts(20), *texts(5)]
    _, stats, _, embedders = run(tmp_path, items)
    assert (stats.items, stats.embedded) == (45, 20)
    assert sum(embedders[0].calls) == 20
    _, stats, _, embedders = run(tmp_path, items)
    assert (stats.embedded, embedders) == (0, [])  # nothing missing: no weights are loaded


def test_only_what_is_missing_is_embedded(tmp_path):
    run(tmp_path, texts(20))
    _, stats, _, embedders = run(tmp_path, texts(30))
    assert (stats.embedded, sum(embedders[0].calls)) == (10, 10)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_a_byte(tmp_path, media, workers):
    items = [*texts(40), *(Item("query", (Image(media / f"p{i}.png"), Text(f"n {i}"))) for i in range(6))]
    run(tmp_path, items, name="alone")
    run(tmp_path, items, workers=workers, name="workers")
    shards = [
        {
            p.relative_to(tmp_path / name): p.read_bytes()
            for p in (tmp_path / name).rglob("*.*")
            if p.is_file()
        }
        for name in ("alone", "workers")
    ]
    assert shards[0] == shards[1]


def test_batches_fill_the_budget_longest_first_and_hold_each_item_once():
    costs = np.random.default_rng(0).integers(1, 100, 1000)
    made = batches(costs, 500)
    assert sorted(np.concatenate(made).tolist()) == list(range(1000))
    assert all(costs[b].max() * len(b) <= 500 for b in made)
    padded = sum(int(costs[b].max()) * len(b) for b in made)
    assert padded <= 1.03 * costs.sum()


def mbeir_costs(count):
    """Tokens of texts as long as M-BEIR's, in no order: 1.3 of them a word, and the two of a frame."""
    rng = np.random.default_rng(0)
    parts = [
        np.exp(rng.normal(np.log(mean) - spread**2 / 2, spread, round(share * count)))
        for share, mean, spread in LENGTHS
    ]
    return rng.permutation(np.concatenate(parts) * 1.3 + 2).astype(np.int64)


@pytest.mark.parametrize("budget", [1024, 16_384])
def test_padding_is_at_most_three_per_cent_on_the_lengths_of_mbeir(budget):
    costs = mbeir_costs(16_384)
    made = [window[batch] for window in windows(costs, budget) for batch in batches(costs[window], budget)]
    padded = sum(int(costs[batch].max()) * len(batch) for batch in made)
    assert padded <= 1.03 * costs.sum()
    fewest = costs.sum() / budget
    assert len(made) <= 1.25 * fewest  # batches stay full
    in_order = [costs[at : at + 16] for at in range(0, len(costs), 16)]
    assert sum(int(part.max()) * len(part) for part in in_order) > 2 * costs.sum()


def test_a_batch_ends_early_only_where_that_saves_more_than_a_batch_costs():
    """At 3,200 a batch costs 100 beside its tokens: 20 long and 100 short texts together would waste
    100 × 9; 2 long ones and 30 of nearly their length waste 30."""
    apart = batches(np.array([10] * 20 + [1] * 100), 3200)
    assert [len(batch) for batch in apart] == [20, 100]
    together = batches(np.array([10] * 2 + [9] * 30), 3200)
    assert [len(batch) for batch in together] == [32]
    assert [len(batch) for batch in batches(np.full(1000, 10), 3200)] == [320, 320, 320, 40]


def test_one_item_above_the_budget_is_a_batch_by_itself_and_its_row_is_the_same(tmp_path):
    assert [batch.tolist() for batch in batches(np.array([700, 20, 900]), 500)] == [[2], [0], [1]]
    one, stats, first, embedders = run(tmp_path, texts(30), budget=1, name="one")
    assert set(embedders[0].calls) == {1}
    assert (stats.embedded, stats.alone) == (30, 30)
    many, stats, second, _ = run(tmp_path, texts(30), name="many")
    assert stats.alone == 0
    np.testing.assert_array_equal(matrix(one, first, texts(30)), matrix(many, second, texts(30)))


def test_what_is_left_falls_into_the_same_windows_again(monkeypatch):
    monkeypatch.setattr("harness.encode.WINDOW_ITEMS", 100)
    costs = np.random.default_rng(0).integers(1, 60, 950)
    made = [w.tolist() for w in windows(costs, 10_000)]
    assert [i for w in made for i in w] == list(range(950))
    left = [i for n, w in enumerate(made) if n not in (0, 3) for i in w]  # two windows were stored
    again = [[left[i] for i in w] for w in windows(costs[left], 10_000)]
    assert again == [w for n, w in enumerate(made) if n not in (0, 3)]


def test_an_interruption_keeps_finished_windows_and_the_rest_gives_equal_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.encode.WINDOW_ITEMS", 16)
    items = texts(60)
    _, _, store, _ = run(tmp_path, items, name="whole")
    run(tmp_path, items[:32], name="broken")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, items, Toy(fault="interrupt"), name="broken")
    _, stats, resumed, _ = run(tmp_path, items, name="broken")
    assert stats.embedded == 60 - 32
    names = [sorted(p.name for p in s.folder.iterdir()) for s in (store, resumed)]
    assert names[0] == names[1]


def test_a_batch_that_does_not_fit_is_halved_and_the_budget_stays_lower(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.encode.WINDOW_ITEMS", 64)
    items = [Item("query", (Text(f"{i:04d}"),)) for i in range(256)]  # cost 5 each
    encoded, stats, store, embedders = run(tmp_path, items, Toy(fits=10), budget=320)
    assert stats.embedded == 256
    assert max(embedders[0].calls) <= 10
    assert len(embedders[0].calls) <= 1 + 16 * 4 + 8  # later windows are planned with the lower budget
    free, _, other, _ = run(tmp_path, items, Toy(), name="free")
    np.testing.assert_array_equal(matrix(encoded, store, items), matrix(free, other, items))


def test_a_budget_that_was_lowered_stays_so_for_what_shares_it(tmp_path):
    items = [Item("query", (Text(f"{i:04d}"),)) for i in range(128)]  # cost 5 each
    budget = Budget(320)
    _, _, _, (first,) = run(tmp_path, items[:64], Toy(fits=10), shared=budget)
    assert budget.tokens == 5 * 16 // 2  # 64 and 32 and 16 did not fit
    _, _, _, (second,) = run(tmp_path, items[64:], Toy(fits=10), shared=budget)
    assert (set(first.calls), set(second.calls)) == ({8}, {8})


def test_one_item_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(HarnessError, match=r"one item of cost \d+ does not fit.*candidate 'item"):
        run(tmp_path, texts(4), Toy(fits=0))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "a row that is not finite for candidate 'item"),
        ("zero", "a zero row for candidate 'item"),
        ("constant", "the same row for 12 different items"),
        ("count", r"shape \(\d+, 32\) for \d+ items"),
    ],
)
def test_rows_that_cannot_be_right_are_refused_and_not_stored(tmp_path, fault, message):
    with pytest.raises(BadEmbedding, match=message) as error:
        run(tmp_path, texts(12), Toy(fault=fault))
    assert "\n" not in str(error.value)
    assert len(Store(tmp_path / "cache", full_identity("toy", Toy(), {}))) == 0


def test_a_check_model_may_be_constant(tmp_path):
    _, stats, _, _ = run(tmp_path, texts(12), Toy(fault="constant"), check=True)
    assert stats.embedded == 12


def pictures(tmp_path, media):
    good = [tmp_path / f"p{i}.png" for i in range(3)]
    for i, path in enumerate(good):
        shutil.copy(media / f"p{i}.png", path)
    bad = tmp_path / "bad.png"
    bad.write_bytes((media / "p3.png").read_bytes()[:60])
    return [Item("candidate", (Image(p),)) for p in (good[0], bad, good[1], good[2])]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_and_all_the_others_are_kept(tmp_path, media, workers):
    items = pictures(tmp_path, media)
    encoded, stats, store, _ = run(tmp_path, items, workers=workers)
    assert list(encoded.broken) == [1]
    assert "bad.png" in encoded.broken[1]
    assert stats.embedded == 3
    assert len(store) == 3


def test_missing_media_are_known_before_weights_load(tmp_path, media):
    items = [*pictures(tmp_path, media), Item("query", (Image(tmp_path / "gone.png"),))]
    keyed = key_items(items, Digests())
    assert list(keyed.broken) == [4]
    assert "gone.png cannot be read (no such file" in keyed.broken[4]
    encoded, stats, _, _ = run(tmp_path, items)
    assert sorted(encoded.broken) == [1, 4]
    assert stats.embedded == 3


def test_another_budget_moves_no_score_of_a_batch_invariant_model(tmp_path):
    items = texts(80)
    one, _, first, _ = run(tmp_path, items, budget=200, name="one")
    eight, _, second, _ = run(tmp_path, items, budget=1600, name="eight")
    np.testing.assert_array_equal(matrix(one, first, items), matrix(eight, second, items))


def test_missing_rows_are_the_first_places_of_what_a_run_would_embed(tmp_path):
    _, _, store, _ = run(tmp_path, texts(5))
    again = key_items([*texts(8), *texts(8)], Digests())
    assert missing_rows(again, store).tolist() == [5, 6, 7]


def test_a_model_without_identity_is_refused():
    """The first cache fault: unnamed models that share one cache."""

    class Nameless(Toy):
        identity = {}

    with pytest.raises(HarnessError, match="no usable identity"):
        full_identity("x", Nameless(), {})


def test_a_changed_model_has_another_identity():
    base = full_identity("toy", Toy(), {})
    assert full_identity("toy", Toy(weights="w2"), {}) != base
    assert full_identity("other", Toy(), {}) != base
    assert full_identity("toy", Toy(), {"store_dtype": "float16"}) != base


def test_without_a_version_the_source_file_is_part_of_the_identity(tmp_path):
    import importlib.util

    found = []
    for body in ("x = 1", "x = 2"):
        path = tmp_path / "own_model.py"
        path.write_text(f"class F:\n    identity = {{'weights': 'w'}}\n    {body}\n")
        module_spec = importlib.util.spec_from_file_location("own_model", path)
        module = importlib.util.module_from_spec(module_spec)
        import sys

        sys.modules["own_model"] = module
        module_spec.loader.exec_module(module)
        found.append(full_identity("m", module.F(), {}))
        del sys.modules["own_model"]
    assert found[0] != found[1]
    assert spec(Toy()).open({}).identity["version"] == "1"
    assert "code" not in full_identity("toy", Toy(), {})


def test_toys_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Toy().name = "x"  # type: ignore[misc]


def test_stages_padding_and_tokens_are_told(tmp_path, media):
    items = [*texts(40), *(Item("query", (Image(media / f"p{i}.png"),)) for i in range(6))]
    _, stats, _, _ = run(tmp_path, items)
    toy = Toy()
    assert stats.tokens == {"text": sum(map(toy.cost, items[:40])), "image": sum(map(toy.cost, items[40:]))}
    assert stats.cost == sum(stats.tokens.values()) <= stats.padded_cost
    assert set(stats.seconds) == {"look_up", "cost", "load", "wait", "decode", "prepare", "embed", "store"}
    assert stats.seconds["decode"] > 0  # six pictures were opened
    assert stats.seconds["prepare"] >= 0
    _, stats, _, _ = run(tmp_path, texts(40), name="texts")
    assert stats.seconds["decode"] == 0
