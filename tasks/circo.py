"""CIRCO: a picture and a change in words ask for the pictures of COCO's unlabeled set that show it changed.

One entry of annotations/val.json (220; test.json has 800, without target, ground truths and aspects):

    {"reference_img_id": 85932, "relative_caption": "is held by a little girl on a chair",
     "shared_concept": "a teddy bear", "target_img_id": 9761, "gt_img_ids": [9761, 489535, 57541],
     "id": 13, "semantic_aspects": ["spatial_relations_background", "direct_addressing"]}

    picture 85932 + "is held by a little girl on a chair"  ->  grade 2: 9761; grade 1: 489535, 57541

The pool is every picture of image_info_unlabeled2017.json, the reference among them, as in the official
code. mAP counts all ground truths, hit(rel=2) the target alone: the official "Recall@k". Each semantic
aspect is a group (official: its mAP@10). The truth of the test split is on the authors' server: a run of
`circo/test` becomes a submission (plugins/circo_submission.py).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness.collection import Collection, Pool, Qrels
from harness.content import Image, Query, Text
from harness.metrics import MAP, Hit
from harness.records import Record, as_record, read_json, read_records
from harness.task import Fact, Need, Protocol, Task

from .miniature import CONCEPTS, described, picture, write
from .wording import Wording, Wordings, marked, worded

_GITHUB = "from github.com/miccunifi/CIRCO"
_COCO = "from cocodataset.org, 2017 Unlabeled images"
_GALLERY = Need(
    Path("circo/annotations/image_info_unlabeled2017.json"),
    f"image_info_unlabeled2017.zip {_COCO}: unpack it there",
)
_PICTURES = Need(
    Path("circo/images/unlabeled2017"), f"unlabeled2017.zip {_COCO}: unpack it in circo/images", media=True
)
_ANNOTATIONS = {
    split: Need(Path(f"circo/annotations/{split}.json"), f"annotations/{split}.json {_GITHUB}")
    for split in ("val", "test")
}

SHARED_CONCEPT = "circo-shared-concept"
"""The compat switch for what MagicLens and MegaPairs show: the shared concept beside the caption."""

# M-BEIR's wording for CIRR, which LamRA and U-MARVEL use here too.
_ASKED = Wordings(Wording("I'm looking for a similar everyday image with the described changes."))
# Their rerankers are shown it without its full stop.
_RERANKED = "I'm looking for a similar everyday image with the described changes"
_PROFILES = {
    "default": _ASKED,
    "umarvel": _ASKED.reranked(Wordings(Wording(marked(_RERANKED)))),
    "lamra": _ASKED.reranked(Wordings(Wording(_RERANKED))),
}


def _needs(split: str, protocol: Protocol) -> tuple[Need, ...]:
    return (_ANNOTATIONS[split], _GALLERY, _PICTURES)


def _load(split: str, data_root: Path, protocol: Protocol) -> Collection:
    wording = worded(f"circo/{split}", protocol, _PROFILES, splits=(split,), compat=(SHARED_CONCEPT,))
    folder = _PICTURES.require(data_root)
    listed = _listed(_GALLERY.require(data_root))
    gallery = {id: Image(folder / f"{id:012d}.jpg") for id in listed}
    queries: dict[str, Query] = {}
    qrels: dict[str, dict[str, int]] = {}
    aspects: defaultdict[str, list[str]] = defaultdict(list)
    for record in read_records(_ANNOTATIONS[split].require(data_root)):
        id = str(record.integer("id"))
        if id in queries:
            raise record.fault(f"query id {id} is there twice")
        reference = record.integer("reference_img_id")
        _require_listed(gallery, record, "reference_img_id", [reference])
        queries[id] = wording.query.query(id, (gallery[reference], Text(_text(record, protocol))))
        if split == "val":
            qrels[id] = _truth(gallery, record)
            for aspect in record.texts("semantic_aspects"):
                aspects[aspect].append(id)
    return Collection(
        queries=list(queries.values()),
        pool=Pool("circo", [wording.candidate.candidate(str(id), (gallery[id],)) for id in listed]),
        qrels=qrels if split == "val" else None,
        groups=dict(aspects),
    )


def _listed(path: Path) -> list[int]:
    """The ids of the pictures that can be found, in the order of the file."""
    return [image.integer("id") for image in as_record(read_json(path), str(path)).records("images")]


def _require_listed(gallery: Mapping[int, Image], record: Record, field: str, ids: Sequence[int]) -> None:
    for id in ids:
        if id not in gallery:
            raise record.fault(f"{field} {id} is not among the pictures of {_GALLERY.path.name}")


def _text(record: Record, protocol: Protocol) -> str:
    change = record.text("relative_caption")
    if SHARED_CONCEPT in protocol.compat:
        return f"Find a picture that also {record.text('shared_concept')}, but {change}"
    return change


def _truth(gallery: Mapping[int, Image], record: Record) -> dict[str, int]:
    """Grade 2 for the target, which the caption was written for, 1 for the other ground truths."""
    target, found = record.integer("target_img_id"), record.integers("gt_img_ids")
    if target not in found:
        raise record.fault(f"target_img_id {target} is not among its gt_img_ids")
    _require_listed(gallery, record, "gt_img_ids", found)
    return {str(id): 1 + (id == target) for id in found}


_MINI = {
    "val": (
        ("one red circle", "two red circles", 3, "shows two of them", ["cardinality"]),
        ("two green squares", "two blue squares", 2, "are blue instead of green", ["compare_change"]),
        ("three red rings", "one red ring", 1, "shows no other ones", ["cardinality", "negation"]),
        ("one yellow triangle", "one black triangle", 7, "is much darker", ["comparative_statement"]),
        ("three purple rings", "three black squares", 4, "are filled", ["direct_addressing"]),
        ("three black squares", "two red circles", 2, "are round", ["cardinality", "compare_change"]),
        ("one blue ring", "one blue triangle", 1, "is a triangle", ["compare_change"]),
    ),
    "test": (
        ("one red circle", "three red circles", 3, "shows three of them", []),
        ("two yellow rings", "two yellow squares", 1, "are squares", []),
        ("three green triangles", "one green triangle", 2, "is the only one", []),
        ("one black ring", "one purple ring", 6, "is purple", []),
        ("two blue circles", "three blue squares", 1, "are squares and one more", []),
        ("one red triangle", "one red ring", 1, "is round and hollow", []),
    ),
}
"""Reference, target, number of ground truths, relative caption, semantic aspects (none: hidden truth).

