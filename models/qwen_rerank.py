"""Rerankers made of Qwen-VL: one forward of the language model says how well candidates answer a query.

Pointwise, a row for each candidate, and the share of Yes among Yes and No for the next token (one line a turn):

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n
    <|im_start|>user\\nI will provide … 'No'.Query:Find it. A red one.Candidate:<|vision_start|><|image_pad|>…<|im_end|>\\n
    <|im_start|>assistant\\n

Listwise, one row for all, `Candidates:(1) …(2) …`, and the shares of the digits that go on from `Ans: (`.

What the rows of an ask have alike from their start, its query above all, is run once; every picture and
clip of a batch passes the vision tower once. The forward is that of transformers' own generating
classes: causal, positions in three dimensions, DeepStack.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt

from harness.content import Ask, Image, Item, Text, Video
from harness.errors import CheckpointMissing, DataInvalid, HarnessError, UnknownName
from harness.media import Size
from harness.model import RerankerSpec, options

from .input_spec import InputSpec, Piece, opened, option, render, turn
from .qwen_pictures import Bytes, Seen, Vision, look, normalised, see, seen_at
from .qwen_tokens import IMAGE_PAD, PAD, VIDEO_PAD
from .qwen_vl import (
    ARCHITECTURES,
    QwenFrontend,
    _brief,
    additive_mask,
    architecture_of,
    open_qwen,
    tiny_options,
)

if TYPE_CHECKING:
    from torch import Tensor

Ids = npt.NDArray[np.int64]
Mode = Literal["pointwise", "listwise"]
Media = Image | Video

_BLANKS = 24 * " "
"""The indent of a continued line of the released code, which became part of both prompts."""
POINTWISE = (
    f"I will provide you with a query and a candidate. Please evaluate whether the candidate{_BLANKS}"
    "meets the requirements of the query. If it does, respond with 'Yes'; if it doesn't, responed with 'No'."
)
LISTWISE = (
    "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, etc."
    f" Each candidate is independent of the others. {_BLANKS}"
    "Evaluate each candidate against the query, and respond with the number corresponding to the candidate"
    " that best meets the requirements of the query."
)
ANSWERS: Mapping[Mode, tuple[str, ...]] = {
    "pointwise": ("Yes", "No"),
    "listwise": ("1", "2", "3", "4", "5", "6", "7", "8", "9"),
}

CHOSEN = (
    *("image_factor", "min_pixels", "max_pixels", "frame_min_pixels", "frame_max_pixels", "video_pixels"),
    *("frames", "fps", "text_tokens", "context", "dtype"),
)
"""The fields of InputSpec that are options; the others are what makes it this reranker."""


def form(architecture: str, mode: Mode = "pointwise") -> InputSpec:
    """What a reranker is shown, as an InputSpec."""
    return InputSpec(
        system=None if architecture == "qwen3_vl" else "You are a helpful assistant.",
        answer=None,
        ending="Ans: (" if mode == "listwise" else None,
        special_tokens=(),
        instruction_tokens=False,
        instruction_in_pool=True,
        lone_period=False,
        pool="last_token",
        attention="causal",
        rope="mrope",
        deepstack=architecture == "qwen3_vl",
        padding="right",
    )


class Rows(TypedDict):
    """Rows of tokens, padded on the right to one length."""

    ids: Ids
    """[R, L]"""
    visual: Ids
    """[R, L]: which visual token of the batch takes the token's place, -1 where none does."""
    lengths: Ids
    """[R]"""


class RerankBatch(Rows):
    """Prepared asks: their rows, and what is seen in them, each picture and clip once.

    Visual tokens are numbered through: the pictures', then the clips'.
    """

    leaders: Ids
    """[R]: the first row of the same ask."""
    shared: Ids
    """[R]: with how many tokens all rows of its ask begin."""
    choices: Ids
    """[R]: among how many answers a share is taken."""
    pictures: Bytes
    """[patches, 3 · side · side]"""
    picture_grids: Ids
    """[pictures, 3]"""
    clips: Bytes
    """[patches, 3 · frames · side · side]"""
    clip_grids: Ids
    shown_pictures: Ids
    """[pictures in all rows, 3]: their grids again, in the order of the rows."""
    shown_clips: Ids
    shown_seconds: npt.NDArray[np.float32]
    """[clips in all rows]: how long a patch lasts."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Tokens, the visual tokens that take their places, and the pictures and clips that these are of."""

    ids: Ids
    visual: Ids
    media: tuple[Media, ...]


