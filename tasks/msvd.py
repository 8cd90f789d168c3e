"""MSVD: captions of short YouTube clips, about forty for each.

`MSVD/test_list.txt` has a clip's id in each line, the clip is `MSVD/YouTubeClips/{id}.avi`, and
`MSVD/raw-captions.jsonl` is made by `harness data convert msvd` of the original `raw-captions.pkl`:

    {"id": "-4wsuPCjDBc_5_15", "captions": ["a squirrel is eating a peanut in its shell", …]}

from which come, where the clip is listed, the queries "-4wsuPCjDBc_5_15:0" and so on, one a caption. A
clip can have a caption twice, and clips share some: such a query is for one of them. MTEB has 660 of the
670 clips, and the first caption of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from harness.collection import Collection
from harness.content import Video
from harness.errors import DataInvalid
from harness.files import numbered_jsonl, write_atomic
from harness.records import Record, brief
from harness.task import Fact, Hub, Need, Protocol, Task
from harness.unpickle import read_pickle

from . import miniature
from .text_to_video import METRICS, Caption, checked_id, collection, profiles, text_of
from .wording import Wording, worded

_NAME = "msvd/text-to-video"
_PROFILES = profiles(Wording(frames=12), reranked=Wording(frames=8))

_FOLDER = Path("MSVD")
_CONVERTED = "raw-captions.jsonl"
_HUB = Hub("code-kunkun/LamRA_Eval", ("MSVD/*", "MSVD.*"))
_WHERE = "msvd_data.zip, github.com/ArrowLuo/CLIP4Clip/releases/tag/v0.0"
_ORIGINAL = Need(_FOLDER / "raw-captions.pkl", f"get it from {_WHERE}", hub=_HUB)
_LIST = Need(_FOLDER / "test_list.txt", f"get it from {_WHERE}", hub=_HUB)
_CAPTIONS = Need(
    _FOLDER / _CONVERTED,
    f"put raw-captions.pkl ({_WHERE}) there; then: harness data convert msvd",
    hub=_HUB,
)
_CLIPS = Need(
    _FOLDER / "YouTubeClips",
    "unpack www.cs.utexas.edu/users/ml/clamp/videoDescription/YouTubeClips.tar in MSVD",
    media=True,
    hub=_HUB,
)


def _needs(protocol: Protocol) -> tuple[Need, ...]:
    return (_LIST, _CAPTIONS, _CLIPS)


def _load(data_root: Path, protocol: Protocol) -> Collection:
    wordings = worded(_NAME, protocol, _PROFILES)
    file, folder = _CAPTIONS.require(data_root), _CLIPS.require(data_root)
    listed = _listed(_LIST.require(data_root))
    said = _said(file, frozenset(listed))
    for id, place in listed.items():
        if not said.get(id):
            raise DataInvalid(f"{place}: clip {id!r} has no captions in {file}")
    clips = {id: Video(folder / f"{id}.avi") for id in listed}
    captions = (Caption(f"{id}:{n}", id, text) for id in listed for n, text in enumerate(said[id]))
    return collection(_NAME, clips, captions, wordings)


def _listed(file: Path) -> dict[str, str]:
    """The ids of the test clips, and where each stands."""
    found: dict[str, str] = {}
    for number, line in enumerate(text_of(file).split("\n"), 1):
        place = f"{file}, line {number}"
        if id := checked_id(line.strip(), place):
            if id in found:
                raise DataInvalid(f"{place}: clip {id!r} stands there twice")
            found[id] = place
    if not found:
        raise DataInvalid(f"{file} lists no clip")
    return found


def _said(file: Path, wanted: frozenset[str]) -> dict[str, list[str]]:
    """The captions of the wanted clips."""
    found: dict[str, list[str]] = {}
    for number, fields in numbered_jsonl(file):
        row = Record(f"{file}, line {number}", fields)
        id = row.text("id")
        if id in found:
            raise row.fault(f"clip {id!r} stands there twice")
        if id in wanted:
            found[id] = row.texts("captions")
    return found


def _convert(data_root: Path) -> Iterator[str]:
    original = _ORIGINAL.require(data_root)
    captions = _original_captions(original)
    file = original.parent / _CONVERTED
    rows = ({"id": id, "captions": texts} for id, texts in captions.items())
    write_atomic(file, lambda out: out.writelines(json.dumps(row).encode() + b"\n" for row in rows))
    yield f"wrote {file}: {len(captions):,} clips, {sum(map(len, captions.values())):,} captions"


def _original_captions(original: Path) -> dict[str, list[str]]:
    """Clip → captions, which are lists of words in the original."""
    found: dict[str, list[str]] = {}
    for id, at, words in read_pickle(original):
        place = f"{original}, entry {id!r}"
        if not id:
            raise DataInvalid(f"{original}: a dict of clips is wanted")
        mine = found.setdefault(id, [])
        if at is None and words == []:
            continue
        if at is None:
            raise DataInvalid(f"{place}: a list of captions is wanted, not {brief(words)}")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataInvalid(f"{place}: caption {at} must be a list of words, not {brief(words)}")
        mine.append(" ".join(words))
    return found


_MINI_CLIPS = {"-4wsuPCjDBc_5_15": 5, "00jrXRMlZOY_0_10": 22, "zulPFoY64wE_26_33": 38, "Je3V7U5Ctj4_1_9": 61}
"""Id → concept; the first three are listed, in another order."""


def _mini(folder: Path) -> None:
    """Four clips, three of them listed; a caption that one clip has twice, and one that two clips share."""
    captions = {id: list(_mini_captions(concept)) for id, concept in _MINI_CLIPS.items()}
    words = {id: [text.split() for text in texts] for id, texts in captions.items()}
    rows = "".join(json.dumps({"id": id, "captions": texts}) + "\n" for id, texts in captions.items())
    listed = [*islice(_MINI_CLIPS, 3)][::-1]
    clips = {
        f"YouTubeClips/{id}.avi": miniature.clip(concept, suffix=".avi")
        for id, concept in _MINI_CLIPS.items()
    }
    miniature.write(
        folder / _FOLDER,
        {
            **clips,
            "test_list.txt": "".join(f"{id}\n" for id in listed),
            _ORIGINAL.path.name: miniature.pickled(words, python2=True),
            _CONVERTED: rows,
        },
    )


def _mini_captions(concept: int) -> Iterator[str]:
    shown = miniature.described(concept)
    yield f"{shown} move to the right"
    yield f"a clip of {shown}"
    yield f"a clip of {shown}" if concept == 22 else "something moves"


TASKS = (
    Task(
        name=_NAME,
        title="MSVD: caption → clip",
        load=_load,
        metrics=METRICS,
        needs=_needs,
        mini=_mini,
        source="MSVD (Chen and Dolan 2011, aclanthology.org/P11-1020); test list of CLIP4Clip",
        licence="unspecified",
        derived_from=("MSVD",),
        facts=(Fact("queries", 27_763, "L"), Fact("candidates", 670, "L")),
        convert=_convert,
    ),
)
