import dataclasses
import json

import pytest

from harness.collection import Collection, Pool
from harness.content import Candidate, Image, Query, Text
from harness.errors import NoSuchInstruction
from harness.evaluate import evaluate
from harness.metrics import Hit
from harness.plan import plan
from harness.search import peak_memory
from harness.speed import Speed, assumed, recorded
from harness.store import row_bytes
from toys import Toy, ToyEmbedder, catalog, collection, places, spec, task, texts


class Clock:
    """A time that passes while something is embedded, and at no other time."""

    now = 0.0

    def perf_counter(self):
        return self.now


@dataclasses.dataclass(frozen=True)
class Slow(Toy):
    """A millisecond for every ten tokens, padding included, and five for every batch."""

    clock: Clock = dataclasses.field(default_factory=Clock)

    def load(self, device):
        return SlowEmbedder(self)


class SlowEmbedder(ToyEmbedder):
    def embed(self, batch):
        self.toy.clock.now += 0.005 + len(batch) * max(map(len, batch)) * 1e-4
        return super().embed(batch)


@pytest.fixture
def slow(monkeypatch):
    toy = Slow()
    for module in ("device", "encode", "plan"):
        monkeypatch.setattr(f"harness.{module}.time", toy.clock)
    return toy


def long_texts(n, start):
    pool = [Candidate(f"c{i}", (Text(f"{i} " + "word " * (20 + i % 60)),)) for i in range(start, start + n)]
    queries = [Query(f"q{i}", (Text(f"question {start + i}"),)) for i in range(10)]
    return Collection(queries, Pool(f"p{start}", pool), {f"q{i}": {pool[i].id: 1} for i in range(10)})


def planned(tmp_path, tasks, toy=None, **more):
    models = [spec(toy or Toy())]
    options = {k: more.pop(k) for k in ("probe",) if k in more}
    return plan(catalog(models, tasks), models[0], {}, tasks, places(tmp_path, **more), **options)


def test_it_counts_what_is_left_once_and_writes_no_result(tmp_path):
    tasks = [task(lambda: collection(6), "toys/a"), task(lambda: collection(8), "toys/b")]
    before = planned(tmp_path, tasks)
    assert [(p.to_encode, p.state) for p in before] == [(12, "to do"), (4, "to do")]
    assert not (tmp_path / "runs").exists()
    toy = spec(Toy())
    evaluate(catalog([toy], tasks), toy, {}, tasks[:1], places(tmp_path))
    after = planned(tmp_path, tasks)
    assert [(p.to_encode, p.state) for p in after] == [(0, "done"), (4, "to do")]
    assert sum(after[0].seconds.values()) == 0.0
    again = planned(tmp_path, tasks[:1], overwrite="always")
    assert [(p.to_encode, p.state) for p in again] == [(0, "to do")]  # all cached, all to be searched


def test_what_is_left_is_told_by_modality(tmp_path, media):
    pool = [*texts(3), *(Candidate(f"i{i}", (Image(media / f"p{i}.png"),)) for i in range(4))]
    (one,) = planned(tmp_path, [task(lambda: collection(3, candidates=pool))])
    assert one.modalities == {"text": 6, "image": 4}
    assert one.tokens == sum(Toy().cost(i) for i in [*pool, *collection(3).queries])
    assert one.disk is None  # nothing has told the dimension yet


def test_disk_is_what_the_store_takes(tmp_path):
    toy, tasks = (
        spec(Toy()),
        [task(lambda: long_texts(400, 0), "toys/a"), task(lambda: long_texts(400, 500), "toys/b")],
    )
    evaluate(catalog([toy], tasks), toy, {}, tasks[:1], places(tmp_path))
    taken = sum(p.stat().st_size for p in (tmp_path / "cache" / "embeddings").rglob("*") if p.is_file())
    two = planned(tmp_path, tasks)[1]
    assert two.disk == 410 * row_bytes(32, "float16")
    assert two.disk == pytest.approx(taken, rel=0.1)


def test_previous_runs_foretell_the_next_one(tmp_path, slow):
    """Twice the work, foretold from one run to within a quarter."""
    toy = spec(slow)
    tasks = [task(lambda: long_texts(100, 0), "toys/a"), task(lambda: long_texts(200, 1000), "toys/b")]
    known = catalog([toy], tasks)
    (first,) = evaluate(known, toy, {}, tasks[:1], places(tmp_path, batch_tokens=2000))
    assert first.result.provenance["plan"]["source"].startswith("assumed")
    foretold = plan(known, toy, {}, tasks[1:], places(tmp_path, batch_tokens=2000))[0]
    (second,) = evaluate(known, toy, {}, tasks[1:], places(tmp_path, batch_tokens=2000))
    said = second.result.provenance["plan"]
    assert said["devices"] == 1
    assert (foretold.source, said["source"]) == ("previous runs", "previous runs")
    assert said["planned"]["encode"] == pytest.approx(foretold.seconds["encode"], abs=1e-3)
    assert said["actual"]["encode"] > 0.5
    assert foretold.seconds["encode"] == pytest.approx(said["actual"]["encode"], rel=0.25)


