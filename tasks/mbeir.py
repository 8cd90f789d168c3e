"""M-BEIR: 16 retrieval tasks over 10 data sets, each in its own pool and in the union of all pools.

A query row, and the candidate that answers it (the real files, abridged):

    {"qid": "9:6", "query_txt": null, "query_img_path": "mbeir_images/mscoco_images/val2014/….jpg",
     "query_modality": "image", "pos_cand_list": ["9:2", …], "neg_cand_list": [], "task_id": 3}
    {"did": "9:2", "txt": "A man with a red helmet.", "img_path": null, "modality": "text"}

    mbeir-local/mscoco_task3     the task's own pool: 24,809 candidates
    mbeir-global/mscoco_task3    all 16 pools: 5,609,079 candidates
    mbeir-heldout/oven_task6     the pools of the five held-out tasks: 2,145,273 candidates

UniIR (Wei et al. 2024, arXiv 2311.17136), whose "recall@k" is Hit@k; LamRA and U-MARVEL score alike.
A query is the picture and then the text, with an instruction drawn from up to four; candidates have
none. The official codes draw it without a seed, or with one that moves with the number of workers:
any `--seed` under the policy `hash` is such a draw, and all pools of a task share it.

The official query text is `formatted(prompt + " " + query_txt)`, with the prompt formatted already.
Here the instruction is a field of its own, and the text is what follows it: joined by a blank they
give exactly that string. For texts that are formatted already, as those of the original files are,
it is the text itself; a raw one keeps its small first letter and its opening quotation mark.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.collection import Collection, Pool, Subset
from harness.content import Candidate, Image, Part, Query, Text, modality
from harness.errors import DataInvalid
from harness.files import escapes, numbered_jsonl
from harness.metrics import MRR, NDCG, Hit, Metric, Recall
from harness.run import Run
from harness.table import Fields, Table, open_table, remembered
from harness.task import Column, Need, Protocol, Suite, Task, choose, draw, only

from .mbeir_layout import (
    BY_NAME,
    DERIVED_FROM,
    HOMES,
    IMAGES,
    INSTRUCTIONS,
    LINKED,
    QID_SPAN,
    ROOT,
    ROWS,
    SPLITS,
    TRAIN_POOL,
    TRAIN_ROWS,
    Row,
    kinds,
    need,
    number,
    read_instructions,
)
from .mbeir_verify import verify
from .mbeir_world import mini
from .wording import following

Place = Literal["local", "global", "heldout"]
Instruct = Callable[[str], str | None]

IMAGE_PROMPT = "umarvel-image-prompt"
"""The compat switch for U-MARVEL's evaluation, which shows the template for picture and text to
candidates that have a picture only: they get an empty text."""

HELD_OUT = ("nights_task4", "oven_task6", "infoseek_task6", "oven_task8", "infoseek_task8")
"""What LamRA and U-MARVEL leave out of training (task numbers 4, 6 and 8) and evaluate."""
HELD_OUT_UNIIR = ("webqa_task1", "webqa_task2", "oven_task6", "cirr_task7", "oven_task8")
"""UniIR's held-out data sets (its Table 7), scored in the pool of all 16."""

CUTS = (1, 5, 10, 20, 50)
_FIELDS = Fields(id="did", text="txt", image="img_path", modality="modality")


def load(row: Row, place: Place, data_root: Path, protocol: Protocol) -> Collection:
    """The task `row` in the pool `place`, on the split and with the instructions of the protocol."""
    name = f"mbeir-{place}/{row.name}"
    split = only(name, protocol, splits=SPLITS, compat=(IMAGE_PROMPT,))
    prompts = wordings(row, data_root, protocol)
    queries, known = _queries(row, split, data_root, lambda qid: draw(protocol, row.name, qid, prompts))
    return Collection(
        queries=queries,
        pool=_pool(row, place, split, data_root, padded=IMAGE_PROMPT in protocol.compat),
        qrels=_qrels(row, split, data_root, {query.id for query in queries}, known),
    )


