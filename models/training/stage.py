"""What all stages have in common that train an embedder: where it comes from, a step, what is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from harness.content import Item
from harness.recipe import Settings, StageRun
from harness.workers import Source

from ..input_spec import InputSpec
from ..qwen_vl import QwenBatch, QwenFrontend
from .corpus import Corpus, use
from .embedder import SAVED, Trained, embedding, learned, open_frontend, save, start_of
from .gradient import cached_step, mean_over_ranks
from .loop import Engine, Schedule, fit

if TYPE_CHECKING:
    from torch import Tensor


class Chunks(TypedDict):
    """The items of a rank's share of a batch, some at a time."""

    chunks: list[QwenBatch]
    order: npt.NDArray[np.int64]
    """Which of the items each row of the chunks is."""
    visits: list[tuple[str, str]]
    """Task and query of each."""


P = TypeVar("P", bound=Chunks)


def chunked(
    frontend: QwenFrontend, items: Sequence[Item], chunk: int
) -> tuple[list[QwenBatch], npt.NDArray[np.int64]]:
    """The items, longest first, so many at a time, and which of them each row is. Equal items are
    equal numbers of chunks on every rank, as some engines need it."""
    order = np.argsort([-frontend.cost(each) for each in items], kind="stable")
    parts = [order[at : at + chunk] for at in range(0, len(order), chunk)]
    return [frontend.prepare([items[i] for i in part]) for part in parts], order


def unchunked(rows: Tensor, batch: Chunks) -> Tensor:
    """The rows of a batch's chunks in the order of its items."""
    import torch

    return rows[torch.from_numpy(np.argsort(batch["order"])).to(rows.device)]


def train_embedder(
    run: StageRun,
    spec: InputSpec,
    batches: Callable[[Corpus, QwenFrontend], Source[P]],
    loss: Callable[[Tensor, P, Tensor | float, Settings], Tensor],
) -> None:
    """Run a stage that trains an embedder; makes the merged checkpoint. Raises DataInvalid, HarnessError.

    `batches(corpus, frontend)[visits]` is what a rank prepares of a step, `loss(rows, batch, temperature,
    settings)` its loss, of vectors [items, D] in the order of the chunks. `share`, where it is among the
    settings: of how many of each task's rows.
    """
    settings = run.settings
    start = start_of(run)
    frontend = open_frontend(start, settings, spec)
    uses = use(settings)
    share = float(str(settings.get("share", 1.0)))
    corpus = Corpus.load(run.tasks(uses.tasks), run.data, uses.protocol, share=share)
    trained = Trained.of(settings)
    fixed = float(str(settings["temperature"]))
    temperature = learned(start, fixed) if settings["learn_temperature"] else None
    source = batches(corpus, frontend)
    module: Any = embedding(frontend, trained, temperature)
    if settings["gradient_checkpointing"]:
        module.whole.activation_checkpointing_enable()

    def step(model: Any, batch: P, engine: Engine) -> Mapping[str, float]:
        tau = getattr(model, "module", model).temperature
        before = fixed if tau is None else float(tau().detach())
        value = cached_step(
            model,
            batch["chunks"],
            lambda rows: loss(rows, batch, fixed if tau is None else tau(), settings),
            backward=engine.backward,
            no_sync=engine.no_sync,
        )
        return {"loss": float(mean_over_ranks(value)), "temperature": before}

    sparse = trained.vision or trained.projector
    shared = [] if temperature is None else [module.temperature]
    schedule = Schedule.of(settings)
    module = fit(run, module, source, len(corpus), schedule, step, sparse=sparse, replicated=shared)
    if run.ranks.rank == 0:
        save(module, frontend, run.folder / SAVED)
