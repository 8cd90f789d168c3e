"""Recipes as values: what a variant changes, what hangs on it, and every way to get one wrong."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_cli import write_plugin

from harness.errors import HarnessError, PluginError, UnknownName
from harness.recipe import MODEL, Estimate, Recipe, Stage, alike, configured, parsed, vary, without
from harness.registry import load_catalog
from harness.task import Need

SETTINGS = {"epochs": 2, "rate": 0.1, "policy": "top", "filter": 0.7, "cased": False, "limit": None}


def write(run):
    """Write what the stage was given, so that an artefact shows all that it was made of, and log it."""
    read = [f"{role}=({(folder / 'out.txt').read_text()})" for role, folder in sorted(run.inputs.items())]
    name = run.folder.name.rpartition("-")[0]
    (run.folder / "out.txt").write_text(" ".join([name, *read]))
    with (run.folder.parent / "log").open("a") as log:
        log.write(f"{name}\n")


def stage(name, needs=None, *, data=(), **more):
    """A stage of 10 steps an epoch and half an hour each."""
    values = {
        "name": name,
        "title": f"the {name} stage",
        "data": lambda settings: [Need(Path(file), "get it there") for file in data],
        "objective": "one-way InfoNCE",
        "settings": SETTINGS,
        "makes": ("out.txt",),
        "run": write,
        "estimate": lambda s: Estimate(10 * s["epochs"], 1000 * s["epochs"], 0.5 * s["epochs"], 60),
        "needs": needs or {},
    }
    return Stage(**(values | more))


TOY = Recipe(
    "toy",
    "Toy",
    (
        stage("nli", data=["nli.txt"], expected={"mbeir-local": 0.5}),
        stage("cc3m", {MODEL: "nli"}, expected={"mbeir-local": 0.55}),
        stage("mbeir", {MODEL: "cc3m"}, data=["mbeir.txt"], expected={"mbeir-local": 0.6}),
        stage("mine", {MODEL: "mbeir"}),
        stage("hard-negatives", {MODEL: "mbeir", "negatives": "mine"}, expected={"mbeir-local": 0.62}),
    ),
    paper_ref="arXiv 1",
    presets={"tiny": {"nli": {"epochs": 1}, "hard-negatives": {"epochs": 1}}},
)


def settings(recipe, key):
    return {s.name: s.settings[key] for s in recipe.stages}


def test_vary_changes_the_named_settings_of_the_named_stage_and_nothing_else():
    made = vary(TOY, "toy-random", change="random negatives", hard_negatives={"policy": "random"})
    assert (made.name, made.parent, made.change, made.title) == (
        "toy-random", "toy", "random negatives", "Toy: random negatives",
    )  # fmt: skip
    assert made.stages[:4] == TOY.stages[:4]
    assert made.stage("hard-negatives").settings == {**SETTINGS, "policy": "random"}
    assert TOY.stage("hard-negatives").settings == SETTINGS
    again = vary(made, "toy-random-1", change="one epoch", hard_negatives={"epochs": 1}, paper_ref="Table 5")
    assert again.stage("hard-negatives").settings == {**SETTINGS, "policy": "random", "epochs": 1}
    assert (again.parent, again.title, again.paper_ref) == ("toy-random", "Toy: one epoch", "Table 5")


def test_a_bare_setting_is_that_of_every_stage_that_has_it():
    last = stage("hard-negatives", {MODEL: "mbeir"}, settings={"k": 5})
    made = vary(Recipe("r", "R", (*TOY.stages[:4], last)), "r-cased", change="cased", cased=True)
    assert [s.settings.get("cased") for s in made.stages] == [True, True, True, True, None]
    both = vary(TOY, "toy-both", change="rates", rate=0.2, mbeir={"rate": 0.4})
    assert list(settings(both, "rate").values()) == [0.2, 0.2, 0.4, 0.2, 0.2]


def test_expected_scores_of_what_changed_and_of_what_hangs_on_it_are_dropped():
    made = vary(TOY, "toy-x", change="x", mbeir={"epochs": 1}, expected={"mbeir-local": 0.58})
    assert [dict(s.expected) for s in made.stages] == [
        {"mbeir-local": 0.5}, {"mbeir-local": 0.55}, {}, {}, {"mbeir-local": 0.58},
    ]  # fmt: skip
    assert [dict(s.expected) for s in without(TOY, "toy-y", "hard-negatives", change="y").stages][2] == {
        "mbeir-local": 0.6
    }


def test_without_a_stage_its_readers_start_where_it_started():
    made = without(TOY, "toy-no-cc3m", "cc3m", change="without CC3M")
    assert [s.name for s in made.stages] == ["nli", "mbeir", "mine", "hard-negatives"]
    assert made.stage("mbeir").needs == {MODEL: "nli"}
    assert made.parent == "toy"
    neither = without(TOY, "toy-mbeir-only", "nli", "cc3m", change="M-BEIR only")
    assert neither.stage("mbeir").needs == {}  # the base model
    assert without(made, "toy-neither", "nli", change="nor NLI").stages == neither.stages
    assert neither.presets == {"tiny": {"hard-negatives": {"epochs": 1}}}
    last = without(TOY, "toy-in-batch", "mine", "hard-negatives", change="in-batch negatives only")
    assert last.stages == TOY.stages[:3]


def test_a_preset_comes_over_the_settings_and_what_is_given_over_the_preset():
    assert list(settings(configured(TOY, "tiny"), "epochs").values()) == [1, 2, 2, 2, 1]
    made = configured(TOY, "tiny", {"nli": {"epochs": 3, "rate": 1}, "mine": {"filter": None}})
    assert list(settings(made, "epochs").values()) == [3, 2, 2, 2, 1]
    assert repr(made.stage("nli").settings["rate"]) == "1.0"  # so that 1 and 1.0 are one artefact
    assert made.stage("mine").settings["filter"] is None
    assert alike(configured(TOY), TOY)
    assert not alike(made, TOY)


def test_a_fingerprint_knows_settings_code_data_and_needs_but_not_what_is_said_of_a_stage():
    one = stage("nli")
    print_ = one.fingerprint({"a.txt": "1"}, {MODEL: "x-1"})
    said = {"title": "t", "objective": "o", "expected": {"s": 1.0}, "paper_ref": "p", "doc": "d"}
    assert replace(one, **said).fingerprint({"a.txt": "1"}, {MODEL: "x-1"}) == print_
    others = [
        replace(one, version=2).fingerprint({"a.txt": "1"}, {MODEL: "x-1"}),
        replace(one, run=lambda run: None).fingerprint({"a.txt": "1"}, {MODEL: "x-1"}),
        one.having({"epochs": 3}).fingerprint({"a.txt": "1"}, {MODEL: "x-1"}),
        one.fingerprint({"a.txt": "2"}, {MODEL: "x-1"}),
        one.fingerprint({"a.txt": "1"}, {MODEL: "x-2"}),
        stage("cc3m").fingerprint({"a.txt": "1"}, {MODEL: "x-1"}),
    ]
    assert len({json.dumps(p, sort_keys=True) for p in [print_, *others]}) == 7


@pytest.mark.parametrize(
    ("text", "instead_of", "value"),
    [
        ("3", 2, 3), ("2e-4", 0.1, 2e-4), ("1", 0.1, 1), ("none", 0.7, None), ("True", False, True),
        ("none", "top", "none"), ("7", "top", "7"), ("0.7", None, 0.7), ("random", None, "random"),
    ],
)  # fmt: skip
def test_a_text_is_read_as_the_kind_of_what_it_replaces(text, instead_of, value):
    assert parsed(text, instead_of) == value
    assert type(parsed(text, instead_of)) is type(value)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TOY.stage("mbier"), UnknownName, "unknown stage of recipe 'toy' 'mbier': did you mean"),
        (lambda: vary(TOY, "x", change="x", nil={"epochs": 1}), UnknownName, "'nil': did you mean nli"),
        (lambda: vary(TOY, "x", change="x", nli={"epoch": 1}), UnknownName,
         "unknown setting of stage 'nli' 'epoch': did you mean epochs"),
        (lambda: vary(TOY, "x", change="x", polcy="x"), UnknownName,
         "unknown setting of recipe 'toy' 'polcy': did you mean policy"),
        (lambda: vary(TOY, "x", change="x"), PluginError, "recipe 'x' changes nothing of 'toy'"),
        (lambda: vary(TOY, "x", change="x", epochs=2), PluginError, "changes nothing"),
        (lambda: without(TOY, "x", change="x"), PluginError, "changes nothing"),
        (lambda: without(TOY, "x", "laion", change="x"), UnknownName, "'laion': known: cc3m, hard-negatives"),
        (lambda: without(TOY, "x", "mine", change="x"), PluginError,
         "recipe 'x': stage hard-negatives reads the negatives of mine: leave out both"),
        (lambda: without(TOY, "x", *(s.name for s in TOY.stages), change="x"), PluginError, "has no stages"),
        (lambda: configured(TOY, "tinny"), UnknownName, "preset of recipe 'toy' 'tinny': did you mean"),
        (lambda: configured(TOY, None, {"nil": {}}), UnknownName, "did you mean nli"),
        (lambda: configured(TOY, None, {"nli": {"rate": "high"}}), HarnessError,
         "setting 'rate' of stage 'nli' must be a finite number, not 'high'"),
        (lambda: configured(TOY, None, {"nli": {"rate": float("nan")}}), HarnessError, "not nan"),
        (lambda: configured(TOY, None, {"nli": {"epochs": True}}), HarnessError, "a whole number, not True"),
        (lambda: configured(TOY, None, {"nli": {"epochs": 1.5}}), HarnessError, "a whole number, not 1.5"),
        (lambda: configured(TOY, None, {"nli": {"policy": 5}}), HarnessError, "a text, not 5"),
        (lambda: configured(TOY, None, {"nli": {"cased": 1}}), HarnessError, "true or false, not 1"),
        (lambda: replace(TOY, presets={"tiny": {"nil": {}}}), UnknownName, "did you mean nli"),
        (lambda: replace(TOY, presets={"tiny": {"nli": {"epoch": 1}}}), UnknownName, "did you mean epochs"),
        (lambda: Recipe("r", "R", (stage("b", {MODEL: "a"}), stage("a"))), PluginError,
         "recipe 'r', stage 'b': it needs a, which must come before it"),
        (lambda: Recipe("r", "R", (stage("a"), stage("a"))), PluginError, "it is there twice"),
        (lambda: Recipe("r", "R", (stage("../a"),)), PluginError, "lower-case words with hyphens"),
        (lambda: Recipe("r", "R", (stage("a", makes=()),)), PluginError, "it makes nothing"),
        (lambda: Recipe("r", "R", (stage("a", run=functools.partial(write)),)), PluginError,
         "run must be a plain function"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(make, error, message):
    with pytest.raises(error) as raised:
        make()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


PLUGIN = """
from harness.hookspecs import hookimpl
from harness.recipe import Estimate, Recipe, Stage