def needs(row: Row, place: Place, protocol: Protocol) -> tuple[Need, ...]:
    split = only(f"mbeir-{place}/{row.name}", protocol, splits=SPLITS, compat=(IMAGE_PROMPT,))
    paths = [row.query_file(split), row.qrels_file(split)]
    paths += dict.fromkeys(other.pool_file(split) for other in _pool_rows(row, place, split))
    if split == "train":
        paths.append(TRAIN_ROWS)
    if protocol.instructions != "none":
        paths.append(INSTRUCTIONS)
    return (*map(need, paths), need(IMAGES, media=True))


def _pool_rows(row: Row, place: Place, split: str) -> tuple[Row, ...]:
    """The tasks whose pools are searched.

    In training OVEN and InfoSeek share theirs, as U-MARVEL mines: each has positives in both.
    """
    if place == "local" and split == "train" and row.dataset in LINKED:
        return tuple(r for r in ROWS if r.dataset in LINKED and r.task_id == row.task_id)
    if place == "local":
        return (row,)
    return ROWS if place == "global" else tuple(BY_NAME[name] for name in HELD_OUT)


def _queries(row: Row, split: str, data_root: Path, instruct: Instruct) -> tuple[list[Query], Container[str]]:
    """The task's queries, and the ids of all that the file holds (a train file holds other tasks' too)."""
    path = need(row.query_file(split)).require(data_root)
    root = need(ROOT).require(data_root)
    queries = []
    known: set[str] = set()
    for line, record in numbered_jsonl(path, ("qid",)):
        place = f"{path}, line {line}"
        qid = _string(record, "qid", place)
        if not qid or qid in known:
            raise DataInvalid(f"{place}: query id {qid!r} {'occurs twice' if qid else 'is empty'}")
        known.add(qid)
        if split == "train" and record.get("task_id") != row.task_id:
            continue
        text = _string(record, "query_txt", place)
        image = _string(record, "query_img_path", place)
        if image and escapes(image):
            raise DataInvalid(f"{place}: picture {image!r} lies outside the data root")
        instruction = instruct(qid)
        parts = _parts(root, text, image, _string(record, "query_modality", place), instruction)
        if not parts:
            raise DataInvalid(f"{place}: query {qid!r} has neither a text nor a picture")
        queries.append(Query(qid, parts, instruction))
    return queries, known


def _string(record: Mapping[str, Any], name: str, place: str) -> str | None:
    """A missing key is null."""
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise DataInvalid(f"{place}: {name} must be a string or null, not {value!r}")
    return value


def _parts(
    root: Path, text: str | None, image: str | None, modality: str | None, instruction: str | None = None
) -> tuple[Part, ...]:
    """The picture, then the text: what is there and named by the modality.

    So an empty text beside a picture is a text in a row of both and none in a row of pictures. A
    modality that names nothing of what is there is not heeded.
    """
    there = {"image"} if image else set()
    if text is not None:
        there.add("text")
    shown = there & kinds(modality) or there
    parts: list[Part] = [Image(root / image)] if image and "image" in shown else []
    if text is not None and "text" in shown:
        parts.append(Text(following(instruction, text)))
    return tuple(parts)


def _candidate(
    root: Path, padded: bool, id: str, text: str | None, image: str | None, modality: str | None
) -> Candidate:
    parts = _parts(root, text, image, modality)
    if padded and len(parts) == 1 and isinstance(parts[0], Image):
        parts = (*parts, Text(""))
    return Candidate(id, parts)


def _pool(row: Row, place: Place, split: str, data_root: Path, *, padded: bool) -> Pool:
    rows = _pool_rows(row, place, split)
    root = need(ROOT).require(data_root)

    def table(path: Path) -> Table:
        make = partial(_candidate, root, padded)
        source = need(path).require(data_root)
        return open_table(source, _FIELDS, make, variant=f"mbeir-1 padded={padded}", media_root=root)

    if split == "train":
        pools = _train_pools(need(TRAIN_POOL).require(data_root), table(TRAIN_POOL), rows)
    else:
        pools = tuple(Pool(r.name, table(r.pool_file(split))) for r in rows)
    name = f"mbeir-{place}/{row.name}" if place == "local" else f"mbeir-{place}"
    return Pool(
        name if split == "test" else f"{name}-{split}", pools[0].candidates if len(pools) == 1 else pools
    )


