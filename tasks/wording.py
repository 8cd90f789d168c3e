"""How a prompt profile shows the queries and candidates of a task: instruction, text form, additions.

Profiles: `default`, one instruction per direction (tasks/README.md lists them), and the exact prompts
of the code bases `umarvel` (chaxjli/U-MARVEL) and `lamra` (Code-kunkun/LamRA), quirks included. Special
tokens, templates and suffixes that a code base gives every item belong to its model, not to a profile.
Both show their rerankers other prompts than their embedders: bare pictures and captions, an instruction
of its own for every set. U-MARVEL's keep the markers of the instruction there, which its reranker reads
as plain text; where its reranking was not to be read (CIRCO, VisDial, CC-Neg, Urban1K, the clips) it is
taken to be LamRA's with these markers, as it is on the other sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.content import Candidate, Image, Part, Query, Text, Video
from harness.task import Protocol, one_instruction, only

PROFILES = ("default", "umarvel", "lamra")


@dataclass(frozen=True, slots=True)
class Wording:
    """One side of a task (queries or candidates) under one profile.

    `formatted` brings a text into M-BEIR's form; `suffix` is put directly behind the last text, or
    behind the picture where there is none; `max_pixels` pins the budget of pictures, `frames` or `fps`
    the sampling of clips. `reranked`: how a reranker is shown this side, where it is another way.
    """

    instruction: str | None = None
    separator: str = " "
    formatted: bool = False
    suffix: str = ""
    max_pixels: int | None = None
    frames: int | None = None
    fps: float | None = None
    reranked: Wording | None = None

    def query(self, id: str, parts: Sequence[Part]) -> Query:
        again = self.reranked.query(id, parts) if self.reranked else None
        return Query(id, self._shown(parts), self.instruction, self.separator, again)

    def candidate(self, id: str, parts: Sequence[Part]) -> Candidate:
        again = self.reranked.candidate(id, parts) if self.reranked else None
        return Candidate(id, self._shown(parts), self.instruction, self.separator, again)

    def _shown(self, parts: Sequence[Part]) -> tuple[Part, ...]:
        shown = [self._part(part) for part in parts]
        if self.suffix:
            last = shown[-1] if shown else None
            if isinstance(last, Text):
                shown[-1] = Text(last.text + self.suffix)
            else:
                shown.append(Text(self.suffix))
        return tuple(shown)

    def _part(self, part: Part) -> Part:
        if isinstance(part, Text) and self.formatted:
            return Text(formatted(part.text))
        if isinstance(part, Image) and self.max_pixels is not None:
            return replace(part, max_pixels=self.max_pixels)
        if isinstance(part, Video) and (self.frames or self.fps):
            return replace(part, frames=self.frames, fps=self.fps)
        return part


@dataclass(frozen=True, slots=True)
class Wordings:
    """Both sides."""

    query: Wording = Wording()
    candidate: Wording = Wording()

    def reranked(self, by: Wordings) -> Wordings:
        """These, and how a reranker is shown both sides."""
        sides = ((self.query, by.query), (self.candidate, by.candidate))
        return Wordings(*(replace(own, reranked=None if own == other else other) for own, other in sides))


def marked(instruction: str) -> str:
    """As U-MARVEL's rerankers are shown it."""
    return f"<instruction_start>{instruction}<instruction_end>"


def worded(
    task: str,
    protocol: Protocol,
    profiles: Mapping[str, Wordings],
    *,
    splits: Sequence[str] = ("test",),
    compat: Sequence[str] = (),
) -> Wordings:
    """The task's wording under the protocol's profile; without instructions where it asks for none.

    Raises DataInvalid for a profile, split or compat switch that the task does not have, and
    NoSuchInstruction for instruction number 2 and beyond.
    """
    only(task, protocol, splits=splits, profiles=tuple(profiles), compat=compat)
    chosen = profiles[protocol.profile]
    if one_instruction(task, protocol, "asked") is None:
        return Wordings(_bare(chosen.query), _bare(chosen.candidate))
    return chosen


def _bare(wording: Wording) -> Wording:
    # A suffix goes with the instruction: a profile may write one into the other.
    again = _bare(wording.reranked) if wording.reranked else None
    return replace(wording, instruction=None, separator=" ", suffix="", reranked=again)


def formatted(text: str | None) -> str:
    """A text as the official M-BEIR code shows it to a model: `format_string` of UniIR, LamRA and U-MARVEL.

    Carriage returns, white space and then double quotes at both ends go; the first letter becomes a
    capital, and a full stop closes what ends in none of . ? and !.
    """
    text = (text or "").replace("\r", "").strip().strip('"')
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def following(instruction: str | None, text: str) -> str:
    """The part of the official query text that stands behind a formatted instruction."""
    if not instruction:
        return formatted(text)
    return formatted(f"{instruction} {text}")[len(instruction) + 1 :]
