"""Published numbers: nothing of the list is lost, and what a paper prints adds up."""

import json
from collections import Counter
from importlib import resources

import pytest

from harness.errors import DataInvalid, PluginError, UnknownName
from harness.hookspecs import hookimpl
from harness.metrics import Hit, Recall
from harness.published import GRADES, parse, read_reported, select
from toys import catalog

FILES = {
    file.name: json.loads(file.read_text(encoding="utf-8"))
    for file in resources.files("harness.reported").iterdir()
    if file.name.endswith(".json")
}
ALL = read_reported("harness.reported")

CELLS = {
    ("arr", "B"): 101,
    ("elva", "B"): 155,
    ("genius", "B"): 32,
    ("lamra", "A"): 259,
    ("lamra", "B"): 117,
    ("mmeb-v1", "C"): 13,
    ("muco", "B"): 238,
    ("oacirr", "B"): 4,
    ("pyserini", "A"): 256,
    ("qwen3-vl-embedding", "A"): 160,
    ("rematch", "C"): 6,
    ("retrv-r1", "C"): 2,
    ("trace", "B"): 30,
    ("umarvel", "A"): 277,
    ("umarvel", "C"): 114,
    ("uniir", "A"): 235,
    ("unime-v2", "C"): 4,
    ("v-retrver", "B"): 50,
    ("vlm2vec", "A"): 144,
    ("wide", "B"): 32,
}
"""How many numbers the list that the files were made from has of each paper and grade: 2,229."""

SUITE_COUNTS = {
    "mbeir-local": 16,
    "mbeir-global": 16,
    "mbeir-heldout, local pools": 5,
    "mbeir-heldout-uniir": 5,
}

MISMATCHES = {
    # printed, mean of the printed cells
    ("umarvel", "U-MARVEL+ (Qwen2-VL-7B, reranker)", "mbeir-global"): (61.8, 61.725),
    ("elva", "ELVA-7B", "mbeir-local"): (58.7, 58.637),
    ("elva", "ELVA-2B", "mbeir-local"): (53.8, 53.669),
    ("elva", "LamRA-Ret-2B", "mbeir-local"): (51.6, 51.738),
    ("muco", "M3Task-UEM-7B", "mbeir-global"): (53.9, 53.794),
    ("muco", "CLIP-L", "mbeir-global"): (9.9, 7.875),
}
"""Printed averages further than 0.05 from the mean of their printed cells."""


def rows():
    for name, paper in FILES.items():
        for table in paper["tables"]:
            for row in table["rows"]:
                yield name.removesuffix(".json"), table, row


def test_nothing_of_the_list_is_lost_and_quotations_are_not_counted_twice():
    found = Counter()
    for name, table, row in rows():
        for column, value in zip(table["columns"], row["values"], strict=True):
            if value is not None and "quoted" not in row:
                found[name, max(p.get("grade", "A") for p in (table, column, row))] += 1
    assert found == CELLS
    assert sum(found.values()) == 2229
    # All but the sixteen measurements in seconds are scores.
    assert sum(r.quoted is None for r in ALL) == 2229 - 16


def test_keys_are_unique():
    keys = Counter((r.paper, r.table, r.model, r.setting, r.task, r.metric) for r in ALL)
    assert max(keys.values()) == 1
    # A leaderboard joins the tables of one paper: they never disagree on a cell.
    cells = {}
    for r in ALL:
        assert cells.setdefault((r.paper, r.model, r.setting, r.task, r.metric, r.suites), r.value) == r.value


def test_values_are_shares_that_print_as_the_paper_does():
    printed = iter(r for r in ALL)
    for _, table, row in sorted(rows(), key=lambda r: r[0]):
        for column, value in zip(table["columns"], row["values"], strict=True):
            if value is not None and "unit" not in column:
                number = next(printed)
                assert number.model == row["model"]
                assert round(100 * number.value, 6) == value
    assert next(printed, None) is None


def test_printed_averages_are_the_mean_of_their_cells_but_for_the_known_ones():
    checked, out = 0, {}
    for name, table, row in rows():
        values = dict(zip((c.get("mean") or c["task"] for c in table["columns"]), row["values"], strict=True))
        for mean, count in SUITE_COUNTS.items():
            prefix = "mbeir-global/" if mean in ("mbeir-global", "mbeir-heldout-uniir") else "mbeir-local/"
            cells = [v for task, v in values.items() if task.startswith(prefix) and v is not None]
            printed = values.get(mean)
            if printed is None or len(cells) < count:
                continue
            assert len(cells) == count
            checked += 1
            if abs(printed - sum(cells) / count) > 0.05 + 1e-9:
                out[name, row["model"], mean] = printed, pytest.approx(sum(cells) / count, abs=5e-4)
    assert out == MISMATCHES
    assert checked > 80


def test_every_number_says_where_it_stands_and_how_far_it_can_be_trusted():
    for r in ALL:
        assert r.grade in GRADES
        assert r.source.strip()
        assert r.title.strip()
        assert r.table.strip()
        assert r.setting in {
            "zero-shot", "single model", "recall-then-rerank", "held-out", "held-out, recall-then-rerank"
        }  # fmt: skip
        if r.plugin is not None:
            assert r.reranked == ("+" in r.plugin)


