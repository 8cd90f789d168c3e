"""Two steps of every stage from mining to distillation, one after another on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import training_toys as toys

from harness.encode import EngineOptions
from harness.models.tiny_qwen import write_tiny_qwen
from harness.models.training.contrastive import contrastive
from harness.models.training.corpus import use
from harness.models.training.distilling import distill
from harness.models.training.embedder import SAVED
from harness.models.training.lists import MINED, SCORED
from harness.models.training.mining import mine
from harness.models.training.record import read
from harness.models.training.scoring import score
from harness.models.umarvel import SPEC
from harness.recipe import Estimate, Recipe, Stage
from harness.train import TrainOptions, plan, train

DATA = {"base": "scratch:tiny", "tasks": "toys/*", "split": "train", "seed": 1, "dtype": "float32"}
TRAINED = {
    **DATA,
    **{
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "train_vision": False,
        "train_projector": False,
    },
    **{"temperature": 0.05, "learn_temperature": True, "gradient_checkpointing": False},
    **{"batch": 4, "epochs": 8, "learning_rate": 0.01, "warmup": 0.03, "weight_decay": 0.0, "clip": 1.0},
    **{"save_every": 5, "most_steps": 2},
}
CONTRASTIVE = {
    **TRAINED,
    **{
        "gather": "gradient",
        "mask_duplicates": True,
        "two_way": False,
        "two_way_weight": 1.0,
        "in_batch": True,
    },
    "objective": "cross-entropy",
    "crop": 1.0,
}
HARD = {**CONTRASTIVE, "negatives": 3, "policy": "top", "threshold": None}
SCORE = {**DATA, "pools": "local", "depth": 4, "share": 0.6, "lists": "top", "weights": "*=1.0"}
DISTILL = {
    **TRAINED,
    **{"share": 0.6, "depth": 4, "divergence": "kl", "divide": 2.0, "ranking": 1.0, "infonce": 0.2},
    "with_positives": True,
}


def contrasted(run):
    contrastive(run, SPEC)


def mined(run):
    mine(run, SPEC)


def scored(run):
    score(run, SPEC)


def distilled(run):
    distill(run, SPEC)


def random_reranker(run):
    write_tiny_qwen(run.folder / SAVED, "qwen2_vl")


def stage(name, run, settings, made, **needs):
    return Stage(
        name=name,
        title=name,
        objective=name,
        settings=settings,
        makes=(made,),
        run=run,
        estimate=lambda settings: Estimate(2, 2, 0.0, 0.0),
        uses=lambda settings: [use(settings)] if "tasks" in settings else [],
        needs={role.replace("_", "-"): source.replace("_", "-") for role, source in needs.items()},
    )


RECIPE = Recipe(
    "toy",
    "Toy",
    (
        stage("mbeir", contrasted, CONTRASTIVE, SAVED),
        stage("mine", mined, {**DATA, "pools": "global", "depth": 6}, MINED, model="mbeir"),
        stage("hard-negatives", contrasted, HARD, SAVED, model="mbeir", negatives="mine"),
        stage("reranker", random_reranker, {}, SAVED),
        stage("score", scored, SCORE, SCORED, model="hard-negatives", reranker="reranker"),
        stage("distill", distilled, DISTILL, SAVED, model="hard-negatives", teacher="score"),
        stage(
            "continue-hard",
            contrasted,
            {**HARD, "negatives": 4, "share": 0.6, "in_batch": False},
            SAVED,
            model="hard-negatives",
            negatives="score",
        ),
    ),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Stage → the folder that it filled."""
    place = tmp_path_factory.mktemp("stages")
    options = TrainOptions(
        data=place,
        output_dir=place / "out",
        cache_dir=place / "cache",
        engine=EngineOptions(quiet=True, workers=0),
        tasks={task.name: task for task in toys.TASKS},
        chunk=8,
    )
    planned = plan(RECIPE, [each.name for each in RECIPE.stages], options)
    train(RECIPE, planned, options, tell=lambda line: None)
    return {
        each.stage.name: found
        for each in plan(RECIPE, [s.name for s in RECIPE.stages], options)
        if (found := each.folder)
    }


@pytest.mark.parametrize("name", ["mbeir", "hard-negatives", "distill", "continue-hard"])
def test_a_stage_takes_its_steps_and_leaves_a_model(folders, name):
    steps = read(folders[name] / "log.csv")
    assert [row["step"] for row in steps] == [0, 1]
    assert all(row["loss"] > 0 and row["gradient_norm"] > 0 for row in steps)
    assert (folders[name] / SAVED / "model.safetensors").exists()


def test_the_temperature_goes_on_from_stage_to_stage(folders):
    first, then = (read(folders[name] / "log.csv") for name in ("mbeir", "hard-negatives"))
    assert first[0]["temperature"] == pytest.approx(0.05)
    assert then[0]["temperature"] not in (pytest.approx(0.05), pytest.approx(first[1]["temperature"]))


def test_tables_hold_what_their_stages_say(folders):
    found = pq.read_table(folders["mine"] / MINED)
    assert found.num_rows == 9 * 6
    scores = pq.read_table(folders["score"] / SCORED)
    assert len(set(zip(scores["task"].to_pylist(), scores["query_id"].to_pylist(), strict=True))) == 3 + 2
