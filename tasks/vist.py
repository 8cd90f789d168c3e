"""VIST: the last picture of a story, from its five captions and its first four pictures.

One annotation of `sis/val.story-in-sequence.json` is one caption of a story, alone in a list:

    [{"story_id": "30355", "worker_arranged_photo_order": 0, "photo_flickr_id": "695160730",
      "text": "we saw two red rings by the sea . "}]

and the five of a story are one query:

    30355   "we saw two …" <695160730> … "then came …" <7189123> "at last …"  ->  the fifth's picture

The pool is every picture that a story uses, sorted by its id as text. The story's first four pictures
are taken out of its ranking; where the last is one of them, the query is missed whatever is done, as
in FROMAGe (Koh et al. 2023, arXiv 2301.13823), LamRA and U-MARVEL. FROMAGe leaves out stories with a
picture that is gone from Flickr (it got 7,043 of 8,034): that is `--skip-broken`.

A story is told in `worker_arranged_photo_order`; the profiles of the code bases trust the file's.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.collection import Collection, Pool
from harness.content import Image, Part, Query, Text
from harness.errors import DataInvalid
from harness.metrics import MRR, Hit
from harness.records import Record, as_record, brief, read_json
from harness.task import Fact, Hub, Need, Protocol, Task

from .miniature import PLACES, described, picture, write
from .wording import Wording, Wordings, worded

_NAME = "vist/story-to-image"
_SOURCE = (
    "take the folder vist of code-kunkun/LamRA_Eval on Hugging Face, or SIS-with-labels.tar.gz of"
    " visionandlanguage.net/VIST and the pictures from Flickr"
)
_HUB = Hub("code-kunkun/LamRA_Eval", ("vist/*", "vist.*"))
_ANNOTATIONS = Need(Path("vist/sis/val.story-in-sequence.json"), _SOURCE, hub=_HUB)
_PICTURES = Need(Path("vist/images/val"), _SOURCE, media=True, hub=_HUB)

_SENTENCE = (
    "I will provide you with a series of images and captions from a story, and I need you to retrieve"
    " the image corresponding to the last caption."
)
_PROFILES = {
    "default": Wordings(Wording(_SENTENCE)),
    # Its module does not parse: this is what it would show, LamRA's parts without instruction markers.
    "umarvel": Wordings(Wording(_SENTENCE, separator="")),
    "lamra": Wordings(Wording(_SENTENCE, separator="")),
}

_LENGTH = 5
_SUFFIXES = (".jpg", ".png", ".gif")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A caption of a story and its picture, whose path still lacks the suffix."""

    text: str
    photo: str
    stem: Path
    order: int


def _load(data_root: Path, protocol: Protocol) -> Collection:
    sides = worded(_NAME, protocol, _PROFILES, splits=("val",))
    released = protocol.profile != "default"
    folder = _PICTURES.require(data_root)
    stories = _stories(_ANNOTATIONS.require(data_root), folder, in_order=not released)
    stems = {s.photo: s.stem for story in stories.values() for s in story}
    there = {file.name for file in folder.iterdir()}
    pictures = {photo: Image(_suffixed(stems[photo], there)) for photo in sorted(stems)}
    queries = []
    for id, story in stories.items():
        whole = sides.query.query(id, _told(story, pictures, pairs=4))
        told = sides.query.query(id, _told(story, pictures, pairs=3)) if released else whole
        query = _unmarked(told) if protocol.profile == "umarvel" else told
        queries.append(replace(query, reranked=whole) if released else query)
    return Collection(
        queries=queries,
        pool=Pool("vist", [sides.candidate.candidate(id, (image,)) for id, image in pictures.items()]),
        qrels={id: {story[-1].photo: 1} for id, story in stories.items()},
        exclude={id: list(dict.fromkeys(s.photo for s in story[:-1])) for id, story in stories.items()},
    )


def _told(story: Sequence[Sentence], pictures: dict[str, Image], *, pairs: int) -> list[Part]:
    """The first `pairs` captions, each with its picture, and the last caption.

    Three pairs are a slip of LamRA's retrieval query (its reranker has four), which U-MARVEL copied:
    a list of the first four pictures loses its last once more, and the fourth caption goes with it.
    """
    shown = [part for s in story[:pairs] for part in (Text(s.text), pictures[s.photo])]
    return [*shown, Text(story[-1].text)]


def _unmarked(query: Query) -> Query:
    """The query with its instruction as a text like any other."""
    if query.instruction is None:
        return query
    return replace(query, parts=(Text(query.instruction), *query.parts), instruction=None)