@pytest.mark.parametrize("pool", ["mbeir-local", "mbeir-global"])
def test_the_main_tables_have_all_sixteen_cells_with_the_metrics_of_the_benchmark(pool):
    table = [r for r in select(ALL, papers=["umarvel"]) if pool in r.suites and r.metric is not None]
    models = Counter(r.model for r in table)
    assert set(models.values()) == {16}
    assert len(models) == {"mbeir-local": 10, "mbeir-global": 9}[pool]
    tens = {r.task.partition("/")[2] for r in table if r.metric == Hit(10)}
    assert tens == {"fashion200k_task0", "fashion200k_task3", "fashioniq_task7"}
    assert {r.metric for r in table} == {Hit(5), Hit(10)}


def test_what_a_table_repeats_from_another_paper_is_equal_there():
    there = {(r.paper, r.model, r.setting, r.task, r.metric): r for r in ALL if r.quoted is None}
    quoted = [r for r in ALL if r.quoted]
    # 6 + 4 rows of 17 cells, and 6 of the 12 that both zero-shot tables have.
    assert len(quoted) == 10 * 17 + 6 * 12
    for r in quoted:
        assert there[r.quoted, r.model, r.setting, r.task, r.metric].value == r.value


def test_the_same_run_counted_both_ways_shows_how_far_true_recall_is_from_hits():
    local = [
        r for r in ALL if r.paper == "pyserini" and "mbeir-local" in r.suites and r.plugin == "uniir-clip-sf"
    ]
    tens = {"mbeir-local/fashion200k_task0", "mbeir-local/fashion200k_task3", "mbeir-local/fashioniq_task7"}
    for kind, mean in ((Hit, 50.18), (Recall, 36.46)):
        cells = [r.value for r in local if r.metric == kind(10 if r.task in tens else 5)]
        assert len(cells) == 16
        assert 100 * sum(cells) / 16 == pytest.approx(mean, abs=0.006)


def test_select_filters_by_paper_and_grade_and_drops_quotations_of_what_is_there():
    assert {r.grade for r in select(ALL)} == {"A", "B"}
    assert {r.grade for r in select(ALL, lowest="A")} == {"A"}
    assert len(select(ALL, lowest="C")) == 2213
    assert not [r for r in select(ALL) if r.quoted]
    assert {r.quoted for r in select(ALL, papers=["umarvel"])} == {None, "lamra", "uniir"}
    assert {r.quoted for r in select(ALL, papers=["umarvel", "lamra"])} == {None, "uniir"}
    with pytest.raises(UnknownName, match="unknown paper 'umarvl': did you mean umarvel"):
        select(ALL, papers=["umarvl"])
    with pytest.raises(UnknownName, match="unknown grade 'D'"):
        select(ALL, lowest="D")


PAPER = {
    "paper": "P",
    "tables": [
        {
            "table": "T1",
            "source": "s",
            "columns": [{"task": "a/x", "metric": "Hit@1"}, {"mean": "suite"}],
            "rows": [{"model": "m", "setting": "zero-shot", "values": [12.5, None]}],
        }
    ],
}


def changed(**row):
    table = PAPER["tables"][0]
    return json.dumps({**PAPER, "tables": [{**table, "rows": [{**table["rows"][0], **row}]}]})


def test_a_minimal_file_is_enough():
    (number,) = parse(changed(), "p.json")
    assert (number.paper, number.task, number.metric, number.value) == ("p", "a/x", Hit(1), 0.125)
    assert (number.grade, number.plugin, number.suites, number.own) == ("A", None, (), False)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{", "p.json: "),
        ("[]", "p.json: "),
        (changed(values=[1.0]), "p.json, T1, m: "),
        (changed(values=[1.0, 101.0]), "p.json, T1, m: .*101.0 is not a percentage"),
        (changed(grade="D"), "p.json, T1, m: "),
        (changed(values=["12", None]), "p.json, T1, m: "),
    ],
)
def test_a_broken_file_is_one_line_that_names_the_place(text, place):
    with pytest.raises(DataInvalid, match=place):
        parse(text, "p.json")


class Plugin:
    def __init__(self, numbers):
        self.numbers = numbers

    @hookimpl
    def harness_reported(self):
        if isinstance(self.numbers, Exception):
            raise self.numbers
        return self.numbers


def offering(*plugins):
    made = catalog([], [])
    for i, numbers in enumerate(plugins):
        made.manager.register(Plugin(numbers), name=f"plugin{i}")
    return made


def test_plugins_add_their_own_numbers():
    one, two = parse(changed(), "p.json"), parse(changed(), "q.json")
    assert [r.paper for r in offering(one, two).reported()] == ["p", "q"]
    assert offering(None).reported() == ()


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ([parse(changed(), "p.json")] * 2, "m has two numbers for a/x Hit@1 .*by plugin0 and plugin1"),
        ([["x"]], "plugin0: harness_reported returned 'x', not a Reported"),
        ([OSError("no such file")], "plugin0: harness_reported failed .OSError: no such file"),
    ],
)
def test_a_plugin_at_fault_is_named(plugins, message):
    with pytest.raises(PluginError, match=message):
        offering(*plugins).reported()


def test_published_numbers_are_read_only_when_asked_for():
    asked = []

    class Watched:
        @hookimpl
        def harness_reported(self):
            asked.append(1)
            return []

    made = catalog([], [])
    made.manager.register(Watched())
    assert not asked
    made.reported()
    assert asked
