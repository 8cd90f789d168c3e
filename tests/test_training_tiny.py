"""U-MARVEL's recipe and its variants from end to end: two steps of every stage on drawn stamps and, slow,
the preset `tiny` on the real ones."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from harness.encode import EngineOptions
from harness.evaluate import EvalOptions, evaluate
from harness.milestones import evaluate_stages
from harness.models.tiny_qwen import write_tiny_qwen
from harness.models.training.embedder import SAVED
from harness.models.training.record import read
from harness.recipe import Recipe, configured
from harness.registry import load_catalog
from harness.result import Result, read_results
from harness.task import Protocol
from harness.tasks import stamps
from harness.train import TrainOptions, plan, train

CATALOG = load_catalog()
RECIPES = {name: recipe for name, recipe in CATALOG.recipes.items() if name.partition("-")[0] == "umarvel"}
NOT_KNOWN = {"umarvel-bs3840-learnable"}
"""Trained as its parent."""

MIXTURE = "stamps/text-to-image-en,stamps/image-to-category,stamps/category-to-image"
IN_PLACE_OF = {
    "nli/entailment": "stamps/translation",
    "tart/*": "stamps/translation,stamps/image-to-text-en",
    "cc3m/text-to-image": "stamps/text-to-image-en",
    "sharegpt4v-train/*": "stamps/text-to-image-de",
    "cc3m/*,sharegpt4v-train/*": "stamps/text-to-image-en,stamps/text-to-image-de",
    "mbeir-local/*": MIXTURE,
    "mbeir-local/*,!mbeir-local/nights*,!mbeir-local/oven*,!mbeir-local/infoseek*": (
        f"{MIXTURE},!stamps/image-to-category"
    ),
}
BATCH = 240
"""So many of a published batch become one."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    stamps.TASKS[0].mini(folder)
    for name in ("Qwen2.5-VL-7B", "Qwen3-VL-4B", "Qwen3-VL-8B"):
        write_tiny_qwen(folder / name, "qwen2_5_vl" if "2.5" in name else "qwen3_vl")
    return folder