def _train_pools(source: Path, table: Table, rows: Sequence[Row]) -> tuple[Pool, ...]:
    """The train pool holds all tasks' candidates, in the order of their ids: cut it into tasks."""
    homes = remembered(source, "mbeir-homes-1", lambda: _homes(table))
    places = {row.name: np.flatnonzero(homes == ROWS.index(row)) for row in rows}
    return tuple(Pool(name, Subset(table, at)) for name, at in places.items() if len(at))


def _homes(table: Table) -> npt.NDArray[np.int8]:
    """The index of each candidate's task, -1 where it is of no known data set, [N]."""
    homes = map(_home, table)
    return np.fromiter((-1 if home is None else ROWS.index(home) for home in homes), np.int8, len(table))


def rows(row: Row, place: Place, data_root: Path, protocol: Protocol) -> list[str]:
    """The task's queries in the order of training: the up-sampled rows of all tasks, cut to it."""
    name = f"mbeir-{place}/{row.name}"
    if only(name, protocol, splits=SPLITS, compat=(IMAGE_PROMPT,)) != "train":
        raise DataInvalid(f"{name} has training rows in its split 'train' alone: use --split train")
    source = need(TRAIN_ROWS).require(data_root)
    every = remembered(source, "mbeir-rows-1", lambda: _union_rows(source))
    mine = every[every[:, 0] == ROWS.index(row), 1]
    return [f"{row.dataset_id}:{n}" for n in mine]


def _union_rows(source: Path) -> npt.NDArray[np.int32]:
    """The index of each row's task, and the number of its query in the data set, [N, 2]."""
    indices = {f"{row.dataset_id} {row.task_id}": i for i, row in enumerate(ROWS)}
    found = []
    for line, record in numbered_jsonl(source, ("qid", "task_id")):
        qid, task_id = record["qid"], record["task_id"]
        dataset, n = divmod(number(str(qid), QID_SPAN) or 0, QID_SPAN)
        index = indices.get(f"{dataset} {task_id}")
        if index is None or not n:
            raise DataInvalid(
                f"{source}, line {line}: qid {qid!r} with task_id {task_id!r} is in none of the 16 tasks"
            )
        found.append((index, n))
    return np.array(found, dtype=np.int32).reshape(-1, 2)


def _home(candidate: Candidate) -> Row | None:
    """The task in whose pool such a candidate lies."""
    dataset = candidate.id.partition(":")[0]
    picture = any(isinstance(part, Image) for part in candidate.parts)
    return HOMES.get((int(dataset), picture)) if dataset.isdecimal() else None


def _qrels(
    row: Row, split: str, data_root: Path, asked: Container[str], known: Container[str]
) -> dict[str, dict[str, int]]:
    """Lines `qid 0 did 1 task_id`, the last column optional; what points outside the pool is kept."""
    path = need(row.qrels_file(split)).require(data_root)
    qrels: dict[str, dict[str, int]] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line, text in enumerate(file, 1):
            columns = text.split()
            if not columns:
                continue
            if len(columns) not in (4, 5) or not columns[3].isdecimal():
                raise DataInvalid(f"{path}, line {line}: not `qid 0 did 1 task_id`: {text.strip()[:80]!r}")
            qid, _, did, grade = columns[:4]
            if qid in asked:
                qrels.setdefault(qid, {})[did] = int(grade)
            elif qid not in known:
                raise DataInvalid(
                    f"{path}, line {line}: query {qid!r} is not in {row.query_file(split).as_posix()}"
                )
    return qrels