def _stories(path: Path, folder: Path, *, in_order: bool) -> dict[str, list[Sentence]]:
    """story_id → its five sentences, stories in the order of the file. Raises DataInvalid."""
    stories: defaultdict[str, list[Sentence]] = defaultdict(list)
    for record in _annotations(path):
        sentence = Sentence(
            record.text("text"),
            record.text("photo_flickr_id"),
            record.file("photo_flickr_id", folder),
            record.integer("worker_arranged_photo_order"),
        )
        stories[record.text("story_id")].append(sentence)
    for id, story in stories.items():
        if len(story) != _LENGTH:
            raise DataInvalid(f"{path}: story {id!r} has {len(story)} captions, not {_LENGTH}")
        if in_order:
            story.sort(key=lambda s: s.order)
            if len({s.order for s in story}) != _LENGTH:
                orders = [s.order for s in story]
                raise DataInvalid(f"{path}: story {id!r} has two captions in one place: orders {orders}")
    return dict(stories)


def _annotations(path: Path) -> Iterator[Record]:
    for at, listed in enumerate(as_record(read_json(path), str(path)).values("annotations")):
        place = f"{path}, annotation {at}"
        if not isinstance(listed, list) or len(listed) != 1:
            raise DataInvalid(f"{place}: a list of one object is wanted, not {brief(listed)}")
        yield as_record(listed[0], place)


def _suffixed(stem: Path, there: set[str]) -> Path:
    """The picture's file; the first suffix stands for a file that is not there."""
    names = [stem.name + suffix for suffix in _SUFFIXES]
    return stem.with_name(next((name for name in names if name in there), names[0]))


_MINI_STORIES = {
    "30355": (0, 1, 2, 3, 4),
    "30356": (3, 4, 5, 6, 7),
    "30357": (0, 8, 9, 10, 8),
    "45530": (11, 12, 13, 14, 15),
    "45531": (15, 16, 17, 2, 0),
    "45532": (17, 5, 18, 19, 16),
}
"""Pictures by number. 30357 ends in a picture of its own, 45532 in the moving one."""
_MINI_FILED = {"45530": (1, 0, 2, 4, 3)}
"""Orders in which the captions of a story lie in the file, where it is not that of the story."""


def _mini(folder: Path) -> None:
    """Six stories over 20 pictures; stories of one album lie mixed, some pictures are no .jpg."""
    told = [
        (id, order, photos[order])
        for id, photos in _MINI_STORIES.items()
        for order in _MINI_FILED.get(id, range(_LENGTH))
    ]
    told[5:15] = [one for both in zip(told[5:10], told[10:15], strict=True) for one in both]
    annotations = [
        [
            {
                "story_id": id,
                "worker_arranged_photo_order": order,
                "photo_flickr_id": _mini_id(photo),
                "text": f"we saw {described(photo * 3)} {PLACES[order]} . ",
                "album_id": id[:3],
                "storylet_id": f"{id}{order}",
            }
        ]
        for id, order, photo in told
    ]
    # Number 20 is in no story; number 12 is there twice, and the .jpg counts.
    drawn = {(n, ".jpg"): picture(n * 3, variant=n) for n in range(21) if n not in (9, 16)}
    drawn |= {(n, ".png"): picture(27, variant=n, format="PNG") for n in (9, 12)}
    drawn |= {(16, ".gif"): _moving(48, 0)}
    pictures = {f"images/val/{_mini_id(n)}{suffix}": content for (n, suffix), content in drawn.items()}
    images = [{"id": _mini_id(photo), "url_o": ""} for photo in range(21)]
    sis = {"images": images, "annotations": annotations, "albums": [], "info": {}, "type": "sis"}
    write(folder / "vist", {"sis/val.story-in-sequence.json": sis, **pictures})


def _mini_id(photo: int) -> str:
    """Numbers of unlike length, so that their order as texts is another than as numbers."""
    return str(90 * (photo + 1) ** 2)


def _moving(*concepts: int) -> bytes:
    """An animated GIF, one frame a concept."""
    from PIL import Image as Pil

    first, *others = [Pil.open(io.BytesIO(picture(concept, format="PNG"))) for concept in concepts]
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=others, duration=100)
    return out.getvalue()


TASKS = (
    Task(
        name=_NAME,
        title="VIST: story of five captions and four pictures → its last picture",
        load=_load,
        metrics=(Hit(1), Hit(5), Hit(10), MRR(10)),
        needs=lambda protocol: (_ANNOTATIONS, _PICTURES),
        mini=_mini,
        source="Visual Storytelling, Huang et al. 2016 (arXiv 1604.03968), visionandlanguage.net/VIST",
        licence="unverified; pictures under their owners' Flickr licences",
        derived_from=("VIST",),
        facts=(Fact("queries", 4990, "L"), Fact("candidates", 8034, "V")),
    ),
)