@hookimpl
def harness_recipes():
    stage = Stage("a", "A", "-", {}, ("x",), print, lambda s: Estimate(1, 1, 1, 1))
    return [Recipe("clash", "R", (stage,))]
"""


def test_a_recipe_is_found_and_two_plugins_that_offer_one_name_are_an_error(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write_plugin(tmp_path, "one-recipe", PLUGIN)
    assert load_catalog().recipe("clash").title == "R"
    with pytest.raises(UnknownName, match=r"unknown recipe 'clahs': did you mean clash\?"):
        load_catalog().recipe("clahs")
    write_plugin(tmp_path, "two-recipe", PLUGIN)
    with pytest.raises(PluginError, match="recipe 'clash' is offered by both one-recipe:main and two-recipe"):
        load_catalog()


@pytest.fixture
def listed(cli, monkeypatch):
    doc = """Expected: 50.0.

    harness train toy --stage nli"""
    toy = replace(TOY, stages=(replace(TOY.stages[0], doc=doc, paper_ref="§3.1"), *TOY.stages[1:]))
    catalog = replace(
        load_catalog(),
        recipes={"toy": toy, "toy-x": vary(toy, "toy-x", change="x", rate=0.2, paper_ref="Table 3")},
    )
    monkeypatch.setattr("harness.registry.load_catalog", lambda: catalog)
    return cli


def test_list_recipes_shows_names_and_stages_and_verbose_all_of_each_stage(listed):
    code, out, _ = listed("list", "recipes")
    assert code == 0
    assert out.splitlines()[0].split() == ["name", "title", "parent", "stages"]
    assert out.splitlines()[3].split("  ")[0] == "toy-x"
    assert "nli → cc3m → mbeir → mine → hard-negatives" in out
    _, out, _ = listed("list", "recipes", "-v")
    first = out.partition("\n    cc3m\n")[0]
    assert (
        first
        == """toy
    title: Toy
    paper_ref: arXiv 1
    presets: tiny
    nli
        title: the nli stage
        data:
            {"path": "nli.txt", "source": "get it there"}
        objective: one-way InfoNCE
        settings: epochs: 2, rate: 0.1, policy: top, filter: 0.7, cased: False, limit: None
        artefacts: out.txt
        expected: mbeir-local: 0.5
        estimate: steps: 20, sequences: 2000, gpu_hours: 1.0, memory_gib: 60
        paper_ref: §3.1
        command: harness train toy --stage nli
        doc: Expected: 50.0.

            harness train toy --stage nli"""
    )
    assert "        needs: model: mbeir, negatives: mine\n" in out
    assert "toy-x\n    title: Toy: x\n    parent: toy\n    change: x\n    paper_ref: Table 3\n" in out


def test_list_recipes_as_json_is_an_array_with_the_name_first(listed):
    code, out, _ = listed("list", "recipes", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [next(iter(row)) for row in rows] == ["name", "name"]
    assert [row["parent"] for row in rows] == [None, "toy"]
    assert rows[1]["stages"][4]["settings"] == {**SETTINGS, "rate": 0.2}
    assert rows[0]["stages"][4]["needs"] == {"model": "mbeir", "negatives": "mine"}