@dataclass(frozen=True, slots=True)
class QwenRerankFrontend:
    """The weightless half."""

    source: QwenFrontend
    """The checkpoint, its tokenizer, and what this reranker is shown."""
    mode: Mode

    @property
    def identity(self) -> Mapping[str, str]:
        return {**self.source.identity, "mode": self.mode, "rerank_version": "1"}

    @property
    def modalities(self) -> frozenset[str]:
        return self.source.modalities

    @property
    def listwise(self) -> bool:
        return self.mode == "listwise"

    @property
    def answers(self) -> tuple[int, ...]:
        """The first token of each answer."""
        return tuple(self.source.vocabulary.ids(text)[0] for text in ANSWERS[self.mode])

    @property
    def opening(self) -> list[Piece]:
        """What the answer goes on from: the head of the assistant's turn and, listwise, its first words."""
        begun = self.source.spec.ending
        return [*opened("assistant"), *([Piece(begun)] if begun else [])]

    def cost(self, ask: Ask) -> int:
        """Tokens that are run, exactly."""
        shown = {part: look(self.source.vision, self.source.spec, part) for part in _seen([ask])}
        rows = self._rows(ask, shown, self.opening)
        shared = _shared(rows)
        return shared + sum(len(row.ids) - shared for row in rows)

    def prepare(self, asks: Sequence[Ask]) -> RerankBatch:
        return self.answered(asks, [self.opening] * len(asks))

    def answered(self, asks: Sequence[Ask], turns: Sequence[Sequence[Piece]]) -> RerankBatch:
        """Prepared asks, all rows of each with a turn of the assistant behind them: `opening`, or in
        training one that is whole."""
        seen = {part: see(self.source.vision, self.source.spec, part) for part in _seen(asks)}
        shown = {part: each for part, (each, _) in seen.items()}
        listed = [self._rows(ask, shown, said) for ask, said in zip(asks, turns, strict=True)]
        sizes = [len(rows) for rows in listed]
        choices = [len(ask.candidates) if self.listwise else len(self.answers) for ask in asks]
        pictures, clips = _parted(seen)
        in_rows = [part for rows in listed for row in rows for part in row.media]
        shown_pictures, shown_clips = _parted(in_rows)
        return {
            **self._padded([row for rows in listed for row in rows]),
            "leaders": np.repeat(np.cumsum([0, *sizes[:-1]]), sizes),
            "shared": np.repeat([_shared(rows) for rows in listed], sizes),
            "choices": np.repeat(choices, sizes),
            "pictures": _joined([seen[part][1] for part in pictures]),
            "picture_grids": _grids([shown[part] for part in pictures]),
            "clips": _joined([seen[part][1] for part in clips]),
            "clip_grids": _grids([shown[part] for part in clips]),
            "shown_pictures": _grids([shown[part] for part in shown_pictures]),
            "shown_clips": _grids([shown[part] for part in shown_clips]),
            "shown_seconds": np.array([shown[part].seconds for part in shown_clips], np.float32),
        }

    def seen_at(self, image: Image, size: Size) -> Size:
        return seen_at(self.source.spec, image, size)

    def load(self, device: str) -> QwenReranker:
        model = self.source.checkpoint.load(self.source.spec.dtype, spare=())
        return QwenReranker(model.to(device), self.source.vision, self.answers, listwise=self.listwise)

    def pieces(self, ask: Ask, shown: Mapping[Media, Seen], said: Sequence[Piece]) -> list[list[Piece]]:
        """The rows of an ask, as they are rendered; `said`: the assistant's turn."""
        query, *candidates = (self._content(item, shown) for item in (ask.query, *ask.candidates))
        if self.listwise:
            numbered = [piece for i, each in enumerate(candidates, 1) for piece in (Piece(f"({i}) "), *each)]
            asked = [[Piece(f"{LISTWISE}Query:"), *query, Piece("Candidates:"), *numbered]]
        else:
            asked = [[Piece(f"{POINTWISE}Query:"), *query, Piece("Candidate:"), *each] for each in candidates]
        system = self.source.spec.system
        head = turn("system", [Piece(system)]) if system else []
        return [[*head, *turn("user", each), *said] for each in asked]

    def _content(self, item: Item, shown: Mapping[Media, Seen]) -> list[Piece]:
        """An item as plain as it is, its texts within the limit."""
        spec, vocabulary = self.source.spec, self.source.vocabulary
        parts = tuple(
            Text(vocabulary.shortened(spec, part.text)) if isinstance(part, Text) else part
            for part in item.parts
        )
        bare = replace(spec, chat=False, ending=None)
        return render(bare, replace(item, parts=parts), lambda part: shown[part].pieces(self.source.vision))

    def _rows(self, ask: Ask, shown: Mapping[Media, Seen], said: Sequence[Piece]) -> list[_Row]:
        """A row for each candidate; listwise, one for all. `shown`: the batch's, pictures before clips.

        Raises HarnessError for a list that is too long, DataInvalid for a row that is.
        """
        most = len(ANSWERS["listwise"])
        if self.listwise and len(ask.candidates) > most:
            raise HarnessError(
                f"{self.source.name} tells {most} candidates of a list apart, not {len(ask.candidates)}:"
                f" add --depth {most}, or take mode=pointwise"
            )
        sizes = [int(np.prod(each.grid)) // self.source.vision.merge**2 for each in shown.values()]
        ends = np.cumsum(sizes)
        places = {
            part: np.arange(end - size, end) for part, size, end in zip(shown, sizes, ends, strict=True)
        }
        together = [ask.candidates] if self.listwise else [(candidate,) for candidate in ask.candidates]
        return [
            self._row(pieces, tuple(_media([ask.query, *candidates])), places, ask)
            for candidates, pieces in zip(together, self.pieces(ask, shown, said), strict=True)
        ]

    def _row(
        self, pieces: Sequence[Piece], media: tuple[Media, ...], places: Mapping[Media, Ids], ask: Ask
    ) -> _Row:
        vocabulary, context = self.source.vocabulary, self.source.spec.context
        ids = np.array(vocabulary.row(pieces).ids, np.int64)
        if len(ids) > context:
            raise DataInvalid(
                f"{_brief(ask.query)} and what it is compared with have {len(ids):,} tokens,"
                f" {self.source.name} takes {context:,}: lower text-tokens, max-pixels, video-pixels or fps"
            )
        visual = np.full(len(ids), -1, np.int64)
        is_visual = (ids == vocabulary.id(IMAGE_PAD)) | (ids == vocabulary.id(VIDEO_PAD))
        visual[is_visual] = np.concatenate([np.arange(0), *(places[part] for part in media)])
        return _Row(ids, visual, media)

    def _padded(self, rows: Sequence[_Row]) -> Rows:
        lengths = np.array([len(row.ids) for row in rows])
        shape = len(rows), int(lengths.max())
        ids, visual = np.full(shape, self.source.vocabulary.id(PAD), np.int64), np.full(shape, -1, np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row.ids)], visual[at, : len(row.ids)] = row.ids, row.visual
        return {"ids": ids, "visual": visual, "lengths": lengths}


