"""CC-Neg: a picture of CC3M, its caption, and the caption with something in it denied.

`ccneg/ccneg.jsonl`, made by `harness data convert ccneg` of the original `ccneg_preprocessed.pt`:

    {"image": "cc3m_subset_images_extracted_final/000012.jpg",
     "caption": "two red rings, on a wall", "negative": "a wall, but with no red rings"}

from which come picture 188246 (its line, counted from 0) and the captions "188246:right" and
"188246:wrong", "a wall but with no red rings": commas are taken out of the wrong caption only, as CoN-CLIP
does. The last 40,000 of the 228,246 entries are the evaluation set; CoN-CLIP trains on the others.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.collection import Collection
from harness.errors import DataInvalid
from harness.files import escapes, numbered_jsonl, write_atomic
from harness.records import Record, as_record, brief, checked_text
from harness.task import Fact, Hub, Need, Protocol, Task
from harness.unpickle import read_pickle

from . import miniature, pairs
from .wording import Wordings, worded

_NAME = "ccneg/right-caption"
_EVALUATED = 40_000
_PREFIX = "/workspace/datasets/cc3m/"
"""Where the pictures lay on the machine that wrote the original: it stands before their names."""

_FOLDER = Path("ccneg")
_CONVERTED = "ccneg.jsonl"
_HUB = Hub("code-kunkun/LamRA_Eval", ("ccneg/*", "ccneg.*"))
_WHERE = "links in ccneg_dataset/README.md of github.com/jaisidhsingh/CoN-CLIP"
_ORIGINAL = Need(_FOLDER / "ccneg_preprocessed.pt", f"get it by the {_WHERE}", hub=_HUB)
_ROWS = Need(
    _FOLDER / _CONVERTED,
    f"put ccneg_preprocessed.pt ({_WHERE}) there; then: harness data convert ccneg",
    hub=_HUB,
)
_PICTURES = Need(
    _FOLDER / "cc3m_subset_images_extracted_final",
    f"unpack ccneg_images.tar.gz ({_WHERE})",
    media=True,
    hub=_HUB,
)

_BARE = Wordings()
_PROFILES = {
    "default": pairs.DEFAULT,
    "umarvel": _BARE.reranked(pairs.MARKED),
    "lamra": _BARE.reranked(pairs.DEFAULT),
}


def _needs(protocol: Protocol) -> tuple[Need, ...]:
    return (_ROWS, _PICTURES)


def _load(data_root: Path, protocol: Protocol) -> Collection:
    wordings = worded(_NAME, protocol, _PROFILES)
    file = _ROWS.require(data_root)
    _PICTURES.require(data_root)
    last = deque(enumerate(numbered_jsonl(file)), maxlen=_EVALUATED)
    found = (_pair(at, Record(f"{file}, line {line}", row), file.parent) for at, (line, row) in last)
    return pairs.collection(_NAME, found, wordings)


def _pair(at: int, row: Record, folder: Path) -> pairs.Pair:
    wrong = checked_text(row.text("negative").replace(",", ""), f"{row.place}: negative without commas")
    return pairs.Pair(str(at), row.file("image", folder), row.text("caption"), wrong)


def _convert(data_root: Path) -> Iterator[str]:
    original = _ORIGINAL.require(data_root)
    rows = _original_rows(original)
    file = original.parent / _CONVERTED
    write_atomic(file, lambda out: out.writelines(json.dumps(row).encode() + b"\n" for row in rows))
    yield f"wrote {file}: {len(rows):,} captions, each with its negative"


def _original_rows(original: Path) -> list[dict[str, str]]:
    """The entries of two lists in step: `image_paths` and `annotations`."""
    pictures: list[str] = []
    captions: list[tuple[str, str]] = []
    for key, at, value in read_pickle(original):
        if key in ("image_paths", "annotations") and at is None:
            raise DataInvalid(f"{original}: {key} must be a list of entries, not {brief(value)}")
        if key == "image_paths":
            pictures.append(_relative(value, f"{original}, entry {at}: image_paths"))
        elif key == "annotations":
            captions.append(_captions(as_record(value, f"{original}, entry {at}: annotations")))
    for key, found in (("image_paths", pictures), ("annotations", captions)):
        if not found:
            raise DataInvalid(f"{original}: no list {key!r} in it")
    if len(pictures) != len(captions):
        short = min(len(pictures), len(captions))
        raise DataInvalid(
            f"{original}, entry {short}: {len(pictures):,} image_paths, but {len(captions):,} annotations"
        )
    return [
        {"image": picture, "caption": caption, "negative": negative}
        for picture, (caption, negative) in zip(pictures, captions, strict=True)
    ]


def _relative(path: Any, place: str) -> str:
    name = checked_text(path, place).removeprefix(_PREFIX)
    if escapes(name):
        raise DataInvalid(f"{place} {path!r} lies neither in {_PREFIX} nor in the folder of the data")
    return name


def _captions(entry: Record) -> tuple[str, str]:
    return _string(entry.record("json"), "caption"), _string(entry.record("sop_data"), "negative-prompt")


def _string(record: Record, name: str) -> str:
    # Blank ones, too: only those of the evaluation set must say something, which is seen when it is loaded.
    value = record.get(name)
    if not isinstance(value, str):
        raise record.fault(f"{name} must be a text, not {brief(value)}")
    return value


def _mini(folder: Path) -> None:
    """Eight entries as the original has them and as they are converted; two share a picture."""
    rows = list(_mini_rows())
    pictures = {
        row["image"]: miniature.picture(concept) for concept, row in zip(_MINI_CONCEPTS, rows, strict=True)
    }
    original = {
        "image_paths": [_PREFIX + row["image"] for row in rows],
        "annotations": [
            {
                "json": {"caption": row["caption"], "key": f"{i:09d}", "status": "success", "width": 48},
                "sop_data": {
                    "sop_decomposition": {"subject": None, "predicate": ["is"], "object": ["there"]},
                    "negative-prompt": row["negative"],
                },
            }
            for i, row in enumerate(rows)
        ],
        "num_ops": {1: list(range(len(rows)))},
    }
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    files = {**pictures, _ORIGINAL.path.name: _as_torch_saves(original), _CONVERTED: lines}
    miniature.write(folder / _FOLDER, files)


_MINI_CONCEPTS = (3, 14, 14, 25, 36, 47, 58, 69)


def _mini_rows() -> Iterator[dict[str, str]]:
    for i, concept in enumerate(_MINI_CONCEPTS):
        shown, place = miniature.described(concept), miniature.PLACES[i]
        yield {
            "image": f"{_PICTURES.path.name}/{concept:06d}.jpg",
            "caption": f"{shown}, {place}",
            "negative": f"a picture {place}, but no {shown.split()[-1]}, not one",
        }


def _as_torch_saves(content: Any) -> bytes:
    """A file of `torch.save`: a zip whose entries are stored as they are."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        parts = {"data.pkl": miniature.pickled(content), "byteorder": b"little", "version": b"3\n"}
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), part)
    return out.getvalue()


TASKS = (
    Task(
        name=_NAME,
        title="CC-Neg: picture → its caption, not the negated one",
        load=_load,
        metrics=pairs.METRICS,
        needs=_needs,
        mini=_mini,
        source="CC-Neg (Singh et al. 2024, arXiv 2403.20312), github.com/jaisidhsingh/CoN-CLIP",
        licence="MIT (repository); pictures and captions: terms of CC3M",
        derived_from=("CC3M",),
        facts=(Fact("queries", _EVALUATED, "V"), Fact("candidates", 2 * _EVALUATED, "V")),
        convert=_convert,
    ),
)
