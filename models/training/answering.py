"""The reranker stages: does a candidate answer the query, yes or no; jointly, as in LamRA, which of a few.

visit 17  ->  (query, positive) "Yes"    (query, mined negative) "No"
              and, jointly, (query, 1-4 mined negatives and the positive among them) "Ans: (3)"

Next-token cross entropy on the assistant's turn, in the prompts and with the forward of qwen_rerank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt

from harness.content import Ask, Candidate, Item, item
from harness.errors import DataInvalid, HarnessError, UnknownName
from harness.recipe import Settings, Stage, StageRun

from ..input_spec import Piece, option, turn
from ..qwen_pictures import Vision
from ..qwen_rerank import (
    ANSWERS,
    CHOSEN,
    Mode,
    QwenRerankFrontend,
    RerankBatch,
    form,
    open_reranker,
    whole_states,
)
from ..qwen_vl import ARCHITECTURES
from .corpus import Corpus, Lesson, Visit, use, visit_at
from .embedder import RETRIEVER, SAVED, Trained, adapted, base_fingerprint, base_of, inner, save, spec_of
from .gradient import mean_over_ranks
from .lists import Lists, read
from .loop import Engine, Schedule, fit

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Int64 = npt.NDArray[np.int64]
Init = Literal["base", "retriever"]
Form = Literal["pointwise", "pointwise+listwise"]
Labels = Literal["turn", "answer"]

NEGATIVES = "negatives"
"""The role of the stage that mined."""
_MOST_OTHERS = 4
"""A list has so many negatives at most, and one at least."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A sequence to train on: an ask of one row, and its answer."""

    mode: Mode
    ask: Ask
    answer: str


class Chunk(TypedDict):
    """Sequences that are run at a time, and their T labelled tokens."""

    rows: RerankBatch
    at: tuple[Int64, Int64]
    """[T] rows and columns of the states that are to say them."""
    tokens: Int64
    """[T]"""


class Prepared(TypedDict):
    """A rank's share of a batch."""

    chunks: list[Chunk]
    labelled: int
    """Tokens of all chunks."""
    visits: list[tuple[str, str]]


def answered(visit: Visit, random: np.random.Generator) -> list[Answered]:
    """The pair with the positive and that with the first negative; with all others, where there are any,
    a list that has the positive at any place."""
    first, *others = visit.negatives
    made = [
        Answered("pointwise", Ask(visit.query, (candidate,)), answer)
        for candidate, answer in zip((visit.positive, first), ANSWERS["pointwise"], strict=True)
    ]
    if others:
        place = int(random.integers(len(others) + 1))
        listed = Ask(visit.query, (*others[:place], visit.positive, *others[place:]))
        made.append(Answered("listwise", listed, ANSWERS["listwise"][place]))
    return made


def drawn(
    visit: Visit,
    lesson: Lesson,
    row: int,
    mined: Iterator[Candidate],
    count: int,
    random: np.random.Generator,
) -> list[Item]:
    """So many different candidates that are no positive of the query of that row: the first of the mined
    and, where these do not suffice, any of the pool.

    One with the content of the visit's positive is none either. Raises DataInvalid where there is none at
    all.
    """
    out = {int(at) for at in lesson.positives[row]}
    ids = lesson.labelled(row)
    found: dict[Item, None] = {}
    for candidate in chain(mined, _others(lesson, out, random)):
        if candidate.id not in ids and candidate.parts != visit.positive.parts:
            found[item(candidate)] = None
        if len(found) == count:
            break
    if not found:
        raise DataInvalid(
            f"every candidate of {visit.task} is a positive of query {visit.query_id}: there is nothing to"
            " answer No to; leave the task out, or use a larger pool"
        )
    return list(found)


def shuffled(mined: Lists, lesson: Lesson, row: int, random: np.random.Generator) -> Iterator[Candidate]:
    """What was mined for the query of that row, in any order."""
    places = mined.of(lesson.task, row)
    for at in random.permutation(len(places.query)):
        yield from mined.candidates(places[[at]])