class QwenReranker:
    """The loaded weights."""

    def __init__(self, model: Any, vision: Vision, answers: Sequence[int], *, listwise: bool) -> None:
        self.model = model.model
        self.answers = model.lm_head.weight[list(answers)].float()  # [answers, D]
        self.vision = vision
        self.listwise = listwise

    def score(self, batch: RerankBatch) -> Tensor:
        """[candidates] float32, the share of Yes or of the candidate's number."""
        import torch

        with torch.inference_mode():
            logits = self.last_states(batch).float() @ self.answers.T
            choices = torch.from_numpy(batch["choices"]).to(logits.device)
            open_to_it = torch.arange(len(self.answers), device=logits.device) < choices[:, None]
            shares = logits.masked_fill(~open_to_it, -torch.inf).softmax(-1)
            found: Tensor = shares[open_to_it] if self.listwise else shares[:, 0]
            return found

    def last_states(self, batch: RerankBatch) -> Tensor:
        """[R, D] state of each row's last token: what the rows of an ask share is run first, and once."""
        import torch
        from transformers import DynamicCache

        table, positions = _table(self.model, self.vision, batch), _positions(self.model, self.vision, batch)
        shared, cache = batch["shared"], None
        leaders = np.unique(batch["leaders"][shared > 0])
        if len(leaders):
            cache = DynamicCache(config=self.model.language_model.config)
            first = _stretch(batch, positions, leaders, np.zeros_like(leaders), shared[leaders])
            _run(self.model, first, table, cache)
            place = np.searchsorted(leaders, batch["leaders"]).clip(max=len(leaders) - 1)
            cache.batch_select_indices(torch.from_numpy(place).to(self.model.device))
        rows = np.arange(len(shared))
        rest = _stretch(batch, positions, rows, shared, batch["lengths"])
        return _run(self.model, rest, table, cache, shared)[rows, batch["lengths"] - shared - 1]


