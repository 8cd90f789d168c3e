"""Multi-turn FashionIQ: a garment found by a chain of garments, each with what to change about it.

One entry of `data/all.val.json`, abridged, and the query that it makes:

    {"target": ["http://…", "B005OJ922E"],
     "reference": [["http://…", ["less dull", "No sleeves"], "B00FPRL2AU"],
                   ["http://…", ["is white", ""], "B007G52O3S"]]}

    3   <B00FPRL2AU> "less dull and No sleeves" <B007G52O3S> "is white"  ->  B005OJ922E

The query's id is the entry's index. Empty captions are left out; a turn of empty captions alone shows
its picture only (the original adds an empty text, which changes nothing in what its models read).

The gallery is `image_splits/split.all.val.json`. Pictures of a query stay in its ranking. 17 ids are
listed twice and take two places there in LamRA's and U-MARVEL's code; here a repeat is dropped and
counted. Per category there are a file and a gallery of their own (Yuan and Lam 2021, arXiv 2106.04128);
both code bases score `all`.

Not held out for a model that saw FashionIQ's training set, such as those trained on M-BEIR: 1,756 of
the 2,400 queries end in a (reference, target) pair that is a FashionIQ *train* triplet, 1,730 of them
with the same caption.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from harness.collection import Collection, Pool
from harness.content import Image, Part, Text
from harness.errors import DataInvalid
from harness.metrics import Hit
from harness.records import Record, brief, checked_text, inside, read_json, read_records
from harness.task import MINIATURE, Fact, Hub, Need, Protocol, Task

from .miniature import described, picture, write
from .wording import Wording, Wordings, marked, worded

_SOURCE = (
    "take the folder multiturnfashion of code-kunkun/LamRA_Eval on Hugging Face, or data/ and image_splits/"
    " of github.com/yfyuan01/MultiturnFashionRetrieval at cc192e6"
)
_HUB = Hub("code-kunkun/LamRA_Eval", ("multiturnfashion/*", "multiturnfashion.*"))
_PICTURES = Need(
    Path("M-BEIR/mbeir_images/fashioniq_images"),
    "unpack mbeir_images of TIGER-Lab/M-BEIR on Hugging Face: its FashionIQ pictures serve here",
    media=True,
)

_INSTRUCTION = "Find me a similar fashion image based on the following multi-round modifications."
_ASKED = Wordings(Wording(_INSTRUCTION))
_PROFILES = {
    "default": _ASKED,
    "umarvel": _ASKED.reranked(Wordings(Wording(marked(_INSTRUCTION)))),
    "lamra": _ASKED,
}


def _needs(category: str, protocol: Protocol) -> tuple[Need, Need, Need]:
    folder = Path("multiturnfashion")
    return (
        Need(folder / f"data/{category}.val.json", _SOURCE, hub=_HUB),
        Need(folder / f"image_splits/split.{category}.val.json", _SOURCE, hub=_HUB),
        _PICTURES,
    )


def _load(category: str, data_root: Path, protocol: Protocol) -> Collection:
    name = f"multiturn-fashioniq/{category}"
    sides = worded(name, protocol, _PROFILES, splits=("val",))
    asked, listed, folder = (need.require(data_root) for need in _needs(category, protocol))
    pool = [
        sides.candidate.candidate(asin, (Image(inside(folder, f"{asin}.jpg", f"{listed}, entry {at}")),))
        for at, asin in enumerate(_gallery(listed))
    ]
    gallery = {candidate.id for candidate in pool}
    entries = dict(enumerate(read_records(asked)))
    return Collection(
        queries=[sides.query.query(str(at), _turns(entry, folder)) for at, entry in entries.items()],
        pool=Pool(name, pool),
        qrels={str(at): {_target(entry, gallery, listed): 1} for at, entry in entries.items()},
    )


def _gallery(path: Path) -> list[str]:
    asins = read_json(path)
    if not isinstance(asins, list):
        raise DataInvalid(f"{path}: a list of picture ids is wanted, not {brief(asins)}")
    return [checked_text(asin, f"{path}, entry {at}") for at, asin in enumerate(asins)]


def _target(entry: Record, gallery: Container[str], listed: Path) -> str:
    match entry.values("target"):
        case [_, str(asin)] if asin in gallery:
            return asin
        case [_, str(asin)]:
            raise entry.fault(f"target {asin!r} is not in the gallery {listed}")
        case other:
            raise entry.fault(f"target must be [url, id], not {brief(other)}")


def _turns(entry: Record, folder: Path) -> list[Part]:
    """Per turn the reference's picture and what to change about it."""
    parts: list[Part] = []
    for at, turn in enumerate(entry.values("reference")):
        match turn:
            case [_, [*captions], str(asin)] if asin and all(isinstance(c, str) for c in captions):
                parts.append(Image(inside(folder, f"{asin}.jpg", f"{entry.place}: reference[{at}]")))
                if text := " and ".join(filter(None, captions)):
                    parts.append(Text(text))
            case _:
                raise entry.fault(f"reference[{at}] must be [url, [captions], id], not {brief(turn)}")
    if not parts:
        raise entry.fault("reference is empty: a query needs a turn")
    return parts


