"""What a Qwen-VL embedder is shown and what is read off it: one value for training, mining and evaluation.

A query of a picture, an instruction and a text, as U-MARVEL is shown it (one line a turn):

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n
    <|im_start|>user\\n<|vision_start|><|image_pad|>…<|vision_end|><instruction_start>Find it.<instruction_end> A red one.<|im_end|>\\n
    <|im_start|>assistant\\n<emb>.<|im_end|>\\n
    <|im_start|>assistant\\n

It is saved beside a checkpoint as `input_spec.json`: {"system": "You are a helpful assistant.", …}
"""  # noqa: E501

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from harness.content import Image, Item, Text, Video
from harness.errors import HarnessError, UnknownName

FILE = "input_spec.json"

EMB, START, END = "<emb>", "<instruction_start>", "<instruction_end>"
_TEMPLATE_TOKEN = r"<\|\w+\|>"
_NOTHING = "none"
"""How the command line says that an optional field is not set."""
_LATER = {"later": True}
"""Marks a field that is younger than stored vectors, whose identity does not have it."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The form of the input, the forward pass and the pooling; every field is part of the identity.

    The defaults are those of U-MARVEL's released evaluation on Qwen2-VL (chaxjli/U-MARVEL), but for
    the attention, which there is causal wherever a batch has no padding, and the text limit, which
    there cut whole candidates, template and all, at 1,024 tokens.
    """

    chat: bool = True
    """Turns of ChatML around the content; without, the content alone."""
    system: str | None = "You are a helpful assistant."
    answer: str | None = "<emb>."
    """What the assistant has said already."""
    generation_prompt: bool = True
    """Opens another turn of the assistant at the end: trained without, evaluated with."""
    ending: str | None = None
    """What stands behind everything, such as a token to pool."""
    suffix: Literal["none", "summarize"] = "none"
    """LamRA's "Summarize above … in one word: "."""
    special_tokens: tuple[str, ...] = (EMB, START, END)
    """Added to the tokenizer, in this order, where it lacks them."""
    instruction_place: Literal["user", "system", "nowhere"] = "user"
    """In front of the text, or in place of the system's turn, or not shown."""
    instruction_tokens: bool = True
    """Whether the instruction stands between its two special tokens."""
    instruction_in_pool: bool = False
    """Whether the tokens of the instruction count in mean pooling."""
    lone_period: bool = True
    """Whether an instruction that a blank, but no text, follows is followed by a full stop: what M-BEIR's
    format_string makes of the marked instruction of a query of a picture alone, in training and
    evaluation."""
    pool: Literal["mean", "pre_emb_token", "last_token"] = "mean"
    attention: Literal["bidirectional", "causal", "bidir_legacy"] = "bidirectional"
    """bidir_legacy: as released, causal where no row of the batch is padded."""
    rope: Literal["1d", "mrope"] = "1d"
    deepstack: bool = False
    """Whether Qwen3-VL's features of inner vision layers reach the language model."""
    image_factor: int = 28
    """Sides are brought to multiples of it, within the pixels below; the checkpoint's own image processor
    comes after."""
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 300 * 28 * 28
    frame_min_pixels: int = 128 * 28 * 28
    frame_max_pixels: int = 768 * 28 * 28
    video_pixels: int = 24_576 * 28 * 28
    """Of all pairs of frames together."""
    frames: int | None = None
    """How many of a clip that pins nothing; none: by the rate."""
    fps: float = 2.0
    text_tokens: int = 1024
    """Longer texts are cut, each by itself and before it stands in the template."""
    context: int = 32_768
    """Items of more tokens are refused."""
    padding: Literal["left", "right"] = "left"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    placeholders: Literal["framed", "bare"] = field(default="framed", metadata=_LATER)
    """bare: without vision_start and vision_end around them, and a blank behind."""
    unasked: Literal["none", "represent"] = field(default="none", metadata=_LATER)
    """What a picture or clip without an instruction is asked: VLM2Vec's "Represent the given …"."""
    checkpoint_pixels: bool = field(default=True, metadata=_LATER)
    """Whether the least and most pixels of the checkpoint's processors hold after those above."""

    def __post_init__(self) -> None:
        if self.pool == "pre_emb_token" and not (EMB in (self.answer or "") and EMB in self.special_tokens):
            raise HarnessError(f"pool=pre_emb_token needs {EMB} in the answer and among the special tokens")
        if self.instruction_tokens and not {START, END} <= set(self.special_tokens):
            raise HarnessError(f"instruction_tokens needs {START} and {END} among the special tokens")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise HarnessError(f"{name} must be greater than 0, not {value}")

    def shown(self) -> dict[str, str]:
        """Every field as text, as options and identities have it."""
        return {f.name: _shown(getattr(self, f.name)) for f in fields(self)}

    @property
    def identity(self) -> dict[str, str]:
        """Every field that may change a vector: as `shown`, without later ones at their defaults."""
        shown = self.shown()
        for f in fields(self):
            if "later" in f.metadata and getattr(self, f.name) == f.default:
                del shown[f.name]
        return shown

    def with_options(self, model: str, given: Mapping[str, str]) -> InputSpec:
        """Overridden by `--model-arg` values; raises UnknownName and HarnessError."""
        changes: dict[str, Any] = {
            name: _parsed(f"{option(name)} of model {model!r}", hint, given[option(name)])
            for name, hint in _hints().items()
            if option(name) in given
        }
        return replace(self, **changes)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> InputSpec:
        """What `to_json` wrote; raises ValueError for anything else, UnknownName for a field unknown here."""
        saved = json.loads(text)
        if not isinstance(saved, dict):
            raise ValueError("an object is wanted")
        hints = _hints()
        for name in saved:
            if name not in hints:
                raise UnknownName("field", name, hints)
        return cls(**{name: _checked(name, hints[name], value) for name, value in saved.items()})


