"""A caption and the one clip that it is of: what MSVD and MSR-VTT have in common.

    Caption("ret0", "video9770", "a person is connecting something to system")
      ->  asked for among all clips of the test set; video9770 is right

U-MARVEL and LamRA look at 12 frames of MSVD's clips (their rerankers at 8) and at two a second of MSR-VTT's.
Their profiles pin that; by default a model takes as many frames as it wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.collection import Collection, Pool
from harness.content import Text, Video
from harness.errors import DataInvalid
from harness.metrics import MRR, Hit

from .wording import Wording, Wordings, marked

METRICS = (Hit(1), Hit(5), Hit(10), MRR(10))

_INSTRUCTION = "Find an everyday video match with caption."


def profiles(clip: Wording, reranked: Wording) -> dict[str, Wordings]:
    """Of a set whose clips both code bases show so, and so to their rerankers."""
    asked = Wording(_INSTRUCTION)
    return {
        "default": Wordings(asked),
        "umarvel": Wordings(Wording(_INSTRUCTION, separator=""), clip).reranked(
            Wordings(Wording(marked(_INSTRUCTION)), reranked)
        ),
        "lamra": Wordings(asked, clip).reranked(Wordings(asked, reranked)),
    }


@dataclass(frozen=True, slots=True)
class Caption:
    """What is said of a clip."""

    id: str
    clip: str
    text: str


def collection(
    name: str, clips: Mapping[str, Video], captions: Iterable[Caption], wordings: Wordings
) -> Collection:
    """The collection in which every caption is asked for among all clips."""
    captions = tuple(captions)
    ask, offer = wordings.query, wordings.candidate
    return Collection(
        queries=[ask.query(caption.id, (Text(caption.text),)) for caption in captions],
        pool=Pool(name, [offer.candidate(id, (clip,)) for id, clip in clips.items()]),
        qrels={caption.id: {caption.clip: 1} for caption in captions},
    )


def checked_id(id: str, place: str) -> str:
    """A clip's id where it can be the name of a file; raises DataInvalid."""
    if "/" in id or "\\" in id or not id.isprintable():
        raise DataInvalid(f"{place}: {id!r} is no name of a clip")
    return id


def text_of(file: Path) -> str:
    """The content of a text file. Raises DataInvalid."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataInvalid(f"{file} cannot be read ({reason.lower()})") from error
