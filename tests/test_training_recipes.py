"""Every row of the paper's tables that training makes is a recipe, and each changes what it says."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from harness.models.input_spec import InputSpec
from harness.models.lamra import SPEC as LAMRA_SPEC
from harness.models.training.embedder import spec_of
from harness.models.umarvel import SPEC
from harness.models.umarvel.ablations import ABLATIONS
from harness.recipe import alike, configured
from harness.registry import load_catalog

CATALOG = load_catalog()
RECIPES = CATALOG.recipes
VARIANTS = [name for name in RECIPES if RECIPES[name].parent is not None]
NOT_KNOWN = {"umarvel-bs3840-learnable": "what makes Table 4's 60.1 differ from Table 5's 60.6 is not stated"}
"""Rows that are trained as their parents, and why."""
ROWS_WITHOUT = {
    "umarvel+umarvel-rerank": "evaluated with the reranker that `umarvel-plus` trains",
    "umarvel-no-distill+umarvel-rerank": "the teacher: stages hard-negatives and reranker together",
    "umarvel-qwen3vl-4b+umarvel-rerank": "its reranker stage",
}


def test_every_row_of_the_tables_has_a_recipe_or_a_reason():
    rows = [n for n in CATALOG.reported() if n.paper == "umarvel" and n.plugin is not None]
    rows = [n for n in rows if re.match(r"Table ([1-6]|15|16)\b", n.table)]
    assert len({n.plugin for n in rows}) == 25
    for row in rows:
        assert row.plugin in RECIPES or row.plugin in ROWS_WITHOUT, f"{row.table}: {row.model}"


def test_every_model_that_names_a_recipe_has_it_with_its_parent_its_change_and_its_reference():
    for spec in ABLATIONS:
        recipe = RECIPES[spec.name]
        assert (recipe.parent, recipe.change) == (spec.parent, spec.change)
        assert recipe.paper_ref == spec.paper_ref


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_something_else_than_its_parent(name):
    same = alike(RECIPES[name], RECIPES[RECIPES[name].parent])
    assert same == (name in NOT_KNOWN)


@pytest.mark.parametrize("name", [spec.name for spec in ABLATIONS])
def test_a_model_is_trained_on_what_it_is_shown(name):
    """But for what training cuts and leaves open, and pixels, which stages lower."""
    shown = CATALOG.models[name].input_spec
    (last,) = [s for s in RECIPES[name].stages if s.name == RECIPES[name].stages[-1].name]
    trained = spec_of(last.settings, SPEC).shown()
    free = {"generation_prompt", "text_tokens", "max_pixels"}
    assert {k: v for k, v in trained.items() if k not in free} == {
        k: v for k, v in shown.items() if k not in free
    }


def test_lamra_is_trained_on_what_it_is_shown():
    recipe = RECIPES["lamra-ret"]
    spec = spec_of(recipe.stages[-1].settings, LAMRA_SPEC)
    for field in fields(InputSpec):
        if field.name not in ("generation_prompt", "text_tokens"):
            assert getattr(spec, field.name) == getattr(LAMRA_SPEC, field.name), field.name


def test_published_settings_stand_in_the_stages():
    """paper.md §3 and the released scripts: rate, global batch, epochs, rank and alpha."""
    stages = {s.name: s.settings for s in RECIPES["umarvel"].stages}
    published = {
        "nli": (2e-4, 576, 2, 64, 128),
        "cc3m": (1e-4, 960, 1, 128, 256),
        "mbeir": (4e-4, 3840, 1, 128, 256),
        "hard-negatives": (1.5e-5, 1088, 1, 128, 256),
        "reranker": (2e-5, 512, 1, 128, 256),
        "distill": (1e-5, 128, 1, 128, 256),
    }
    for name, expected in published.items():
        given = (stages[name][k] for k in ("learning_rate", "batch", "epochs", "lora_rank", "lora_alpha"))
        assert tuple(given) == expected, name
    assert (stages["hard-negatives"]["negatives"], stages["hard-negatives"]["threshold"]) == (5, 0.7)
    assert (stages["score"]["share"], stages["score"]["depth"]) == (0.1, 50)
    assert [s for s in stages if stages[s].get("learn_temperature")] == ["mbeir", "hard-negatives", "distill"]


def test_estimates_are_those_of_the_published_runs():
    cost = {s.name: s.estimate(s.settings) for s in RECIPES["umarvel"].stages}
    assert cost["mbeir"].steps == pytest.approx(1_332_790 // 3840, abs=1)  # 347
    assert cost["hard-negatives"].steps == pytest.approx(1225, rel=0.01)
    assert cost["hard-negatives"].sequences == cost["hard-negatives"].steps * 1088 * 7
    assert cost["distill"].steps == pytest.approx(1041, rel=0.01)
    assert cost["reranker"].steps == pytest.approx(2603, rel=0.01)
    assert cost["nli"].steps == 275_601 * 2 // 576
    assert all(0 < c.gpu_hours < 300 and 10 < c.memory_gib < 80 for c in cost.values())


@pytest.mark.parametrize("preset", list(RECIPES["umarvel"].presets))
def test_presets_fit_every_variant(preset):
    for name in VARIANTS:
        if preset in RECIPES[name].presets:
            assert configured(RECIPES[name], preset)