_POSITIVE = (
    *("image_factor", "min_pixels", "max_pixels", "frame_min_pixels", "frame_max_pixels", "video_pixels"),
    *("frames", "fps", "text_tokens", "context"),
)


def option(field: str) -> str:
    """The name of a field as a `--model-arg`."""
    return field.replace("_", "-")


def _hints() -> dict[str, Any]:
    return get_type_hints(InputSpec)


def _shown(value: object) -> str:
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _parsed(what: str, hint: Any, text: str) -> Any:
    """The value that an option's text means."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        if text not in choices:
            raise UnknownName(what, text, choices)
        return text
    if NoneType in choices:
        return None if text == _NOTHING else _parsed(what, choices[0], text)
    if get_origin(hint) is tuple:
        return tuple(token for token in text.split(",") if token)
    if hint is bool:
        if text not in ("true", "false"):
            raise UnknownName(what, text, ("true", "false"))
        return text == "true"
    try:
        return hint(text)
    except ValueError:
        kind = "a whole number" if hint is int else "a number"
        raise HarnessError(f"{what} is {kind}, not {text!r}") from None


def _checked(name: str, hint: Any, value: Any) -> Any:
    """A value from JSON, if it is of the field's type."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        good = value in choices
    elif NoneType in choices:
        return None if value is None else _checked(name, choices[0], value)
    elif get_origin(hint) is tuple:
        good = isinstance(value, list) and all(isinstance(token, str) for token in value)
        value = tuple(value) if good else value
    else:
        good = type(value) is hint or (hint is float and type(value) is int)
    if not good:
        raise ValueError(f"{name} cannot be {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the input: plain text, in which no special token is ever read, or one special
    token so many times. `pooled`: whether it counts in mean pooling."""

    text: str
    token: bool = False
    times: int = 1
    pooled: bool = True


Show = Callable[[Image | Video], Sequence[Piece]]
"""The placeholders of a picture or a clip."""


def render(spec: InputSpec, item: Item, show: Show) -> list[Piece]:
    """The whole input of an item."""
    system, answer, ending = (
        _template(spec.special_tokens, text) for text in (spec.system, spec.answer, spec.ending)
    )
    content = [*_content(spec, item, show), *_plain(_suffix(spec, item))]
    if not spec.chat:
        return [*content, *ending]
    if spec.instruction_place == "system" and item.instruction is not None:
        system = (Piece(item.instruction, pooled=spec.instruction_in_pool),)
    pieces = turn("system", system) if system else []
    pieces += turn("user", content)
    if answer:
        pieces += turn("assistant", answer)
    if spec.generation_prompt:
        pieces += opened("assistant")
    return [*pieces, *ending]


def turn(role: str, content: Sequence[Piece]) -> list[Piece]:
    """A turn of ChatML."""
    return [*opened(role), *content, Piece("<|im_end|>", token=True), Piece("\n")]


def opened(role: str) -> list[Piece]:
    """The head of a turn."""
    return [Piece("<|im_start|>", token=True), Piece(f"{role}\n")]


def text_of(pieces: Sequence[Piece]) -> str:
    """The input as one string, for people to read."""
    return "".join(piece.text * piece.times for piece in pieces)


def marked_stretches(spec: InputSpec, text: str) -> list[str]:
    """A text taken apart: plain and, at odd places, "<instruction_start>…<instruction_end>", which a text
    may hold where instructions are marked (U-MARVEL's prompt for Urban1K does)."""
    return re.split(f"({START}.*?{END})", text, flags=re.DOTALL) if spec.instruction_tokens else [text]


@lru_cache
def _template(special_tokens: tuple[str, ...], text: str | None) -> tuple[Piece, ...]:
    """Our own text, in which special tokens are read."""
    tokens = "|".join([_TEMPLATE_TOKEN, *map(re.escape, special_tokens)])
    stretches = enumerate(re.split(f"({tokens})", text or ""))
    return tuple(Piece(stretch, token=at % 2 == 1) for at, stretch in stretches if stretch)


def _plain(text: str) -> list[Piece]:
    return [Piece(text)] if text else []


def _content(spec: InputSpec, item: Item, show: Show) -> Iterator[Piece]:
    """One picture or clip, then the instruction, then the text; several stay in their order, behind the
    instruction."""
    parts = item.parts
    media = [part for part in parts if not isinstance(part, Text)]
    texts = [part for part in parts if isinstance(part, Text)]
    instructed = 0
    if len(media) == 1 and len(texts) <= 1:
        parts, instructed = (*media, *texts), 1
    for part in parts[:instructed]:
        yield from _part(spec, part, show)
    asked = _asked(spec, item)
    if asked is not None and spec.instruction_place == "user":
        yield from _instruction(spec, asked)
        following = parts[instructed] if instructed < len(parts) else None
        if isinstance(following, Text) and following.text:
            yield from _plain(item.separator)
        elif (
            spec.lone_period and item.separator == " " and len(media) <= 1 and not any(t.text for t in texts)
        ):
            yield Piece(".")
    for part in parts[instructed:]:
        yield from _part(spec, part, show)


def _part(spec: InputSpec, part: Text | Image | Video, show: Show) -> Iterator[Piece]:
    if not isinstance(part, Text):
        bare = spec.placeholders == "bare"
        yield from (piece for piece in show(part) if not (bare and piece.text.startswith("<|vision_")))
        yield from _plain(" " * bare)
        return
    for at, stretch in enumerate(marked_stretches(spec, part.text)):
        if at % 2:
            yield from _instruction(spec, stretch.removeprefix(START).removesuffix(END))
        else:
            yield from _plain(stretch)


def _asked(spec: InputSpec, item: Item) -> str | None:
    """The item's instruction, or what stands for one: as MMEB asks its candidates (arXiv 2410.05160)."""
    media = [part for part in item.parts if not isinstance(part, Text)]
    if item.instruction is not None or spec.unasked == "none" or len(media) != 1:
        return item.instruction
    seen = "video" if isinstance(media[0], Video) else "image"
    said = any(part.text for part in item.parts if isinstance(part, Text))
    return f"Represent the given {seen}{' with related text information:' if said else '.'}"


def _instruction(spec: InputSpec, text: str) -> Iterator[Piece]:
    pooled = spec.instruction_in_pool
    if spec.instruction_tokens:
        yield Piece(START, token=True, pooled=pooled)
    yield Piece(text, pooled=pooled)
    if spec.instruction_tokens:
        yield Piece(END, token=True, pooled=pooled)


def _suffix(spec: InputSpec, item: Item) -> str:
    """LamRA's request for one word: Code-kunkun/LamRA, prompts of its data sets; an instruction is text."""
    if spec.suffix == "none":
        return ""
    media = [part for part in item.parts if not isinstance(part, Text)]
    said = len(media) < len(item.parts) or (item.instruction is not None and spec.instruction_place == "user")
    if not media:
        what = "sentence"
    elif len(media) > 1 and isinstance(item.parts[0], Text):
        what = "images and sentences"
    else:
        seen = "video" if isinstance(media[0], Video) else "image"
        what = f"{seen} and sentence" if said else seen
    return f"\nSummarize above {what} in one word: "
