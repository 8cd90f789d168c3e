"""CIRCO's submission: the file that its test server takes, written beside a run of `circo/test`.

{"0": [9761, 489535, … 50 ids of pictures, best first], "1": […], … "799": […]}

Only an evaluation of the whole test split makes one; any other says why not, in one line on stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from harness.errors import DataInvalid
from harness.files import write_text
from harness.records import as_record, brief, read_json
from harness.result import Result
from harness.run import Run

TASK = "circo/test"
SERVER = "https://circo.micc.unifi.it"
QUERIES = tuple(str(n) for n in range(800))
DEPTH = 50


def export(result: Result, run: Run, folder: Path) -> None:
    """Write `<protocol_id>.submission.json` into the folder of the run and check it.

    One of an earlier evaluation goes where this one makes none. Raises DataInvalid and StorageError.
    """
    if result.task != TASK:
        return
    path = folder / f"{result.protocol_id}.submission.json"
    why = _partial(result, run)
    if why:
        path.unlink(missing_ok=True)
        print(f"{TASK}: no submission: {why}", file=sys.stderr)
        return
    row = {query: at for at, query in enumerate(run.query_ids)}
    answers = {query: [int(id) for id, _ in run.ranking(row[query])[:DEPTH]] for query in QUERIES}
    write_text(path, json.dumps(answers) + "\n")
    validate(path)
    print(f"{TASK}: {path} can be submitted at {SERVER}", file=sys.stderr)


def _partial(result: Result, run: Run) -> str:
    """Why this is no evaluation of the whole test split; empty where it is one."""
    if result.protocol.get("limit") is not None:
        return f"made with --limit {result.protocol['limit']}"
    left_out = sum(count for name, count in result.counts.items() if name.startswith("left_out_"))
    if left_out:
        return f"--skip-broken left out {left_out} queries and candidates"
    if set(run.query_ids) != set(QUERIES):
        return f"it takes the {len(QUERIES)} queries 0 to {len(QUERIES) - 1}, here are {len(run.query_ids)}"
    ranked = int((run.rows >= 0).sum(axis=1).min())
    if ranked < DEPTH:
        return f"it takes {DEPTH} pictures for each query, a ranking here has {ranked}"
    return ""


def validate(path: Path) -> None:
    """Raise DataInvalid with one line where a file is not what the test server takes."""
    answers = as_record(read_json(path), str(path)).fields
    for query in QUERIES:
        if query not in answers:
            raise DataInvalid(f"{path}: no answer to query {query}")
    for query, ids in answers.items():
        place = f"{path}, query {query}"
        if query not in QUERIES:
            raise DataInvalid(f"{place}: the test split has the queries 0 to {len(QUERIES) - 1}")
        if not isinstance(ids, list) or len(ids) != DEPTH:
            found = f"{len(ids)} of them" if isinstance(ids, list) else brief(ids)
            raise DataInvalid(f"{place}: a list of {DEPTH} ids is wanted, not {found}")
        wrong = [id for id in ids if not isinstance(id, int) or isinstance(id, bool)]
        if wrong:
            raise DataInvalid(f"{place}: ids must be whole numbers, not {brief(wrong[0])}")
        twice = [id for at, id in enumerate(ids) if id in ids[:at]]
        if twice:
            raise DataInvalid(f"{place}: picture {twice[0]} is there twice")