def test_a_probe_foretells_the_first_run(tmp_path, slow):
    tasks = [task(lambda: long_texts(200, 0))]
    (foretold,) = planned(tmp_path, tasks, slow, probe=True, batch_tokens=2000)
    assert foretold.source == "a probe of this device"
    assert foretold.disk == 210 * row_bytes(32, "float16")
    toy = spec(slow)
    (outcome,) = evaluate(catalog([toy], tasks), toy, {}, tasks, places(tmp_path, batch_tokens=2000))
    took = outcome.result.provenance["plan"]["actual"]["encode"]
    assert foretold.seconds["encode"] == pytest.approx(took, rel=0.25)


def result(folder, name, **provenance):
    path = folder / "task" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"provenance": provenance}))


def run(tokens, encode, *, device="x86_64", search=0.0, products=0, load=None, **more):
    seconds = {"wait": encode / 2, "embed": encode / 2, "search": search}
    seconds |= {} if load is None else {"load": load}
    return {"device": device, "work": {"tokens": tokens, "dim": 8, "multiply_adds": products},
            "seconds": seconds, **more}  # fmt: skip


def test_the_speed_is_that_of_each_modality_on_this_device(tmp_path):
    result(tmp_path, "a", **run({"text": 200}, 1.0, load=3.0))
    result(tmp_path, "b", **run({"text": 400}, 2.0, load=5.0))
    result(tmp_path, "c", **run({"image": 50}, 5.0, search=2.0, products=1000))
    result(tmp_path, "d", **run({"text": 1}, 99.0, device="another"))
    result(tmp_path, "e", **run({"text": 1}, 99.0, encoded_on={"another": 8}))
    result(tmp_path, "f", harness="an old one")
    result(tmp_path, "h", **run({"text": 1}, 99.0, compiled=True))
    (tmp_path / "task" / "g.json").write_text("{")
    speed = recorded(tmp_path, "x86_64")
    assert speed.tokens == pytest.approx({"text": 200.0, "image": 10.0})
    assert speed.part == pytest.approx(0.0, abs=1e-9)
    assert (speed.load, speed.search, speed.dim) == (4.0, 500.0, 8)
    assert speed.seconds({"text": 400, "image": 20, "video": 30}, 4000, parts=3, load=True) == pytest.approx(
        {
            "load": 4.0,
            "encode": 2.0 + 2.0 + 3.0,  # a clip goes at the pace of the slowest that is known
            "search": 8.0,
        }
    )
    assert speed.seconds({}, 0, parts=0, load=False) == {"load": 0.0, "encode": 0.0, "search": 0.0}


def test_without_a_record_nothing_is_recorded_and_the_rule_of_thumb_says_so(tmp_path):
    assert recorded(tmp_path, "x86_64") is None
    result(tmp_path, "a", **run({}, 0.0))
    assert recorded(tmp_path, "x86_64") is None
    assert assumed("cpu").within == 10
    assert assumed("cuda:1").tokens["any"] > assumed("cpu").tokens["any"]


def test_devices_share_the_encoding_alone(tmp_path):
    speed = Speed("a test", 1.0, {"text": 10.0}, search=1.0, load=2.0)
    (one,) = planned(tmp_path, [task(lambda: collection(6))])
    one = dataclasses.replace(one, seconds=speed.seconds({"text": 80}, 5, parts=1, load=True))
    assert (one.on(1), one.on(4)) == (2 + 8 + 5, 2 + 2 + 5)


def test_the_search_stays_within_its_budget_and_needs_less_for_a_small_pool():
    small = peak_memory(10, 20, 64, 50, 1 << 30)
    assert small < 4 << 20
    results = 190_573 * (2 * 3584 + 16 * 51)
    assert peak_memory(190_573, 5_609_079, 3584, 50, 1 << 30) == (1 << 30) + results


def test_unsupported_tasks_cost_nothing(tmp_path, media):
    pool = [Candidate(f"i{i}", (Image(media / f"p{i}.png"),)) for i in range(3)]
    only_texts = Toy(modalities=frozenset({"text"}))
    (one,) = planned(tmp_path, [task(lambda: collection(3, candidates=pool), metrics=(Hit(1),))], only_texts)
    assert (one.state, one.to_encode, one.on(1)) == ("unsupported", 0, 0.0)


def test_only_the_task_that_loads_the_weights_tells_of_it(tmp_path):
    tasks = [task(lambda: collection(6), "toys/a"), task(lambda: collection(8), "toys/b")]
    toy = spec(Toy())
    outcomes = evaluate(catalog([toy], tasks), toy, {}, tasks, places(tmp_path))
    assert ["load" in o.result.provenance["seconds"] for o in outcomes] == [True, False]


def test_all_instructions_are_a_row_each(tmp_path):
    def load(data, protocol):
        if int(protocol.instructions) > 3:
            raise NoSuchInstruction("there is no fourth")
        made = collection(6)
        queries = [dataclasses.replace(q, instruction=f"Way {protocol.instructions}.") for q in made.queries]
        return dataclasses.replace(made, queries=queries)

    made = dataclasses.replace(task(collection), load=load)
    toy, options = spec(Toy()), places(tmp_path)
    every = dataclasses.replace(options, protocol=dataclasses.replace(options.protocol, instructions="all"))
    rows = plan(catalog([toy], [made]), toy, {}, [made], every)
    assert [(row.task, row.to_encode) for row in rows] == [
        ("toys/a (instruction 1)", 12),
        ("toys/a (instruction 2)", 6),
        ("toys/a (instruction 3)", 6),
    ]
