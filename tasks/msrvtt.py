"""MSR-VTT 1k-A: 1,000 clips of the web with one caption each, the test set of JSFusion.

`msrvtt/annotations/MSRVTT_JSFUSION_test.csv`, the clips being `msrvtt/videos/{video_id}.mp4`:

    key,vid_key,video_id,sentence
    ret0,msr9770,video9770,a person is connecting something to system

Query ret0 asks for video9770. Some captions stand there twice, of two clips: each can find but its own.
MTEB has 879 of the clips. CLIP4Clip counts a query several times where scores are equal.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from harness.collection import Collection
from harness.content import Video
from harness.errors import DataInvalid
from harness.records import Record, brief
from harness.task import Fact, Hub, Need, Protocol, Task

from . import miniature
from .text_to_video import METRICS, Caption, checked_id, collection, profiles, text_of
from .wording import Wording, worded

_NAME = "msrvtt/text-to-video"
_CLIP = Wording(fps=2.0)
_HEADER = ("key", "vid_key", "video_id", "sentence")

_FOLDER = Path("msrvtt")
_HUB = Hub("code-kunkun/LamRA_Eval", ("msrvtt/*", "msrvtt.*"))
_WHERE = "msrvtt_data.zip, github.com/ArrowLuo/CLIP4Clip/releases/tag/v0.0"
_ROWS = Need(_FOLDER / "annotations/MSRVTT_JSFUSION_test.csv", f"get it from {_WHERE}", hub=_HUB)
_CLIPS = Need(
    _FOLDER / "videos",
    "put the clips of www.robots.ox.ac.uk/~maxbain/frozen-in-time/data/MSRVTT.zip there",
    media=True,
    hub=_HUB,
)


def _needs(protocol: Protocol) -> tuple[Need, ...]:
    return (_ROWS, _CLIPS)


def _load(data_root: Path, protocol: Protocol) -> Collection:
    wordings = worded(_NAME, protocol, profiles(_CLIP, _CLIP))
    file, folder = _ROWS.require(data_root), _CLIPS.require(data_root)
    clips: dict[str, Video] = {}
    captions: dict[str, Caption] = {}
    for row in _rows(file):
        key, clip = row.text("key"), checked_id(row.text("video_id"), f"{row.place}: video_id")
        for name, id, known in (("key", key, captions), ("video_id", clip, clips)):
            if id in known:
                raise row.fault(f"{name} {id!r} stands there twice")
        clips[clip] = Video(folder / f"{clip}.mp4")
        captions[key] = Caption(key, clip, row.text("sentence"))
    return collection(_NAME, clips, captions.values(), wordings)


def _rows(file: Path) -> Iterator[Record]:
    reader = csv.DictReader(io.StringIO(text_of(file)), strict=True)
    try:
        header = reader.fieldnames or ()
        if "sentence" not in header and "sentences" in header:
            raise DataInvalid(
                f"{file}: the header has 'sentences' where 'sentence' is wanted: rename the column"
                f" if each row has one caption, or get {_WHERE}"
            )
        if not set(_HEADER) <= set(header):
            raise DataInvalid(f"{file}: the header is {','.join(_HEADER)}, not {brief(','.join(header))}")
        for fields in reader:
            row = Record(f"{file}, line {reader.line_num}", fields)
            if None in fields or None in fields.values():
                raise row.fault(f"{len(header)} fields are wanted; one that has a comma stands in quotes")
            yield row
    except csv.Error as error:
        raise DataInvalid(f"{file}, line {reader.line_num + 1}: not CSV ({error})") from error


_MINI_CLIPS = {
    "video9770": 2,
    "video9771": 13,
    "video7020": 24,
    "video9773": 35,
    "video7026": 46,
    "video9775": 57,
}
"""Id → concept."""


def _mini(folder: Path) -> None:
    """Six clips with a caption each; two have the same."""
    rows = [",".join(_HEADER)]
    for i, (id, concept) in enumerate(_MINI_CLIPS.items()):
        said = "something is moving" if i in (1, 4) else f"{miniature.described(concept)} move to the right"
        rows.append(f"ret{i},{id.replace('video', 'msr')},{id},{said}")
    clips = {f"videos/{id}.mp4": miniature.clip(concept) for id, concept in _MINI_CLIPS.items()}
    files = {**clips, "annotations/MSRVTT_JSFUSION_test.csv": "\n".join([*rows, ""])}
    miniature.write(folder / _FOLDER, files)


TASKS = (
    Task(
        name=_NAME,
        title="MSR-VTT 1k-A: caption → clip",
        load=_load,
        metrics=METRICS,
        needs=_needs,
        mini=_mini,
        source="MSR-VTT (Xu et al. 2016); the 1k-A split of JSFusion (Yu et al. 2018, arXiv 1808.02559)",
        licence="unspecified",
        derived_from=("MSR-VTT",),
        facts=(Fact("queries", 1000, "V"), Fact("candidates", 1000, "V")),
    ),
)