def wordings(row: Row, data_root: Path, protocol: Protocol) -> tuple[str, ...]:
    """The prompts that a query's instruction is drawn from under the protocol's policy."""
    if protocol.instructions == "none":
        return ()
    return choose(row.name, protocol, read_instructions(data_root, row))


def analyse(row: Row, collection: Collection, run: Run) -> dict[str, Any]:
    """What a run in a union of pools gets wrong, and how much of that is the modality.

    `retrieved`: how often each modality stands among the first 1 and 5, where `wanted` is asked for.
    `wrong_first`: the queries whose first candidate is wrong, by the first of UniIR's error types
    that applies: another modality, another domain, neither; shares are of those queries.
    `loss`: places are those of the run, ties in pool order, to its depth. Hits at the headline's
    cut-off in the run; in what is left of it without candidates of other pools, which is the local
    ranking; without candidates of other modalities. `recovered_*` are queries that miss in the run and
    hit in the rest; `share_by_modality` is the share of those lost to the union that the right
    modality alone brings back. `undecided` queries show fewer own candidates than the cut-off asks.
    """
    seen = _Seen.of(collection, run)
    right, own = seen.modality == _MODALITIES.index(row.wanted), seen.home == ROWS.index(row)
    near = np.isin(seen.home, [i for i, other in enumerate(ROWS) if other.domain == row.domain])
    k = row.k
    plain, by_modality, by_pool = (seen.hits(k, mask) for mask in (seen.there, right, own))
    lost = by_pool & ~plain
    short = ~plain & ~by_pool & (own.sum(axis=1) < k)
    first_wrong = ~seen.relevant[:, 0]
    other_modality = first_wrong & ~right[:, 0]
    other_domain = first_wrong & right[:, 0] & ~near[:, 0]
    return {
        "wanted": row.wanted,
        "queries": len(run.query_ids),
        "retrieved": {f"at_{n}": seen.retrieved(n) for n in (1, 5)},
        "wrong_first": {
            "queries": int(first_wrong.sum()),
            "modality": _part(other_modality, first_wrong),
            "domain": _part(other_domain, first_wrong),
            "other": _part(first_wrong & ~other_modality & ~other_domain, first_wrong),
        },
        "loss": {
            "metric": _headline(row).key,
            "hits": int(plain.sum()),
            "hits_in_own_pool": int(by_pool.sum()),
            "recovered_by_pool": int(lost.sum()),
            "recovered_by_modality": int((by_modality & ~plain).sum()),
            "recovered_by_both": int((lost & by_modality).sum()),
            "share_by_modality": _part(lost & by_modality, lost)["share"],
            "gained_by_union": int((plain & ~by_pool).sum()),
            "undecided": int(short.sum()) if run.rows.shape[1] < len(collection.pool) else 0,
        },
    }


def _part(some: npt.NDArray[np.bool_], all: npt.NDArray[np.bool_]) -> dict[str, float]:
    count, total = int(some.sum()), int(all.sum())
    return {"count": count, "share": count / total if total else 0.0}


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is known of every place of a run; only candidates that were retrieved are looked up."""

    relevant: npt.NDArray[np.bool_]
    """[Q, k]"""
    home: npt.NDArray[np.int8]
    """[Q, k] index of the task in whose pool it lies; len(ROWS): of no known data set; -1: no place"""
    modality: npt.NDArray[np.int8]
    """[Q, k] index in _MODALITIES"""

    @classmethod
    def of(cls, collection: Collection, run: Run) -> _Seen:
        rows, at = np.unique(run.rows, return_inverse=True)
        at = at.reshape(run.rows.shape)
        positives = [collection.positives(query) for query in run.query_ids]
        judged = {c for of_query in positives for c in of_query}
        candidates = collection.pool.sequence
        home, modality = np.full(len(rows), -1, np.int8), np.full(len(rows), -1, np.int8)
        place = {}
        for i, row in enumerate(rows.tolist()):
            if row >= 0:
                candidate = candidates[row]
                home[i], modality[i] = _facts(candidate)
                if candidate.id in judged:
                    place[candidate.id] = i
        relevant = np.zeros(at.shape, dtype=bool)
        for q, of_query in enumerate(positives):
            wanted = [place[c] for c in of_query if c in place]
            if wanted:
                relevant[q] = np.isin(at[q], wanted)
        return cls(relevant, home[at], modality[at])

    @property
    def there(self) -> npt.NDArray[np.bool_]:
        """Where a candidate stands at all: rankings of small pools are padded."""
        return np.asarray(self.home >= 0)

    def hits(self, k: int, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Whether a relevant candidate is among the first k of those kept, [Q]."""
        near = np.cumsum(kept, axis=1) <= k
        return np.asarray((self.relevant & kept & near).any(axis=1))

    def retrieved(self, n: int) -> dict[str, dict[str, float]]:
        first = self.modality[:, :n][self.there[:, :n]]
        every = np.ones(first.shape, dtype=bool)
        return {name: _part(first == code, every) for code, name in enumerate(_MODALITIES)}


