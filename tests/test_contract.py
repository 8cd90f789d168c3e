"""Every registered model and task keeps the contract; every pair runs end to end. No skips."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from harness.evaluate import evaluate, open_reranker
from harness.registry import load_catalog
from harness.rerank import Fusion
from harness.task import Task
from harness.testing import check_model, check_reranker, check_task
from toys import places

CATALOG = load_catalog()
MODELS = [m for m in CATALOG.models.values() if m.check is None]
RERANKERS = list(CATALOG.rerankers.values())
TASKS = list(CATALOG.tasks.values())


CAPTIONS = ("sharegpt4v", "urban1k", "flickr", "coco", "cc3m", "sharegpt4v-train")


def family(task: Task) -> str:
    """Tasks that differ only in language, data set or subset share code and the form of their items."""
    data_set, _, variant = task.name.partition("/")
    if data_set in CAPTIONS:
        return variant
    if data_set in ("sugarcrepe", "multiturn-fashioniq"):
        return data_set
    if data_set == "genecis":
        return variant.partition("_")[2]
    if task.name.startswith("stamps/text-to-image"):
        return task.name.rsplit("-", 1)[0]
    if task.name.startswith("mbeir"):
        return f"{data_set}/{variant[-1]}"
    return task.name


ONE_OF_EACH = list({family(t): t for t in reversed(TASKS)}.values())


@pytest.mark.parametrize("spec", MODELS, ids=lambda m: m.name)
def test_model(spec, tmp_path):
    check_model(spec, tmp_path)


@pytest.mark.parametrize("spec", RERANKERS, ids=lambda r: r.name)
def test_reranker(spec, tmp_path):
    check_reranker(spec, tmp_path)


@pytest.mark.parametrize("spec", RERANKERS, ids=lambda r: r.name)
def test_every_reranker_runs_on_every_task(spec, tmp_path):
    model = CATALOG.model("random")
    reranking = open_reranker(spec, spec.tiny(tmp_path / "tiny"), Fusion({"*": 2}, spec.weights))
    for task in ONE_OF_EACH:
        data = tmp_path / "data" / task.name
        data.mkdir(parents=True)
        task.mini(data)
        chosen = dataclasses.replace(places(tmp_path, limit=2), data=data)
        (outcome,) = evaluate(CATALOG, model, {}, [task], chosen, reranking=reranking)
        assert outcome.error is None, outcome.error
        assert outcome.result is not None
        assert outcome.result.model == f"random+{spec.name}"


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_task(task, tmp_path):
    check_task(task, tmp_path, catalog=CATALOG)


def paired() -> list[Any]:
    """The models to run on tasks: one of each family here, the others in the slow tier; of variants whose
    training alone differs none, for they are shown the same and run the same code."""
    found, families = [], set()
    for spec in MODELS:
        parent = CATALOG.models.get(spec.parent or "")
        family = getattr(spec.open, "func", spec.open)
        if family not in families:
            found.append(pytest.param(spec, id=spec.name))
        elif parent is None or spec.input_spec != parent.input_spec:
            found.append(pytest.param(spec, id=spec.name, marks=pytest.mark.slow))
        families.add(family)
    return found


@pytest.mark.parametrize("spec", paired())
def test_every_model_runs_on_every_task(spec, tmp_path):
    options = spec.tiny(tmp_path / "tiny")
    for task in ONE_OF_EACH:
        data = tmp_path / "data" / task.name
        data.mkdir(parents=True)
        task.mini(data)
        chosen = dataclasses.replace(places(tmp_path), data=data)
        (outcome,) = evaluate(CATALOG, spec, options, [task], chosen)
        assert outcome.error is None, outcome.error
        assert outcome.result is not None
        assert outcome.result.status in ("complete", "unsupported", "unscored")
        if outcome.result.status == "complete":
            assert set(outcome.result.metrics) == {m.key for m in task.metrics}
        if outcome.result.status == "unsupported":
            assert outcome.result.metrics == {}
            assert set(spec.open(options).modalities) < {
                "text",
                "image",
                "image,text",
                "interleaved",
                "video",
            }
