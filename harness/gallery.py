"""The failure gallery: a page that shows what a model gets wrong, with the pictures inside it."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from harness.content import Candidate, Image, Part, Query, Text, Video, modality
from harness.errors import HarnessError
from harness.failures import Answer, Failure, Ranking, Reason, Report
from harness.leaderboard import GAP, percent
from harness.media import frames, open_picture
from harness.page import page

if TYPE_CHECKING:
    import PIL.Image

SIDE = 168
"""Pixels of a thumbnail's longer side."""
FRAMES = 3
LONGEST = 600
"""Letters of a text that are shown at once; the rest unfolds."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A part as the page shows it: a text, or pictures as data URIs, or why there are none."""

    text: str = ""
    more: str = ""
    pictures: tuple[str, ...] = ()
    missing: str = ""
    alt: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """An answer or a query: its parts and what is said of it."""

    id: str
    modality: str
    parts: tuple[Shown, ...]
    rank: str = ""
    score: str = ""
    relevant: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """How one model answers. `beyond` are relevant candidates that are not among the first answers."""

    model: str
    value: str
    rank: str
    reason: str
    answers: tuple[Card, ...]
    beyond: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A query of the page; `kinds` are what it can be filtered by."""

    query: Card
    instruction: str
    change: str
    sides: tuple[Side, ...]
    kinds: str


@dataclass(slots=True)
class Thumbnails:
    """Small pictures as data URIs, each made once; none at all where `shown` is false."""

    shown: bool
    made: dict[Image | Video, Shown] = field(default_factory=dict)

    def of(self, part: Image | Video) -> Shown:
        what = "picture" if isinstance(part, Image) else "clip"
        if not self.shown:
            return Shown(missing=f"{what} {part.path.name}")
        if part not in self.made:
            self.made[part] = _thumbnail(part, what)
        return self.made[part]


def gallery(report: Report, *, pictures: bool = True, plot: str = "") -> str:
    """The page. Without `pictures` it holds their names alone, for data that may not be passed on.

    `plot` is an SVG element that goes above the queries.
    """
    thumbnails = Thumbnails(pictures)
    models = [result.model for result in report.results]
    entries = [_entry(failure, models, thumbnails) for failure in report.failures]
    reasons = Counter(f.ranking.reason for f in report.failures if f.ranking.reason)
    verb = "get" if len(models) > 1 else "gets"
    return page(
        "gallery",
        title=f"{report.task.title}: what {' and '.join(models)} {verb} wrong",
        report=report,
        metric=report.metric.alias,
        scores=[percent(r.metrics[report.metric.key].value) for r in report.results],
        entries=entries,
        reasons=[(reason, reasons[reason]) for reason in get_args(Reason) if reasons[reason]],
        plot=plot,
    )


def _entry(failure: Failure, models: Sequence[str], thumbnails: Thumbnails) -> Entry:
    rankings = [failure.ranking, *([failure.other] if failure.other else [])]
    sides = tuple(_side(model, r, thumbnails) for model, r in zip(models, rankings, strict=True))
    return Entry(
        query=_card(failure.query, thumbnails),
        instruction=failure.query.instruction or "",
        change=failure.change or "",
        sides=sides,
        kinds="|".join(filter(None, (failure.change, failure.ranking.reason))),
    )


def _side(model: str, ranking: Ranking, thumbnails: Thumbnails) -> Side:
    best = ranking.relevant[0].rank if ranking.relevant else None
    listed = {a.candidate.id for a in ranking.answers}
    return Side(
        model=model,
        value=percent(ranking.value),
        rank="no relevant one in the list" if best is None else f"first relevant at rank {best}",
        reason=ranking.reason or "",
        answers=tuple(_answer(a, thumbnails) for a in ranking.answers),
        beyond=tuple(_answer(a, thumbnails) for a in ranking.relevant if a.candidate.id not in listed),
    )


def _answer(answer: Answer, thumbnails: Thumbnails) -> Card:
    card = _card(answer.candidate, thumbnails)
    return Card(
        card.id,
        card.modality,
        card.parts,
        rank=GAP if answer.rank is None else str(answer.rank),
        score="" if answer.score is None else f"{answer.score:.4f}",
        relevant=answer.relevant,
    )


def _card(thing: Query | Candidate, thumbnails: Thumbnails) -> Card:
    parts = tuple(_shown(part, thumbnails) for part in thing.parts)
    return Card(thing.id, modality(thing.parts).replace(",", " and "), parts)


def _shown(part: Part, thumbnails: Thumbnails) -> Shown:
    if isinstance(part, Text):
        text = part.text or "(empty text)"
        return Shown(text=text[:LONGEST], more=text[LONGEST:])
    return thumbnails.of(part)


def _thumbnail(part: Image | Video, what: str) -> Shown:
    try:
        if isinstance(part, Image):
            pictures = [open_picture(part)]
        else:
            pictures = frames(Video(part.path, frames=FRAMES))
    except HarnessError as error:
        return Shown(missing=str(error))
    return Shown(pictures=tuple(map(_uri, pictures)), alt=f"{what} {part.path.name}")


def _uri(picture: PIL.Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=72, method=4)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
