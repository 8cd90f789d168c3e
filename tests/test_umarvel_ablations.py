"""Every row of the ablation tables is a model; what it changes of the forward pass changes vectors."""

from __future__ import annotations

import numpy as np
import pytest

from harness.content import Image, Item, Text
from harness.errors import CheckpointMissing
from harness.models.umarvel.ablations import ABLATIONS
from harness.registry import load_catalog
from harness.testing import write_picture

CATALOG = load_catalog()
BY_NAME = {spec.name: spec for spec in ABLATIONS}
BACKBONES = ("umarvel-qwen2.5vl-7b", "umarvel-qwen3vl-8b")
FORWARD = [s for s in ABLATIONS if s.input_spec != CATALOG.models[s.parent].input_spec]
TRAINING = [s for s in ABLATIONS if s not in FORWARD]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One tiny checkpoint for all: a variant of the forward pass is an input spec."""
    return BY_NAME["umarvel-no-distill"].tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    picture = write_picture(tmp_path_factory.mktemp("media") / "p.png", seed=3, size=(64, 48))
    asked = "Find me an everyday image that matches the given caption."
    return [
        Item("query", (Text("two dogs run over wet sand"),), asked),
        Item("query", (Image(picture), Text("the same in the snow")), "Change what is described."),
        Item("candidate", (Image(picture),)),
    ]


def vectors(spec, checkpoint, items):
    frontend = spec.open(checkpoint)
    return frontend.load("cpu").embed(frontend.prepare(items)).numpy()


def test_every_row_of_the_ablation_tables_is_a_model():
    rows = [n for n in CATALOG.reported() if n.paper == "umarvel" and "ablations" in n.suites]
    assert len({(n.table, n.model) for n in rows}) == 30
    for row in rows:
        assert row.plugin is not None, f"{row.table}: {row.model}"
        assert row.plugin.partition("+")[0] in CATALOG.models, f"{row.table}: {row.model}"


@pytest.mark.parametrize("spec", ABLATIONS, ids=lambda s: s.name)
def test_every_variant_descends_from_umarvel_and_names_its_change_and_its_recipe(spec):
    assert spec.change
    assert f"harness train {spec.name}" in spec.source
    lineage = spec
    for _ in ABLATIONS:
        lineage = CATALOG.models[lineage.parent] if lineage.parent else lineage
    assert lineage.name == "umarvel"


@pytest.mark.parametrize("spec", ABLATIONS, ids=lambda s: s.name)
def test_without_a_checkpoint_the_recipe_is_named(spec):
    with pytest.raises(CheckpointMissing, match=f"harness train {spec.name}.* --model-arg path=FOLDER"):
        spec.open({})


@pytest.mark.parametrize("spec", [s for s in FORWARD if s.name not in BACKBONES], ids=lambda s: s.name)
def test_a_variant_of_the_forward_pass_changes_the_vectors_of_its_parent(spec, checkpoint, items):
    parent = CATALOG.models[spec.parent]
    ours, theirs = vectors(spec, checkpoint, items), vectors(parent, checkpoint, items)
    assert np.abs(ours - theirs).max() > 1e-4


@pytest.mark.parametrize("spec", TRAINING, ids=lambda s: s.name)
def test_a_variant_of_training_is_shown_what_its_parent_is_shown(spec):
    assert spec.input_spec == CATALOG.models[spec.parent].input_spec


def test_what_an_ablation_was_not_trained_on_is_known():
    assert "CC3M" in BY_NAME["umarvel-no-cc3m"].held_out
    assert "NIGHTS" in BY_NAME["umarvel-held-out"].held_out


def test_the_delta_tables_show_published_differences(cli):
    code, out, _ = cli("leaderboard", "ablations")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("| umarvel-no-distill "))
    # Table 6: 61.7 / 59.9 before distillation, 63.2 / 60.7 after it
    assert "61.7 (-1.5)" in row
    assert "59.9 (-0.8)" in row
    # Table 1: ID0 56.6 / 54.8, ID1 55.5 / 52.6
    assert "└── umarvel-causal-last-prompt  56.6 (+1.1) / 54.8 (+2.2)  causal attention" in out