def _others(lesson: Lesson, out: set[int], random: np.random.Generator) -> Iterator[Candidate]:
    """The candidates whose rows are not out, in any order."""
    out = set(out)
    while len(out) < len(lesson.candidates):
        row = int(random.integers(len(lesson.candidates) - len(out)))
        for each in sorted(out):
            row += row >= each
        out.add(row)
        yield lesson.candidates[row]


def prepared(frontend: QwenRerankFrontend, asked: Sequence[Answered], labels: Labels) -> Chunk:
    """The sequences, all of the frontend's mode. labels: the whole turn of the assistant, head and end
    included, counts as released; or the token alone that a reranker is scored by."""
    turns = [_turn(frontend, each.answer) for each in asked]
    rows = frontend.answered([each.ask for each in asked], turns)
    ids = frontend.source.vocabulary.row
    sizes = [len(ids(said).ids) for said in turns]
    begun = len(ids(frontend.opening).ids)
    at, columns = [], []
    for number, (length, size) in enumerate(zip(rows["lengths"], sizes, strict=True)):
        tokens = np.arange(length - size, length) if labels == "turn" else [length - size + begun]
        at += [number] * len(tokens)
        columns += list(tokens)
    places = np.array(at, np.int64), np.array(columns, np.int64)
    return {"rows": rows, "at": (places[0], places[1] - 1), "tokens": rows["ids"][places]}


def _turn(frontend: QwenRerankFrontend, answer: str) -> list[Piece]:
    """The assistant's whole turn: "Yes", or "Ans: (2)"."""
    begun = frontend.source.spec.ending
    return turn("assistant", [Piece(answer if begun is None else f"{begun}{answer})")])


@dataclass(frozen=True, slots=True)
class Batches:
    """`Batches(…)[visits]`: what a rank prepares of a step, in a worker."""

    corpus: Corpus
    frontends: tuple[QwenRerankFrontend, ...]
    """Pointwise and, in the joint form, listwise."""
    mined: Lists
    labels: Labels
    seed: int
    chunk: int

    def __getitem__(self, numbers: list[int]) -> Prepared:
        visits, asked = [], []
        for number in numbers:
            index, random = visit_at(number, len(self.corpus), self.seed)
            visit = self._visit(*self.corpus.place(index), random)
            visits.append((visit.task, visit.query_id))
            asked += answered(visit, random)
        chunks = [chunk for frontend in self.frontends for chunk in self._chunks(frontend, asked)]
        return {"chunks": chunks, "labelled": sum(len(c["tokens"]) for c in chunks), "visits": visits}

    def _visit(self, lesson: Lesson, row: int, random: np.random.Generator) -> Visit:
        """With the negative of its pair and, in the joint form, those of its list."""
        visit = lesson.visit(row, random)
        counts = [1, int(random.integers(1, _MOST_OTHERS + 1))][: len(self.frontends)]
        found = (
            drawn(visit, lesson, row, shuffled(self.mined, lesson, row, random), count, random)
            for count in counts
        )
        return replace(visit, negatives=tuple(each for some in found for each in some))

    def _chunks(self, frontend: QwenRerankFrontend, asked: Sequence[Answered]) -> list[Chunk]:
        """Longest first; as many on every rank."""
        own = sorted(
            (each for each in asked if each.mode == frontend.mode), key=lambda each: -frontend.cost(each.ask)
        )
        parts = [own[at : at + self.chunk] for at in range(0, len(own), self.chunk)]
        return [prepared(frontend, part, self.labels) for part in parts]


