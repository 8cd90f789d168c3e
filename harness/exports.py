"""Exports: results in the forms that other tools read, written locally.

trec           <folder>/runs/…/<protocol_id>.run, <folder>/qrels/<task>/<protocol_id>.qrels
mteb           <folder>/<model>/<identity_id>/<task>.json and model_meta.json
model_index    the front matter of a Hugging Face model card
eval_results   .eval_results/<data set>.yaml of a Hugging Face model repository
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.collection import Collection, checked
from harness.digest import Digests
from harness.errors import DataInvalid, HarnessError
from harness.evaluate import EvalOptions, require_data, task_files
from harness.files import cache_dir, write_lines, write_text
from harness.metrics import Metric
from harness.result import Result, Stored
from harness.run import Run, quoted
from harness.selection import is_usual
from harness.task import Protocol, Task

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def source_of(result: Result, task: Task, data: Path) -> Collection:
    """What the task loaded for a result, before it was cut and checked.

    Raises DataMissing, and DataInvalid where the data below `data` are others than then.
    """
    chosen = {f.name: result.protocol[f.name] for f in fields(Protocol)}
    protocol = Protocol(**{**chosen, "compat": tuple(chosen["compat"])})
    require_data([task], data, protocol)
    options = EvalOptions(data=data, output_dir=data, cache_dir=cache_dir(), protocol=protocol)
    files = task_files(task, options, Digests.of(options.cache_dir))
    changed = sorted(name for name in {**files, **result.files} if files.get(name) != result.files.get(name))
    if changed:
        raise DataInvalid(
            f"{task.name}: {changed[0]} is not what the result was made of: name its data with --data"
        )
    return task.load(data, protocol)


def searched(source: Collection, result: Result) -> Collection:
    """The collection as it was searched, but for the items that a result left out."""
    limit = result.protocol["limit"]
    return checked(source if limit is None else source.limited(limit))[0]


def collection_of(result: Result, task: Task, data: Path) -> Collection:
    """The collection that a result was made of, loaded again.

    Raises DataMissing, DataInvalid where the data below `data` are others than then, and
    HarnessError where items were left out of it.
    """
    if any(count for name, count in result.counts.items() if name.startswith("left_out_")):
        raise HarnessError(f"{task.name}: the result left out items that cannot be read (--skip-broken)")
    return searched(source_of(result, task, data), result)


def trec(stored: Stored, task: Task, data: Path, folder: Path) -> tuple[Path, Path]:
    """A run and its qrels that outside tools score to the same numbers; returns their files.

    trec_eval and its kin order a list by score alone and break ties by id. So the run is written in the
    order that the task's tie rule gives (pessimistic: equal scores put the relevant ones last, the
    highest grade last of all), equal scores a float32 step apart. A query without relevant
    candidates has a line of grade 0, so that it counts as 0 in the means. What is tied with candidates
    beyond the depth of the stored run cannot be told; MAP differs where a query has more relevant
    candidates than the cut-off (see `metrics.MAP`).
    """
    collection = collection_of(stored.result, task, data)
    if collection.qrels is None:
        raise HarnessError(f"{task.name}: its truth is hidden, there are no qrels")
    path = folder / "runs" / stored.result.path.with_suffix(".run")
    tag = quoted(f"{stored.result.model}-{stored.result.identity_id}")
    write_lines(path, _run_lines(stored.run(), collection, task, tag))
    judged = folder / "qrels" / path.parent.name / f"{stored.result.protocol_id}.qrels"
    write_lines(judged, _qrels_lines(collection))
    return path, judged


def _run_lines(run: Run, collection: Collection, task: Task, tag: str) -> Iterator[str]:
    for at, query in enumerate(run.query_ids):
        for rank, (candidate, score) in enumerate(_strict(run, at, collection, task), 1):
            yield f"{quoted(query)} Q0 {quoted(candidate)} {rank} {score!s} {tag}\n"


def _strict(run: Run, at: int, collection: Collection, task: Task) -> list[tuple[str, np.float32]]:
    """The ranking of a query in the order of the tie rule, scores strictly falling."""
    ranked = run.ranking(at)
    if task.ties == "pessimistic":
        grades = collection.positives(run.query_ids[at])
        ranked = sorted(ranked, key=lambda pair: (-pair[1], grades.get(pair[0], 0)))
    strict: list[tuple[str, np.float32]] = []
    for candidate, value in ranked:
        score = np.float32(value)
        if strict:
            score = min(score, np.nextafter(strict[-1][1], np.float32(-np.inf)))
        strict.append((candidate, score))
    return strict


def _qrels_lines(collection: Collection) -> Iterator[str]:
    unjudged = {collection.pool.ids[0]: 0}
    for query in collection.queries:
        judged = (collection.qrels or {}).get(query.id) or unjudged
        yield from (f"{quoted(query.id)} 0 {quoted(c)} {grade}\n" for c, grade in judged.items())


def mteb(results: Iterable[Result], folder: Path) -> list[Path]:
    """The results in the layout and the form of MTEB's results repository (its `TaskResult`).

    The identity stands for the model's revision, the protocol for the data set's; MTEB measured
    nothing, so its version is null. Only what a plain evaluation made.
    """
    written: dict[Path, None] = {}
    for result in sorted(_publishable(results), key=_started):
        home = folder / Path(*result.path.parts[:2])
        meta = {"name": result.model, "revision": result.identity_id}
        write_text(home / "model_meta.json", json.dumps(meta, indent=2, ensure_ascii=False) + "\n")
        path = home / f"{result.path.parts[2]}.json"
        write_text(path, json.dumps(_task_result(result), indent=2, ensure_ascii=False) + "\n")
        written |= {home / "model_meta.json": None, path: None}
    return list(written)


def _task_result(result: Result) -> dict[str, Any]:
    scores: dict[str, Any] = {
        key.replace("hit_", "hit_rate_"): score.value for key, score in result.metrics.items()
    }
    main = result.metrics[result.headline or ""].value
    subset = {**scores, "main_score": main, "hf_subset": "default", "languages": []}
    return {
        "dataset_revision": result.protocol_id,
        "task_name": result.task,
        "mteb_version": None,
        "scores": {_split(result): [subset]},
        "evaluation_time": sum(result.provenance.get("seconds", {}).values()),
        "kg_co2_emissions": None,
        "date": _started(result) or None,
    }


def model_index(results: Iterable[Result], tasks: Mapping[str, Task]) -> str:
    """The `model-index` of one model as YAML, the front matter of its card: every metric of every task."""
    from huggingface_hub import ModelCardData

    chosen = _one_model(results)
    entries = [entry for result in chosen for entry in _entries(result, tasks[result.task])]
    data = ModelCardData(model_name=chosen[0].model, eval_results=entries)
    return f"---\n{data.to_yaml()}\n---\n"


def _entries(result: Result, task: Task) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    repository = _hub(task)
    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type=repository or task.name,
            dataset_name=task.title,
            dataset_config=task.name,
            dataset_split=_split(result),
            dataset_args={"protocol_id": result.protocol_id},
            metric_type=key,
            metric_name=str(Metric.parse(key)),
            metric_value=score.value,
            metric_args={"ci95": list(score.ci95), "queries": score.n},
        )
        for key, score in result.metrics.items()
    ]


def eval_results(results: Iterable[Result], tasks: Mapping[str, Task]) -> dict[str, str]:
    """`.eval_results/….yaml` → its text, a file for each data set that lies on the Hugging Face hub.

    Values are headlines in percent. The hub shows those whose task id the data set's own eval.yaml
    names.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    by_repository: dict[str, list[EvalResultEntry]] = {}
    for result in _one_model(results):
        repository = _hub(tasks[result.task])
        if repository is None:
            continue
        metric, score = Metric.parse(result.headline or ""), result.metrics[result.headline or ""]
        ends = ", ".join(f"{100 * end:.2f}" for end in score.ci95)
        entry = EvalResultEntry(
            dataset_id=repository,
            task_id=result.task,
            value=round(100 * score.value, 5),
            date=_started(result) or None,
            notes=f"{metric}, 95 % CI [{ends}]; umr-harness protocol {result.protocol_id},"
            f" identity {result.identity_id}",
        )
        by_repository.setdefault(repository, []).append(entry)
    return {
        f".eval_results/{repository.replace('/', '__')}.yaml": yaml.safe_dump(
            eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True
        )
        for repository, entries in by_repository.items()
    }


def _publishable(results: Iterable[Result]) -> list[Result]:
    """Complete results of models under the usual choices."""
    return [r for r in results if r.status == "complete" and r.headline and not r.check and is_usual(r)]


def _one_model(results: Iterable[Result]) -> Sequence[Result]:
    chosen = sorted(_publishable(results), key=lambda r: r.task)
    models = sorted({f"{r.model}@{r.identity_id}" for r in chosen})
    if len(models) != 1:
        what = f"results of {', '.join(models)}" if models else "no complete result under the usual choices"
        raise HarnessError(f"a model card is of one model under one identity, here are {what}")
    return chosen


def _hub(task: Task) -> str | None:
    """The repository of the task's data on the hub."""
    return next((need.hub.repo for need in task.needs(Protocol()) if need.hub is not None), None)


def _split(result: Result) -> str:
    return str(result.protocol.get("split") or "test")


def _started(result: Result) -> str:
    return str(result.provenance.get("started", ""))