def whole_states(model: Any, vision: Vision, batch: RerankBatch) -> Tensor:
    """[R, L, D] of all tokens of the rows, nothing shared but what is seen; with a gradient where one is
    wanted. `model`: transformers' own, without its head."""
    lengths = batch["lengths"]
    positions = _positions(model, vision, batch)
    rows = _stretch(batch, positions, np.arange(len(lengths)), np.zeros_like(lengths), lengths)
    return _run(model, rows, _table(model, vision, batch))


def _run(
    model: Any, rows: _Stretch, table: Sequence[Tensor], cache: Any = None, before: Ids | None = None
) -> Tensor:
    """[R, L, D] states, after the first `before` tokens of each row of the cache."""
    import torch

    device, dtype = model.device, model.dtype
    visual = torch.from_numpy(rows.visual).to(device)
    embedded = model.get_input_embeddings()(torch.from_numpy(rows.ids).to(device))
    seen, more = visual >= 0, {}
    if table:
        embedded = embedded.index_put((seen,), table[0][visual[seen]].to(embedded.dtype))
    if len(table) > 1:
        layers = [layer[visual[seen]] for layer in table[1:]]
        more = {"visual_pos_masks": seen, "deepstack_visual_embeds": layers}
    mask = additive_mask(torch.from_numpy(rows.real).to(device), "causal", dtype)
    if before is not None and cache is not None:
        there = torch.arange(cache.get_seq_length()) < torch.from_numpy(before)[:, None]
        past = torch.zeros(there.shape, dtype=dtype).masked_fill_(~there, torch.finfo(dtype).min)
        past = past.to(device)[:, None, None].expand(-1, -1, mask.shape[2], -1)
        mask = torch.cat([past, mask], dim=-1)
    states: Tensor = model.language_model(
        inputs_embeds=embedded,
        attention_mask=mask,
        position_ids=torch.from_numpy(rows.positions).to(device),
        past_key_values=cache,
        use_cache=cache is not None,
        **more,
    ).last_hidden_state
    return states


def _table(model: Any, vision: Vision, batch: RerankBatch) -> list[Tensor]:
    """[visual tokens, D] of all that is seen and, from Qwen3-VL, the same of inner layers; or nothing."""
    import torch

    device, dtype = model.device, model.dtype
    towers = []
    for still, features_of, patches, grids in (
        (True, model.get_image_features, batch["pictures"], batch["picture_grids"]),
        (False, model.get_video_features, batch["clips"], batch["clip_grids"]),
    ):
        if len(grids):
            pixels = normalised(vision, torch.from_numpy(patches).to(device), still=still)
            found = features_of(pixels.to(dtype), torch.from_numpy(grids).to(device))
            inner = getattr(found, "deepstack_features", None) or ()
            towers.append([torch.cat(tuple(layer)).to(dtype) for layer in (found.pooler_output, *inner)])
    return [torch.cat(layer) for layer in zip(*towers, strict=True)]