def answering(whole: Any, vision: Vision) -> Module:
    """The module to train: `forward(chunk)` is the cross entropy of its labelled tokens, summed, a float32
    scalar. `whole` is the transformers model, with its adapters where there are any."""
    import torch
    from torch.nn.functional import cross_entropy, linear

    class Answering(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = whole
            self.temperature = None

        def forward(self, chunk: Chunk) -> Tensor:
            states = whole_states(inner(self.whole), vision, chunk["rows"])
            rows, columns = (torch.from_numpy(each).to(states.device) for each in chunk["at"])
            tokens = torch.from_numpy(chunk["tokens"]).to(states.device)
            with torch.autocast(states.device.type, enabled=False):
                head = self.whole.get_output_embeddings().weight
                logits = linear(states[rows, columns].float(), head.float())  # [T, V]
                return cross_entropy(logits, tokens, reduction="sum")

    return Answering()


def step(model: Any, batch: Prepared, engine: Engine) -> Mapping[str, float]:
    """The mean over the labelled tokens of all chunks, of which one at a time is held."""
    import torch

    last = len(batch["chunks"]) - 1
    losses = []
    for at, chunk in enumerate(batch["chunks"]):
        with nullcontext() if at == last else engine.no_sync():
            part = model(chunk) / batch["labelled"]
            engine.backward(part)
        losses.append(part.detach())
    return {"loss": float(mean_over_ranks(torch.stack(losses).sum()))}


def answer(run: StageRun) -> None:
    """Run a reranker stage; makes the merged checkpoint, which the rerankers open. Raises DataInvalid,
    HarnessError, UnknownName."""
    settings = run.settings
    modes: list[Mode] = _choice(settings, "form", Form).split("+")
    labels = _choice(settings, "labels", Labels)
    start = _start(run)
    frontends = tuple(_frontend(start, settings, mode) for mode in modes)
    source = frontends[0].source
    if NEGATIVES not in run.inputs:
        raise HarnessError(f"a reranker is trained on mined negatives: no stage plays the role {NEGATIVES!r}")
    uses = use(settings)
    corpus = Corpus.load(run.tasks(uses.tasks), run.data, uses.protocol)
    mined = read(run.inputs[NEGATIVES], corpus, run, kept=lambda places: ~places.positive)
    batches = Batches(corpus, frontends, mined, labels, uses.protocol.seed, run.chunk)
    trained = Trained.of(settings)
    whole = source.checkpoint.load(source.spec.dtype, spare=())
    module: Any = answering(adapted(whole, trained), source.vision)
    if settings["gradient_checkpointing"]:
        module.whole.activation_checkpointing_enable()
    sparse = trained.vision or trained.projector
    module = fit(run, module, batches, len(corpus), Schedule.of(settings), step, sparse=sparse)
    if run.ranks.rank == 0:
        save(module, source, run.folder / SAVED)


def _choice(settings: Settings, name: str, choices: Any) -> Any:
    """Raises UnknownName."""
    known = get_args(choices)
    if settings[name] not in known:
        raise UnknownName(f"setting {name}", str(settings[name]), known)
    return settings[name]


def _start(run: StageRun) -> str:
    """The checkpoint that a reranker starts from. Raises HarnessError."""
    if _choice(run.settings, "init", Init) == "base":
        return base_of(run)
    if RETRIEVER not in run.inputs:
        raise HarnessError(f"init=retriever: no stage plays the role {RETRIEVER!r}: set init=base")
    return str(run.inputs[RETRIEVER] / SAVED)


def reranker_base(stage: Stage) -> str | None:
    """`Stage.base` of a reranker's."""
    settings = stage.settings
    mode: Mode = _choice(settings, "form", Form).partition("+")[0]
    if _choice(settings, "init", Init) == "retriever":
        return None
    return base_fingerprint(stage, lambda path: _frontend(path, settings, mode).source)


def _frontend(path: str, settings: Settings, mode: Mode) -> QwenRerankFrontend:
    """Shown what the settings say, whatever was saved beside the checkpoint."""
    shown = spec_of(settings, form(ARCHITECTURES[0])).shown()
    given = {option(name): value for name, value in shown.items() if name in CHOSEN}
    place = {"path": path, "revision": str(settings.get("revision") or "main"), "mode": mode}
    return open_reranker("training", "", None, {**place, **given})