Some pictures answer two queries, one is asked about as well as asked for: so it is in the real data.
"""


def _drawings() -> dict[str, list[int]]:
    """What a picture shows → the ids of all that show it; ids are in no order, as COCO's are."""
    wanted = {described(concept): 1 for concept in range(CONCEPTS)}
    for _, target, count, *_ in (*_MINI["val"], *_MINI["test"]):
        wanted[target] = max(wanted[target], count)
    ids = iter(random.Random(2017).sample(range(1, 600_000), sum(wanted.values())))
    return {name: [next(ids) for _ in range(count)] for name, count in wanted.items()}


def _mini(folder: Path) -> None:
    """13 queries on 92 drawn pictures: more than any cut-off."""
    ids = _drawings()
    files: dict[str, Any] = {
        f"images/unlabeled2017/{id:012d}.jpg": picture(concept, variant=5 * variant)
        for concept, name in enumerate(ids)
        for variant, id in enumerate(ids[name])
    }
    images = [{"file_name": Path(file).name, "id": int(Path(file).stem)} for file in files]
    files["annotations/image_info_unlabeled2017.json"] = {"info": {}, "licenses": [], "images": images}
    for split, rows in _MINI.items():
        files[f"annotations/{split}.json"] = [_entry(ids, id, *row) for id, row in enumerate(rows)]
    write(folder / "circo", files)


def _entry(
    ids: Mapping[str, Sequence[int]],
    id: int,
    reference: str,
    target: str,
    count: int,
    change: str,
    aspects: Sequence[str],
) -> dict[str, Any]:
    asked = {
        "reference_img_id": ids[reference][0],
        "relative_caption": change,
        "shared_concept": f"shows {reference.split()[-1]} on a bright ground",
        "id": id,
    }
    truth = {"target_img_id": ids[target][0], "gt_img_ids": ids[target][:count], "semantic_aspects": aspects}
    return asked | truth if aspects else asked


def _mini_with_truth(folder: Path) -> Qrels:
    _mini(folder)
    ids = _drawings()
    return {
        str(query): {str(id): 1 + (id == ids[target][0]) for id in ids[target][:count]}
        for query, (_, target, count, *_) in enumerate(_MINI["test"])
    }


_METRICS = (
    *(MAP(k) for k in (5, 10, 25, 50)),
    *(Hit(k, rel=2) for k in (5, 10, 25, 50)),
    Hit(1),
)


def _task(split: str, queries: int, mini: Callable[[Path], Qrels | None]) -> Task:
    return Task(
        name=f"circo/{split}",
        title=f"CIRCO {split}: picture and change → picture",
        load=partial(_load, split),
        metrics=_METRICS,
        needs=partial(_needs, split),
        mini=mini,
        source="CIRCO, Baldrati et al. 2023, github.com/miccunifi/CIRCO; pictures: COCO 2017 unlabeled",
        licence="CC BY-NC 4.0; pictures under their Flickr licences",
        derived_from=("COCO unlabeled2017",),
        facts=(Fact("queries", queries, "V"), Fact("candidates", 123_403, "L")),
    )


TASKS = (_task("val", 220, _mini), _task("test", 800, _mini_with_truth))