_MINI: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "dress": ((0, 1, 2), (3, 4, 5, 6), (7, 0, 8), (9, 10, 1), (2, 4, 6, 8, 5)),
    "shirt": ((20, 21, 22), (23, 24, 25, 26), (27, 20, 22), (28, 24, 29)),
    "toptee": ((40, 41, 42), (43, 44, 45), (46, 47, 48, 49), (44, 42, 40)),
}
"""Category → chains of pictures by number, each ending in its target; 22 is the target of two."""
_MINI_CAPTIONS = {
    ("dress", 0, 0): ["is longer", ""],
    ("shirt", 1, 0): ["", ""],
    ("toptee", 2, 1): [" has no sleeves", "is the same"],
}
"""(category, query, turn) → captions that do not name the next picture."""


def _mini(folder: Path) -> None:
    """13 chains of two to four turns in three categories; two galleries share two ids, a target one."""
    mbeir, own = folder / "M-BEIR", folder / "multiturnfashion"
    if mbeir.exists() and not any((place / MINIATURE).exists() for place in (mbeir, own)):
        raise DataInvalid(f"{mbeir} is there and no miniature: choose another folder")
    queries = {
        category: [_mini_entry(category, at, chain) for at, chain in enumerate(chains)]
        for category, chains in _MINI.items()
    }
    shown = {c: sorted({n for chain in chains for n in chain}) for c, chains in _MINI.items()}
    others = {"dress": [11, 12], "shirt": [30, 31], "toptee": [22, 30, 50]}
    galleries = {c: [_mini_asin(n) for n in (*shown[c][::-1], *others[c])] for c in _MINI}
    # The original's `all` is the three files one after another, and so is its gallery.
    queries["all"] = [entry for entries in queries.values() for entry in entries]
    galleries["all"] = [asin for asins in galleries.values() for asin in asins]
    pictures = {
        f"../{_PICTURES.path.as_posix()}/{_mini_asin(n)}.jpg": picture(n, variant=n)
        for n in sorted({n for numbers in (*shown.values(), *others.values()) for n in numbers})
    }
    files: dict[str, Any] = {f"data/{c}.val.json": entries for c, entries in queries.items()}
    splits = {f"image_splits/split.{c}.val.json": asins for c, asins in galleries.items()}
    write(own, files | splits | pictures)


def _mini_entry(category: str, at: int, chain: tuple[int, ...]) -> dict[str, Any]:
    pictures = [(f"http://example.org/{n}.jpg", _mini_asin(n)) for n in chain]
    reference = []
    for turn, (url, asin) in enumerate(pictures[:-1]):
        true = [f"shows {described(chain[turn + 1])}", "has another pattern"]
        reference.append([url, _MINI_CAPTIONS.get((category, at, turn), true), asin])
    return {"target": pictures[-1], "reference": reference}


def _mini_asin(n: int) -> str:
    return f"B00MINI{n:03}"


_FACTS = {
    "all": (Fact("queries", 2400, "V"), Fact("candidates", 6257, "V"), Fact("repeats_dropped", 17, "V")),
    "dress": (Fact("queries", 1000, "V"),),
    "shirt": (Fact("queries", 681, "V"),),
    "toptee": (Fact("queries", 719, "V"),),
}

TASKS = tuple(
    Task(
        name=f"multiturn-fashioniq/{category}",
        title=f"Multi-turn FashionIQ ({category}): pictures with changes → picture",
        load=partial(_load, category),
        metrics=(Hit(5), Hit(1), Hit(8), Hit(10)),
        needs=partial(_needs, category),
        mini=_mini,
        source="Yuan and Lam 2021 (arXiv 2106.04128), github.com/yfyuan01/MultiturnFashionRetrieval",
        licence="none stated; pictures are Amazon's",
        derived_from=("FashionIQ",),
        facts=facts,
    )
    for category, facts in _FACTS.items()
)
