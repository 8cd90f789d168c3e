"""The contrastive stages: queries to their positives, against all others of the batch and mined negatives.

nli, cc3m, mbeir: in-batch negatives          hard-negatives: five mined ones of every query as well
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from harness.content import Item
from harness.recipe import Settings, StageRun

from ..input_spec import InputSpec
from ..qwen_vl import QwenBatch, QwenFrontend
from .embedder import SAVED, Trained, embedding, learned, open_frontend, save, start_of
from .examples import Corpus, Visit, content_number, use, visit_at
from .gradient import cached_step, gather_with_gradient
from .loop import Engine, Schedule, fit
from .losses import OBJECTIVES, duplicates, infonce
from .negatives import Negatives

if TYPE_CHECKING:
    from torch import Tensor

Int64 = npt.NDArray[np.int64]


class Prepared(TypedDict):
    """A rank's share of a batch: N queries, N positives and, query by query, N·K negatives."""

    chunks: list[QwenBatch]
    order: Int64
    """[N(2 + K)]: which of those items each row of the chunks is."""
    count: int
    hard: int
    positives: Int64
    """[N]: equal where contents are."""
    negatives: Int64
    """[N, K]"""
    visits: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Batches:
    """`Batches(…)[visits]`: what a rank prepares of a step, in a worker."""

    corpus: Corpus
    frontend: QwenFrontend
    negatives: Negatives | None
    seed: int
    chunk: int

    def __getitem__(self, numbers: list[int]) -> Prepared:
        visits = [self._visit(number) for number in numbers]
        hard = len(visits[0].negatives)
        items = [v.query for v in visits] + [v.positive for v in visits]
        items += [negative for v in visits for negative in v.negatives]
        chunks, order = chunked(self.frontend, items, self.chunk)
        return {
            "chunks": chunks,
            "order": order,
            "count": len(visits),
            "hard": hard,
            "positives": np.array([content_number(v.positive) for v in visits], np.int64),
            "negatives": np.array([[content_number(n) for n in v.negatives] for v in visits], np.int64),
            "visits": [(v.task, v.query_id) for v in visits],
        }

    def _visit(self, number: int) -> Visit:
        index, random = visit_at(number, len(self.corpus), self.seed)
        lesson, row = self.corpus.place(index)
        visit = lesson.visit(row, random)
        return visit if self.negatives is None else self.negatives.added(visit, lesson, row, random)


def chunked(
    frontend: QwenFrontend, items: Sequence[Item], chunk: int
) -> tuple[list[QwenBatch], npt.NDArray[np.int64]]:
    """The items, longest first, so many at a time, and which of them each row is. Equal items are
    equal numbers of chunks on every rank, as some engines need it."""
    order = np.argsort([-frontend.cost(each) for each in items], kind="stable")
    parts = [order[at : at + chunk] for at in range(0, len(order), chunk)]
    return [frontend.prepare([items[i] for i in part]) for part in parts], order


def contrastive(run: StageRun, spec: InputSpec) -> None:
    """Run a contrastive stage; makes the merged checkpoint. Raises DataInvalid, HarnessError."""
    settings = run.settings
    start = start_of(run)
    frontend = open_frontend(start, settings, spec)
    uses = use(settings)
    corpus = Corpus.load(run.tasks(uses.tasks), run.data, uses.protocol)
    trained = Trained.of(settings)
    fixed = float(settings["temperature"])  # type: ignore[arg-type]
    temperature = learned(start, fixed) if settings["learn_temperature"] else None
    module: Any = embedding(frontend, trained, temperature)
    if settings["gradient_checkpointing"]:
        module.whole.activation_checkpointing_enable()
    seed = int(settings["seed"])  # type: ignore[arg-type]
    source = Batches(corpus, frontend, Negatives.of(run), seed, run.chunk)

    def step(model: Any, batch: Prepared, engine: Engine) -> Mapping[str, float]:
        tau = getattr(model, "module", model).temperature
        before = fixed if tau is None else float(tau().detach())
        value = cached_step(
            model,
            batch["chunks"],
            lambda rows: loss(rows, batch, fixed if tau is None else tau(), settings),
            backward=engine.backward,
            no_sync=engine.no_sync,
        )
        return {"loss": float(value), "temperature": before}

    schedule = Schedule.of(settings)
    sparse = trained.vision or trained.projector
    shared = [] if temperature is None else [module.temperature]
    module = fit(run, module, source, len(corpus), schedule, step, sparse=sparse, replicated=shared)
    if run.ranks.rank == 0:
        save(module, frontend, run.folder / SAVED)


def loss(rows: Tensor, batch: Prepared, temperature: Tensor | float, settings: Settings) -> Tensor:
    """The InfoNCE loss of all ranks' rows, [N(2 + K), D] of this one in the order of its chunks."""
    import torch

    device, count, hard = rows.device, batch["count"], batch["hard"]
    back = torch.from_numpy(np.argsort(batch["order"])).to(device)
    released = settings["gather"] == "released"
    queries, positives, *mined = (
        gather_with_gradient(part, released=released)
        for part in torch.split(rows[back], [count, count, *([count * hard] if hard else [])])
    )
    negatives = mined[0].view(-1, hard, rows.shape[1]) if mined else None
    same = None
    if settings["mask_duplicates"]:
        numbers = gather_with_gradient(torch.from_numpy(batch["positives"]).to(device))
        of_negatives = gather_with_gradient(torch.from_numpy(batch["negatives"]).to(device)) if hard else None
        same = duplicates(numbers, of_negatives)
    return infonce(
        queries,
        positives,
        negatives,
        temperature,
        two_way=bool(settings["two_way"]),
        weights=(float(settings["two_way_weight"]),) * 2,  # type: ignore[arg-type]
        in_batch=bool(settings["in_batch"]),
        same=same,
        objective=OBJECTIVES[str(settings["objective"])],
    )