def small(recipe: Recipe, place: Path) -> Recipe:
    """Two steps of every stage; what a variant changes stays changed."""
    bases = {"Qwen/Qwen2-VL-7B-Instruct": "scratch:toy"}
    bases |= {f"Qwen/{p.name}-Instruct": str(p) for p in place.glob("Qwen*")}
    given = {}
    for stage in recipe.stages:
        changed = {
            "base": bases[stage.settings["base"]],
            "tasks": IN_PLACE_OF[stage.settings["tasks"]],
            "batch": max(4, int(stage.settings.get("batch", 0)) // BATCH),
            "dtype": "float32",
            "max_pixels": stage.settings.get("max_pixels", 0) // 50,
            "text_tokens": 16,
            "gradient_checkpointing": False,
            "epochs": 100,
            "most_steps": 2,
            "depth": 4,
            "share": 5 * stage.settings.get("share", 0),
            "weights": "*=1.0",
            "threshold": None if stage.settings.get("threshold") is None else 1.0,
        }
        given[stage.name] = {key: changed[key] for key in changed.keys() & stage.settings.keys()}
    return configured(recipe, None, given)


def run(recipe: Recipe, options: TrainOptions) -> dict[str, Path]:
    """Stage → the folder that it filled, in order."""
    names = [stage.name for stage in recipe.stages]
    train(recipe, plan(recipe, names, options), options, tell=lambda line: None)
    planned = plan(recipe, names, options)
    assert [each.state for each in planned] == ["done"] * len(names)
    return {each.stage.name: each.folder for each in planned if each.folder}


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_runs_and_makes_something_else_than_its_parent(name, place):
    options = TrainOptions(
        data=place,
        output_dir=place / "out",
        cache_dir=place / "cache",
        engine=EngineOptions(quiet=True, workers=0),
        tasks=CATALOG.tasks,
        chunk=64,
    )
    recipe = RECIPES[name]
    folders = run(small(recipe, place), options)
    for stage in recipe.stages:
        if SAVED in stage.makes:
            steps = read(folders[stage.name] / "log.csv")
            assert [row["step"] for row in steps] == [0, 1]
            assert sum(row["loss"] for row in steps) > 0
    if recipe.parent is not None:
        planned = plan(
            small(RECIPES[recipe.parent], place), [RECIPES[recipe.parent].stages[-1].name], options
        )
        assert (planned[0].folder == list(folders.values())[-1]) == (name in NOT_KNOWN)


def test_what_stages_made_is_evaluated_like_any_model(place):
    out, recipe = place / "alone", small(RECIPES["umarvel-mbeir-only"], place)
    training = TrainOptions(
        data=place,
        output_dir=out,
        cache_dir=place / "cache",
        engine=EngineOptions(quiet=True, workers=0),
        tasks=CATALOG.tasks,
        chunk=64,
    )
    folders = run(recipe, training)
    options = EvalOptions(place, out / "runs", place / "cache", Protocol("test"), training.engine)
    tasks = CATALOG.select(["stamps/text-to-image-en"], [])
    planned = plan(recipe, [stage.name for stage in recipe.stages], training)
    made = evaluate_stages(CATALOG, recipe, planned, training, tasks, options, tell=print)
    results = {outcome.result.model: outcome.result for outcome in made if outcome.result}
    assert list(results) == ["umarvel-mbeir-only@base", "umarvel-mbeir-only@mbeir"]
    (base,) = out.glob("base-toy-*")
    for name, path in (("base", base), ("mbeir", folders["mbeir"] / SAVED)):
        given = {"path": str(path), "dtype": "float32"}
        (alone,) = evaluate(CATALOG, CATALOG.models["umarvel"], given, tasks, options)
        assert alone.result is not None
        assert results[f"umarvel-mbeir-only@{name}"].metrics == alone.result.metrics


def test_training_ends_with_a_leaderboard(cli, place):
    settings = {**{"base": "scratch:toy", "tasks": "stamps/translation", "batch": 4, "most_steps": 1}}
    settings |= {"dtype": "float32", "max_pixels": 3136, "epochs": 100, "gradient_checkpointing": False}
    given = [f"--set=nli.{name}={value}" for name, value in settings.items()]
    asked = ["train", "umarvel", "--until", "nli", *given, "--data", place, "--quiet"]
    board = ["-t", "stamps/text-to-image-en", "--split", "test"]
    status, out, _ = cli(*asked, *board)
    assert status == 0
    assert re.search(r"^\| umarvel@base +\|", out, re.MULTILINE)
    assert re.search(r"^\| umarvel@nli +\|", out, re.MULTILINE)
    folder = out.splitlines()[-1]
    assert Path(folder, SAVED).is_dir()
    assert cli(*asked)[1] == f"{folder}\n"
    status, _, err = cli(*asked, "-t", "flickr/text-to-image")
    assert status == 2
    assert "2 files or folders are missing" in err
    assert "--split needs --tasks or --suite" in cli(*asked, "--split", "test")[2]


@pytest.mark.parametrize("preset", ["tiny", None])
def test_a_whole_preset_has_its_leaderboard(preset):
    from harness.cli.training import _board

    recipe = RECIPES["umarvel"]
    asked = {"tasks": None, "suites": None, "split": None}
    names = [stage.name for stage in recipe.stages]
    board = _board(CATALOG, recipe, names, preset, **asked)
    assert (board is None) == (preset is None)
    assert board is None or board.protocol.split == "test"
    assert _board(CATALOG, recipe, names[:-1], preset, **asked) is None


TO_IMAGE, TO_TEXT = "stamps/text-to-image-en", "stamps/image-to-text-en"
SEED = 7
MARGIN = 0.03
"""Six of the 203 held-out questions, of which chance answers two."""


def started(folder: Path, data: Path) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("harness")), "train", "umarvel", "--preset", "tiny"]
    recipe = RECIPES["umarvel"]
    seeds = [f"--set={stage.name}.seed={SEED}" for stage in recipe.stages if "seed" in stage.settings]
    places = ["--data", str(data), "--output-dir", str(folder / "out"), "--chunk", "256"]
    env = {**os.environ, "HARNESS_CACHE": str(folder / "cache")}
    return subprocess.Popen([*command, *seeds, *places, "--quiet"], env=env, start_new_session=True)


def found(results: list[Result], stage: str, k: int) -> float:
    """The share of held-out captions and pictures that find each other among the first k."""
    asked = [r for r in results if r.model == f"umarvel@{stage}" and f"hit_at_{k}" in r.metrics]
    both = [r.metrics[f"hit_at_{k}"].value for r in asked if r.task in (TO_IMAGE, TO_TEXT)]
    assert len(both) == 2
    return sum(both) / 2


@pytest.mark.slow
def test_the_tiny_preset_learns_to_find_pictures_that_it_has_not_seen(tmp_path, real_stamps):
    process = started(tmp_path, real_stamps)
    while not list(tmp_path.glob("out/cc3m-*/checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("out/cc3m-*/manifest.json"))
    assert started(tmp_path, real_stamps).wait() == 0

    recipe = RECIPES["umarvel"]
    folders = {
        stage.name: next(tmp_path.glob(f"out/{stage.name}-*/manifest.json")).parent for stage in recipe.stages
    }
    made = [(folders[stage.name] / "manifest.json").stat().st_mtime for stage in recipe.stages]
    assert made == sorted(made)
    for stage in recipe.stages:
        if SAVED in stage.makes:
            rows = read(folders[stage.name] / "log.csv")
            assert [row["step"] for row in rows] == list(range(len(rows)))
            losses = [row["loss"] for row in rows]
            fifth = len(losses) // 5
            assert np.mean(losses[-fifth:]) < np.mean(losses[:fifth]), stage.name

    results = read_results(tmp_path / "out" / "runs")
    assert found(results, "distill", 1) >= found(results, "base", 1) + MARGIN
    assert found(results, "distill", 5) >= found(results, "base", 5) + 2 * MARGIN
