"""The contrastive stages: queries to their positives, against all others of the batch and mined negatives.

nli, cc3m, mbeir: in-batch negatives          hard-negatives: five mined ones of every query as well
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.content import Item
from harness.errors import HarnessError
from harness.recipe import Settings, StageRun

from ..input_spec import InputSpec
from ..qwen_vl import QwenFrontend
from .corpus import Corpus, Visit, content_number, cropped, visit_at
from .gradient import gather_with_gradient
from .losses import OBJECTIVES, duplicates, infonce
from .negatives import Negatives
from .stage import Chunks, chunked, train_embedder, unchunked

if TYPE_CHECKING:
    from torch import Tensor

Int64 = npt.NDArray[np.int64]


class Prepared(Chunks):
    """A rank's share of a batch: N queries, N positives and, query by query, N·K negatives."""

    count: int
    hard: int
    positives: Int64
    """[N]: equal where contents are."""
    negatives: Int64
    """[N, K]"""


@dataclass(frozen=True, slots=True)
class Batches:
    """`Batches(…)[visits]`: what a rank prepares of a step, in a worker."""

    corpus: Corpus
    frontend: QwenFrontend
    negatives: Negatives | None
    seed: int
    chunk: int
    crop: float = 1.0
    """The least of either side of a picture that is shown."""

    def __getitem__(self, numbers: list[int]) -> Prepared:
        visits, randoms = zip(*map(self._visit, numbers), strict=True)
        hard = len(visits[0].negatives)
        seen = [self._seen(visit, random) for visit, random in zip(visits, randoms, strict=True)]
        items = [visit.query for visit in seen] + [visit.positive for visit in seen]
        items += [negative for visit in seen for negative in visit.negatives]
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

    def _visit(self, number: int) -> tuple[Visit, np.random.Generator]:
        index, random = visit_at(number, len(self.corpus), self.seed)
        lesson, row = self.corpus.place(index)
        visit = lesson.visit(row, random)
        if self.negatives is not None:
            visit = self.negatives.added(visit, lesson, row, random)
        return visit, random

    def _seen(self, visit: Visit, random: np.random.Generator) -> Visit:
        def shown(each: Item) -> Item:
            return cropped(each, self.crop, random)

        negatives = tuple(map(shown, visit.negatives))
        return replace(visit, query=shown(visit.query), positive=shown(visit.positive), negatives=negatives)


def contrastive(run: StageRun, spec: InputSpec) -> None:
    """Run a contrastive stage; makes the merged checkpoint. Raises DataInvalid, HarnessError."""

    def batches(corpus: Corpus, frontend: QwenFrontend) -> Batches:
        seed, crop = int(str(run.settings["seed"])), float(str(run.settings["crop"]))
        if not 0 < crop <= 1:
            raise HarnessError(
                f"crop is the least share of a picture's sides, above 0 and at most 1, not {crop}"
            )
        return Batches(corpus, frontend, Negatives.of(run, corpus), seed, run.chunk, crop)

    train_embedder(run, spec, batches, loss)


def loss(rows: Tensor, batch: Prepared, temperature: Tensor | float, settings: Settings) -> Tensor:
    """The InfoNCE loss of all ranks' rows, [N(2 + K), D] of this one in the order of its chunks."""
    import torch

    device, count, hard = rows.device, batch["count"], batch["hard"]
    released = settings["gather"] == "released"
    queries, positives, *mined = (
        gather_with_gradient(part, released=released)
        for part in torch.split(unchunked(rows, batch), [count, count, *([count * hard] if hard else [])])
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
