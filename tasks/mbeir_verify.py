"""What is wrong with an M-BEIR tree: one line a fault, with its file and line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from harness.files import escapes, numbered_jsonl, read_jsonl
from harness.task import MINIATURE as MARKER
from harness.task import Protocol

from .mbeir_layout import (
    BY_NAME,
    DID_SPAN,
    IMAGES,
    INSTRUCTIONS,
    LINKED,
    QID_SPAN,
    ROOT,
    ROWS,
    SPLITS,
    TRAIN_ROWS,
    Row,
    kinds,
    need,
    number,
    read_instructions,
)

MINIATURE = ROOT / MARKER
"""Beside a miniature: its own counts, {task: {"queries": 8, "pool": 24, "qrels": 8, "outside": 0}}."""
SHOWN = 5
"""Faults of one kind in one file that are shown; the rest is counted."""

Fault = tuple[str, str]
"""A kind, and the line that tells it."""


@dataclass(frozen=True, slots=True)
class _Tree:
    """One task's part of a tree."""

    row: Row
    split: str
    data: Path
    root: Path
    """Where pictures' paths begin."""

    @property
    def queries(self) -> Path:
        return need(self.row.query_file(self.split)).require(self.data)

    @property
    def qrels(self) -> Path:
        return need(self.row.qrels_file(self.split)).require(self.data)

    @property
    def pool(self) -> Path:
        return need(self.row.pool_file(self.split)).require(self.data)

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The task's queries with their line numbers."""
        for line, record in numbered_jsonl(self.queries):
            if self.split != "train" or record.get("task_id") == self.row.task_id:
                yield line, record

    def judgements(self) -> Iterator[tuple[int, list[str]]]:
        """The lines of the qrels, in columns."""
        with self.qrels.open(encoding="utf-8") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, text.split()


def verify(row: Row, pools: Sequence[Row], data_root: Path, protocol: Protocol, deep: bool) -> Iterator[str]:
    """The faults of the task `row` scored in these pools. Shallow: missing files, counts of lines,
    instructions. Deep: every row, every picture, and how queries, qrels and pools agree.

    Positives of OVEN and InfoSeek in each other's pools are part of the data and no fault.
    """
    split = protocol.split or SPLITS[0]
    paths = [row.query_file(split), row.qrels_file(split), INSTRUCTIONS, IMAGES]
    paths += [TRAIN_ROWS] if split == "train" else []
    missing = [n for n in (need(p, media=p == IMAGES) for p in paths) if n.find(data_root) is None]
    missing += [
        n for n in dict.fromkeys(need(r.pool_file(split)) for r in pools) if n.find(data_root) is None
    ]
    for lacking in missing:
        yield f"{data_root / lacking.path} is missing: {lacking.source}"
    if missing:
        return
    tree = _Tree(row, split, data_root, need(ROOT).require(data_root))
    if len(pools) > 1:
        yield from _union(tree, pools, deep)
        return
    try:
        read_instructions(data_root, row)
    except HarnessError as error:
        yield str(error)
    if split == "test":
        yield from _counts(tree)
    if deep:
        yield from _shown(tree.queries, _queries(tree))
        if split != "train":
            yield from _shown(tree.pool, _candidates(tree))
        yield from _shown(tree.qrels, _qrels(tree))


def _shown(path: Path, faults: Iterable[Fault]) -> Iterator[str]:
    """The first few of each kind, then how many more; a line that stops the reading ends the list."""
    counts: dict[str, int] = {}
    try:
        for kind, line in faults:
            counts[kind] = counts.get(kind, 0) + 1
            if counts[kind] <= SHOWN:
                yield line
    except (HarnessError, UnicodeDecodeError) as error:
        yield f"{error}; what follows in {path.name} was not looked at"
    for kind, count in counts.items():
        if count > SHOWN:
            yield f"{path}: {count - SHOWN:,} more: {kind}"


def expected(data_root: Path) -> Mapping[str, Row]:
    """The counts that the tree should have: the published ones, or a miniature's own."""
    marker = need(MINIATURE).find(data_root)
    if marker is None:
        return BY_NAME
    own = json.loads(marker.read_text(encoding="utf-8"))
    return {name: replace(BY_NAME[name], **counts) for name, counts in own.items()}


def _counts(tree: _Tree) -> Iterator[str]:
    wanted = expected(tree.data)[tree.row.name]
    for path, count in (
        (tree.queries, wanted.queries),
        (tree.pool, wanted.pool),
        (tree.qrels, wanted.qrels),
    ):
        found = lines(path)
        if found != count:
            yield f"{path}: {found:,} rows, {count:,} expected"