_MODALITIES = ("text", "image", "image,text")


def _facts(candidate: Candidate) -> tuple[int, int]:
    """Home and modality. The home tells the modality: an empty text that a compat switch adds to a
    picture makes no pair of it."""
    home = _home(candidate)
    if home is None:
        return len(ROWS), _MODALITIES.index(modality(candidate.parts))
    return ROWS.index(home), _MODALITIES.index(home.wanted)


def _headline(row: Row) -> Metric:
    return Hit(row.k)


def _metrics(row: Row) -> tuple[Metric, ...]:
    every = (*map(Hit, CUTS), *map(Recall, CUTS), MRR(10), NDCG(10))
    return tuple(dict.fromkeys((_headline(row), *every)))


_TITLES = {
    "local": "own pool",
    "global": "union of all 16 pools",
    "heldout": "union of the five held-out pools",
}


def _task(row: Row, place: Place) -> Task:
    return Task(
        name=f"mbeir-{place}/{row.name}",
        title=f"M-BEIR {row.dataset} {row.arrow}, {_TITLES[place]}",
        load=partial(load, row, place),
        metrics=_metrics(row),
        needs=partial(needs, row, place),
        mini=mini,
        source="huggingface.co/datasets/TIGER-Lab/M-BEIR",
        licence="MIT (TIGER-Lab/M-BEIR); the pictures and texts under the licences of their data sets",
        derived_from=DERIVED_FROM.get(row.dataset, (row.dataset,)),
        verify=partial(verify, row, _pool_rows(row, place, "test")),
        analyse=None if place == "local" else partial(analyse, row),
        wordings=partial(wordings, row),
        rows=partial(rows, row, place),
    )


TASKS = (
    *(_task(row, "local") for row in ROWS),
    *(_task(row, "global") for row in ROWS),
    *(_task(BY_NAME[name], "heldout") for name in HELD_OUT),
)


def _column(place: Place, row: Row, group: str | None = None) -> Column:
    title = row.dataset if group is None else f"{row.dataset} {row.arrow}"
    return Column(title, group or row.arrow, (f"mbeir-{place}/{row.name}",))


SUITES = (
    Suite("mbeir-local", "M-BEIR, own pools", tuple(_column("local", row) for row in ROWS)),
    Suite("mbeir-global", "M-BEIR, union of all pools", tuple(_column("global", row) for row in ROWS)),
    Suite(
        "mbeir-heldout",
        "M-BEIR, the tasks that LamRA and U-MARVEL hold out",
        (
            *(_column("local", BY_NAME[name], "Own pool") for name in HELD_OUT),
            *(_column("heldout", BY_NAME[name], "Union of the five pools") for name in HELD_OUT),
        ),
    ),
    Suite(
        "mbeir-heldout-uniir",
        "M-BEIR, the data sets that UniIR holds out, union of all pools",
        tuple(_column("global", BY_NAME[name]) for name in HELD_OUT_UNIIR),
    ),
)
