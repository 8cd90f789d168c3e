"""Captioned pictures asked both ways: a caption for its picture, a picture for its captions.

Captioned("17", Path("images/17.png"), ("Two dogs run.", "Dogs at play.")) gives

    text-to-image  17#0 "Two dogs run."  ->  17
                   17#1 "Dogs at play."  ->  17
    image-to-text  17                    ->  17#0 and 17#1: the papers' R@k is a hit on either

Two pictures may have the same caption: each asks for its own picture only, as in the papers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.collection import Collection, Pool
from harness.content import Image, Text
from harness.errors import DataInvalid
from harness.metrics import MRR, Hit, Recall
from harness.records import brief, checked_text, read_json
from harness.task import Fact, Need, Protocol, Task

from .miniature import PLACES, described, picture, write
from .wording import Wording, Wordings, marked, worded

FIND_IMAGE = "Find me an everyday image that matches the given caption."
FIND_CAPTION = "Find an image caption describing the following everyday image."
"""M-BEIR's first wordings for MSCOCO, which LamRA and U-MARVEL use for other sets too."""

_PLAIN = Wording()
_PER_PICTURE = 5
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_METRICS = (Hit(1), Hit(5), Hit(10), Recall(1), Recall(5), Recall(10), MRR(10))


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture, its id and all its captions."""

    id: str
    picture: Path
    captions: tuple[str, ...]

    @property
    def named(self) -> Iterator[tuple[str, str]]:
        """(id, text) of every caption."""
        return ((f"{self.id}#{n}", caption) for n, caption in enumerate(self.captions))


@dataclass(frozen=True, slots=True)
class BothWays:
    """The wordings of both directions under one profile."""

    to_image: Wordings
    to_text: Wordings

    def reranked(self, by: BothWays) -> BothWays:
        """These, and those of a reranker."""
        return BothWays(self.to_image.reranked(by.to_image), self.to_text.reranked(by.to_text))


ASKED = BothWays(Wordings(query=Wording(FIND_IMAGE)), Wordings(query=Wording(FIND_CAPTION)))
"""The profile `default`: who asks has the instruction. So LamRA's rerankers are shown it."""
ASKED_MARKED = BothWays(Wordings(Wording(marked(FIND_IMAGE))), Wordings(Wording(marked(FIND_CAPTION))))
"""The same as U-MARVEL's rerankers are shown it."""


def one_pass(*, caption: Wording = _PLAIN, picture: Wording = _PLAIN) -> BothWays:
    """What a code base shows that embeds captions and pictures once for both directions."""
    return BothWays(to_image=Wordings(caption, picture), to_text=Wordings(picture, caption))


@dataclass(frozen=True, slots=True)
class TwoWay:
    """A data set of captioned pictures, and its two tasks. `pictures` and `captions` are the counts
    of the published data; needs[0] has the captions."""

    name: str
    title: str
    read: Callable[[Path], Sequence[Captioned]]
    needs: tuple[Need, ...]
    profiles: Mapping[str, BothWays]
    pictures: int
    captions: int
    mini: Callable[[Path], None]
    source: str
    licence: str
    derived_from: tuple[str, ...]

    def tasks(self) -> tuple[Task, Task]:
        return (
            self._task("text-to-image", "caption → picture", self._to_image, self.captions, self.pictures),
            self._task("image-to-text", "picture → caption", self._to_text, self.pictures, self.captions),
        )

    def _task(
        self,
        way: str,
        title: str,
        load: Callable[[Path, Protocol], Collection],
        queries: int,
        candidates: int,
    ) -> Task:
        return Task(
            name=f"{self.name}/{way}",
            title=f"{self.title}: {title}",
            load=load,
            metrics=_METRICS,
            needs=lambda protocol: self.needs,
            mini=self.mini,
            source=self.source,
            licence=self.licence,
            derived_from=self.derived_from,
            facts=(
                Fact("queries", queries, "V"),
                Fact("candidates", candidates, "V"),
                Fact("qrels", self.captions, "V"),
            ),
        )

    def _to_image(self, data_root: Path, protocol: Protocol) -> Collection:
        profiles = {name: both.to_image for name, both in self.profiles.items()}
        wording = worded(f"{self.name}/text-to-image", protocol, profiles)
        items = self._items(data_root)
        asked = [(item.id, id, text) for item in items for id, text in item.named]
        return Collection(
            queries=[wording.query.query(id, (Text(text),)) for _, id, text in asked],
            pool=Pool(
                f"{self.name}-pictures",
                [wording.candidate.candidate(item.id, (Image(item.picture),)) for item in items],
            ),
            qrels={id: {wanted: 1} for wanted, id, _ in asked},
        )

    def _to_text(self, data_root: Path, protocol: Protocol) -> Collection:
        profiles = {name: both.to_text for name, both in self.profiles.items()}
        wording = worded(f"{self.name}/image-to-text", protocol, profiles)
        items = self._items(data_root)
        return Collection(
            queries=[wording.query.query(item.id, (Image(item.picture),)) for item in items],
            pool=Pool(
                f"{self.name}-captions",
                [wording.candidate.candidate(id, (Text(text),)) for item in items for id, text in item.named],
            ),
            qrels={item.id: {id: 1 for id, _ in item.named} for item in items},
        )

    def _items(self, data_root: Path) -> Sequence[Captioned]:
        items = self.read(data_root)
        if not items:
            raise DataInvalid(f"{self.needs[0].require(data_root)} holds no caption")
        return items


def numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """The files of a folder that are called 0.png, 1.png, … by number, ascending; others are let be."""
    try:
        files = [p for p in folder.iterdir() if p.suffix == suffix and _NUMBER.fullmatch(p.stem)]
    except OSError as error:
        raise DataInvalid(f"{folder} cannot be listed ({(error.strerror or str(error)).lower()})") from error
    return {int(p.stem): p for p in sorted(files, key=lambda p: int(p.stem))}


def read_fives(captions: Path, pictures: Path) -> list[Captioned]:
    """A JSON list of captions, five for each of the pictures 0.png, 1.png, … of a folder in turn."""
    listed = read_json(captions)
    if not isinstance(listed, list):
        raise DataInvalid(f"{captions}: a list of captions is wanted, not {brief(listed)}")
    texts = [checked_text(text, f"{captions}, caption {j}") for j, text in enumerate(listed)]
    n, rest = divmod(len(texts), _PER_PICTURE)
    if rest:
        raise DataInvalid(
            f"{captions} holds {len(texts):,} captions, no multiple of five: a picture has five"
        )
    there = numbered(pictures, ".png")
    gap = next((i for i in range(len(there)) if i not in there), None)
    if gap is not None:
        raise DataInvalid(
            f"{pictures / f'{gap}.png'} is missing: {max(there)}.png is there,"
            " and pictures are numbered from 0 without a gap"
        )
    if len(there) != n:
        raise DataInvalid(
            f"{captions} has captions for {n:,} pictures, but {pictures} holds {len(there):,}:"
            " captions and pictures are out of step"
        )
    return [
        Captioned(str(i), path, tuple(texts[i * _PER_PICTURE : (i + 1) * _PER_PICTURE]))
        for i, path in there.items()
    ]


def write_fives(folder: Path, captions: str, pictures: str, concepts: Sequence[int]) -> None:
    """The miniature of what `read_fives` reads; a concept that occurs twice repeats one caption."""
    texts = [text for i, concept in enumerate(concepts) for text in _five(described(concept), PLACES[i])]
    drawn = {
        f"{pictures}/{i}.png": picture(concept, variant=i, format="PNG") for i, concept in enumerate(concepts)
    }
    write(folder, {captions: texts, **drawn})


def _five(named: str, place: str) -> tuple[str, ...]:
    """Captions as people type them: stops, capitals and blanks come and go."""
    return (
        f"A drawing of {named}.",
        f"{named} {place}",
        f'"{named.capitalize()}" {place}',
        f"Somebody drew {named} {place}, and nothing else . ",
        f"What a fine sheet with {named} {place}!",
    )


def at_length(concept: int, place: str) -> str:
    """A caption of several sentences, as language models write them."""
    named = described(concept)
    return (
        f"The image shows {named}, drawn {place} on a light ground. Nothing but {named} can be seen in it:"
        f" no person, no writing and no other shape. The {named.split()[1]} colour stands out clearly,"
        " and the mood of the scene is calm."
    )
