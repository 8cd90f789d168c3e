"""Every registered model and task keeps the contract; every pair runs end to end. No skips."""

from __future__ import annotations

import dataclasses

import pytest

from harness.evaluate import evaluate
from harness.registry import load_catalog
from harness.task import Task
from harness.testing import check_model, check_task
from toys import places

CATALOG = load_catalog()
MODELS = [m for m in CATALOG.models.values() if m.check is None]
TASKS = list(CATALOG.tasks.values())


def family(task: Task) -> str:
    """Tasks that differ only in language, or in M-BEIR's data set, share code and miniature."""
    if task.name.startswith("stamps/text-to-image"):
        return task.name.rsplit("-", 1)[0]
    if task.name.startswith("mbeir"):
        pool, _, name = task.name.partition("/")
        return f"{pool}/{name[-1]}"
    return task.name


ONE_OF_EACH = list({family(t): t for t in reversed(TASKS)}.values())


@pytest.mark.parametrize("spec", MODELS, ids=lambda m: m.name)
def test_model(spec, tmp_path):
    check_model(spec, tmp_path)


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_task(task, tmp_path):
    check_task(task, tmp_path, catalog=CATALOG)


@pytest.mark.parametrize("spec", MODELS, ids=lambda m: m.name)
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
