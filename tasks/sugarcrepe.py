"""SugarCrepe: a picture of COCO, its caption, and the caption with one thing added, replaced or swapped.

`sugar-crepe/data/swap_obj.json`, one file for each of the seven ways to be wrong:

    {"0": {"filename": "000000222235.jpg",
           "caption": "two red rings and no blue square",
           "negative_caption": "two blue squares and no red ring"}, …}

from which come picture 0 and the captions "0:right" and "0:wrong". The 7,511 rows show 1,560 pictures of
val2017. Texts stay as they are: 1,074 rows have white space at an end, 1,384 a full stop on one side only.
Row 108 of swap_obj is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from harness.collection import Collection
from harness.records import Record, as_record, read_json
from harness.task import Fact, Hub, Need, Protocol, Task

from . import miniature, pairs
from .wording import Wording, Wordings, worded

_FOLDER = Path("sugar-crepe")
_HUB = Hub("code-kunkun/LamRA_Eval", ("sugar-crepe/*", "sugar-crepe.*"))
_PICTURES = Need(
    _FOLDER / "images/val2017",
    "COCO val2017: unpack images.cocodataset.org/zips/val2017.zip in sugar-crepe/images",
    media=True,
    hub=_HUB,
)

SUBSETS = {
    "add_att": (692, "an attribute added"),
    "add_obj": (2062, "an object added"),
    "replace_att": (788, "an attribute replaced"),
    "replace_obj": (1652, "an object replaced"),
    "replace_rel": (1406, "a relation replaced"),
    "swap_att": (666, "two attributes swapped"),
    "swap_obj": (245, "two objects swapped"),
}
"""Name → rows, and what is wrong with the wrong caption."""

_BARE = Wordings()
_UMARVEL = Wordings(Wording("Find an image caption describing the following image.", separator=""))
_ASKED_BY_UMARVEL = ("add_att", "add_obj", "replace_att", "replace_obj")
"""U-MARVEL's embedder has an instruction for these four and none for the other three."""


def _rows(subset: str) -> Need:
    return Need(
        _FOLDER / f"data/{subset}.json",
        "data/ of github.com/RAIVNLab/sugar-crepe, put in sugar-crepe",
        hub=_HUB,
    )


def _needs(subset: str, protocol: Protocol) -> tuple[Need, ...]:
    return (_rows(subset), _PICTURES)


def _load(subset: str, data_root: Path, protocol: Protocol) -> Collection:
    name = f"sugarcrepe/{subset}"
    umarvel = _UMARVEL if subset in _ASKED_BY_UMARVEL else _BARE
    profiles = {
        "default": pairs.DEFAULT,
        "umarvel": umarvel.reranked(pairs.MARKED),
        "lamra": _BARE.reranked(pairs.DEFAULT),
    }
    wordings = worded(name, protocol, profiles)
    file, pictures = _rows(subset).require(data_root), _PICTURES.require(data_root)
    rows = as_record(read_json(file), str(file)).fields
    found = (_pair(key, as_record(row, f"{file}, entry {key}"), pictures) for key, row in rows.items())
    return pairs.collection(name, found, wordings)


def _pair(key: str, row: Record, pictures: Path) -> pairs.Pair:
    right, wrong = row.text("caption"), row.text("negative_caption")
    if right == wrong:
        raise row.fault(f"caption and negative_caption are both {right!r}")
    return pairs.Pair(key, row.file("filename", pictures), right, wrong)


def _mini(folder: Path) -> None:
    """Seven rows in every subset, of six pictures; white space, one-sided full stops, a missing key 2."""
    files: dict[str, Any] = {
        f"images/val2017/{_file(concept)}": miniature.picture(concept) for concept in _MINI_CONCEPTS
    }
    for subset in SUBSETS:
        keys = (0, 1, 3, 4, 5, 6, 7) if subset == "swap_obj" else range(7)
        files[f"data/{subset}.json"] = {
            str(key): {"filename": _file(concept), "caption": right, "negative_caption": wrong}
            for key, (concept, right, wrong) in zip(keys, _mini_rows(subset), strict=True)
        }
    miniature.write(folder / _FOLDER, files)


_MINI_CONCEPTS = (7, 20, 31, 44, 50, 65, 7)


def _file(concept: int) -> str:
    return f"{concept * 7919:012d}.jpg"


def _mini_rows(subset: str) -> Iterator[tuple[int, str, str]]:
    """Concepts with a caption that is true of each and one that is not."""
    for i, concept in enumerate(_MINI_CONCEPTS):
        shown, absent = miniature.described(concept), miniature.described(_MINI_CONCEPTS[(i + 1) % 6])
        number, colour, shape = shown.split()
        right, wrong = {
            "add_att": (shown, f"{number} striped {colour} {shape}"),
            "add_obj": (shown, f"{shown} and {absent}"),
            "replace_att": (shown, f"{number} white {shape}"),
            "replace_obj": (shown, f"{number} {colour} trees"),
            "replace_rel": (f"{shown} on a pale ground", f"{shown} behind a pale ground"),
            "swap_att": (f"{shown} and nothing white", f"{number} white {shape} and nothing {colour}"),
            "swap_obj": (f"{shown} and not {absent}", f"{absent} and not {shown}"),
        }[subset]
        oddity = {1: "{}.", 3: " {}\n", 6: "a drawing of {}"}.get(i, "{}")
        yield concept, oddity.format(right), oddity.format(wrong) if i == 6 else wrong


def _task(subset: str, rows: int, title: str) -> Task:
    return Task(
        name=f"sugarcrepe/{subset}",
        title=f"SugarCrepe: picture → its caption, not the one with {title}",
        load=partial(_load, subset),
        metrics=pairs.METRICS,
        needs=partial(_needs, subset),
        mini=_mini,
        source="SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610), github.com/RAIVNLab/sugar-crepe",
        licence="MIT; captions of COCO: CC BY 4.0; pictures: each its own",
        derived_from=("COCO val2017",),
        facts=(Fact("queries", rows, "V"), Fact("candidates", 2 * rows, "V")),
    )


TASKS = tuple(_task(subset, rows, title) for subset, (rows, title) in SUBSETS.items())