def _positions(model: Any, vision: Vision, batch: RerankBatch) -> Ids:
    """[3, R, L] of whole rows."""
    import torch

    stills = batch["picture_grids"].prod(1).sum() // vision.merge**2
    kinds = 1 * (batch["visual"] >= 0) + 1 * (batch["visual"] >= stills)  # a picture's 1, a clip's 2
    real = np.arange(kinds.shape[1]) < batch["lengths"][:, None]
    positions, _ = model.get_rope_index(
        torch.from_numpy(batch["ids"]),
        mm_token_type_ids=torch.from_numpy(kinds),
        image_grid_thw=torch.from_numpy(batch["shown_pictures"]),
        video_grid_thw=torch.from_numpy(batch["shown_clips"]),
        second_per_grid_ts=torch.from_numpy(batch["shown_seconds"]),
        attention_mask=torch.from_numpy(real).long(),
    )
    found: Ids = positions.numpy()
    return found


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Some rows from one token to another, padded on the right; positions [3, R, L], others [R, L]."""

    ids: Ids
    visual: Ids
    real: npt.NDArray[np.bool_]
    positions: Ids


def _stretch(batch: RerankBatch, positions: Ids, rows: Ids, starts: Ids, ends: Ids) -> _Stretch:
    at = starts[:, None] + np.arange((ends - starts).max())
    real = at < ends[:, None]
    here = rows[:, None], np.where(real, at, 0)
    visual = np.where(real, batch["visual"][here], -1)
    return _Stretch(batch["ids"][here], visual, real, positions[:, here[0], here[1]])


def _shared(rows: Sequence[_Row]) -> int:
    """With how many tokens all rows begin, a token of each left over; 0 for a row alone."""
    if len(rows) == 1:
        return 0
    length = min(len(row.ids) for row in rows) - 1
    first, alike = rows[0], np.ones(length, np.bool_)
    for row in rows[1:]:
        alike &= row.ids[:length] == first.ids[:length]
        alike &= row.visual[:length] == first.visual[:length]
    return int(np.logical_and.accumulate(alike).sum())


def _media(items: Iterable[Item]) -> list[Media]:
    """Pictures and clips in their order."""
    return [part for item in items for part in item.parts if not isinstance(part, Text)]


def _seen(asks: Sequence[Ask]) -> list[Media]:
    """What there is to be seen, each once, pictures before clips."""
    pictures, clips = _parted(dict.fromkeys(_media(i for ask in asks for i in (ask.query, *ask.candidates))))
    return [*pictures, *clips]


def _parted(media: Iterable[Media]) -> tuple[list[Image], list[Video]]:
    media = list(media)
    return [m for m in media if isinstance(m, Image)], [m for m in media if isinstance(m, Video)]


def _joined(patches: Sequence[Bytes]) -> Bytes:
    return np.concatenate(patches) if patches else np.zeros((0, 0), np.uint8)


def _grids(seen: Sequence[Seen]) -> Ids:
    return np.array([each.grid for each in seen], np.int64).reshape(-1, 3)


def open_reranker(
    name: str, repo: str, architecture: str | None, given: Mapping[str, str]
) -> QwenRerankFrontend:
    """The frontend of a reranker; without an `architecture` any of the family, without a `repo` a
    checkpoint must be named. Raises CheckpointMissing, HarnessError, UnknownName."""
    shown = {option(field): value for field, value in form("qwen2_vl").shown().items() if field in CHOSEN}
    given = {key.replace("_", "-"): value for key, value in given.items()}
    places = {"path": repo, "revision": "main", "base": ""}
    chosen = options(name, given, {**places, "mode": "pointwise", **shown})
    mode: Mode = "listwise" if chosen["mode"] == "listwise" else "pointwise"
    if mode != chosen["mode"]:
        raise UnknownName(f"mode of reranker {name!r}", chosen["mode"], get_args(Mode))
    if not chosen["path"]:
        raise CheckpointMissing(
            f"{name} has no public checkpoint: 'harness train umarvel --stage reranker' makes one,"
            " which --rerank-arg path=FOLDER names"
        )
    given.pop("mode", None)
    try:
        found = architecture or architecture_of(chosen["path"], chosen["revision"], chosen["base"])
        source = open_qwen(name, repo, found, form(found, mode), given)
    except CheckpointMissing as error:
        raise CheckpointMissing(str(error).replace("--model-arg", "--rerank-arg")) from error
    fields = {field: getattr(source.spec, field) for field in CHOSEN}
    reranker = QwenRerankFrontend(replace(source, spec=replace(form(found, mode), **fields)), mode)
    _require_answers(reranker)
    return reranker


def _require_answers(reranker: QwenRerankFrontend) -> None:
    """Raises CheckpointMissing where two answers begin alike."""
    vocabulary, answers = reranker.source.vocabulary, ANSWERS[reranker.mode]
    first = {vocabulary.first(answer) for answer in answers}
    if len(first) < len(answers) or None in first:
        raise CheckpointMissing(
            f"{vocabulary.file} has no first token of its own for each of {', '.join(answers)}:"
            " take the checkpoint's own tokenizer.json"
        )


def qwen_reranker(
    name: str,
    title: str,
    *,
    repo: str = "",
    architecture: str | None = None,
    **more: Any,
) -> RerankerSpec:
    """A reranker of the family: `repo` on the hub by default, else `--rerank-arg path=…`."""
    kind = architecture or ARCHITECTURES[0]
    return RerankerSpec(
        name=name,
        title=title,
        open=partial(open_reranker, name, repo, architecture),
        tiny=partial(tiny_options, kind),
        input_spec={"mode": "pointwise", **form(kind).shown()},
        **more,
    )