def lines(path: Path) -> int:
    """How many lines a file has, remembered while it does not change."""
    stat = path.stat()
    return _lines(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _lines(path: Path, size: int, mtime: int) -> int:
    count, last = 0, b"\n"
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            count += chunk.count(b"\n")
            last = chunk[-1:]
    return count + (last != b"\n")


def _queries(tree: _Tree) -> Iterator[Fault]:
    row, path = tree.row, tree.queries
    seen: set[int] = set()
    for line, record in tree.records():
        place = f"{path}, line {line}"
        qid = _id(record.get("qid"), row, QID_SPAN)
        if qid is None:
            yield (
                "a qid out of form",
                f"{place}: qid {record.get('qid')!r} is not {row.dataset_id}:n, n < {QID_SPAN:,}",
            )
        elif qid in seen:
            yield "a repeated qid", f"{place}: qid {record['qid']!r} occurs twice"
        else:
            seen.add(qid)
        if record.get("task_id") != row.task_id:
            yield "a wrong task_id", f"{place}: task_id {record.get('task_id')!r}, not {row.task_id}"
        for name in ("pos_cand_list", "neg_cand_list"):
            value = record.get(name)
            if not (isinstance(value, list) and all(isinstance(did, str) for did in value)):
                yield f"{name} out of form", f"{place}: {name} is not a list of dids"
        yield from _content(tree, place, record, ("query_txt", "query_img_path", "query_modality"), row.asked)


def _candidates(tree: _Tree) -> Iterator[Fault]:
    row, path = tree.row, tree.pool
    seen: set[int] = set()
    for line, record in numbered_jsonl(path):
        place = f"{path}, line {line}"
        did = _id(record.get("did"), row, DID_SPAN)
        if did is None:
            yield (
                "a did out of form",
                f"{place}: did {record.get('did')!r} is not {row.dataset_id}:n, n < {DID_SPAN:,}",
            )
        elif did in seen:
            yield "a repeated did", f"{place}: did {record['did']!r} occurs twice"
        else:
            seen.add(did)
        yield from _content(tree, place, record, ("txt", "img_path", "modality"), row.wanted)


def _id(value: object, row: Row, span: int) -> int | None:
    """The integer of an id of this data set."""
    found = number(value, span) if isinstance(value, str) else None
    return found if found is not None and found // span == row.dataset_id else None


def _content(
    tree: _Tree, place: str, record: Mapping[str, Any], names: tuple[str, str, str], wanted: str
) -> Iterator[Fault]:
    """Text, picture and modality of a query or candidate, in the fields of these names."""
    text, image, modality = map(record.get, names)
    for name, value in zip(names, (text, image, modality), strict=True):
        if value is not None and not isinstance(value, str):
            yield f"{name} out of form", f"{place}: {name} is neither a string nor null: {value!r}"
            return
    there = {kind for kind, value in (("text", text), ("image", image)) if value}
    if "text" in kinds(modality) and text == "":
        there.add("text")
    if kinds(modality) != kinds(wanted):
        yield "a wrong modality", f"{place}: {names[2]} {modality!r}, not {wanted!r}"
    elif there != kinds(wanted):
        has = " and ".join(sorted(there)) or "nothing"
        yield "modality and content at odds", f"{place}: {names[2]} {modality!r}, but there is {has}"
    if image and escapes(image):
        yield "a picture outside", f"{place}: picture {image!r} lies outside the data root"
    elif image and not (tree.root / image).is_file():
        yield "a missing picture", f"{place}: picture {image} is missing"


def _qrels(tree: _Tree) -> Iterator[Fault]:
    row, path = tree.row, tree.qrels
    asked = {r["qid"]: (line, r.get("pos_cand_list")) for line, r in tree.records() if "qid" in r}
    every = asked if tree.split != "train" else {r.get("qid") for r in read_jsonl(tree.queries)}
    pool = set(dids(tree.pool).tolist())
    found: dict[str, set[str]] = {qid: set() for qid in asked}
    outside = 0
    for line, columns in tree.judgements():
        place = f"{path}, line {line}"
        if len(columns) != 5 or not columns[3].isdecimal():
            yield "a line out of form", f"{place}: not `qid 0 did 1 task_id`: {' '.join(columns)[:80]!r}"
            continue
        qid, _, did, _, task_id = columns
        if qid not in every:
            yield "an unknown query", f"{place}: query {qid!r} is not in {tree.queries.name}"
        if qid not in found:
            continue
        if task_id != str(row.task_id):
            yield "a wrong task_id", f"{place}: task_id {task_id!r}, not {row.task_id}"
        if did in found[qid]:
            yield "a repeated line", f"{place}: {qid} and {did} occur twice"
        found[qid].add(did)
        if number(did, DID_SPAN) not in pool:
            outside += 1
            if not _linked(row, did):
                yield "an unknown candidate", f"{place}: candidate {did!r} is not in {tree.pool.name}"
    yield from _agreement(tree, asked, found)
    wanted = expected(tree.data)[row.name].outside
    if tree.split == "test" and wanted is not None and outside != wanted:
        yield "positives outside", f"{path}: {outside:,} positives outside the own pool, {wanted:,} expected"


def _linked(row: Row, did: str) -> bool:
    """Whether a positive lies where the data set's positives also lie: OVEN and InfoSeek share them."""
    others = {r.dataset_id for r in ROWS if r.dataset in LINKED} - {row.dataset_id}
    value = number(did, DID_SPAN)
    return row.dataset in LINKED and value is not None and value // DID_SPAN in others


def _agreement(
    tree: _Tree, asked: Mapping[str, tuple[int, Any]], found: Mapping[str, set[str]]
) -> Iterator[Fault]:
    """The qrels decide; `pos_cand_list` should say the same."""
    for qid, (line, listed) in asked.items():
        place = f"{tree.queries}, line {line}"
        if not found[qid]:
            yield (
                "a query without qrels",
                f"{place}: query {qid!r} has no line in {tree.qrels.name}: it scores 0",
            )
        elif isinstance(listed, list) and set(map(str, listed)) != found[qid]:
            yield (
                "pos_cand_list and qrels at odds",
                f"{place}: pos_cand_list of {qid!r} and {tree.qrels.name} differ: the qrels count",
            )


def _union(tree: _Tree, pools: Sequence[Row], deep: bool) -> Iterator[str]:
    """What no single pool shows: the totals; ids in two pools; positives that are in none."""
    data, split = tree.data, tree.split
    trees = [replace(tree, row=other) for other in pools]
    if split == "test":
        wanted = [expected(data)[other.name] for other in pools]
        yield from _total("candidates", sum(lines(t.pool) for t in trees), sum(r.pool for r in wanted))
        if len(pools) == len(ROWS) and all(need(r.query_file(split)).find(data) for r in pools):
            yield from _total("queries", sum(lines(t.queries) for t in trees), sum(r.queries for r in wanted))
        if len(pools) == len(ROWS) and all(need(r.qrels_file(split)).find(data) for r in pools):
            yield from _total("qrels", sum(lines(t.qrels) for t in trees), sum(r.qrels for r in wanted))
    if deep:
        try:
            yield from _across(tree, trees)
        except HarnessError as error:
            yield str(error)


def _across(tree: _Tree, trees: Sequence[_Tree]) -> Iterator[str]:
    row = tree.row
    if tree.split != "train":
        for other in trees:
            same = other.row.dataset == row.dataset and other.row != row
            both = np.intersect1d(dids(tree.pool), dids(other.pool)) if same else ()
            if len(both):
                yield f"{len(both):,} dids are both in {tree.pool} and {other.pool.name}"
    every = np.concatenate([dids(path) for path in dict.fromkeys(t.pool for t in trees)])
    positives = [number(columns[2], DID_SPAN) for _, columns in tree.judgements() if len(columns) > 2]
    lost = ~np.isin([-1 if did is None else did for did in positives], every)
    if lost.any():
        yield f"{tree.qrels}: {int(lost.sum()):,} positives are in none of the {len(trees)} pools"


def _total(what: str, found: int, wanted: int) -> Iterator[str]:
    if found != wanted:
        yield f"{ROOT}: {found:,} {what} in all, {wanted:,} expected"


def dids(path: Path) -> npt.NDArray[np.int64]:
    """The integers of a pool's ids, [N]; remembered while the file does not change."""
    stat = path.stat()
    return _dids(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=32)
def _dids(path: Path, size: int, mtime: int) -> npt.NDArray[np.int64]:
    values = (number(str(record.get("did")), DID_SPAN) for record in read_jsonl(path))
    return np.array([value for value in values if value is not None], dtype=np.int64)
