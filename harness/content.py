"""What is embedded: queries and candidates made of ordered text, image and video parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Box = tuple[int, int, int, int]
"""(left, upper, right, lower) in pixels of the decoded, upright picture."""

Modality = Literal["text", "image", "image,text", "interleaved", "video"]
Role = Literal["query", "candidate"]


@dataclass(frozen=True, slots=True)
class Text:
    """A string; empty is legal and counts as text."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture file, decoded in a worker and never at load.

    `crop` cuts a box out of it; `max_pixels` pins the pixel budget (None: the model's own).
    """

    path: Path
    crop: Box | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Video:
    """A clip; `frames` (a count) or `fps` pin the sampling (both None: the model's own)."""

    path: Path
    frames: int | None = None
    fps: float | None = None


Part = Text | Image | Video


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing that can be retrieved."""

    id: str
    parts: tuple[Part, ...]
    instruction: str | None = None
    separator: str = " "
    reranked: Candidate | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """One thing that is asked.

    `separator` is what a model that joins strings puts between the instruction and a text that
    follows it: a blank, but for the prompts of code bases that put nothing there. `reranked` is what
    a reranker is shown in its place, by prompts of code bases that differ there.
    """

    id: str
    parts: tuple[Part, ...]
    instruction: str | None = None
    separator: str = " "
    reranked: Query | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """All that a model gets to see of a query or candidate: no id, no task, no pool."""

    role: Role
    parts: tuple[Part, ...]
    instruction: str | None = None
    separator: str = " "

    @property
    def modality(self) -> Modality:
        return modality(self.parts)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a reranker is asked: how well each candidate answers the query."""

    query: Item
    candidates: tuple[Item, ...]


def item(thing: Query | Candidate, *, instructed: bool = True) -> Item:
    """The model's view of a query or candidate; without its instruction where it reads none."""
    role: Role = "query" if isinstance(thing, Query) else "candidate"
    if not instructed or thing.instruction is None:
        return Item(role, thing.parts)
    return Item(role, thing.parts, thing.instruction, thing.separator)


def modality(parts: Sequence[Part]) -> Modality:
    """The modality of an item: one of the five that a model declares.

    Any number of texts is "text"; one picture with at most one text is "image" or "image,text";
    one clip alone is "video"; every other mix is "interleaved".
    """
    texts = sum(isinstance(p, Text) for p in parts)
    images = sum(isinstance(p, Image) for p in parts)
    videos = len(parts) - texts - images
    if not images and not videos:
        return "text"
    if images == 1 and not videos and texts <= 1:
        return "image,text" if texts else "image"
    if videos == 1 and not images and not texts:
        return "video"
    return "interleaved"
